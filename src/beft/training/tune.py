"""`tune`: a model, a task and a budget in; settings chosen by cross-validation and refitted on all rows out.

Candidates meet in rounds (`halving`), each round one pass of many runs over the frozen model (`search`). The last round
deals its folds anew: on those nothing was chosen before, and there several seeds may be compared with one (`seeds`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ..errors import Interrupted, RecipeError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .combination import ONE, Combination, Combine, check_combine
from .folds import Paired, fold_count, paired, spread
from .machine import choose, threads_restored
from .memory import check_memory
from .pairs import settle_pairs
from .progress import BankListener
from .ranks import here, together
from .recipe import Recipe
from .refit import refit
from .search import Budget, Search
from .search_folder import SEARCH, Journal
from .seeds import compare_seeds
from .space import Space, base_recipe, candidates
from .tune_report import of_majority, plain, recommend, write_tuning
from .tune_result import Trial, TuneResult
from .unfinished import kept_until_done
from .workers import staff

RUNS = 112
"""Runs where no budget is given: 24 candidates, then eight, four and two. Further seeds come on top."""


@threads_restored()
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
    combine: Combine = "none",
    seeds: int = 3,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    memory: float | None = None,
    resume: bool = False,
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
            What the search needs to go on after a stop lies in its folder `search` until it ends.
        runs: runs of cross-validation at most; `minutes`: time at most, the refit included. One of the two; 112 runs if
            neither.
        space: what to choose from; axes that it leaves open have their usual values.
        recipe: everything that is not tuned, such as batch size and length.
        folds: 5 if left out, fewer where a class has fewer rows.
        repeats: of the folds in the last round, each dealt anew.
        combine: what to compare one seed of the best settings with on the last round's folds: the "soup" of `seeds` of
            them (one adapter, their mean), their "ensemble" (all of them answer every row, scores averaged), both
            ("auto"), or "none". Either is kept only if it gains more than one standard error in the mean over folds.
        memory: GiB that the runs may take beside the model.
        ray: deal the runs of every round to Ray's workers, see `train_many`.
        resume: go on with a search that was stopped; the settings must be those it began with.
        overwrite: replace a former result.

    Raises:
        RecipeError: a budget too small for one candidate on every fold, both budgets, or values out of range.
        DataError: more folds than a class has rows.
        StoreError: a folder that cannot be used, a search of other settings, or a model that cannot be loaded.
        TrainingError: no candidate has a finite loss.
        Interrupted: a signal asked to stop; `resume` goes on.
    """
    if runs is not None and minutes is not None:
        raise RecipeError("runs and minutes", expected="one of them", found="both")
    if minutes is not None and not minutes > 0:
        raise RecipeError(f"minutes {minutes:g}", expected="a number above 0")
    if repeats < 1:
        raise RecipeError(f"repeats {repeats}", expected="at least 1")
    check_memory(memory)
    ways = check_combine(combine, seeds, task)
    recipe = settle_pairs(recipe or base_recipe(task), task, model)
    space = (space or Space()).resolve(task, recipe)
    entrants = candidates(space, recipe)
    count, notices = fold_count(task, folds)
    more = seeds - 1 if ways else 0
    if runs is None and minutes is None:
        runs = RUNS + more * count * repeats
    budget = Budget(runs, minutes, count, repeats, more)
    budget.check()
    machine: dict[str, Any] = {"device": device, "dtype": dtype, "token_budget": token_budget}
    settings = {
        "model": model,
        "data": task.fingerprint(),
        "runs": runs,
        "minutes": minutes,
        "folds": count,
        "repeats": repeats,
        "seed": seed,
        "combine": combine,
        "seeds": seeds if ways else 1,
        **vars(space),
        "recipe": recipe.to_dict(),
        **machine,
    }
    options = {**machine, "trust_remote_code": trust_remote_code, "memory": memory, "ray": ray}
    with together(), _folder(out, resume, overwrite) as (directory, under, goes_on):
        journal = Journal(under, settings, goes_on)
        options["dtype"] = journal.decide("dtype", lambda: choose(device, dtype, recipe.max_length, token_budget).dtype)
        search = Search(model, task, budget, seed, listener or BankListener(), journal, options)
        try:
            with nullcontext() if ray is None else staff(ray, len(entrants), device, model):  # the same for all rounds
                search.run(entrants)
                winner = search.order()[0]
                combination = compare_seeds(search, winner, ways, seeds) if ways else None
                refitted = refit(search, task, winner, combination.kept if combination else ONE, seeds, directory)
        except Interrupted as stop:
            if directory is not None:
                raise
            remedy = "start anew: a search without a folder keeps nothing"
            raise Interrupted(stop.where, signal=stop.signal, remedy=remedy) from stop
        metric = task.metrics[0]
        scores = expect(search.last_trials(), count, winner.name, combination)
        usual = settle_pairs(base_recipe(task), task, model).pairs
        beside, instead = plain(task, "" if search.probed in (None, usual) else search.probed)
        result = TuneResult(
            task,
            winner,
            refitted,
            metric,
            count,
            *scores,
            combination,
            recommend(winner, metric, *scores, combination, beside=beside, instead=instead),
            search.trials,
            search.rounds,
            journal.seconds,
            directory,
            list(dict.fromkeys([*notices, *search.notices, *refitted.notices, *of_majority(task, recipe, scores[0])])),
        )
        if directory is not None:
            here().first(lambda: write_tuning(result, directory))
    return result


@contextmanager
def _folder(out: str | Path | None, resume: bool, overwrite: bool) -> Iterator[tuple[Path | None, Path, bool]]:
    """The adapter's folder, that of the search (a temporary one without `out`), and whether there is a search to go on
    with."""
    ranks = here()
    if out is None:
        under = Path(ranks.first(lambda: mkdtemp(prefix="beft-tune-")))
        try:
            yield None, under, False
        finally:
            if ranks.leads:
                shutil.rmtree(under, ignore_errors=True)
        return
    directory = Path(out)
    with kept_until_done(directory, SEARCH, resume=resume, overwrite=overwrite) as (under, goes_on):
        yield directory, under, goes_on


def expect(
    trials: Sequence[Trial], folds: int, winner: str, combination: Combination | None
) -> tuple[dict[str, float], dict[str, float] | None, Paired | None]:
    """What to expect, of the trials of the last round: on each fold the finalist that the other folds would choose;
    where that is the winner and seeds were compared, one or several of its seeds, as the other folds would keep.

    Gives mean and spread of that score and of the baseline on the same folds, and the two compared.
    """
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
    scores = [_score(trial, winner, combination) for trial in chosen]
    baselines = [trial.baseline for trial in chosen if trial.baseline is not None]
    if len(baselines) < len(chosen):
        return spread(scores), None, None
    return spread(scores), spread(baselines), paired([a - b for a, b in zip(scores, baselines, strict=True)], folds)


def _score(trial: Trial, winner: str, combination: Combination | None) -> float:
    """A trial's score, or that of several seeds in its place."""
    assert trial.score is not None
    several = combination.expected(trial.fold.name) if combination and trial.candidate.name == winner else None
    return trial.score if several is None else several
