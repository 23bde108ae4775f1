"""A search: rounds in which candidates meet on folds, each round one pass of many runs over the frozen model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..errors import RecipeError, TrainingError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .folds import make_folds
from .halving import Round, plan_rounds
from .machine import choose
from .many import ManyResult, train_many
from .many_folder import NAME as BANK
from .open_ground import open_ground
from .pairs import NOTICE
from .plan import Plan
from .progress import BankListener
from .ranks import here
from .recipe import Pairs
from .result import Result
from .search_folder import Journal
from .space import Candidate
from .tune_result import Trial

if TYPE_CHECKING:
    from .grounds import LabelGround
    from .prompt_ground import PromptGround


PILOT_ROWS = 128
"""Rows of a fold, or up to twice as many, on which the speed is measured."""


RESERVE = 0.1
"""Share of the minutes that is not planned for."""
ALONE = 2
"""How many times as long a run takes alone as in a bank of many (measured: 1.5 to 2)."""


class Budget:
    """Runs, or minutes, of which those of further seeds (`more` of them on the last round's folds) are set aside."""

    def __init__(self, runs: int | None, minutes: float | None, folds: int, repeats: int, more: int) -> None:
        self.runs, self.minutes, self.folds, self.repeats, self.more = runs, minutes, folds, repeats, more

    def repeats_of_seeds(self, runs: int) -> int:
        """Repeats of the folds on which further seeds run, out of so many runs: all, or one where that took more than
        half of them; none without further seeds."""
        if not self.more:
            return 0
        return self.repeats if 2 * self.more * self.folds * self.repeats <= runs else 1

    def for_rounds(self, runs: int) -> int:
        """What is left of so many runs for the rounds; all of them where further seeds do not fit in."""
        rest = runs - self.more * self.folds * self.repeats_of_seeds(runs)
        return rest if rest >= self.folds else runs

    def least(self) -> int:
        """Runs of one candidate on every fold, further seeds included."""
        return self.folds * (1 + self.more)

    def check(self) -> None:
        """Raises RecipeError for a number of runs that does not hold one candidate on every fold."""
        if self.runs is not None and self.runs < self.least():
            seeds = f", with {1 + self.more} seeds each" if self.more else ""
            raise RecipeError(
                f"a budget of {self.runs} run{'s' if self.runs != 1 else ''}",
                expected=f"at least {self.least()}, one candidate on each of {self.folds} folds{seeds}",
                found="less",
                remedy="raise --runs or --minutes, or lower --folds" + (" or --seeds" if self.more else ""),
            )


class Search:
    """Rounds of candidates, and what they showed. The journal's folder holds a bank for each round."""

    def __init__(
        self,
        model: str,
        task: Task | PromptTask,
        budget: Budget,
        seed: int,
        listener: BankListener,
        journal: Journal,
        options: dict[str, Any],
    ) -> None:
        self.model, self.budget, self.seed = model, budget, seed
        self.folds, self.repeats = budget.folds, budget.repeats
        self.task: Task | PromptTask = replace(task, evaluation={})  # type: ignore[arg-type]
        self.listener, self.journal, self.options = listener, journal, options
        self.trials: list[Trial] = []
        self.rounds: list[Round] = []
        self.notices: list[str] = []
        self.probed: Pairs | None = None
        """How the linear model beside all candidates reads two texts: as the first of them."""
        self.cut_short = False
        """Whether time ran out before the last round, which has full epochs and folds of its own."""
        self.pace = 0.0
        """Seconds of one row in one epoch, where the budget is of minutes."""

    def run(self, entrants: Sequence[Candidate]) -> None:
        """Let candidates meet until the budget is spent or the last round is over.

        Raises:
            RecipeError: minutes for less than one candidate on every fold.
            TrainingError: every candidate failed.
        """
        standing = list(entrants)
        self.probed = standing[0].recipe.pairs
        if self.budget.minutes is not None:
            measured = self.journal.decided.get("pilot") or self._pilot(standing[0])  # by all processes together
            self.pace = self.journal.decide("pilot", lambda: measured)
        while True:
            number = len(self.rounds) + 1
            planned = self.journal.decide(f"round {number}", partial(self._plan, standing))
            plan = [Round(**each) for each in planned]
            if not plan:
                self.notices.append("time ran out before the last round: the scores are those of the round before")
                self.cut_short = True
                return
            standing = standing[: plan[0].candidates]
            began = self.journal.decide(f"round {number} began", lambda: self.journal.seconds)
            self._hold(plan[0], standing, self._to_go(plan, standing), last=len(plan) == 1)
            self.pace = self.journal.decide(f"round {number} pace", partial(self._pace_since, began))
            standing = [each for each in self.order() if self._mean(each) is not None]
            if not standing:
                raise TrainingError(
                    f"all {plan[0].candidates} candidates",
                    expected="a finite loss",
                    found="none in any",
                    remedy="lower the learning rates",
                )
            if len(plan) == 1:
                return
            standing = standing[: plan[1].candidates]

    def open_ground(self, plan: Plan) -> LabelGround | PromptGround:
        """The model with an empty bank, for the adapters of finished runs; `plan` (resolved) is one of theirs."""
        assert plan.recipe is not None
        own = self.options
        choices = choose(own["device"], own["dtype"], plan.recipe.max_length, own["token_budget"])
        torch.set_num_threads(choices.threads)
        return open_ground(self.model, plan, choices, trust_remote_code=own["trust_remote_code"])

    def left(self, standing: Sequence[Candidate], refits: int) -> int:
        """Runs of full length that are left of the budget, those of the refit set aside."""
        if self.budget.runs is not None:
            return self.budget.runs - len(self.trials)
        return max(0, int(self._seconds_left(standing, refits) / self._seconds_of_run(standing)))

    def _plan(self, standing: Sequence[Candidate]) -> list[dict[str, Any]]:
        """The rounds to come as the budget is now, as JSON; none if it does not hold one."""
        left = self.left(standing, 1 + self.budget.more)
        if left < self.budget.least():
            left = self.left(standing, 1)  # further seeds do not fit in, nor do their refits
        if left < self.folds:
            if self.rounds:
                return []
            self._refuse_minutes(standing)
        rounds = self.budget.for_rounds(left)
        return [asdict(each) for each in plan_rounds(len(standing), self.folds, self.repeats, rounds)]

    def _pilot(self, candidate: Candidate) -> float:
        """Seconds of one row in one epoch, measured on the second epoch of a few rows of every fold, side by side: the
        first one warms up."""
        self.listener.note("measuring the speed of this machine")
        recipe, plans = replace(candidate.recipe, epochs=2), []
        for fold in make_folds(self.task, self.folds, 0, self.seed):
            rows = fold.rows[:: max(1, len(fold.rows) // PILOT_ROWS)]
            plans.append(Plan(f"pilot-{fold.name}", recipe, rows=rows, judged=fold.judged[:1]))
        found = train_many(self.model, self.task, plans, with_baselines=False, **self.options)
        if found.failures:
            raise next(iter(found.failures.values()))
        histories = [each.history for each in found.results.values()]
        seconds = sum(second["train_seconds"] - first["train_seconds"] for first, second in histories)
        return max(seconds, 1e-3) / sum(len(plan.rows or ()) for plan in plans)

    def _pace_since(self, began: float) -> float:
        """Seconds of one row in one epoch in the last round, all of its time counted."""
        passes = sum(trial.epochs * len(trial.fold.rows) for trial in self.last_trials())
        return (self.journal.seconds - began) / passes

    def _epochs(self, standing: Sequence[Candidate]) -> list[int]:
        """Epochs of the candidates to plan for: a short budget holds the first; others are seen to later."""
        return [each.epochs for each in (standing if self.rounds else standing[:1])]

    def _seconds_of_run(self, standing: Sequence[Candidate]) -> float:
        epochs = self._epochs(standing)
        return self.pace * sum(epochs) / len(epochs) * len(self.task.train) * (1 - 1 / self.folds)

    def _seconds_left(self, standing: Sequence[Candidate], refits: int) -> float:
        """Of the budget less a reserve, for a machine keeps no pace exactly, and less the refit, which has less
        company than the runs of a round and so takes longer."""
        assert self.budget.minutes is not None
        refit = ALONE * self.pace * len(self.task.train) * max(self._epochs(standing)) * refits
        return (1 - RESERVE) * self.budget.minutes * 60 - self.journal.seconds - refit

    def _refuse_minutes(self, standing: Sequence[Candidate]) -> None:
        minutes = self.budget.minutes
        assert minutes is not None
        planned = (1 - RESERVE) * minutes * 60
        spent = planned - self._seconds_left(standing, 1)
        needed = (spent + self.folds * self._seconds_of_run(standing)) / (1 - RESERVE)
        raise RecipeError(
            f"a budget of {minutes:g} minutes",
            expected=f"about {needed / 60 + 0.1:.1f} at least: one candidate on each of {self.folds} folds, and "
            "the refit",
            found="less",
            remedy="raise --minutes, or lower --folds or the epochs",
        )

    def _to_go(self, plan: Sequence[Round], entrants: Sequence[Candidate]) -> str:
        """For the screen: the time to the end at the pace so far, if there is one."""
        if not self.pace:
            return ""
        runs = sum(each.runs * each.share for each in plan)
        runs += self.budget.more * self.folds * self.budget.repeats_of_seeds(int(runs))
        passes = (1 - 1 / self.folds) * runs + ALONE * (1 + self.budget.more)
        epochs = sum(each.epochs for each in entrants) / len(entrants)
        seconds = self.pace * len(self.task.train) * epochs * passes
        return f"; about {seconds / 60:.0f} min to the end" if seconds > 90 else f"; about {seconds:.0f} s to the end"

    def _hold(self, round_: Round, entrants: Sequence[Candidate], to_go: str, last: bool) -> None:
        """One round: all entrants on all of its folds, as one bank."""
        first = 1 if last and self.rounds else 0
        dealt = [make_folds(self.task, self.folds, first + each, self.seed) for each in range(round_.repeats)]
        folds = [fold for each in dealt for fold in each[: round_.folds]]
        epochs = "all epochs" if round_.share == 1 else f"{round_.share:.0%} of the epochs"
        many = f"{len(entrants)} candidates" if len(entrants) > 1 else "one candidate"
        self.listener.note(f"round {len(self.rounds) + 1}: {many} on {len(folds)} folds, {epochs}{to_go}")
        pairs = [(each, fold) for each in entrants for fold in folds]
        plans = [
            Plan(
                f"{each.name}-{fold.name}",
                each.shortened(round_.share, self.seed + fold.repeat),
                rows=fold.rows,
                judged=fold.judged,
                probed=self.probed,
            )
            for each, fold in pairs
        ]
        self.rounds.append(round_)
        found = bank_of(self.model, self.task, plans, self.journal, self.bank_name, self.listener, self.options)
        for plan, (each, fold) in zip(plans, pairs, strict=True):
            assert plan.recipe is not None
            result, error = found.results.get(plan.name), found.failures.get(plan.name)
            metrics = {} if result is None else result.evaluation
            self.trials.append(
                Trial(
                    len(self.rounds),
                    each,
                    fold,
                    plan.recipe.epochs or 1,
                    finite(metrics.get(self.task.metrics[0])),
                    None if result is None else _baseline(result, self.task.metrics[0]),
                    metrics,
                    0.0 if result is None else float(result.metrics["train_seconds"]),
                    "" if error is None else str(error),
                )
            )
        notes = dict.fromkeys(note for result in found.results.values() for note in result.notices)
        known = (*self.notices, *self.task.notices, NOTICE)  # the last is the refit's to give: candidates may differ
        self.notices += [note for note in notes if note not in known]

    @property
    def bank_name(self) -> str:
        """The folder of the last round's bank."""
        return f"round{len(self.rounds)}"

    def last_trials(self) -> list[Trial]:
        """Those of the last round."""
        return [trial for trial in self.trials if trial.round == len(self.rounds)]

    def _mean(self, candidate: Candidate) -> float | None:
        """Its mean score in the last round; None if a run failed or has no score."""
        scores = [trial.score for trial in self.last_trials() if trial.candidate is candidate]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known and len(known) == len(scores) else None

    def order(self) -> list[Candidate]:
        """Candidates of the last round, the best first; of equals the one that came first."""
        by_name = {trial.candidate.name: trial.candidate for trial in self.last_trials()}
        means = {name: self._mean(candidate) for name, candidate in by_name.items()}
        ranked = sorted(means, key=lambda name: -math.inf if means[name] is None else means[name] or 0, reverse=True)
        return [by_name[name] for name in ranked]


def bank_of(
    model: str,
    task: Task | PromptTask,
    plans: Sequence[Plan],
    journal: Journal,
    name: str,
    listener: BankListener,
    options: dict[str, Any],
    **more: Any,
) -> ManyResult:
    """The runs of a bank in the search's folder, begun or gone on with."""
    folder = journal.directory / name

    def begun() -> bool:
        if not (folder / BANK).exists():
            shutil.rmtree(folder, ignore_errors=True)  # one that was killed before it was a bank
        return folder.exists()

    resume = here().first(begun)
    return train_many(model, task, plans, folder, listener=listener, resume=resume, bare=True, **{**options, **more})


def finite(score: float | None) -> float | None:
    """A score, or None if it is not a number."""
    return score if score is not None and math.isfinite(score) else None


def _baseline(result: Result, metric: str) -> float | None:
    known = result.metrics["baselines"]
    found = known.get("frozen_logistic_regression") or known.get("zero_shot") or {}
    return finite(found.get(metric))
