"""The folder of a bank: bank.json says what was asked for, each run has a folder of its own beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BeftError, Interrupted, StoreError
from ..files import clear_parts, read_json, to_json, write
from ..report.names import several
from .ended import Finished, find_ended
from .folder import gone_if_it_fails, prepare, unlike, write_probe
from .machine import Choices
from .outputs import clear_results
from .plan import Plan
from .progress import BankListener
from .ranks import here

NAME = "bank.json"
SUMMARY = ("summary.csv", "summary.json")


def take_bank(
    directory: Path | None,
    model: str,
    plans: Sequence[Plan],
    choices: Choices,
    resume: bool,
    overwrite: bool,
    listener: BankListener,
) -> dict[str, Finished]:
    """Check the folder and take it. Gives the runs that are not to be repeated; raises as `open_bank` and `standing`.

    On resume, `choices` becomes what the bank was started with.
    """
    if directory is None:
        return {}
    open_bank(directory, model, plans, choices, resume=resume, overwrite=overwrite)
    if resume:
        _say_if_none_is_known(directory, plans, listener)
    done = standing(directory, model, plans, choices) if resume else {}
    if not resume:
        clear_bank(directory)
    write_bank(directory, model, plans, choices)
    return done


def _say_if_none_is_known(directory: Path, plans: Sequence[Plan], listener: BankListener) -> None:
    """Note a resume of which every run begins: of other names than those that the folder holds, or of an empty one."""
    former = read_json(directory / NAME)["runs"] if (directory / NAME).exists() else {}
    if not any(plan.name in former for plan in plans):
        holds = f"which holds {several(list(former))}" if former else "which is new"
        listener.note(f"nothing to resume in {directory}, {holds}: all runs begin")


def open_bank(
    directory: Path, model: str, plans: Sequence[Plan], choices: Choices, *, resume: bool, overwrite: bool
) -> None:
    """Check the folder before anything long begins. On resume, `choices` becomes what the bank was started with.

    Raises:
        StoreError: not a folder, not empty without `overwrite`, not writable, or a bank of another model.
    """
    if directory.exists() and not directory.is_dir():
        raise StoreError(str(directory), expected="a folder, or nothing there yet", found="a file")
    there = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if not resume and not overwrite and there:
        raise StoreError(
            str(directory),
            expected="an empty or new folder",
            found="files in it",
            remedy="use --resume to go on, --overwrite to replace it, or another --out",
        )
    if (resume or overwrite) and there and NAME not in there:
        raise StoreError(
            str(directory),
            expected=f"a bank of runs, with its {NAME}",
            found="other files",
            remedy="choose another --out",
        )
    write_probe(directory)
    clear_parts(directory)
    if resume and there:
        former = read_json(directory / NAME)
        if former.get("model") != model:
            raise unlike(directory, "model", f"{model!r} in place of {former.get('model')!r}")
        for key, value in former["machine"].items():
            setattr(choices, key, value)


@contextmanager
def gone_if_none_began(directory: Path | None) -> Iterator[None]:
    """Take away the new folder of a bank none of whose runs could begin, as `gone_if_it_fails` one of a run."""
    new = directory is not None and not directory.exists()
    with gone_if_it_fails(directory):
        try:
            yield
        except Interrupted:
            raise
        except BeftError:
            made = directory if new and here().leads else None
            if made is not None and made.is_dir() and not any(made.glob("*/run.json")):
                clear_bank(made)
            raise


def clear_bank(directory: Path) -> None:
    """Take out what a former bank wrote; folders keep files that are not ours."""
    if (directory / NAME).exists():
        for name in read_json(directory / NAME)["runs"]:
            folder = directory / name
            clear_results(folder)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    for name in (*SUMMARY, NAME):
        (directory / name).unlink(missing_ok=True)


def write_bank(directory: Path, model: str, plans: Sequence[Plan], choices: Choices) -> None:
    """Write bank.json: the model, the choices made for the machine, and each run's recipe and rows. Runs of a former
    command that this one, a resume, leaves out stay in it: their folders are the bank's still."""
    former = read_json(directory / NAME)["runs"] if (directory / NAME).exists() else {}
    runs: dict[str, Any] = {}
    for plan in plans:
        assert plan.recipe is not None
        assert plan.task is not None
        own = plan.own_task()
        runs[plan.name] = {
            "task": plan.task.name,
            "train": len(own.train),
            "fingerprint": own.fingerprint(),
            "recipe": plan.recipe.to_dict(),
        }
    left = {name: run for name, run in former.items() if name not in runs}
    write(directory / NAME, to_json({"model": model, "machine": choices.to_dict(), "runs": {**runs, **left}}))


def standing(directory: Path, model: str, plans: Sequence[Plan], choices: Choices) -> dict[str, Finished]:
    """Runs that have ended already, by name; the folders of the others are checked.

    Raises:
        StoreError: a folder that holds a run of another recipe, other data or another model.
    """
    done: dict[str, Finished] = {}
    for plan in plans:
        write_probe(directory / plan.name)
        ended = find_ended(directory / plan.name, model, plan, choices)
        if ended is not None:
            done[plan.name] = ended
            continue
        assert plan.recipe is not None
        own = plan.own_task()
        prepare(directory / plan.name, model, own, plan.recipe, replace(choices), resume=True, overwrite=False)
    return done
