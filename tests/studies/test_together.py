"""Cells side by side give what they give alone, stop and go on, and do not pull each other down."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import beft
from beft.errors import BeftError, TermError
from beft.report import plots
from beft.report.cells import CellRecord
from beft.studies.answering import Watcher
from beft.studies.execute import run_cell
from beft.studies.plan import Cell, make_plan
from beft.studies.runner import run_plan
from beft.studies.together import MOST_RUNS, can_share, groups, read_predictions, run_together
from beft.tasks.question import PromptTask, Question
from beft.training.outputs import prediction_line
from beft.training.progress import BankListener, Listener
from beft.training.prompt_outputs import answer_line
from studies import killed_bank
from studies.conftest import StudyOf


def names(cells: Sequence[Cell], grouped: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[f"{cells[number].method} {cells[number].seed}" for number in group] for group in grouped]


def test_who_runs_with_whom(toy_study: StudyOf) -> None:
    cells = make_plan(toy_study(methods=["value", "full", "head", "probe"])).cells
    everything = range(len(cells))
    assert names(cells, groups(cells, everything)) == [
        ["value 0", "head 0", "value 1", "head 1"], ["full 0"], ["probe 0"], ["full 1"], ["probe 1"],
    ]  # fmt: skip
    by_seed = names(cells, groups(cells, everything, by_seed=True))
    assert ["value 0", "head 0"] in by_seed
    assert ["value 1", "head 1"] in by_seed
    assert names(cells, groups(cells, [1, 2])) == [["full 0"], ["head 0"]]
    rates = [1e-3 * number for number in range(1, 8)]
    many = make_plan(toy_study(methods=["value"], seeds=[0, 1, 2], grid={"value": rates})).cells
    assert [len(group) for group in groups(many, range(3))] == [2, 1]
    assert 2 * len(rates) <= MOST_RUNS < 3 * len(rates)
    sizes = [replace(many[0], regime="low"), many[0], replace(many[0], dtype="another")]
    assert [len(group) for group in groups(sizes, range(3))] == [1, 1, 1]


def test_dropout_runs_alone(toy_study: StudyOf) -> None:
    paper = make_plan(toy_study(recipe="paper", changes={})).cells
    assert not any(can_share(cell) for cell in paper)
    assert can_share(make_plan(toy_study(recipe="paper", changes={"dropout": 0.0})).cells[0])


def test_runs_whose_folders_are_thrown_away_draw_nothing(
    toy_study: StudyOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: None
) -> None:
    drawn: list[str] = []
    for name in ("learning_curve", "confusion_matrix"):
        monkeypatch.setattr(plots, name, lambda *_, name=name: drawn.append(name))
    cells = make_plan(toy_study(methods=["value", "head"], seeds=[0])).cells
    run_together(cells, tmp_path / "together")
    run_cell(cells[0], tmp_path / "alone")
    assert not drawn
    assert plots.available() == plots.installed()


def test_side_by_side_is_as_alone(toy_study: StudyOf, tmp_path: Path) -> None:
    study = toy_study(methods=["value", "query", "head"], seeds=[0], grid={"value": [1e-3, 3e-2]})
    cells = make_plan(study, dtype="fp32").cells
    for cell, beside in zip(cells, run_together(cells, tmp_path / "together"), strict=True):
        alone = run_cell(cell, tmp_path / "alone")
        assert isinstance(beside, CellRecord)
        assert beside.metrics == alone.metrics
        assert beside.correct == alone.correct
        assert beside.extra["lr"] == alone.extra["lr"]
        assert beside.extra.get("learning_rates") == alone.extra.get("learning_rates")
        assert beside.extra["bank"] == 3
        same = ("trained_parameters", "share")
        assert [beside.efficiency[name] for name in same] == [alone.efficiency[name] for name in same]
        assert "peak_memory_mib" not in beside.efficiency  # the bank's is nobody's own
    assert not (tmp_path / "together").exists()


def test_what_one_cell_lacks_does_not_end_the_others(toy_study: StudyOf, tmp_path: Path) -> None:
    def alone(cell: Cell, work: Path, listener: Listener | None) -> CellRecord:
        if cell.method == "query":
            raise TermError("query", expected="a term of the model")
        return cell.record(metrics={"accuracy": 0.5})

    def together(cells: Sequence[Cell], work: Path, listener: BankListener | None) -> list[CellRecord | BeftError]:
        work.mkdir(parents=True)
        raise TermError("query", expected="a term of the model")

    told: list[str] = []
    watcher = Watcher()
    watcher.note = told.append  # type: ignore[method-assign]
    plan = make_plan(toy_study(methods=["value", "query"], seeds=[0]))
    outcome = run_plan(plan, tmp_path, alone, together, watcher=watcher)
    assert told == ["2 cells could not run side by side and run one by one: query: expected a term of the model"]
    assert [record.status for record in outcome.records] == ["done", "missing"]
    assert not (tmp_path / "work").exists()


def test_a_study_that_compares_cost_shares_nothing(toy_study: StudyOf, tmp_path: Path) -> None:
    def together(cells: Sequence[Cell], work: Path, listener: BankListener | None) -> list[CellRecord | BeftError]:
        raise AssertionError("a group")

    plan = make_plan(toy_study(methods=["value", "query"], banks=False))
    outcome = run_plan(plan, tmp_path, lambda cell, *_: cell.record(metrics={"accuracy": 0.5}), together)
    assert outcome.ran == 4


def test_killed_midway_a_bank_goes_on_without_repeating_a_run(bert: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    script = [sys.executable, str(Path(__file__).with_name("killed_bank.py")), str(bert), str(cut), "0.03"]
    process = subprocess.Popen(script, env=dict(os.environ))
    log = cut / "ended.txt"
    for _ in range(6000):
        if log.exists() and len(log.read_text().splitlines()) >= 5:  # both rates of two seeds, and one whole run
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 5 <= len(log.read_text().splitlines()) < 8
    assert not (cut / "cells").exists()
    again, fresh = killed_bank.main(str(bert), cut, 0), killed_bank.main(str(bert), whole, 0)
    assert len(log.read_text().splitlines()) == len(set(log.read_text().splitlines())) == 8
    assert again.ran == 4
    assert [(r.status, r.metrics, r.correct) for r in again.records] == [
        (r.status, r.metrics, r.correct) for r in fresh.records
    ]
    assert not (cut / "work").exists()


def test_answers_read_back_are_as_right_as_they_were() -> None:
    chosen = Question(0, "p", (" a", " b", " c"), (0, 2))
    written = Question(1, "p", answers=("the red house", "blue"))
    task = PromptTask("x", [], {"validation": [chosen, chosen, written]})
    given = [2, 1, "a red car"]
    scores = [[0.1, 0.2, 0.3], [0.1, 0.3, 0.2], []]
    asked = zip(task.evaluation["validation"], given, scores, strict=True)
    assert read_predictions(task, "".join(json.dumps(answer_line(task, *each)) + "\n" for each in asked)) == given
    labelled = beft.benchmark_task("sst2", size=24, eval_size=2)
    for labels, answers in ((labelled.labels, [1, 0]), (None, [0.25, 1.0])):
        own = replace(labelled, labels=labels)
        lines = zip(own.evaluation["validation"], answers, [[0.5] * own.outputs] * 2, strict=True)
        text = "".join(json.dumps(prediction_line(labels, *each)) + "\n" for each in lines)
        assert read_predictions(own, text) == answers


@pytest.mark.parametrize("kind", ["scores", "importance"])
def test_importance_stands_alone(toy_study: StudyOf, kind: str) -> None:
    assert can_share(make_plan(toy_study(kind=kind)).cells[0]) == (kind == "scores")
