"""The cells of a study answered by Ray's workers, a bundle each; what a dead worker leaves goes to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import Interrupted, StudyError, WorkersError
from ..report.cells import CellRecord
from ..tasks.question import PromptTask
from ..tasks.task import Task
from ..training.cluster import processors
from ..training.progress import BankListener, Listener
from ..training.relay import RelayedBank, RelayedRun, Retelling
from ..training.signals import StopRequest
from ..training.worker import Marked, marked
from ..training.workers import LOSSES, Event, Job, Lost, Pool, handed_on
from .answering import Answered, Late, Watcher, answer_bundle, stopped
from .execute import run_cell
from .plan import Cell
from .together import run_together

BEGUN, TOLD, NOTED, OVER, ANSWER = "begun", "told", "noted", "over", "answer"
"""Events: cells begin (their numbers) as a group or alone, what they tell, a note, their end; the answer of one."""


class Spread:
    """Answers bundles in a pool of workers."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.workers = pool, pool.size
        self.speed = max(1.0, pool.size * pool.layout.threads / processors())

    def answer(
        self, cells: Sequence[Cell], bundles: Sequence[list[int]], directory: Path, watcher: Watcher, late: Late
    ) -> Answered:
        """See `Answering`. A cell on which workers die again and again is answered by a WorkersError."""
        beyond: list[int] = []
        losses: Counter[int] = Counter()
        with StopRequest() as stop, marked(directory) as place:

            def job(numbers: Sequence[int]) -> Job:
                own = [cells[number] for number in numbers]
                return Job(_answer, (own, place, self.pool.layout.device), tag=_Bundle(cells, list(numbers), watcher))

            def in_time() -> Iterator[Job]:
                for numbers in bundles:
                    if late():
                        beyond.extend(numbers)
                    else:
                        yield job(numbers)

            try:
                for each in self.pool.work(in_time(), stop):
                    bundle: _Bundle = each.job.tag
                    if isinstance(each, Event):
                        yield from bundle.hear(*each.parts)
                    elif isinstance(each, Lost):
                        bundle.over()
                        losses.update(bundle.left)
                        given_up = [number for number in bundle.left if losses[number] >= LOSSES]
                        again = [number for number in bundle.left if losses[number] < LOSSES]
                        watcher.note(handed_on(each.reason, len(again), "cell"))
                        yield from ((number, _lost_too_often(each.reason)) for number in given_up)
                        if again:
                            self.pool.again(job(again))
            except Interrupted as stop_:
                raise stopped(stop_) from stop_
        yield from ((number, None) for number in beyond)


def _lost_too_often(reason: str) -> WorkersError:
    return WorkersError("its worker", expected="one that lives to the end", found=f"{LOSSES} that did not; {reason}")


class _Bundle:
    """Cells in the hands of a worker: those not answered yet, and who listens to them."""

    def __init__(self, cells: Sequence[Cell], left: list[int], watcher: Watcher) -> None:
        self.cells, self.numbers, self.left, self.watcher = cells, list(left), left, watcher
        self.listener: Listener | None = None
        self.tell: Callable[..., None] = lambda *event: None

    def hear(self, kind: str, *parts: Any) -> Iterator[tuple[int, CellRecord | BaseException]]:
        """Take an event; an answer is handed on."""
        if kind == ANSWER:
            number = self.numbers[parts[0]]
            self.left.remove(number)
            yield number, parts[1]
        elif kind == OVER:
            self.over()
        elif kind == TOLD:
            self.tell(*parts)
        elif kind == NOTED:
            self.watcher.note(*parts)
        else:
            own = [self.cells[self.numbers[place]] for place in parts[0]]
            if len(own) > 1:
                bank = self.watcher.group(own) or BankListener()
                self.listener, self.tell = bank, Retelling(bank).tell
            else:
                alone = self.watcher.cell(own[0]) or Listener()
                self.listener, self.tell = alone, partial(_tell, alone)

    def over(self) -> None:
        """Nobody listens any more."""
        if self.listener is not None:
            self.watcher.over(self.listener)
        self.listener, self.tell = None, lambda *event: None


def _tell(listener: Listener, name: str, method: str, *args: Any) -> None:
    getattr(listener, method)(*args)


# ---- in the worker ---------------------------------------------------------------------------------------------------


def _answer(send: Callable[..., None], cells: Sequence[Cell], place: Marked, device: str) -> None:
    """Answer cells here, each answer sent at once."""

    def run(cell: Cell, work: Path, listener: Listener | None) -> CellRecord:
        _check_rows([cell])
        return run_cell(cell, work, listener, device=device)

    def run_group(group: Sequence[Cell], work: Path, listener: BankListener | None) -> Any:
        _check_rows(group)
        return run_together(group, work, listener, device=device)

    with place.here() as (directory, _):
        watcher = _Relaying(cells, send)
        for number, answer in answer_bundle(cells, range(len(cells)), directory, run, run_group, watcher):
            send(ANSWER, number, answer)


def _check_rows(cells: Sequence[Cell]) -> None:
    """Raises StudyError if this machine has other rows than the one that planned the study."""
    for cell in cells:
        rows: Task | PromptTask = cell.load()
        if rows.fingerprint() != cell.data:
            raise StudyError(
                f"the task {cell.task}", expected="the planner's rows", found="others on the worker's machine"
            )


class _Relaying(Watcher):
    """Sends when cells begin and end, what they tell, and notes."""

    def __init__(self, cells: Sequence[Cell], send: Callable[..., None]) -> None:
        self.cells, self.send = list(cells), send

    def cell(self, cell: Cell) -> Listener:
        """Say so."""
        self.send(BEGUN, [self.cells.index(cell)])
        return RelayedRun(partial(self.send, TOLD), "")

    def group(self, cells: Sequence[Cell]) -> BankListener:
        """Say so."""
        self.send(BEGUN, [self.cells.index(cell) for cell in cells])
        return RelayedBank(partial(self.send, TOLD))

    def note(self, text: str) -> None:
        """Say so."""
        self.send(NOTED, text)

    def over(self, listener: Listener | None) -> None:
        """Say so."""
        self.send(OVER)
