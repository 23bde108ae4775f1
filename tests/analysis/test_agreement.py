"""Rank correlations against scipy; every form of measured accuracies is read."""

import json
from pathlib import Path

import pytest
from scipy import stats

from beft.analysis.agreement import agreement, read_accuracies
from beft.errors import DataError

SCORES = {"value": 0.35, "query": 0.07, "key": 0.0, "output": 0.1}
ACCURACIES = {"value": 0.86, "query": 0.80, "key": 0.77, "output": 0.79, "intermediate": 0.84}


def test_correlations_are_scipys() -> None:
    found = agreement(SCORES, ACCURACIES)
    assert found is not None
    a, b = [0.35, 0.07, 0.0, 0.1], [0.86, 0.80, 0.77, 0.79]
    assert found.terms == ("value", "query", "key", "output")
    assert (found.spearman, found.spearman_p) == tuple(map(pytest.approx, stats.spearmanr(a, b)))
    assert (found.kendall, found.kendall_p) == tuple(map(pytest.approx, stats.kendalltau(a, b)))
    assert found.spearman == pytest.approx(0.8)
    assert found.kendall == pytest.approx(4 / 6)  # five pairs agree, one does not
    assert found.picks_the_best


def test_what_cannot_be_ranked_has_no_agreement() -> None:
    assert agreement({"value": 1.0, "query": 0.5}, ACCURACIES) is None
    assert agreement(dict.fromkeys(SCORES, 0.5), ACCURACIES) is None


def test_csv_json_and_studies_are_read(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("term,accuracy\nvalue,0.8\nb_q,0.7\nvalue,0.9\n")
    assert read_accuracies(table) == {"value": pytest.approx(0.85), "query": 0.7}
    (tmp_path / "a.json").write_text(json.dumps({"value": 0.8, "LN1": 0.6}))
    assert read_accuracies(tmp_path / "a.json") == {"value": 0.8, "attention_norm": 0.6}
    cells = [
        {"task": "sst2", "method": "value", "seed": 0, "metrics": {"accuracy": 0.8}},
        {"task": "sst2", "method": "value", "seed": 1, "metrics": {"accuracy": 0.6}},
        {"task": "sst2", "method": "key", "seed": 0, "metrics": {"accuracy": 0.5}},
        {"task": "sst2", "method": "lora", "seed": 0, "metrics": {"accuracy": 0.9}},
        {"task": "sst2", "method": "query", "seed": 0, "status": "missing", "metrics": {}},
        {"task": "rte", "method": "value", "seed": 0, "metrics": {"accuracy": 0.1}},
    ]
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    assert read_accuracies(tmp_path, "sst2") == {"value": pytest.approx(0.7), "key": 0.5}
    with pytest.raises(DataError, match=r"one task, found rte, sst2. Choose by task= \(--task\)"):
        read_accuracies(tmp_path)
    with pytest.raises(DataError, match="one task, or 'cola' among them, found rte, sst2"):
        read_accuracies(tmp_path, "cola")


def test_sizes_and_models_of_a_study_are_not_averaged(tmp_path: Path) -> None:
    cells = [
        {"model": model, "task": "sst2", "regime": regime, "method": "value", "seed": seed, "metrics": {"accuracy": a}}
        for model, regime, seed, a in [
            ("tiny", "low", 0, 0.8), ("tiny", "low", 1, 0.6), ("tiny", "high", 0, 0.9), ("large", "low", 0, 0.5),
        ]
    ]  # fmt: skip
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    assert read_accuracies(tmp_path, regime="low", model="tiny") == {"value": pytest.approx(0.7)}
    assert read_accuracies(tmp_path, regime="high") == {"value": 0.9}  # the other model has no such rows
    for options, words in (
        ({}, r"one regime, found high, low. Choose by regime= \(--regime\), or give a file"),
        ({"regime": "medium"}, "one regime, or 'medium' among them, found high, low"),
        ({"regime": "low"}, "one model, found large, tiny. Choose by model="),
    ):
        with pytest.raises(DataError, match=words):
            read_accuracies(tmp_path, **options)
    (tmp_path / "cells.jsonl").write_text(json.dumps(cells[2]) + "\n")
    assert read_accuracies(tmp_path, regime="low", model="/models/tiny") == {"value": 0.9}  # there is but one


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("term,accuracy\nvalu,0.5\n", "Did you mean 'value'"),
        ("term,accuracy\nvalue,good\n", "a number"),
        ("name,score\nvalue,0.5\n", "the columns term and accuracy"),
        ("term,accuracy\n", "rows of term"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_accuracies(tmp_path / "a.csv")
