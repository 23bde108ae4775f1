"""What tuning says: one sentence, tune.json, tune.csv and the picture of the learning rates."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

from ..files import Writer, to_json, write_all
from ..report import curves, plots
from ..report.card import with_search
from ..report.names import metric_name
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .combination import ENSEMBLE, ONE, RULE, SOUP, Combination
from .folds import Paired, spread
from .recipe import Recipe
from .space import Candidate
from .tune_result import Trial, TuneResult

SURE = 0.9
"""From here on a difference is called one."""
LOPSIDED = 0.6
"""From this share of the rows on, one answer may stand in for a model."""


def recommend(
    winner: Candidate,
    metric: str,
    expected: dict[str, float],
    baseline: dict[str, float] | None,
    difference: Paired | None,
    combination: Combination | None = None,
    *,
    beside: str,
    instead: str,
) -> str:
    """One sentence: the settings, what to expect of them, and whether they beat what needs no training; where several
    seeds were compared with one, another of what that gave.

    Args:
        beside: what `baseline` is of, and `instead` how one has it, see `plain`.
    """
    ways = {SOUP: ", the mean of {} seeds", ENSEMBLE: ", {} seeds as an ensemble"}
    several = "" if combination is None else ways.get(combination.kept, "").format(combination.seeds)
    score = f"{metric_name(metric)} {expected['mean']:.3f} ± {expected['sd']:.3f}"
    said = f"Train {winner.described()}{several}: expect {score} (mean and spread over folds)"
    if baseline is None or difference is None:
        said += "."
    else:
        said = _beside(said, f"({winner.described()}) give {score}", baseline, difference, beside, instead)
    return said if combination is None else f"{said} {of_seeds(combination)}"


def of_seeds(combination: Combination) -> str:
    """One sentence on what several seeds gained, and which way was kept."""
    kept, count = combination.kept, len(combination.scores[ONE])
    names = {SOUP: f"the mean of {combination.seeds} seeds' adapters", ENSEMBLE: f"an ensemble of {combination.seeds}"}
    gained = {way: f"{gain.mean:+.3f} ± {gain.error:.3f}" for way, gain in combination.gains.items()}
    others = " and ".join(f"{names[way]} gains {gained[way]}" for way in gained if way != kept)
    if kept == ONE:
        return f"One seed is kept: {others} on {count} folds, not more than its standard error."
    also = f"; {others}" if others else ""
    return f"Kept is {names[kept]}, which gains {gained[kept]} (standard error) on one seed on {count} folds{also}."


def plain(task: Task | PromptTask, pairs: str = "") -> tuple[str, str]:
    """What leaves the model as it is, and how one has it, where that reads two texts in another way than usual too."""
    if isinstance(task, PromptTask):
        return "the plain model", "the plain model"
    kind = "ridge" if task.regression else "logistic"
    return f"{kind} regression on frozen states", "--method probe" + (f" --pairs {pairs}" if pairs else "")


def of_majority(task: Task | PromptTask, recipe: Recipe, expected: dict[str, float]) -> list[str]:
    """A notice where the answer of most rows scores as much as is to be expected, and the model may give no other."""
    if task.labels is None or task.metrics[0] != "accuracy":
        return []
    label, count = Counter(task.labels[int(row.label or 0)] for row in task.train).most_common(1)[0]
    share = count / len(task.train)
    if share < LOPSIDED or expected["mean"] > share + expected["sd"]:
        return []
    said = f"{share:.0%} of the training rows are {label!r}: who always answers that scores as much"
    if isinstance(task, PromptTask) or recipe.class_weight is not None:
        return [f"{said}. More rows of the others would help"]
    return [f"{said}. --class-weight balanced lets rare classes count as much; more rows of them would help"]


def _beside(use: str, best: str, baseline: dict[str, float], difference: Paired, other: str, remedy: str) -> str:
    """The advice to use the settings, or not to: beside what leaves the model as it is, on the same folds."""
    other = f"{other} ({baseline['mean']:.3f} ± {baseline['sd']:.3f})"
    if difference.sure >= SURE:
        return (
            f"{use}, {difference.mean:.3f} above {other} on the same folds, which is {_percent(difference.sure)} sure."
        )
    if difference.sure <= 1 - SURE:
        return (
            f"Not better than {other} here, in fact {-difference.mean:.3f} below it on the same folds "
            f"({_percent(1 - difference.sure)} sure): use {remedy}, for the best settings of the search {best}."
        )
    return (
        f"{use}, but that is not surely better than {other} here: {difference.mean:+.3f} on the same folds, "
        f"{_percent(difference.sure)} sure, so {remedy} may do as well."
    )


def _percent(share: float) -> str:
    return "more than 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def write_tuning(result: TuneResult, directory: Path) -> None:
    """Write tune.json, tune.csv and, where matplotlib is installed, lr_curve.png, into the adapter's folder, and add to
    its model card how the settings were chosen.

    Raises:
        StoreError: the folder cannot be written.
    """
    rows = [_row(trial) for trial in result.trials]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files: dict[str, bytes | str | Writer] = {"tune.csv": text.getvalue(), "tune.json": to_json(record(result))}
    lines = rate_lines(result)
    picture = "lr_curve.png" if plots.available() and lines else None
    if picture is not None:
        files[picture] = lambda path: _draw(result, lines, path)
    files["README.md"] = with_search(
        (directory / "README.md").read_text(encoding="utf-8"),
        said=result.recommendation,
        candidates=len({trial.candidate.name for trial in result.trials}),
        runs=result.runs,
        folds=result.folds,
        picture=picture,
    )
    write_all(directory, files)


def record(result: TuneResult) -> dict[str, Any]:
    """The contents of tune.json."""
    difference = result.difference
    return {
        "recommendation": result.recommendation,
        "winner": {**result.winner.settings(), "recipe": result.refitted.recipe.to_dict()},
        "metric": result.metric,
        "folds": result.folds,
        "expected": result.expected,
        "baseline": result.baseline,
        "difference": None if difference is None else vars(difference),
        "combination": _combination(result.combination),
        "evaluation": result.refitted.evaluation,
        "evaluation_baselines": result.refitted.metrics["baselines"],
        "rounds": [vars(each) for each in result.rounds],
        "candidates": standings(result),
        "runs": result.runs,
        "seconds": round(result.seconds, 3),
        "notices": result.notices,
    }


def _combination(combination: Combination | None) -> dict[str, Any] | None:
    """What tune.json says of several seeds."""
    if combination is None:
        return None
    return {
        "kept": combination.kept,
        "rule": RULE,
        "seeds": combination.seeds,
        "runs": combination.runs,
        "scores": {way: spread(list(own.values())) for way, own in combination.scores.items()},
        "gains": {way: vars(gain) for way, gain in combination.gains.items()},
        "folds": [
            {"fold": name, **{way: own[name] for way, own in combination.scores.items()}}
            for name in combination.scores[ONE]
        ],
    }


def standings(result: TuneResult) -> list[dict[str, Any]]:
    """Every candidate with its last round and its score there: the winner, then those that went further first, the
    better first."""
    found = []
    for name in dict.fromkeys(trial.candidate.name for trial in result.trials):
        own = [trial for trial in result.trials if trial.candidate.name == name]
        last = [trial for trial in own if trial.round == own[-1].round]
        scores = [trial.score for trial in last if trial.score is not None]
        found.append(
            {
                "candidate": name,
                **own[-1].candidate.settings(),
                "rounds": own[-1].round,
                "folds": len(last),
                "failed": len(last) - len(scores),
                "score": spread(scores) if scores else None,
            }
        )
    won = result.winner.name  # it may be one of several that are equal
    return sorted(
        found,
        key=lambda row: (
            row["candidate"] != won,
            -row["rounds"],
            row["failed"] > 0,
            -(row["score"] or {"mean": -9.0})["mean"],
        ),
    )


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "round": trial.round,
        "candidate": trial.candidate.name,
        **trial.candidate.settings(),
        "epochs": trial.epochs,
        "repeat": trial.fold.repeat,
        "fold": trial.fold.number,
        "train_rows": len(trial.fold.rows),
        "judged_rows": len(trial.fold.judged),
        **trial.metrics,
        "baseline": trial.baseline,
        "train_seconds": trial.seconds,
        "error": trial.error,
    }


def rate_lines(result: TuneResult) -> dict[str, list[tuple[float, float, float]]]:
    """Of each term (lr, mean, sd) in the first round, all else as usual; they share folds, so they compare."""
    lines: dict[str, dict[float, list[float]]] = {}
    for trial in result.trials:
        if trial.round == 1 and trial.candidate.usual and trial.score is not None:
            lines.setdefault(trial.candidate.terms, {}).setdefault(trial.candidate.lr, []).append(trial.score)
    return {
        term: [(lr, *spread(scores).values()) for lr, scores in sorted(points.items())]  # type: ignore[misc]
        for term, points in lines.items()
    }


def _draw(result: TuneResult, lines: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    first = result.rounds[0]
    share = "all epochs" if first.share == 1 else f"{first.share:.0%} of the epochs"
    curves.rate_curve(
        lines,
        {"lr": result.winner.lr, "label": f"chosen: {result.winner.terms}", **result.expected},
        result.baseline,
        result.metric,
        path,
        title=f"{result.task.name}, {len(result.task.train)} rows: learning rates by cross-validation",
        lines_are=f"first round: {first.folds * first.repeats} folds, {share}",
    )
