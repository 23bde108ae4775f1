"""Several adapters of one model that answer together: every row goes through each, and their scores are averaged.

In a folder they lie side by side under `members`, each an ordinary adapter, named by `ensemble.json`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.bank import Bank
from ..core.store import ENSEMBLE, MANIFEST, MEMBERS
from ..errors import StoreError
from ..files import read_json, to_json, write
from ..methods.method import Method
from ..methods.registry import load_method
from ..tasks.task import Task
from .aims import Judgement, Part, Share, best, judged_together
from .infer import Watch

FORMAT = 1


def mean_scores(scores: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The mean over adapters of each row's scores: probabilities of classes, a number, or what candidates score."""
    return [[sum(values) / len(values) for values in zip(*row, strict=True)] for row in zip(*scores, strict=True)]


def of_adapter(aim: Any, name: str) -> Any:
    """The same aim for another adapter of its bank."""
    other = copy.copy(aim)
    other.name = name
    return other


def judged_as_one(aim: Any, names: Sequence[str], part: Part, watch: Watch | None = None) -> Judgement:
    """How adapters of the aim's bank answer a part together, in one routed pass; of one adapter, its own answers.

    Several have no loss in common: it is not a number then.
    """
    shares = [Share.whole(of_adapter(aim, name), part) for name in names]
    return combined(aim, part, judged_together(shares, watch))


def combined(aim: Any, part: Part, judged: Sequence[Judgement]) -> Judgement:
    """The judgement of a part by the mean of several adapters' scores, from each one's own."""
    if len(judged) == 1:
        return judged[0]
    scores = mean_scores([each.scores for each in judged])
    numbers = isinstance(aim.task, Task) and aim.task.regression
    predictions = [row[0] if numbers else best(row) for row in scores]
    metrics = aim.measure(part.examples, predictions) if judged[0].metrics else {}
    return Judgement(float("nan"), metrics, predictions, scores)


def write_ensemble(directory: Path, members: Sequence[str]) -> None:
    """Say in the folder which of its folders answer together."""
    write(directory / ENSEMBLE, to_json({"format": FORMAT, "members": [f"{MEMBERS}/{name}" for name in members]}))


def member_folders(directory: Path) -> list[Path]:
    """The adapter folders of a folder: those of an ensemble, or itself.

    Raises:
        StoreError: an ensemble without members, or members of other tasks, heads or bases than the first.
    """
    if not (directory / ENSEMBLE).exists():
        return [directory]
    record = read_json(directory / ENSEMBLE)
    where = str(directory / ENSEMBLE)
    names = record.get("members")
    if record.get("format") != FORMAT:
        raise StoreError(where, expected=f"format {FORMAT}", found=repr(record.get("format")))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise StoreError(where, expected="a list of members", found=repr(names))
    folders = [directory / name for name in names]
    about = [_about(read_json(folder / MANIFEST)) for folder in folders]
    odd = next((folder for folder, each in zip(folders, about, strict=True) if each != about[0]), None)
    if odd is not None:
        raise StoreError(str(odd), expected=f"the task, head and base of {folders[0].name}", found="another")
    return folders


def _about(manifest: dict[str, Any]) -> tuple[Any, ...]:
    base = manifest.get("base") or {}
    return manifest.get("task"), manifest.get("head"), base.get("name"), base.get("fingerprint")


def load_members(bank: Bank, folders: Sequence[Path]) -> tuple[list[str], Method]:
    """Add the adapters of folders to a bank; their names there, and the method of the first.

    Raises:
        StoreError: see `load_method`.
    """
    several = len(folders) > 1
    loaded = [load_method(bank, folder, folder.name if several else None) for folder in folders]
    return [adapter.name for adapter, _ in loaded], loaded[0][1]
