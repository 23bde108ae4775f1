"""Statistics of records: who is compared with whom on what, and what is left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beft.report.cells import CellRecord
from beft.studies.publish import publish
from beft.studies.runner import Outcome
from beft.studies.study import make_study
from beft.studies.summary import block_means, interval_tables, ranking, ranking_sentence
from beft.studies.summary import test_table as across_tasks
from beft.tasks.metrics import METRICS

TASKS = ("sst2", "rte", "mrpc", "qqp")
SCORES = {"value": (0.9, 0.8, 0.7, 0.6), "query": (0.8, 0.7, 0.6, 0.5), "key": (0.5, 0.5, 0.5, 0.55)}


def records(seeds: int = 2) -> list[CellRecord]:
    made = []
    for method, scores in SCORES.items():
        for task, score in zip(TASKS, scores, strict=True):
            right = [1.0] * round(score * 100) + [0.0] * round((1 - score) * 100)
            made += [
                CellRecord("m", task, "low", method, seed, {"accuracy": score}, {"trained_parameters": 10.0}, right)
                for seed in range(seeds)
            ]
    return [*made, CellRecord("m", "sst2", "low", "lora", 0, status="missing", reason="not here")]


def test_intervals_are_paired_and_marked() -> None:
    (table,) = interval_tables(records())
    assert table.header == ["difference", *TASKS]
    by_name = {row[0].text: row[1:] for row in table.rows}
    assert by_name["value − query"][0].text.startswith("+0.100 [+0.0")
    assert by_name["value − query"][0].mark == "best"
    assert by_name["value − key"][3].text.startswith("+0.050 [+0.01")
    assert [field.mark for field in by_name["value − lora"]] == ["missing"] * 4


def test_only_common_seeds_and_rows_are_paired() -> None:
    few = [record for record in records(1) if record.task == "sst2" and record.method in ("value", "query")]
    other_seed = [CellRecord("m", "sst2", "low", "query", 7, {"accuracy": 1.0}, correct=[1.0] * 100)]
    (table,) = interval_tables([few[0], few[1], *other_seed])
    assert table.rows[0][1].text.startswith("+0.100")
    unlike = [few[0], CellRecord("m", "sst2", "low", "query", 0, {"accuracy": 1.0}, correct=[1.0] * 99)]
    assert interval_tables(unlike) == []


def test_intervals_are_of_the_leading_metric_where_answers_are_kept() -> None:
    gold = [0, 0, 0, 1] * 25
    given = {"value": gold, "query": [0] * 100}

    def made(task: str, metric: str, kept: bool) -> list[CellRecord]:
        of = {"matthews": METRICS["matthews"], "spearman": METRICS["spearman"]}[metric]
        return [
            CellRecord(
                "m", task, "low", method, seed, {metric: of(np.array(gold), np.array(answers))},
                correct=None if metric == "spearman" else [float(a == b) for a, b in zip(gold, answers, strict=True)],
                answers={"gold": [*gold], "predicted": [*answers]} if kept else None,
            )
            for method, answers in given.items() for seed in (0, 1)
        ]  # fmt: skip

    old = made("older", "matthews", kept=False)
    new = [*made("cola", "matthews", kept=True), *made("stsb", "spearman", kept=True)]
    (table,) = interval_tables([*new, *old, *made("olds", "spearman", kept=False)])
    cola, stsb, older, olds = table.rows[0][1:]
    assert cola.text == stsb.text == "+1.000 [+1.000, +1.000]"
    assert older.text.startswith("+0.250 [+0.1")
    assert olds.mark == "missing"
    assert table.notes[1].startswith("On older it is of the share of right answers")
    assert len(interval_tables(new)[0].notes) == 1
    mixed = [replace(record, answers=None) if record.seed else record for record in new if record.task == "cola"]
    assert interval_tables(mixed)[0].rows[0][1].text.startswith("+0.250"), "all seeds of one kind"


def test_tests_across_tasks() -> None:
    table = across_tasks(records(), "m")
    assert table is not None
    texts = ["value against query", "+0.100", "4 / 0 / 0", "0.125", "0.250", "0.125"]
    assert [field.text for field in table.rows[0]] == texts
    assert len(table.rows) == 2  # lora has nothing to test
    assert across_tasks([record for record in records() if record.task == "rte"], "m") is None


def test_ranks_leave_out_who_lacks_tasks_and_say_so() -> None:
    found = ranking(records(), "m")
    assert found is not None
    assert found.ranks.average == {"value": 1.0, "query": 2.25, "key": 2.75}
    assert found.left_out == ["lora"]
    assert "Without lora" in ranking_sentence(found)
    assert ranking([record for record in records() if record.method != "key"], "m") is None


def test_regimes_are_blocks_of_their_own() -> None:
    made = [CellRecord("m", "sst2", regime, "value", 0, {"accuracy": 0.5}) for regime in ("low", "high")]
    assert block_means(made) == {"value": {("sst2", "low"): 0.5, ("sst2", "high"): 0.5}}


@pytest.mark.parametrize("drawn", [True, False])
def test_everything_is_published(tmp_path: Path, drawn: bool, request: pytest.FixtureRequest) -> None:
    if drawn:
        request.getfixturevalue("monkeypatch").undo()
    study = make_study({"models": ["m"], "tasks": list(TASKS), "methods": [*SCORES, "lora"], "seeds": [0, 1],
                        "regimes": ["low"]}, "toy", "toy")  # fmt: skip
    (tmp_path / "picture_9.png").write_bytes(b"of a former run")
    files = publish(tmp_path, study, Outcome(records(), ["a note"], ["1+a"]), ["beft", "study", "a b.toml"])
    assert {"table.md", "table.tex", "table.csv", "cells.jsonl", "report.html"} <= set(files)
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("beft study &#x27;a b.toml&#x27;", "A note.", "How sure", "1+a", "missing: not here"):
        assert words in page
    assert ("data:image/png" in page) == drawn
    assert ("No pictures were drawn" in page) != drawn
