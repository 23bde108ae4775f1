"""The table of a bank: what tells its runs apart, their scores and their cost, a row a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BeftError
from ..files import to_json, write_all
from .folds import spread
from .plan import Plan
from .result import Result

ALWAYS = ("terms", "lr", "seed")
"""Fields of the recipes that every table shows; others only where runs differ in them."""


def summarise(
    plans: Sequence[Plan], results: Mapping[str, Result], failures: Mapping[str, BeftError]
) -> list[dict[str, Any]]:
    """One row a plan (resolved), in their order."""
    recipes = [plan.recipe.to_dict() for plan in plans if plan.recipe is not None]
    differ = [key for key in recipes[0] if key in ALWAYS or len({str(recipe[key]) for recipe in recipes}) > 1]
    tasks = {plan.task.name for plan in plans if plan.task is not None}
    rows: list[dict[str, Any]] = []
    for plan, recipe in zip(plans, recipes, strict=True):
        assert plan.task is not None
        row: dict[str, Any] = {"run": plan.name}
        if len(tasks) > 1:
            row["task"] = plan.task.name
        row.update({key: recipe[key] for key in differ})
        result = results.get(plan.name)
        row["status"] = "finished" if result is not None else "failed"
        if result is not None:
            metrics = result.metrics
            row.update({f"dev_{key}": value for key, value in (metrics.get("dev") or {}).items()})
            row.update({f"evaluation_{key}": value for key, value in result.evaluation.items()})
            for key in ("best_epoch", "train_examples", "trainable_parameters", "train_seconds"):
                row[key] = metrics.get(key)
        else:
            row["error"] = str(failures.get(plan.name, ""))
        rows.append(row)
    return rows


def over_seeds(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) of every score over runs that differ in their seed alone; empty where no two
    finished runs do. Runs of like settings and one seed differ in their rows or tasks: they are left out."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    settings = [key for key in table[0] if key not in ("run", "seed")]
    settings = settings[: settings.index("status")]
    for row in table:
        if row["status"] == "finished":
            judged = tuple(key for key in row if key.startswith("evaluation_"))
            groups.setdefault((*(row[key] for key in settings), judged), []).append(row)
    apart = [rows for rows in groups.values() if len({row["seed"] for row in rows}) == len(rows)]
    if all(len(rows) < 2 for rows in apart):
        return []
    found = []
    for rows in apart:
        mean: dict[str, Any] = {**{key: rows[0][key] for key in settings}, "runs": len(rows)}
        for key in rows[0]:
            if key.startswith(("dev_", "evaluation_")) and all(key in row for row in rows):
                mean[key] = spread([row[key] for row in rows])
        found.append(mean)
    return found


def of_baselines(results: Mapping[str, Result]) -> dict[str, dict[str, dict[str, float]]]:
    """For each baseline the mean and standard deviation (n - 1) over seeds of every score on the evaluation rows; empty
    where runs of one seed learn from different rows, or read two texts in different ways. Other settings leave the
    baselines as they are."""
    read: dict[int, tuple[str, str]] = {}
    seeds: dict[int, Result] = {}
    for result in results.values():
        seed, own = result.recipe.seed, (result.task.fingerprint(), result.recipe.pairs)
        if read.setdefault(seed, own) != own:
            return {}
        seeds.setdefault(seed, result)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in dict.fromkeys(name for result in seeds.values() for name in result.metrics["baselines"]):
        scores = [result.metrics["baselines"].get(name) or {} for result in seeds.values()]
        metrics = [key for result in seeds.values() for key in result.evaluation]
        known = [key for key in dict.fromkeys(metrics) if all(key in each for each in scores)]
        if known:
            found[name] = {key: spread([each[key] for each in scores]) for key in known}
    return found


def write_summary(
    directory: Path,
    table: Sequence[dict[str, Any]],
    means: Sequence[dict[str, Any]],
    baselines: Mapping[str, Any],
    seconds: float,
) -> None:
    """Write summary.csv and summary.json; `seconds` is the wall time of the command that ended the bank."""
    keys = list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    record = {
        "runs": list(table),
        "over_seeds": list(means),
        "baselines": dict(baselines),
        "seconds": round(seconds, 3),
    }
    write_all(directory, {"summary.csv": text.getvalue(), "summary.json": to_json(record)})
