"""Cells become tables that hide nothing: what is missing stands there, with its reason, in every format."""

import csv
import io
import json
from typing import Any

import pytest

from beft.errors import DataError
from beft.report.cells import CellRecord, efficiency_tables, rate_tables, score_tables, to_csv, to_json_lines
from beft.report.tables import to_html, to_latex, to_markdown


def cell(task: str, method: str, seed: int, score: float | None = None, **more: Any) -> CellRecord:
    metrics = {} if score is None else {"accuracy": score, "f1": score / 2}
    return CellRecord("m", task, "low", method, seed, metrics, **more)


def missing(task: str, method: str, seed: int, reason: str = "no such thing") -> CellRecord:
    return cell(task, method, seed, status="missing", reason=reason)


RECORDS = [
    cell("sst2", "value", 0, 0.8, efficiency={"trained_parameters": 2306, "share": 1e-4, "adapter_bytes": 10000}),
    cell("sst2", "value", 1, 0.9, efficiency={"trained_parameters": 2306, "share": 1e-4, "adapter_bytes": 10000}),
    cell("sst2", "query", 0, 0.7),
    missing("sst2", "query", 1, "the disk was full"),
    missing("sst2", "lora", 0),
    missing("sst2", "lora", 1),
    cell("rte", "value", 0, 0.5),
    cell("rte", "value", 1, 0.5),
    cell("rte", "query", 0, 0.6),
    cell("rte", "query", 1, 0.6),
    missing("rte", "lora", 0),
    missing("rte", "lora", 1),
]


def test_the_markdown_table_in_full() -> None:
    (table,) = score_tables(RECORDS)
    assert to_markdown(table) == (
        "**m, low**\n\n"
        "| method | sst2 (accuracy) | rte (accuracy) | mean |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| value | **0.850 ± 0.071** | <u>0.500 ± 0.000</u> | **0.675** |\n"
        "| query | <u>0.700 (1 of 2)</u> | **0.600 ± 0.000** | <u>0.650</u> |\n"
        "| lora | *missing* | *missing* | *–* |\n\n"
        "Mean ± standard deviation over 2 seeds.\n\n"
        "Missing: the disk was full (query on sst2).\n\n"
        "Missing: no such thing (lora on sst2, lora on rte).\n"
    )


def test_latex_is_booktabs_with_marks_and_escapes() -> None:
    (table,) = score_tables([cell("a_b", "x&y", 0, 0.8), cell("a_b", "z", 0, 0.7), missing("a_b", "w", 0, "50 % off")])
    text = to_latex(table, "table1 m")
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{0.800}", r"\underline{0.700}", r"x\&y",
                 r"a\_b (accuracy)", r"\textit{missing}", r"50 \% off", r"\label{tab:table1-m}"):  # fmt: skip
        assert part in text
    assert text.count("{") == text.count("}")
    assert r"$\pm$" in to_latex(score_tables(RECORDS)[0])


def test_html_escapes_names() -> None:
    (table,) = score_tables([cell("<b>", 'a"b', 0, 0.8)])
    text = to_html(table)
    assert "&lt;b&gt;" in text
    assert "<b>" not in text


def test_equal_texts_share_a_mark_and_one_value_has_none() -> None:
    (table,) = score_tables([cell("t", "a", 0, 0.80001), cell("t", "b", 0, 0.80002), cell("t", "c", 0, 0.5)])
    assert [row[1].mark for row in table.rows] == ["best", "best", "second"]
    (table,) = score_tables([cell("t", "a", 0, 0.8)])
    assert table.rows[0][1].mark == ""


def test_the_csv_holds_every_metric_and_every_missing_cell() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(RECORDS))))
    assert len(rows) == 2 + 2 + 1 + 2 + 2 + 1  # two metrics each where anything is done
    first = rows[0]
    assert (first["metric"], first["mean"], first["sd"]) == ("accuracy", "0.850000", "0.070711")
    query = next(row for row in rows if row["method"] == "query" and row["task"] == "sst2")
    assert (query["status"], query["seeds_done"], query["seeds_planned"]) == ("partly", "1", "2")
    assert query["reason"] == "the disk was full"
    assert [row["status"] for row in rows if row["method"] == "lora"] == ["missing", "missing"]


def test_json_lines_come_back_as_they_were() -> None:
    lines = to_json_lines(RECORDS).splitlines()
    assert [CellRecord.read(json.loads(line)) for line in lines] == RECORDS


def test_costs_are_shown_and_their_lack_too() -> None:
    (table,) = efficiency_tables(RECORDS)
    assert table.header == ["method", "trained parameters", "share of the model", "on disk"]
    assert [field.text for field in table.rows[0]] == ["value", "2,306", "0.01 %", "9.8 KiB"]
    assert [field.text for field in table.rows[1][1:]] == ["–"] * 3  # done, but not measured
    assert [field.mark for field in table.rows[2][1:]] == ["missing"] * 3
    beside = [*RECORDS, cell("sst2", "head", 0, 0.5, efficiency={"seconds": 2.0}, extra={"bank": 3})]
    assert "shared passes" in efficiency_tables(beside)[0].notes[-1]
    assert "shared passes" not in " ".join(table.notes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "m"}, "no task; no regime; no method; no seed"),
        ({"status": "lost"}, "the status 'lost'"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"metrics": {}}, "no metrics in a finished cell"),
        ({"status": "failed", "metrics": {}}, "no reason"),
    ],
)
def test_a_cell_that_is_none(values: dict[str, Any], words: str) -> None:
    whole = {"model": "m", "task": "t", "regime": "", "method": "v", "seed": 0, "metrics": {"accuracy": 1.0}}
    with pytest.raises(DataError, match=words):
        CellRecord.read(values if values == {"model": "m"} else {**whole, **values}, "cells.jsonl, line 3")


def test_learning_rates_that_were_tried_stand_with_their_dev_scores() -> None:
    def tried(method: str, seed: int, *, failed: str | None = None, **scores: float) -> CellRecord:
        extra = {"learning_rates": {rate.replace("_", "."): score for rate, score in scores.items()}}
        return cell(
            "sst2", method, seed, 0.5, extra=extra | ({"learning_rates_failed": {failed: "nan"}} if failed else {})
        )

    records = [
        tried("value", 0, **{"0_001": 0.7, "0_01": 0.6}),
        tried("value", 1, **{"0_001": 0.5, "0_01": 0.9}),
        tried("query", 0, failed="0.01", **{"0_001": 0.7}),
        tried("query", 1, **{"0_001": 0.5, "0_003": 0.9, "0_01": 0.4}),
        cell("sst2", "head", 0, 0.5, extra={"learning_rates": {"0.001": 0.5}}),
        cell("sst2", "probe", 0, 0.5),
    ]
    (table,) = rate_tables(records)
    assert table.header == ["method, task, rows", "0.001", "0.003", "0.01"]
    assert [[each.text for each in row] for row in table.rows] == [
        ["value, sst2, low", "0.600", "–", "0.750"],
        ["query, sst2, low", "0.600", "–", "failed"],
    ]
    assert [each.mark for each in table.rows[0]] == ["", "second", "missing", "best"]
    assert rate_tables(records[4:]) == []
