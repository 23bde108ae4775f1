"""Cells answered: one bundle after the other in this process, each cell trained and judged alone or in a group."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import BeftError, Interrupted
from ..report.cells import CellRecord
from ..training.progress import BankListener, Listener
from .plan import Cell
from .together import Answer

L = TypeVar("L", bound=Listener | None)
RunCell = Callable[[Cell, Path, Listener | None], CellRecord]
"""Trains and judges one cell; the folder is for its unfinished run."""
RunGroup = Callable[[Sequence[Cell], Path, BankListener | None], Sequence[Answer]]
"""Trains and judges cells side by side; the folder is for their unfinished bank."""
FAULTS = (BeftError, RuntimeError, ValueError, TypeError, KeyError, OSError, MemoryError)
"""What ends a cell and not the study."""


class Watcher:
    """Is told how a study goes; does nothing with it."""

    def begin(self, cells: int, cached: int, hours: float) -> None:
        """Before the first cell: how many there are, how many are done, what the others will take."""

    def cell(self, cell: Cell) -> Listener | None:
        """A cell begins; gives who listens to its training."""
        return None

    def group(self, cells: Sequence[Cell]) -> BankListener | None:
        """Cells begin side by side; gives who listens to their training."""
        return None

    def note(self, text: str) -> None:
        """Something the user should know."""

    def over(self, listener: Listener | None) -> None:
        """What a listener of `cell` or `group` listened to has ended."""

    def done(self, record: CellRecord, hours_left: float) -> None:
        """A cell is done."""


Late = Callable[[], bool]
"""Whether the time is up."""
Answered = Iterator[tuple[int, CellRecord | BaseException | None]]
"""Numbers of cells, each with its record, or what ended it, or None: there was no time left to begin it."""


class Answering(Protocol):
    """Who answers cells; so many bundles at once, and so many times as fast as this machine does."""

    workers: int
    speed: float

    def answer(
        self, cells: Sequence[Cell], bundles: Sequence[list[int]], directory: Path, watcher: Watcher, late: Late
    ) -> Answered:
        """Answer the numbered cells, those of a bundle together, each as soon as its answer is known.

        Raises:
            Interrupted: a signal asked to stop.
        """
        ...


class Here:
    """Answers in this process, one bundle after the other."""

    workers = 1
    speed = 1.0

    def __init__(self, run: RunCell, run_group: RunGroup | None) -> None:
        self.run, self.run_group = run, run_group

    def answer(
        self, cells: Sequence[Cell], bundles: Sequence[list[int]], directory: Path, watcher: Watcher, late: Late
    ) -> Answered:
        """See `Answering`."""
        for members in bundles:
            if late():
                yield from ((number, None) for number in members)
            else:
                yield from answer_bundle(cells, members, directory, self.run, self.run_group, watcher)


def answer_bundle(
    cells: Sequence[Cell],
    members: Sequence[int],
    directory: Path,
    run: RunCell,
    run_group: RunGroup | None,
    watcher: Watcher,
) -> Iterator[tuple[int, CellRecord | BaseException]]:
    """The record of each member, or what ended it. What ends a whole group, such as a term that the model lacks, is one
    cell's trouble as a rule: then each member runs alone, and the watcher is told why."""
    if run_group is not None and len(members) > 1:
        group = [cells[number] for number in members]
        name = hashlib.sha256(" ".join(cell.question for cell in group).encode()).hexdigest()[:20]
        try:
            with _listening(watcher, watcher.group(group)) as listener:
                found = run_group(group, directory / "work" / name, listener)
        except Interrupted as stop:
            raise stopped(stop) from stop
        except FAULTS as error:
            shutil.rmtree(directory / "work" / name, ignore_errors=True)
            watcher.note(f"{len(group)} cells could not run side by side and run one by one: {one_line(error)}")
        else:
            yield from zip(members, found, strict=True)
            return
    for number in members:
        cell = cells[number]
        try:
            with _listening(watcher, watcher.cell(cell)) as own:
                record = run(cell, directory / "work" / cell.question, own)
        except Interrupted as stop:
            raise stopped(stop) from stop
        except FAULTS as error:
            yield number, error
        else:
            yield number, record


@contextmanager
def _listening(watcher: Watcher, listener: L) -> Iterator[L]:
    """A listener as long as it listens."""
    try:
        yield listener
    finally:
        watcher.over(listener)


def one_line(error: BaseException) -> str:
    """What an error says, and its kind if it is none of beft's."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, BeftError) else f"{type(error).__name__}: {text}"[:300]


def stopped(stop: Interrupted) -> Interrupted:
    """The same with the remedy of a study, which is not that of a run."""
    return Interrupted(stop.where, signal=stop.signal, remedy="repeat the same command to go on from there")
