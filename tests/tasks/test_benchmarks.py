"""Every benchmark as it lies in the data folder: counts, label names, first rows, the paper's subset."""

import gzip
import json
from typing import Any

import numpy as np
import pytest

import real
from beft.errors import DataError
from beft.tasks.benchmarks import BENCHMARKS, Benchmark
from beft.tasks.load import benchmark, benchmark_split, benchmark_task

ROWS = {  # training rows at hand, evaluation rows of each split, first training text and label
    "sst2": (67349, [872], ("hide new secretions from the parental units ",), "negative"),
    "cola": (8551, [1043], ("Our friends won't buy this analysis, let alone the next one we propose.",), "acceptable"),
    "mrpc": (3668, [408], ("Amrozi accused his brother", "Referring to him as only"), "equivalent"),
    "stsb": (5749, [1500], ("A plane is taking off.", "An air plane is taking off."), 5.0),
    "qqp": (10117, [2000], ("What are some tips on", "What are some tips on"), "not_duplicate"),
    "qnli": (9833, [5463], ("What is the name of the village", "On 31 December 1853"), None),
    "rte": (2490, [277], ("No Weapons of Mass", "Weapons of Mass"), "not_entailment"),
    "mnli": (12000, [9815, 1000], ("And to show just how fast", "Japan's new rulers were"), "entailment"),
    "wnli": (635, [71], ("I stuck a pin", "The carrot had a hole."), "entailment"),
    "cb": (250, [56], ("It was a complex language.", "the language was peeled down"), "entailment"),
    "wic": (5428, [638], ("place: Do you want", "A political system"), "false"),
}


def first_row(name: str, split: str) -> dict[str, Any]:
    with gzip.open(real.data() / name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as handle:
        row: dict[str, Any] = json.loads(handle.readline())
    return row


def test_the_table_here_covers_every_benchmark() -> None:
    assert set(ROWS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", ROWS)
def test_counts_labels_and_first_rows_of(name: str) -> None:
    train_rows, evaluation_rows, texts, label = ROWS[name]
    task = benchmark_task(name, real.data(), size="all")
    spec = BENCHMARKS[name]
    assert len(task.train) == train_rows
    assert [len(part) for part in task.evaluation.values()] == evaluation_rows
    first = task.train[0]
    assert all(ours.startswith(theirs) for ours, theirs in zip(first.texts, texts, strict=True))
    if label is not None:
        assert (first.label if task.labels is None else task.labels[int(first.label or 0)]) == label
    if task.labels is not None:
        assert {row.label for row in task.train} == set(range(len(task.labels)))
    assert task.fields == spec.fields
    assert task.metrics == spec.metrics


def test_mnli_has_both_validation_sets_in_order() -> None:
    task = benchmark_task("MNLI", real.data(), size=30, eval_size=5)
    assert list(task.evaluation) == ["validation_matched", "validation_mismatched"]
    for split, rows in task.evaluation.items():
        assert len(rows) == 5
        assert rows[0].texts[0] == first_row("mnli", split)["premise"]


def test_cb_and_mnli_number_their_classes_differently_and_agree_by_name() -> None:
    assert BENCHMARKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert BENCHMARKS["cb"].labels == ("entailment", "contradiction", "neutral")
    # Known rows: a plain negation contradicts, a question whether something helped says nothing of the kind.
    mismatched = benchmark_split(BENCHMARKS["mnli"], "validation_mismatched", real.data())[0]
    assert "no help" in mismatched.texts[1]
    assert BENCHMARKS["mnli"].labels[int(mismatched.label or 0)] == "contradiction"
    valence = benchmark_split(BENCHMARKS["cb"], "validation", real.data())[0]
    assert valence.texts[1] == "Valence was helping"
    assert BENCHMARKS["cb"].labels[int(valence.label or 0)] == "contradiction"


def test_wnli_codes_entailment_as_one() -> None:
    assert BENCHMARKS["wnli"].labels == ("not_entailment", "entailment")
    assert BENCHMARKS["rte"].labels == ("entailment", "not_entailment")


@pytest.mark.parametrize(("name", "regime", "count"), [("rte", "low", 300), ("rte", "high", 1200), ("cb", "low", 250)])
def test_a_regime_has_the_papers_number_of_rows(name: str, regime: str, count: int) -> None:
    assert len(benchmark_task(name, real.data(), regime=regime).train) == count


@pytest.mark.parametrize("seed", [0, 7])
def test_the_subset_is_the_first_rows_of_numpys_seeded_permutation(seed: int) -> None:
    task = benchmark_task("rte", real.data(), size=50, seed=seed)
    everything = benchmark_split(BENCHMARKS["rte"], "train", real.data())
    order = np.random.RandomState(seed).permutation(len(everything))[:50]
    assert task.train == [everything[number] for number in order]


@pytest.mark.parametrize("name", ["SST2", "sst-2", "SST_2"])
def test_names_ignore_case_and_dashes(name: str) -> None:
    assert benchmark(name).name == "sst2"


def test_an_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match=r"task 'sst3'.*Did you mean 'sst2'\?"):
        benchmark("sst3")


def test_an_unknown_regime_and_one_the_paper_lacks_are_refused() -> None:
    with pytest.raises(DataError, match=r"regime 'lo'.*Did you mean 'low'\?"):
        benchmark_task("rte", real.data(), regime="lo")
    with pytest.raises(DataError, match=r"regime 'high' of wic.*low.*--train-size"):
        benchmark_task("wic", real.data(), regime="high")


@pytest.mark.parametrize(("size", "message"), [(0, "at least 1"), ("many", "a number of rows"), (9999, "2490 at hand")])
def test_train_sizes_out_of_range_are_refused(size: int | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        benchmark_task("rte", real.data(), size=size)


def test_a_folder_without_the_task_says_what_it_looked_for(tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"cb/train.*expected a file such as train\.jsonl\.gz, found no such folder"):
        benchmark_task("cb", tmp_path)
    with pytest.raises(DataError, match="expected a folder of benchmark data"):
        benchmark_task("cb", tmp_path / "nowhere")


def test_labels_outside_the_coding_are_refused_and_hidden_ones_are_none(tmp_path: Any) -> None:
    spec: Benchmark = BENCHMARKS["sst2"]
    (tmp_path / "sst2").mkdir()
    file = tmp_path / "sst2" / "test.jsonl"
    file.write_text('{"sentence": "a", "label": -1}\n{"sentence": "b", "label": 1}\n')
    assert [row.label for row in benchmark_split(spec, "test", tmp_path)] == [None, 1]
    file.write_text('{"sentence": "a", "label": 2}\n')
    with pytest.raises(DataError, match=r"sst2, row 0, label: expected a class number below 2, found 2"):
        benchmark_split(spec, "test", tmp_path)
