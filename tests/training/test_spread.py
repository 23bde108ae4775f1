"""Runs in Ray's workers: the weights of one process, whoever dies or is stopped on the way."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import beft
from beft.errors import Interrupted, StoreError, WorkersError
from beft.training import spread
from beft.training.plan import Plan
from beft.training.progress import BankListener, Listener
from beft.training.worker import Marked
from beft.training.workers import Pool
from ray_workers import kill_worker_of, two_workers
from toys import fast, same_tensors, toy_task
from training.test_many import many, tensors

PLANS = [
    Plan("plain", fast()),
    Plan("long", fast(seed=3, lr=3e-3, epochs=30, batch_size=4)),
    Plan("terms", fast(terms="query+value", layers="last:1", batch_size=5)),
    Plan("headed", fast(head="model", seed=2)),
    Plan("slow", fast(seed=4, epochs=30, batch_size=4)),
    Plan("fold", fast(), rows=range(5, 33), judged=range(5)),
]
TOO_MUCH = Plan("wild", fast(lr=900.0, weight_decay=1e38, epochs=3, refit=False))
"""A run whose loss is not finite."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with two_workers() as found:
        yield found


@pytest.fixture(scope="module")
def alone(pool: Pool, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the plans trained in one process; for reading only."""
    out = tmp_path_factory.mktemp("alone") / "out"
    many(bert, toy_task(), [*PLANS, TOO_MUCH], out)
    return out


class Watch(BankListener):
    """Counts what every run tells, and calls a function at a run's n-th step."""

    def __init__(self, at: dict[tuple[str, int], Callable[[], Any]] | None = None) -> None:
        self.at = at or {}
        self.notes: list[str] = []
        self.steps: dict[str, int] = {}
        self.resumed: dict[str, int] = {}
        self.restarted_: list[str] = []
        self.ended_: dict[str, Exception | None] = {}

    def of(self, name: str) -> Listener:
        outer = self

        class One(Listener):
            def step(self, loss: float | None, examples: int) -> None:
                outer.steps[name] = outer.steps.get(name, 0) + 1
                outer.at.pop((name, outer.steps[name]), lambda: None)()

            def resumed(self, steps: int) -> None:
                outer.resumed[name] = steps

        return One()

    def restarted(self, name: str) -> None:
        self.restarted_.append(name)

    def ended(self, name: str, scores: Any, error: Exception | None) -> None:
        assert name not in self.ended_
        self.ended_[name] = error

    def note(self, text: str) -> None:
        self.notes.append(text)


def same_banks(one: Path, two: Path, names: list[str]) -> None:
    """Two folders hold the same runs: files, weights to 1e-6, scores and epochs; and the same table."""
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for name in names:
        assert {path.name for path in (one / name).iterdir()} == {path.name for path in (two / name).iterdir()}, name
        same_tensors(tensors(one / name), tensors(two / name), 1e-6)
        first, second = (json.loads((folder / name / "metrics.json").read_text()) for folder in (one, two))
        for key in ("dev", "evaluation", "best_epoch", "train_examples"):
            assert first[key] == pytest.approx(second[key]), (name, key)
    tables = [json.loads((folder / "summary.json").read_text())["runs"] for folder in (one, two)]
    assert [(row["run"], row["status"]) for row in tables[0]] == [(row["run"], row["status"]) for row in tables[1]]


NAMES = [plan.name for plan in PLANS]


def test_runs_dealt_to_workers_give_what_one_process_gives(pool: Pool, bert: Path, tmp_path: Path, alone: Path) -> None:
    watch = Watch()
    found = many(bert, toy_task(), [*PLANS, TOO_MUCH], tmp_path / "out", ray="local", listener=watch)
    same_banks(tmp_path / "out", alone, NAMES)
    assert list(found.results) == NAMES
    assert "expected a finite loss" in str(found.failures["wild"])
    assert found.results["plain"].task.train == toy_task().train
    assert found.results["fold"].directory == tmp_path / "out" / "fold"
    assert len(found.results["fold"].predictions["held-out"]) == 5
    assert set(watch.ended_) == {*NAMES, "wild"}
    assert all(watch.steps[name] > 0 for name in NAMES)
    assert "Ray at local: 2 workers of one thread" in watch.notes
    again = many(bert, toy_task(), [*PLANS, TOO_MUCH], tmp_path / "out", ray="local", resume=True)
    assert again.results["plain"].metrics == found.results["plain"].metrics


def test_a_killed_worker_costs_no_finished_run(pool: Pool, bert: Path, tmp_path: Path, alone: Path) -> None:
    out = tmp_path / "out"
    killed: list[set[str]] = []
    finished: dict[str, int] = {}

    def kill() -> None:
        hand = next(each for each in pool._hands if each.job is not None and "long" in each.job.tag)
        assert hand.job is not None
        kill_worker_of(pool, hand.job.tag)
        killed.append(set(hand.job.tag))
        finished.update({p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/metrics.json")})

    watch = Watch({("long", 60): kill})
    many(bert, toy_task(), PLANS, out, ray="local", listener=watch)
    same_banks_but_wild(out, alone)
    (taken,) = killed
    assert set(watch.restarted_) == taken - set(finished)
    assert "long" in watch.restarted_
    assert finished.keys() & taken, "nothing of the killed worker's had ended"
    for name, stamp in finished.items():
        assert (out / name / "metrics.json").stat().st_mtime_ns == stamp
    assert watch.resumed["long"] > 0
    assert sum("died; " in note and "to another" in note for note in watch.notes) == 1


def same_banks_but_wild(out: Path, alone: Path) -> None:
    for name in NAMES:
        same_tensors(tensors(out / name), tensors(alone / name), 1e-6)


def test_a_run_that_loses_too_many_workers_is_named(
    pool: Pool, bert: Path, tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "LOSSES", 1)
    out = tmp_path / "out"

    def kill() -> None:
        kill_worker_of(pool, next(h.job.tag for h in pool._hands if h.job is not None and "long" in h.job.tag))

    with pytest.raises(WorkersError, match=r"run.* 'long'.*a worker that lives to the end, found 1 that did not"):
        many(bert, toy_task(), [PLANS[1], PLANS[4]], out, ray="local", listener=Watch({("long", 3): kill}))
    assert (out / "slow" / "metrics.json").exists()
    many(bert, toy_task(), [PLANS[1], PLANS[4]], out, resume=True)
    same_tensors(tensors(out / "long"), tensors(alone / "long"), 1e-6)


def test_without_a_shared_disk_the_files_are_sent(
    pool: Pool, bert: Path, tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(spread, "marked", lambda folder: nullcontext(Marked(folder.absolute(), "no such mark")))
    many(bert, toy_task(), [*PLANS, TOO_MUCH], tmp_path / "out", ray="local")
    same_banks(tmp_path / "out", alone, NAMES)


def test_in_memory(pool: Pool, bert: Path) -> None:
    here = many(bert, toy_task(), PLANS[:3])
    there = many(bert, toy_task(), PLANS[:3], ray="local")
    for name, result in here.results.items():
        assert there.results[name].predictions == result.predictions
        assert there.results[name].directory is None


def test_a_signal_stops_the_workers_and_resume_goes_on(pool: Pool, bert: Path, tmp_path: Path, alone: Path) -> None:
    out = tmp_path / "out"
    stop = Watch({("long", 10): lambda: os.kill(os.getpid(), signal.SIGINT)})
    with pytest.raises(Interrupted, match="--resume"):
        many(bert, toy_task(), PLANS, out, ray="local", listener=stop)
    assert (out / "long" / "checkpoint.safetensors").exists()
    assert not list(out.glob(".*.mark"))
    watch = Watch()
    many(bert, toy_task(), PLANS, out, resume=True, ray="local", listener=watch)
    assert watch.resumed["long"] >= 10
    same_banks_but_wild(out, alone)


def test_what_a_worker_cannot_do_is_the_error_of_one_process(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as here:
        beft.train_many(str(tmp_path / "none"), toy_task(), PLANS[:2], dtype="fp32")
    with pytest.raises(StoreError) as there:
        beft.train_many(str(tmp_path / "none"), toy_task(), PLANS[:2], dtype="fp32", ray="local")
    assert str(there.value) == str(here.value)
