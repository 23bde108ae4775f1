"""A study's cells in Ray's workers: the records of one process, in the study's order, whoever dies on the way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beft.report.cells import CellRecord
from beft.studies import spread
from beft.studies.answering import Watcher
from beft.studies.execute import run_cell
from beft.studies.plan import Cell, make_plan
from beft.studies.runner import Outcome, run_plan
from beft.studies.spread import Spread
from beft.studies.study import Study
from beft.studies.together import groups, run_together
from beft.training.progress import BankListener, Listener
from beft.training.workers import Pool
from ray_workers import kill_worker_of, two_workers
from studies.conftest import StudyOf


@pytest.fixture(scope="module")
def pool(toy_data: Path) -> Iterator[Pool]:
    with two_workers(BEFT_DATA=str(toy_data)) as found:
        yield found


def refuse(*args: Any) -> Any:
    raise AssertionError("a cell in this process")


def run(study: Study, out: Path, pool: Pool, watcher: Watcher | None = None, **options: Any) -> Outcome:
    return run_plan(
        make_plan(study, dtype="fp32"), out, refuse, refuse, watcher=watcher, elsewhere=Spread(pool), **options
    )


def run_here(study: Study, out: Path) -> Outcome:
    return run_plan(make_plan(study, dtype="fp32"), out, run_cell, run_together)


def scores(records: Sequence[CellRecord]) -> list[Any]:
    return [(r.method, r.seed, r.status, r.reason, r.metrics, r.correct, r.extra.get("lr")) for r in records]


def test_a_workers_notes_reach_the_watcher() -> None:
    watching = Watching()
    bundle = spread._Bundle([], [], watching)
    spread._Relaying([], lambda *event: list(bundle.hear(*event))).note("one by one")
    assert watching.notes == ["one by one"]


class Watching(Watcher):
    """Keeps what it is told; calls a function at the n-th step of a group."""

    def __init__(self, at: int = 0, call: Callable[[Sequence[Cell]], Any] = refuse) -> None:
        self.left, self.call = at, call
        self.begun: list[list[tuple[str, int]]] = []
        self.open: list[Any] = []
        self.done_: list[tuple[str, int]] = []
        self.notes: list[str] = []

    def cell(self, cell: Cell) -> Listener:
        self.begun.append([(cell.method, cell.seed)])
        self.open.append(Listener())
        return self.open[-1]

    def group(self, cells: Sequence[Cell]) -> BankListener:
        self.begun.append([(cell.method, cell.seed) for cell in cells])
        outer = self

        class Bank(BankListener):
            def of(self, name: str) -> Listener:
                return Run()

        class Run(Listener):
            def step(self, loss: float | None, examples: int) -> None:
                outer.left -= 1
                if outer.left == 0:
                    outer.call(cells)

        self.open.append(Bank())
        return self.open[-1]

    def over(self, listener: Any) -> None:
        self.open.remove(listener)

    def done(self, record: CellRecord, hours_left: float) -> None:
        self.done_.append((record.method, record.seed))

    def note(self, text: str) -> None:
        self.notes.append(text)


LONG = {"epochs": 16, "batch_size": 4, "max_length": 32}
"""A run that lasts until its worker is killed."""
METHODS = {"methods": ["value", "icl", "head", "probe", "query"], "grid": {"value": [1e-3, 1e-2]}}


def test_records_and_cache_are_those_of_one_process(pool: Pool, toy_study: StudyOf, tmp_path: Path) -> None:
    study, watching = toy_study(**METHODS), Watching()
    outcome = run(study, tmp_path / "there", pool, watching)
    here = run_here(study, tmp_path / "here")
    assert scores(outcome.records) == scores(here.records)
    assert outcome.ran == here.ran == 8
    assert sorted(watching.done_) == sorted((m, s) for m in ("value", "head", "probe", "query") for s in (0, 1))
    assert not watching.open
    assert sorted(len(each) for each in watching.begun) == [1, 1, 3, 3]
    assert not (tmp_path / "there" / "work").exists()
    names = [sorted(path.name for path in (tmp_path / each / "cells").iterdir()) for each in ("there", "here")]
    assert names[0] == names[1]
    assert run(study, tmp_path / "there", pool).ran == 0


def test_a_killed_worker_costs_no_finished_cell(pool: Pool, toy_study: StudyOf, tmp_path: Path) -> None:
    study = toy_study(methods=["value", "query", "head"], changes=LONG)
    killed: list[Any] = []

    def kill(cells: Sequence[Cell]) -> None:
        hand = next(
            h for h in pool._hands if h.job is not None and [h.job.tag.cells[n] for n in h.job.tag.left] == cells
        )
        assert hand.job is not None
        killed.append([(cell.method, cell.seed) for cell in cells])
        kill_worker_of(pool, hand.job.tag)

    watching = Watching(30, kill)
    outcome = run(study, tmp_path / "there", pool, watching)
    assert scores(outcome.records) == scores(run_here(study, tmp_path / "here").records)
    assert watching.begun.count(killed[0]) == 2
    assert len(watching.done_) == len(set(watching.done_)) == 6
    assert any("died; 3 cells of it go to another" in note for note in watching.notes)
    assert not watching.open


def test_a_cell_that_loses_too_many_workers_fails_and_no_other(
    pool: Pool, toy_study: StudyOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "LOSSES", 1)
    study = toy_study(methods=["value"], banks=True, changes=LONG)

    class Killing(Watching):
        def cell(self, cell: Cell) -> Listener:
            if cell.seed == 1:
                kill_worker_of(
                    pool, next(h.job.tag for h in pool._hands if h.job and h.job.tag.cells[h.job.tag.left[0]] == cell)
                )
            return super().cell(cell)

    outcome = run(study, tmp_path, pool, Killing())
    assert [(r.seed, r.status) for r in outcome.records] == [(0, "done"), (1, "failed")]
    assert "its worker: expected one that lives to the end, found 1 that did not" in outcome.records[1].reason
    assert run(study, tmp_path, pool).records[1].status == "done"


def test_time_that_is_up_begins_no_bundle(pool: Pool, toy_study: StudyOf, tmp_path: Path) -> None:
    cells = make_plan(toy_study(methods=["probe"]), dtype="fp32").cells
    answers = list(Spread(pool).answer(cells, [[0], [1]], tmp_path, Watcher(), lambda: True))
    assert answers == [(0, None), (1, None)]


def test_bundles_leave_no_worker_idle(toy_study: StudyOf) -> None:
    cells = make_plan(toy_study(methods=["value", "query", "head"], seeds=[0, 1, 2]), dtype="fp32").cells
    numbers = range(len(cells))
    assert [len(each) for each in groups(cells, numbers)] == [9]
    assert [len(each) for each in groups(cells, numbers, workers=2)] == [5, 4]
    assert [len(each) for each in groups(cells, numbers, workers=20)] == [1] * 9


def test_other_rows_on_a_workers_machine_are_no_answer(pool: Pool, toy_study: StudyOf, tmp_path: Path) -> None:
    cells = [replace(cell, data="0" * 32) for cell in make_plan(toy_study(methods=["probe"]), dtype="fp32").cells[:1]]
    ((number, answer),) = Spread(pool).answer(cells, [[0]], tmp_path, Watcher(), lambda: False)
    assert number == 0
    assert "the task sst2: expected the planner's rows" in str(answer)
