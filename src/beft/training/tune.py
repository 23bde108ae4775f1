"""`tune`: a model, a task and a budget in; settings chosen by cross-validation and refitted on all rows out.

Candidates meet in rounds (`halving`), each round one pass of many runs over the frozen model. The last round deals its
folds anew: on those nothing was chosen before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import Interrupted, RecipeError, TrainingError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .folder import check_new
from .folds import Paired, fold_count, make_folds, paired, spread
from .halving import Round, plan_rounds
from .many import train_many
from .plan import Plan
from .progress import BankListener
from .recipe import Recipe
from .result import Result
from .space import Candidate, Space, base_recipe, candidates
from .train import train
from .tune_report import recommend, write_tuning
from .tune_result import Trial, TuneResult
from .workers import staff

RUNS = 112
"""Runs where no budget is given: 24 candidates, then eight, four and two."""
REFIT = "refit"


def tune(
    model: str,
    task: Task | PromptTask,
    out: str | Path | None = None,
    *,
    runs: int | None = None,
    minutes: float | None = None,
    space: Space | None = None,
    recipe: Recipe | None = None,
    folds: int | None = None,
    repeats: int = 2,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    memory: float | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    ray: str | None = None,
    listener: BankListener | None = None,
) -> TuneResult:
    """Choose learning rate, epochs, terms, layers and head by repeated stratified cross-validation; refit on all rows.

    Only training rows choose. Evaluation rows of the task, if it has any, judge the refitted adapter alone.

    Args:
        model: a folder, a Hub id, or the name of a packaged model.
        out: the folder of the refitted adapter, with tune.json, tune.csv and lr_curve.png beside it; None for none.
        runs: runs of cross-validation at most; `minutes`: time at most, the refit included. One of the two; 112 runs if
            neither.
        space: what to choose from; axes that it leaves open have their usual values.
        recipe: everything that is not tuned, such as batch size and length.
        folds: 5 if left out, fewer where a class has fewer rows.
        repeats: of the folds in the last round, each dealt anew.
        memory: GiB that the runs may take beside the model.
        ray: deal the runs of every round to Ray's workers, see `train_many`.

    Raises:
        RecipeError: a budget too small for one candidate on every fold, both budgets, or values out of range.
        DataError: more folds than a class has rows.
        StoreError: a folder that cannot be used, or a model that cannot be loaded.
        TrainingError: no candidate has a finite loss.
        Interrupted: a signal asked to stop; nothing is kept.
    """
    if runs is not None and minutes is not None:
        raise RecipeError("runs and minutes", expected="one of them", found="both")
    if minutes is not None and not minutes > 0:
        raise RecipeError(f"minutes {minutes:g}", expected="a number above 0")
    if repeats < 1:
        raise RecipeError(f"repeats {repeats}", expected="at least 1")
    recipe = recipe or base_recipe(task)
    space = (space or Space()).resolve(task, recipe)
    entrants = candidates(space, recipe)
    count, notices = fold_count(task, folds)
    budget = RUNS if runs is None and minutes is None else runs
    if budget is not None:
        plan_rounds(len(entrants), count, repeats, budget)
    directory = None if out is None else Path(out)
    if directory is not None:
        check_new(directory, overwrite)
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "token_budget": token_budget,
        "trust_remote_code": trust_remote_code,
    }
    listener = listener or BankListener()
    search = _Search(model, task, count, repeats, seed, listener, {**options, "memory": memory, "ray": ray})
    try:
        with nullcontext() if ray is None else staff(ray, len(entrants), device, model):  # the same for all rounds
            search.run(entrants, budget, minutes, len(space.lrs or ()))
        winner = search.order()[0]
        last = search.last_trials()
        metric = task.metrics[0]
        expected, baseline, difference = _expect(last, count)
        refit = replace(winner.recipe, seed=seed)
        steps = winner.epochs * math.ceil(len(task.train) / refit.batch_size)
        listener.begin({REFIT: steps}, [])
        refitted = train(model, task, refit, directory, overwrite=overwrite, listener=listener.of(REFIT), **options)
        listener.ended(REFIT, refitted.evaluation, None)
    except Interrupted as stop:
        raise Interrupted(stop.where, signal=stop.signal, remedy="start anew: a search keeps nothing") from stop
    result = TuneResult(
        task,
        winner,
        refitted,
        metric,
        count,
        expected,
        baseline,
        difference,
        recommend(winner, metric, expected, baseline, difference, prompts=isinstance(task, PromptTask)),
        search.trials,
        search.rounds,
        time.perf_counter() - search.began,
        directory,
        [*notices, *search.notices, *refitted.notices],
    )
    if directory is not None:
        write_tuning(result, directory)
    return result


class _Search:
    """Rounds of candidates, and what they showed."""

    def __init__(
        self,
        model: str,
        task: Task | PromptTask,
        folds: int,
        repeats: int,
        seed: int,
        listener: BankListener,
        options: dict[str, Any],
    ) -> None:
        self.model, self.folds, self.repeats, self.seed = model, folds, repeats, seed
        self.task: Task | PromptTask = replace(task, evaluation={})  # type: ignore[arg-type]
        self.listener, self.options = listener, options
        self.trials: list[Trial] = []
        self.rounds: list[Round] = []
        self.notices: list[str] = []
        self.began = time.perf_counter()

    def run(self, entrants: Sequence[Candidate], runs: int | None, minutes: float | None, sweep: int) -> None:
        """Let candidates meet until the budget is spent or the last round is over.

        Raises:
            RecipeError: minutes for less than one candidate on every fold.
            TrainingError: every candidate failed.
        """
        standing = list(entrants)
        a_pass = 0.0 if minutes is None else self._pilot(standing[0])
        while True:
            left = runs
            if minutes is not None:
                left = self._affordable(standing, minutes, a_pass)
                if self.rounds and left < self.folds:
                    self.notices.append("time ran out before the last round: the scores are those of the round before")
                    return
            assert left is not None
            plan = plan_rounds(len(standing), self.folds, self.repeats, left, sweep)
            began = time.perf_counter()
            self._hold(plan[0], standing[: plan[0].candidates], last=len(plan) == 1)
            passes = sum(trial.epochs * len(trial.fold.rows) for trial in self.last_trials())
            a_pass = (time.perf_counter() - began) / passes
            runs = None if runs is None else runs - plan[0].runs
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

    def _pilot(self, candidate: Candidate) -> float:
        """Seconds of one row in one epoch, measured on an epoch of one run."""
        self.listener.note("measuring the speed of this machine")
        fold = make_folds(self.task, self.folds, 0, self.seed)[0]
        plan = Plan("pilot", replace(candidate.recipe, epochs=1), rows=fold.rows, judged=fold.judged)
        self.began = time.perf_counter()
        found = train_many(self.model, self.task, [plan], with_baselines=False, **self.options)
        if found.failures:
            raise next(iter(found.failures.values()))
        return float(found.results["pilot"].metrics["train_seconds"]) / len(fold.rows)

    def _affordable(self, standing: Sequence[Candidate], minutes: float, a_pass: float) -> int:
        """Runs of full length that the time left holds, that of the refit set aside."""
        known = standing if self.rounds else standing[:1]  # a short budget holds the first; others are seen to later
        epochs = sum(each.epochs for each in known) / len(known)
        rows = len(self.task.train)
        refit = a_pass * rows * max(each.epochs for each in known)
        a_run = a_pass * epochs * rows * (1 - 1 / self.folds)
        left = minutes * 60 - (time.perf_counter() - self.began) - refit
        if not self.rounds and left < a_run * self.folds:
            raise RecipeError(
                f"a budget of {minutes:g} minutes",
                expected=f"about {(refit + a_run * self.folds) / 60 + 0.1:.1f} at least: one candidate on each of "
                f"{self.folds} folds, and the refit",
                found="less",
                remedy="raise --minutes, or lower --folds or the epochs",
            )
        return max(0, int(left / a_run))

    def _hold(self, round_: Round, entrants: Sequence[Candidate], last: bool) -> None:
        """One round: all entrants on all of its folds, as one bank."""
        first = 1 if last and self.rounds else 0
        dealt = [make_folds(self.task, self.folds, first + each, self.seed) for each in range(round_.repeats)]
        folds = [fold for each in dealt for fold in each[: round_.folds]]
        epochs = "all epochs" if round_.share == 1 else f"{round_.share:.0%} of the epochs"
        many = f"{len(entrants)} candidates" if len(entrants) > 1 else "one candidate"
        self.listener.note(f"round {len(self.rounds) + 1}: {many} on {len(folds)} folds, {epochs}")
        pairs = [(each, fold) for each in entrants for fold in folds]
        plans = [
            Plan(
                f"{each.name}-{fold.name}",
                each.shortened(round_.share, self.seed + fold.repeat),
                rows=fold.rows,
                judged=fold.judged,
            )
            for each, fold in pairs
        ]
        self.rounds.append(round_)
        found = train_many(self.model, self.task, plans, listener=self.listener, **self.options)
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
                    _finite(metrics.get(self.task.metrics[0])),
                    None if result is None else _baseline(result, self.task.metrics[0]),
                    metrics,
                    0.0 if result is None else float(result.metrics["train_seconds"]),
                    "" if error is None else str(error),
                )
            )
        self.notices += [note for note in found.notices if note not in (*self.notices, *self.task.notices)]

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
        entrants = dict.fromkeys(trial.candidate.name for trial in self.last_trials())
        by_name = {trial.candidate.name: trial.candidate for trial in self.last_trials()}
        means = {name: self._mean(by_name[name]) for name in entrants}
        ranked = sorted(entrants, key=lambda name: -math.inf if means[name] is None else means[name] or 0, reverse=True)
        return [by_name[name] for name in ranked]


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def _baseline(result: Result, metric: str) -> float | None:
    known = result.metrics["baselines"]
    found = known.get("frozen_logistic_regression") or known.get("zero_shot") or {}
    return _finite(found.get(metric))


def _expect(trials: Sequence[Trial], folds: int) -> tuple[dict[str, float], dict[str, float] | None, Paired | None]:
    """What to expect, of the trials of the last round: on each fold the finalist that the other folds would choose."""
    by_fold: dict[str, dict[str, Trial]] = {}
    for trial in trials:
        if trial.score is not None:
            by_fold.setdefault(trial.fold.name, {})[trial.candidate.name] = trial
    entrants = list(dict.fromkeys(trial.candidate.name for trial in trials))
    complete = [name for name in entrants if all(name in each for each in by_fold.values())]
    chosen: list[Trial] = []
    for name, own in by_fold.items():
        others = [each for other, each in by_fold.items() if other != name]
        chosen.append(own[max(complete, key=lambda each: sum(other[each].score or 0 for other in others))])
    expected = spread([trial.score for trial in chosen if trial.score is not None])
    pairs = [(t.score, t.baseline) for t in chosen if t.score is not None and t.baseline is not None]
    if len(pairs) < len(chosen):
        return expected, None, None
    return expected, spread([b for _, b in pairs]), paired([score - b for score, b in pairs], folds)
