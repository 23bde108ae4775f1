"""The folder of a run: may it be written, is there something to resume, and does it fit what is asked now?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import Interrupted, StoreError
from ..files import read_json
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .checkpoint import NAME as CHECKPOINT
from .checkpoint import read_settings
from .machine import Choices
from .recipe import Recipe

BEFORE = {"pairs": "joint", "head_penalty": "none"}
"""What runs were trained with before there was a choice."""


def prepare(
    directory: Path,
    model: str,
    task: Task | PromptTask,
    recipe: Recipe,
    choices: Choices,
    resume: bool,
    overwrite: bool,
) -> bool:
    """Check the folder of a run before anything long begins. Gives whether there is a checkpoint to go on from.

    On resume, `choices` becomes what the run was started with.

    Raises:
        StoreError: not a folder, not empty without `overwrite`, not writable, or a run of other data, model or recipe.
    """
    if resume and (directory.is_dir() or not directory.exists()):
        return _resume(directory, model, task, recipe, choices)
    check_new(directory, overwrite, "use --resume to go on, --overwrite to replace it, or another --out")
    return False


@contextmanager
def gone_if_it_fails(directory: Path | None) -> Iterator[None]:
    """Take away a new folder, still empty, of a run that could not begin: the corrected command may then be repeated,
    and nothing stands where no run does. A run that was interrupted keeps it, for `--resume`."""
    new = None if directory is None or directory.exists() else directory
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        if new is not None:
            with suppress(OSError):  # not empty, or not made
                new.rmdir()
        raise


def check_new(
    directory: Path, overwrite: bool, remedy: str = "use --overwrite to replace it, or another --out"
) -> None:
    """Make a folder that may be written from the start.

    Raises:
        StoreError: not a folder, not empty without `overwrite`, or not writable.
    """
    if directory.exists() and not directory.is_dir():
        raise StoreError(str(directory), expected="a folder, or nothing there yet", found="a file")
    if not overwrite and directory.is_dir() and not is_empty(directory):
        raise StoreError(str(directory), expected="an empty or new folder", found="files in it", remedy=remedy)
    write_probe(directory)


def write_probe(directory: Path) -> None:
    """Make the folder. Raises StoreError if it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".beft-write-test.part"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        found = error.strerror or str(error)
        raise StoreError(str(directory), expected="a folder that can be written", found=found) from error


def _resume(directory: Path, model: str, task: Task | PromptTask, recipe: Recipe, choices: Choices) -> bool:
    run = read_json(directory / "run.json") if (directory / "run.json").exists() else {}
    if run:
        check_same(directory, run, model, task, recipe)
    if not (directory / CHECKPOINT).exists():
        if run.get("status") == "running" or is_empty(directory):  # stopped before the first
            return False
        raise StoreError(
            str(directory),
            expected="a run to resume",
            found="no checkpoint",
            remedy="start anew with --overwrite, or choose another --out" if run else "start without --resume",
        )
    stored = read_settings(directory)
    _check_recipe(directory, stored, recipe)
    for key, value in stored["choices"].items():
        setattr(choices, key, value)
    return True


def check_same(directory: Path, record: Mapping[str, Any], model: str, task: Task | PromptTask, recipe: Recipe) -> None:
    """Raises StoreError for a run, by its run.json, of other data, another model or another recipe."""
    if task.fingerprint() != record.get("data", {}).get("fingerprint"):
        raise unlike(directory, "data", "other data")
    if model != record.get("model"):
        raise unlike(directory, "model", f"{model!r} in place of {record.get('model')!r}")
    _check_recipe(directory, record, recipe)


def _check_recipe(directory: Path, record: Mapping[str, Any], recipe: Recipe) -> None:
    before = {**BEFORE, **record.get("recipe", {})}
    changed = [
        f"{key} ({value} in place of {before.get(key)})"
        for key, value in recipe.to_dict().items()
        if before.get(key) != value
    ]
    if changed:
        raise unlike(directory, "recipe", f"another {', '.join(changed)}")


def unlike(directory: Path, what: str, found: str) -> StoreError:
    """The error of a run that is resumed as another."""
    return StoreError(
        str(directory),
        expected=f"the {what} the run was started with",
        found=found,
        remedy="repeat the first command with --resume, or start anew with --overwrite",
    )


def is_empty(directory: Path) -> bool:
    """Whether a folder holds nothing but what a killed process left half written."""
    return directory.is_dir() and all(path.name.endswith(".part") for path in directory.iterdir())
