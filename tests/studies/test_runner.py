"""The runner repeats nothing: not after a kill, not after an error, not for another version of the code unseen."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beft.errors import DataError, Interrupted, StudyError, TermError, TrainingError
from beft.report.cells import CellRecord
from beft.studies.answering import Watcher
from beft.studies.cache import Cache, read_records, refuse_mixed
from beft.studies.plan import Cell, make_plan
from beft.studies.runner import Outcome, run_plan
from beft.training.progress import Listener
from studies.conftest import StudyOf


class Counting:
    """Runs a cell by counting it."""

    def __init__(self, errors: dict[tuple[str, int], Exception] | None = None) -> None:
        self.ran: list[tuple[str, int]] = []
        self.errors = errors or {}

    def __call__(self, cell: Cell, work: Path, listener: Listener | None) -> CellRecord:
        self.ran.append((cell.method, cell.seed))
        if (cell.method, cell.seed) in self.errors:
            raise self.errors[cell.method, cell.seed]
        return cell.record(metrics={"accuracy": 0.5}, extra={"wall_seconds": 1.0})


def run(study: StudyOf, out: Path, runner: Counting, code: str = "1+a", **options: object) -> Outcome:
    changes = options.pop("changes", {})
    plan = make_plan(study(**changes))  # type: ignore[arg-type]
    return run_plan(plan, out, runner, cache=Cache(out / "cells", code), **options)  # type: ignore[arg-type]


def test_a_second_call_runs_nothing_and_a_wider_study_only_what_is_new(toy_study: StudyOf, tmp_path: Path) -> None:
    first, second, third = Counting(), Counting(), Counting()
    outcome = run(toy_study, tmp_path, first)
    assert outcome.ran == len(first.ran) == 6
    assert run(toy_study, tmp_path, second).records == outcome.records
    assert second.ran == []
    run(toy_study, tmp_path, third, changes={"seeds": [0, 1, 2], "methods": ["value", "head"]})
    assert third.ran == [("value", 2), ("head", 2)]


def test_records_come_in_the_studys_order(toy_study: StudyOf, tmp_path: Path) -> None:
    records = run(toy_study, tmp_path, Counting(), changes={"methods": ["value", "icl", "head"]}).records
    assert [(r.method, r.seed, r.status) for r in records] == [
        ("value", 0, "done"), ("value", 1, "done"), ("icl", 0, "missing"), ("icl", 1, "missing"),
        ("head", 0, "done"), ("head", 1, "done"),
    ]  # fmt: skip


def test_killed_midway_it_goes_on_without_repeating_a_cell(bert: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(Path(__file__).with_name("killed.py")), str(bert), str(tmp_path)]
    began = tmp_path / "began.txt"
    process = subprocess.Popen([*script, "0.4"], env=dict(os.environ), stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        if began.exists() and len(began.read_text().splitlines()) >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list((tmp_path / "cells").glob("*.json")))
    before = began.read_text().splitlines()
    assert 2 <= kept < 6
    assert len(before) - kept in (0, 1)  # the one that was running
    again = subprocess.run([*script, "0"], env=dict(os.environ), capture_output=True, text=True, check=True)
    assert again.stdout.split() == [str(6 - kept), "6"]
    after = began.read_text().splitlines()[len(before) :]
    assert set(after).isdisjoint(before[:kept])
    assert len(set(before) | set(after)) == 6


def test_a_failing_cell_is_told_and_tried_again(toy_study: StudyOf, tmp_path: Path) -> None:
    errors = {("value", 0): TrainingError("step 3", expected="a finite loss", found="nan"),
              ("head", 1): TermError("terms=x", expected="a term"), ("probe", 1): RuntimeError("odd")}  # fmt: skip
    outcome = run(toy_study, tmp_path, Counting(errors))
    assert {(r.method, r.seed): (r.status, r.reason) for r in outcome.records if r.status != "done"} == {
        ("value", 0): ("failed", "step 3: expected a finite loss, found nan"),
        ("head", 1): ("missing", "terms=x: expected a term"),
        ("probe", 1): ("failed", "RuntimeError: odd"),
    }
    again = Counting()
    assert all(record.status == "done" for record in run(toy_study, tmp_path, again).records)
    assert again.ran == [("value", 0), ("head", 1), ("probe", 1)]


def test_a_signal_stops_the_study(toy_study: StudyOf, tmp_path: Path) -> None:
    stopping = Counting({("head", 0): Interrupted("stopped", signal=15, remedy="again")})
    with pytest.raises(Interrupted, match="same command"):
        run(toy_study, tmp_path, stopping)
    rest = Counting()
    run(toy_study, tmp_path, rest)
    assert ("value", 0) not in rest.ran
    assert len(rest.ran) == 5


def test_another_version_of_the_code_counts_only_if_asked(toy_study: StudyOf, tmp_path: Path) -> None:
    run(toy_study, tmp_path, Counting(), code="1+a")
    seen, anew = Counting(), Counting()
    used = run(toy_study, tmp_path, seen, code="1+b", other_versions=True)
    assert seen.ran == []
    assert used.versions == ["1+a"]
    assert any("6 cells made by another code version were used" in note for note in used.notes)
    fresh = run(toy_study, tmp_path, anew, code="1+b")
    assert len(anew.ran) == 6
    assert fresh.versions == ["1+b"]
    assert any("were not used" in note for note in fresh.notes)
    mixed = run(toy_study, tmp_path, Counting(), code="1+c", other_versions=True, changes={"seeds": [0, 1, 2]})
    assert mixed.versions == ["1+b", "1+c"]
    assert any("side by side: 1+b, 1+c" in note for note in mixed.notes)
    with pytest.raises(StudyError, match="one code version"):
        refuse_mixed(mixed.records, "here")


def test_a_renamed_cell_is_refused(toy_study: StudyOf, tmp_path: Path) -> None:
    run(toy_study, tmp_path, Counting())
    cells = make_plan(toy_study()).cells
    cache = Cache(tmp_path / "cells", "1+a")
    cache.path(cells[0]).write_bytes(cache.path(cells[1]).read_bytes())
    with pytest.raises(StudyError, match="renamed or changed"):
        run(toy_study, tmp_path, Counting())


def test_the_budget_cuts_off_seeds_first(toy_study: StudyOf, tmp_path: Path) -> None:
    counting = Counting()
    from beft.studies.estimate import Estimator

    seconds = sum(Estimator().seconds(cell) for cell in make_plan(toy_study()).cells[:3])
    outcome = run(toy_study, tmp_path, counting, budget=1.01 * seconds / 3600)
    assert counting.ran == [("value", 0), ("head", 0), ("probe", 0)]
    left = [record for record in outcome.records if record.status == "missing"]
    assert [record.seed for record in left] == [1, 1, 1]
    assert "beyond the budget" in left[0].reason


def test_the_watcher_hears_of_every_cell(toy_study: StudyOf, tmp_path: Path) -> None:
    heard: list[object] = []

    class Heard(Watcher):
        def begin(self, cells: int, cached: int, hours: float) -> None:
            heard.append((cells, cached, hours > 0))

        def done(self, record: CellRecord, hours_left: float) -> None:
            heard.append(hours_left)

    run(toy_study, tmp_path, Counting(), watcher=Heard(), changes={"seeds": [0]})
    run(toy_study, tmp_path, Counting(), watcher=Heard())
    assert heard[0] == (3, 0, True)
    assert heard[3] == 0
    assert heard[4] == (6, 3, True)
    lefts = [float(each) for each in heard[1:4]]  # type: ignore[arg-type]
    assert lefts == sorted(lefts, reverse=True)


def test_cells_come_back_from_the_published_file(tmp_path: Path) -> None:
    line = {"model": "m", "task": "t", "regime": "", "method": "v", "seed": 0, "metrics": {"accuracy": 1.0}}
    (tmp_path / "cells.jsonl").write_text(json.dumps(line) + "\n")
    assert read_records(tmp_path) == [CellRecord("m", "t", "", "v", 0, {"accuracy": 1.0})]


def test_a_published_study_goes_on_without_its_folder_of_cells(toy_study: StudyOf, tmp_path: Path) -> None:
    errors = {("value", 1): TrainingError("step 3", expected="a finite loss", found="nan")}
    published = run(toy_study, tmp_path / "old", Counting(errors), changes={"seeds": [0, 1]})
    lines = [record.to_line() for record in published.records]
    (tmp_path / "cells.jsonl").write_text("".join(lines), encoding="utf-8")
    rest, none, anew = Counting(), Counting(), Counting()
    outcome = run(toy_study, tmp_path, rest, changes={"seeds": [0, 1, 2], "methods": ["value", "head"]})
    assert rest.ran == [("value", 1), ("value", 2), ("head", 2)]
    assert [r for r in outcome.records if r.seed == 0] == [
        r for r in published.records if r.seed == 0 and r.method != "probe"
    ]
    changes = {"seeds": [0, 1], "methods": ["head", "probe"]}
    assert run(toy_study, tmp_path, none, code="1+b", other_versions=True, changes=changes).versions == ["1+a"]
    assert none.ran == []
    run(toy_study, tmp_path, anew, code="1+b", changes=changes)
    assert len(anew.ran) == 4
    (tmp_path / "cells.jsonl").write_text("".join([*lines, "{}\n"]), encoding="utf-8")
    with pytest.raises(DataError, match=r"cells\.jsonl, line 7: expected a cell of a study"):
        run(toy_study, tmp_path, Counting(), code="1+c")
