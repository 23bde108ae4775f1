"""Running a plan: every cell once, from the cache where it is done, within a budget of hours."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import TermError
from ..report.cells import CellRecord, Status
from .answering import Answering, Here, RunCell, RunGroup, Watcher, one_line
from .cache import Cache, refuse_mixed
from .estimate import Estimator
from .plan import Cell, Plan
from .together import groups


@dataclass
class Outcome:
    """The records of every cell of a study, in its order, and what the user should know."""

    records: list[CellRecord]
    notes: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    ran: int = 0


@dataclass
class Schedule:
    """Which cells of a plan are cached, which are to run, and which the budget leaves out."""

    cached: dict[int, CellRecord]
    todo: list[int]
    beyond: list[int]
    stale: int
    seconds: float

    @property
    def hours(self) -> float:
        """What the cells to run will take."""
        return self.seconds / 3600


def schedule(
    plan: Plan, cache: Cache, estimator: Estimator, budget: float | None = None, *, other_versions: bool = False
) -> Schedule:
    """Sort a plan's cells. `budget` is in hours; `other_versions` counts cells of other code versions as done.

    Raises:
        StudyError: a damaged cell in the cache.
    """
    result = Schedule({}, [], [], 0, 0.0)
    for number, cell in enumerate(plan.cells):
        record = cache.get(cell)
        if record is None and (other := cache.other(cell)) is not None:
            result.stale += 1
            record = other if other_versions else None
        if record is not None:
            result.cached[number] = record
            _learn(estimator, cell, record)
    for number, cell in enumerate(plan.cells):
        if number in result.cached:
            continue
        seconds = estimator.seconds(cell)
        if budget is not None and (result.beyond or result.seconds + seconds > budget * 3600):
            result.beyond.append(number)
        else:
            result.todo.append(number)
            result.seconds += seconds
    return result


def run_plan(
    plan: Plan,
    directory: Path,
    run: RunCell,
    run_group: RunGroup | None = None,
    *,
    budget: float | None = None,
    other_versions: bool = False,
    watcher: Watcher | None = None,
    cache: Cache | None = None,
    elsewhere: Answering | None = None,
) -> Outcome:
    """Run what is not done yet and give the records of all cells, the missing ones too.

    A finished cell is written at once, so that a study that was stopped at any moment goes on with the next cell. A
    cell that fails is recorded as failed with its reason, and tried again by the next call.

    Args:
        directory: the study's folder; cells lie in `cells/`, an unfinished run in `work/`.
        run_group: runs cells that can share passes over the frozen model; without it each runs alone.
        elsewhere: workers that answer the cells in place of `run` and `run_group`.
        budget: hours; cells that do not fit, by estimate or by the clock, are recorded as missing.

    Raises:
        Interrupted: a signal asked to stop.
        StudyError: a damaged cell, or results of several code versions without `other_versions`.
    """
    watcher = watcher or Watcher()
    cache = cache or Cache(directory / "cells")
    who = elsewhere or Here(run, run_group)
    estimator = Estimator(who.speed)
    order = schedule(plan, cache, estimator, budget, other_versions=other_versions)
    records = dict(order.cached)
    outcome = Outcome([])
    watcher.begin(len(plan.cells), len(order.cached), order.hours)
    began = time.monotonic()
    left = {number: estimator.seconds(plan.cells[number]) for number in order.todo}
    beyond = list(order.beyond)
    bundles = [[number] for number in order.todo]
    if plan.study.banks and (run_group is not None or elsewhere is not None):
        bundles = groups(plan.cells, order.todo, by_seed=budget is not None, workers=who.workers)

    def late() -> bool:
        return budget is not None and time.monotonic() - began > budget * 3600

    for number, found in who.answer(plan.cells, bundles, directory, watcher, late):
        cell = plan.cells[number]
        if found is None:
            beyond.append(number)
            continue
        if isinstance(found, CellRecord):
            record = cache.put(cell, replace(found, made_by={**found.made_by, "workers": who.workers}))
            outcome.ran += 1
            _learn(estimator, cell, record)
        else:
            status: Status = "missing" if isinstance(found, TermError) else "failed"
            record = cell.record(status=status, reason=one_line(found))
        records[number] = record
        del left[number]
        watcher.done(record, sum(estimator.seconds(plan.cells[each]) for each in left) / 3600)
    for number in beyond:
        reason = f"beyond the budget of {max(budget or 0, 0):.3g} hours"
        records[number] = plan.cells[number].record(status="missing", reason=reason)
    with contextlib.suppress(OSError):  # not there, or an unfinished run is kept in it
        (directory / "work").rmdir()
    outcome.records = _in_order(plan, records)
    outcome.versions = refuse_mixed(outcome.records, str(directory), allowed=other_versions)
    if order.stale:
        outcome.notes.append(_stale_note(order.stale, other_versions))
    if len(outcome.versions) > 1:
        outcome.notes.append("results of several code versions stand side by side: " + ", ".join(outcome.versions))
    return outcome


def _in_order(plan: Plan, records: dict[int, CellRecord]) -> list[CellRecord]:
    """All records in the order of the study's lists, whatever ran when."""
    study = plan.study
    everything = [*(records[number] for number in sorted(records)), *plan.missing]

    def place(record: CellRecord) -> tuple[int, ...]:
        regimes, methods = list(study.regimes), list(study.methods)
        return (
            study.models.index(record.model),
            regimes.index(record.regime) if record.regime in regimes else 0,
            study.tasks.index(record.task),
            methods.index(record.method) if record.method in methods else 0,
            study.seeds.index(record.seed),
        )

    return sorted(everything, key=place)


def _learn(estimator: Estimator, cell: Cell, record: CellRecord) -> None:
    """Seconds by which a study was longer for a cell: its own, or its part of those of several workers."""
    if "wall_seconds" in record.extra:
        estimator.observe(cell, float(record.extra["wall_seconds"]) / int(record.made_by.get("workers", 1)))


def _stale_note(count: int, used: bool) -> str:
    cells = "one cell" if count == 1 else f"{count} cells"
    if used:
        return f"{cells} made by another code version were used"
    return f"{cells} made by another code version were not used; --other-versions would use them"
