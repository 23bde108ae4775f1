"""What a run gave that ended in a former command, by the files in its folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BeftError, TrainingError
from ..files import clear_parts, read_json
from .checkpoint import NAME as CHECKPOINT
from .folder import check_same
from .machine import Choices
from .plan import Plan
from .result import Result


@dataclass
class Finished:
    """A run of a former command that is not to be repeated: its result, or the error it failed with."""

    result: Result | None = None
    error: BeftError | None = None


def find_ended(folder: Path, model: str, plan: Plan, choices: Choices) -> Finished | None:
    """What the run of a plan (resolved) gave, by its own folder; None if it has not ended there.

    Raises:
        StoreError: the folder holds a run of another recipe, other data or another model.
    """
    recipe, own = plan.recipe, plan.own_task()
    assert recipe is not None
    record = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    status = record.get("status")
    if status not in ("finished", "failed"):
        return None
    check_same(folder, record, model, own, recipe)
    if status == "failed":
        return Finished(error=TrainingError(f"run {plan.name!r}", found=str(record.get("error"))))
    (folder / CHECKPOINT).unlink(missing_ok=True)  # of a process that was killed after its last file
    clear_parts(folder)
    metrics, history = read_json(folder / "metrics.json"), _history(folder / "history.csv")
    return Finished(Result(metrics, folder, own, recipe, choices, history, notices=list(record["notices"])))


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return [{key: _value(text) for key, text in row.items() if text} for row in csv.DictReader(handle)]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
