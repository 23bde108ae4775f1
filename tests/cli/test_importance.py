"""`beft importance` tunes and scores a model, or scores what is finished; files and screen tell the same."""

import json
from pathlib import Path

import pytest

from beft.report import plots
from cli.conftest import Cli

ROWS = ["--text", "text", "--label", "label"]
FAST = ["--epochs", 2, "--lr", 0.05, "--dtype", "fp32"]


@pytest.fixture(scope="session")
def scored(bert: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `beft importance` wrote; for reading only."""
    from cli.conftest import call

    out = tmp_path_factory.mktemp("importance") / "out"
    available, plots.available = plots.available, lambda: True
    try:
        assert call("importance", bert, "--data", toy_csv, *ROWS, *FAST, "-o", out, "-q") == 0
    finally:
        plots.available = available
    return out


def test_a_model_is_tuned_scored_and_written(scored: Path) -> None:
    names = {path.name for path in scored.iterdir()}
    scores = ("projection", "magnitude", "fisher", "fisher_paper")
    assert names == {
        "adapter",
        "importance.json",
        "importance.csv",
        "ranking.md",
        *(f"heatmap_{s}.png" for s in scores),
    }
    record = json.loads((scored / "importance.json").read_text())
    assert len(record["sites"]) == 16
    assert "key" not in record["rankings"]["magnitude"]  # inert
    assert any("no part in the agreement" in note for note in record["notes"])
    assert len((scored / "importance.csv").read_text().splitlines()) == 17
    assert "| value b_v |" in (scored / "ranking.md").read_text()


def test_a_finished_adapter_is_scored_with_accuracies(cli: Cli, scored: Path, toy_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("term,accuracy\nvalue,0.9\nquery,0.8\nkey,0.1\nb_m1,0.7\n")
    done = cli("importance", scored / "adapter", "--accuracies", tmp_path / "a.csv", "--json")
    record = json.loads(done.out)
    assert record["agreement"]["projection"]["terms"] == ["query", "key", "value", "attention_output"]
    assert record["scores"]["fisher"] == {}
    done = cli("importance", scored / "adapter", "--data", toy_csv, *ROWS, "--accuracies", tmp_path / "a.csv")
    assert done.code == 0
    for words in ("b_LN2", "Spearman", "effect on attention"):
        assert words in done.err
    done = cli("importance", scored / "adapter", "--data", toy_csv, *ROWS, "--accuracies", tmp_path / "a.csv", "--json")
    agreed = json.loads(done.out)["agreement"]
    assert {tuple(each["terms"]) for each in agreed.values()} == {("query", "value", "attention_output")}  # key: inert


def test_accuracies_of_a_study_are_of_one_size(cli: Cli, scored: Path, tmp_path: Path) -> None:
    task = json.loads((scored / "importance.json").read_text())["task"]
    cells = [
        {"task": task, "regime": regime, "method": term, "seed": 0, "metrics": {"accuracy": accuracy + more}}
        for regime, more in (("low", 0.0), ("high", 0.1))
        for term, accuracy in (("value", 0.8), ("query", 0.7), ("output", 0.6))
    ]
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    done = cli("importance", scored / "adapter", "--accuracies", tmp_path)
    assert done.code == 2
    assert "accuracies of one regime, found high, low. Choose by regime= (--regime)" in done.err
    done = cli("importance", scored / "adapter", "--accuracies", tmp_path, "--regime", "high", "--json")
    assert json.loads(done.out)["accuracies"]["value"] == pytest.approx(0.9)


def test_a_model_without_biases_says_so(cli: Cli, llama: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("importance", llama, "--data", toy_csv, *ROWS, *FAST, "--terms", "value+query", "-o", tmp_path / "out")
    assert done.code == 0
    assert "the projection score is undefined for query, value" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL", "-o", "OUT"], "--task or --data: expected what to tune the biases on"),
        (["MODEL", "--task", "sst2"], "--out: expected a folder"),
        (["ADAPTER", "--accuracies", "OUT"], "cells.jsonl: expected a file"),
    ],
)
def test_bad_input(cli: Cli, scored: Path, bert: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    places = {"MODEL": bert, "OUT": tmp_path, "ADAPTER": scored / "adapter"}
    done = cli("importance", *(places.get(each, each) for each in arguments))
    assert done.code == 2
    assert words in done.err


def test_results_are_not_overwritten_unasked(cli: Cli, scored: Path, bert: Path, toy_csv: Path) -> None:
    done = cli("importance", bert, "--data", toy_csv, *ROWS, "-o", scored)
    assert done.code == 2
    assert "use --overwrite" in done.err.lower()


def test_biases_move_even_if_dev_rows_prefer_that_they_do_not(cli: Cli, bert: Path, tmp_path: Path) -> None:
    """Two texts read apart, whose labels follow from nothing: training alone would keep its start."""
    rows = [f"word {number},other {number % 7},{'ab'[number * number % 7 % 2]}" for number in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["first,second,label", *rows]))
    columns = ["--text", "first", "--text", "second", "--label", "label", "--pairs", "apart"]
    done = cli("importance", bert, "--data", tmp_path / "rows.csv", *columns, *FAST, "-o", tmp_path / "out", "--json")
    assert done.code == 0
    assert json.loads((tmp_path / "out" / "adapter" / "run.json").read_text())["recipe"]["pairs"] == "apart"
    assert all(site["magnitude"] > 0 for site in json.loads(done.out)["sites"] if site["term"] != "key")
