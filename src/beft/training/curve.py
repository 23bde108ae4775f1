"""`learning_curve`: scores at growing numbers of training rows, trained as one bank: would more labels help?"""

from __future__ import annotations

import csv
import io
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, RecipeError, TrainingError
from ..files import Writer, to_json, write_all
from ..report import curves, plots
from ..report.names import metric_name
from ..tasks.task import Task, draw, split_texts
from .folds import spread
from .many import ManyResult, train_many
from .many_folder import NAME as BANK
from .plan import Plan
from .progress import BankListener
from .ranks import here, together
from .recipe import Recipe
from .unfinished import Unfinished, kept_until_done

SMALLEST = 8
"""Rows a class of the smallest size where none is given."""
HELD_OUT = "held-out"
CURVE = Unfinished("a curve", "runs", BANK, "learning_curve.json")
NOTICED = 0.005
"""A gain below this is none, however sure."""
WORTH = 0.02
"""A gain that, if it cannot be excluded, forbids saying that more labels would hardly help."""


@dataclass
class Curve:
    """Scores by size: `points` holds for each size its mean and spread over seeds, and the frozen regression's;
    `runs` a row a run; `advice` says in a sentence whether more labels would help."""

    metric: str
    split: str
    judged: int
    points: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    advice: str
    seconds: float
    directory: Path | None
    notices: list[str]


def learning_curve(
    model: str,
    task: Task,
    out: str | Path | None = None,
    *,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    recipe: Recipe | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: BankListener | None = None,
    **options: Any,
) -> Curve:
    """Train at growing sizes, several seeds each, as one bank, and judge all on the same rows.

    Those are the task's first evaluation split; without one a stratified fifth of the training rows is set aside.
    Rows of a size are drawn anew for every seed, classes in their shares. Other options are those of `train_many`.

    Args:
        out: folder for learning_curve.csv, .json and .png; None for none.
        sizes: numbers of training rows; without them eight a class, doubled up to all.
        resume: go on with a curve that was stopped: its finished runs, in the folder `runs` until the end, are read.

    Raises:
        DataError: sizes larger than the data, or smaller than its classes.
        RecipeError: no seeds, one twice, or a recipe that selects on the rows that judge.
        StoreError: a folder that cannot be used.
        TrainingError: every run of a size failed.
        Interrupted: a signal asked to stop; `resume` goes on.
    """
    recipe, began = recipe or Recipe(), time.perf_counter()
    if not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError("seeds", expected="one or more, every one once", found=str(list(seeds)))
    if recipe.selection == "evaluation":
        raise RecipeError(
            "learning curve", expected="a recipe that selects on training rows", found="selection 'evaluation'"
        )
    directory = None if out is None else Path(out)
    task = _judgeable(task)
    chosen = _sizes(task, sizes)
    plans = [
        Plan(_name(size, seed), replace(recipe, seed=seed), rows=_draw(task, size, seed))
        for size in chosen
        for seed in seeds
    ]
    if directory is None:
        found = train_many(model, task, plans, listener=listener, **options)
        return _curve(task, chosen, seeds, found, began, None)
    with together(), kept_until_done(directory, CURVE, resume=resume, overwrite=overwrite) as (under, goes_on):
        found = train_many(model, task, plans, under, listener=listener, resume=goes_on, bare=True, **options)
        curve = _curve(task, chosen, seeds, found, began, directory)
        here().first(lambda: _write(curve, task, directory))
    return curve


def _curve(
    task: Task, sizes: Sequence[int], seeds: Sequence[int], found: ManyResult, began: float, directory: Path | None
) -> Curve:
    """What the runs of all sizes and seeds showed."""
    metric, split = task.metrics[0], next(iter(task.evaluation))
    runs = []
    for size, seed in itertools.product(sizes, seeds):
        name = _name(size, seed)
        result = found.results.get(name)
        row: dict[str, Any] = {"rows": size, "seed": seed}
        if result is not None:
            frozen = result.metrics["baselines"].get("frozen_logistic_regression") or {}
            plain = result.metrics["baselines"].get("majority") or {}
            row |= {**result.evaluation, "frozen": frozen.get(metric), "majority": plain.get(metric)}
            row["best_epoch"], row["train_seconds"] = result.metrics["best_epoch"], result.metrics["train_seconds"]
        else:
            row["error"] = str(found.failures.get(name, ""))
        runs.append(row)
    points = [_point(size, [row for row in runs if row["rows"] == size], metric) for size in sizes]
    return Curve(
        metric,
        split,
        len(task.evaluation[split]),
        points,
        runs,
        advise(points, metric, len(task.evaluation[split])),
        time.perf_counter() - began,
        directory,
        found.notices,
    )


def _name(size: int, seed: int) -> str:
    return f"n{size}-seed{seed}"


def _judgeable(task: Task) -> Task:
    """The task with evaluation rows that have labels, a fifth of the training rows if there are none."""
    known = {name: rows for name, rows in task.evaluation.items() if rows and all(r.label is not None for r in rows)}
    if known:
        name = next(iter(known))
        return replace(task, evaluation={name: known[name]})
    if len(task.train) < 10:
        raise DataError(
            task.name,
            expected="evaluation rows with labels, or 10 training rows to set some aside",
            found=f"{len(task.train)} training rows",
        )
    rest, part = split_texts(task.train, max(1, len(task.train) // 5), 0, classes=not task.regression)
    held = {HELD_OUT: [task.train[number] for number in part]}
    return replace(task, train=[task.train[number] for number in rest], evaluation=held)


def _sizes(task: Task, asked: Sequence[int] | None) -> list[int]:
    everything, least = len(task.train), max(2, task.outputs)
    if asked is None:
        size = SMALLEST * task.outputs
        doubled = [size << step for step in range(32) if (size << step) <= everything / 1.25]
        return sorted({*(doubled or [max(least, everything // 2)]), everything})
    wrong = next((size for size in asked if not least <= size <= everything), None)
    if wrong is not None or not asked:
        raise DataError(
            f"{task.name}, size {wrong}" if asked else f"{task.name}, sizes",
            expected=f"{least} to {everything}, the training rows at hand" if asked else "at least one",
            found=f"{wrong}" if asked else "none",
            remedy="leave --sizes out to have them chosen",
        )
    return sorted(set(asked))


def _draw(task: Task, size: int, seed: int) -> list[int]:
    """Rows of a size, each class with its share."""
    if size == len(task.train):
        return list(range(size))
    return draw(task.train, size, seed, classes=not task.regression)


def _point(size: int, runs: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    scores = [row[metric] for row in runs if math.isfinite(row.get(metric, math.nan))]
    if not scores:
        raise TrainingError(
            f"{size} training rows",
            expected="a run with a score",
            found=runs[0].get("error") or "no number in any",
            remedy="lower the learning rate, or leave that size out",
        )
    frozen = [row["frozen"] for row in runs if row.get("frozen") is not None and math.isfinite(row["frozen"])]
    plain = [row["majority"] for row in runs if row.get("majority") is not None]
    return {
        "rows": size,
        "runs": len(scores),
        "score": spread(scores),
        "frozen": spread(frozen) if frozen else None,
        "majority": spread(plain) if plain else None,
    }


def advise(points: Sequence[dict[str, Any]], metric: str, judged: int) -> str:
    """Whether more labels would help, by what the last growth of the rows brought, put as a doubling.

    The standard error of that gain is the seeds', and at least what `judged` rows let one see: the answers of a share
    `gain` of the rows have changed, so their mean is no surer than sqrt(gain (1 - gain) / judged).
    """
    if len(points) < 2:
        return "One size says nothing of whether more labels would help: give --sizes two or more."
    before, last = points[-2], points[-1]
    plain = last.get("majority")
    if plain is not None and last["score"]["mean"] <= plain["mean"]:
        return (
            f"Nothing was learned from {last['rows']} rows: one answer to all has {metric_name(metric)} "
            f"{plain['mean']:.3f} too. Raise --epochs or --lr before asking whether more labels would help."
        )
    doublings = math.log2(last["rows"] / before["rows"])
    gain = last["score"]["mean"] - before["score"]["mean"]
    seeds = sum(each["score"]["sd"] ** 2 / each["runs"] for each in (before, last))
    changed = min(abs(gain), 1.0)
    error = math.sqrt(seeds + changed * (1 - changed) / judged)
    said = f"from {before['rows']} to {last['rows']} rows {metric_name(metric)} went {gain:+.3f}"
    if min(before["runs"], last["runs"]) < 2:
        return f"One seed does not tell a gain from chance: {said}. Give --seeds two or more."
    said += f" (± {error:.3f})"
    if gain > max(2 * error, NOTICED):
        return f"More labels would help: {said}, about {gain / doublings:+.3f} a doubling."
    if gain > max(error, NOTICED):
        return f"More labels may help: {said}, which is not much more than chance."
    if gain + 2 * error > WORTH:
        return f"It is not clear whether more labels would help: {said}. More seeds or evaluation rows would tell."
    return f"More labels would hardly help: {said}."


def _write(curve: Curve, task: Task, directory: Path) -> None:
    keys = list(dict.fromkeys(key for row in curve.runs for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve.runs)
    record = {
        key: getattr(curve, key)
        for key in ("advice", "metric", "split", "judged", "points", "runs", "seconds", "notices")
    }
    files: dict[str, bytes | str | Writer] = {
        "learning_curve.csv": text.getvalue(),
        "learning_curve.json": to_json(record),
    }
    if plots.available():
        lines = {"beft": _line(curve.points, "score"), "frozen + regression": _line(curve.points, "frozen")}
        title = f"{task.name}: {curve.judged} {curve.split} rows, mean ± sd over seeds"
        drawn = {name: points for name, points in lines.items() if points}
        files["learning_curve.png"] = lambda path: curves.size_curve(
            drawn, curve.metric, path, title=title, dashed=["frozen + regression"]
        )
    write_all(directory, files)


def _line(points: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float, float]]:
    return [(each["rows"], each[key]["mean"], each[key]["sd"]) for each in points if each[key] is not None]
