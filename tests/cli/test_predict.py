"""`beft predict` and `beft evaluate`: formats, order, label names, GLUE's files."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import beft
import real
from beft.tasks.task import Example, Task
from beft.training import predictor as module
from cli.conftest import Cli
from registries import new_session
from toys import COLOURS, fast, texts, write_csv
from training.common import learn

ROWS = [(text, COLOURS[colour]) for text, colour in texts(23, seed=6)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "new.csv", ROWS)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_json_lines_in_order_across_chunks(
    cli: Cli, adapter: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("predict", adapter, "--data", rows, "--out", tmp_path / "whole.jsonl", "-q").code == 0
    monkeypatch.setattr(module, "CHUNK", 5)
    done = cli("predict", adapter, "--data", rows, "--out", tmp_path / "parts.jsonl")
    assert done.code == 0
    assert "23 rows labelled" in done.err
    found = lines(tmp_path / "parts.jsonl")
    assert [row["id"] for row in found] == list(range(2, 25))
    expected = beft.load(adapter).predict([text for text, _ in ROWS])
    assert [row["prediction"] for row in found] == expected
    assert [row["prediction"] for row in lines(tmp_path / "whole.jsonl")] == expected
    assert all("gold" not in row for row in found)


def test_rows_without_text_are_told(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "new.csv", [*ROWS[:3], ("", "red"), ("  ", "red")])
    done = cli("predict", adapter, "--data", data, "--out", tmp_path / "o.jsonl")
    assert "5 rows labelled" in done.err
    assert "note: without text, so that the label means nothing: 2 (the first: row 5)" in done.err
    assert "without text" not in cli("predict", adapter, "--data", data, "--out", tmp_path / "o.jsonl", "-q").err
    assert "note: without text" in cli("evaluate", adapter, "--data", data).err
    data = write_csv(tmp_path / "new.csv", ROWS[:3])
    assert "without text" not in cli("predict", adapter, "--data", data, "--out", tmp_path / "o.jsonl").err
    assert "without text" not in cli("evaluate", adapter, "--data", data).err


@pytest.mark.parametrize(("ending", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_tables(cli: Cli, adapter: Path, rows: Path, tmp_path: Path, ending: str, separator: str) -> None:
    out = tmp_path / "deep" / ("out" + ending)
    assert cli("predict", adapter, "--data", rows, "--out", out, "-q").code == 0
    with out.open(newline="") as handle:
        table = list(csv.DictReader(handle, delimiter=separator))
    assert [row["prediction"] for row in table] == beft.load(adapter).predict([text for text, _ in ROWS])
    assert all(1 / 3 <= float(row["score"]) <= 1 for row in table)


def test_another_column_can_be_read(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "new.csv", ROWS, ("message", "label"))
    assert cli("predict", adapter, "--data", data, "--text", "message", "--out", tmp_path / "o.jsonl", "-q").code == 0
    assert cli("predict", adapter, "--data", data, "--out", tmp_path / "p.jsonl", "-q").code == 2


def test_evaluate_repeats_what_training_measured(cli: Cli, adapter: Path, toy_csv: Path, tmp_path: Path) -> None:
    held = {row["id"] for row in lines(adapter / "predictions.jsonl")}
    everything = [(text, COLOURS[colour]) for text, colour in texts(36)]
    data = write_csv(tmp_path / "held.csv", [row for number, row in enumerate(everything, 2) if number in held])
    done = cli("evaluate", adapter, "--data", data, "--json")
    assert done.err == ""
    (measured,) = json.loads(done.out).values()
    assert measured.pop("rows") == len(held)
    assert measured == pytest.approx(json.loads((adapter / "metrics.json").read_text())["evaluation"])
    shown = cli("evaluate", adapter, "--data", data, "--eval-size", 3)
    assert "3 rows" in shown.err


def test_evaluate_notes_texts_that_were_cut(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "long.csv", [("red " * 10_000, "red"), ("blue", "blue")])
    assert "note: 1 texts were cut to 32 tokens" in cli("evaluate", adapter, "--data", data).err


@pytest.fixture(scope="session")
def entailment(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with mnli's labels in mnli's order."""
    labels = ("entailment", "neutral", "contradiction")
    rows = [Example(n, (text, "good"), colour) for n, (text, colour) in enumerate(texts(24))]
    task = Task("mnli", labels, ("premise", "hypothesis"), ("accuracy",), rows, benchmark=True)
    out = tmp_path_factory.mktemp("mnli") / "out"
    learn(bert, task, fast(epochs=12, lr=0.03), out)
    return out


def test_labels_of_another_benchmark_are_matched_by_name(cli: Cli, entailment: Path, tmp_path: Path) -> None:
    names = ("entailment", "contradiction", "neutral")  # cb's own order
    (tmp_path / "cb").mkdir()
    text = [json.dumps({"premise": a, "hypothesis": "good", "label": c}) + "\n" for a, c in texts(12, seed=8)]
    (tmp_path / "cb" / "validation.jsonl").write_text("".join(text))
    measured = json.loads(cli("evaluate", entailment, "--task", "cb", "--data-dir", tmp_path, "--json").out)
    guess = beft.load(entailment).predict([(a, "good") for a, _ in texts(12, seed=8)])
    right = sum(g == names[c] for g, (_, c) in zip(guess, texts(12, seed=8), strict=True))
    assert measured["validation"] == {"rows": 12, "accuracy": pytest.approx(right / 12)}
    assert len(set(guess)) > 1


def test_glue_files_have_an_index_and_names_where_glue_wants_names(cli: Cli, entailment: Path, tmp_path: Path) -> None:
    arguments = ["--task", "mnli", "--split", "validation_mismatched", "--data-dir", real.data(), "--format", "glue"]
    done = cli("predict", entailment, *arguments, "--out", tmp_path / "MNLI-mm.tsv", "-q")
    assert done.code == 0, done.err
    head, *body = (tmp_path / "MNLI-mm.tsv").read_text().splitlines()
    assert head == "index\tprediction"
    assert [line.split("\t")[0] for line in body] == [str(n) for n in range(1000)]
    assert {line.split("\t")[1] for line in body} <= {"entailment", "neutral", "contradiction"}


def test_glue_files_have_numbers_for_other_tasks(cli: Cli, bert: Path, tmp_path: Path) -> None:
    rows = [Example(n, (text,), colour % 2) for n, (text, colour) in enumerate(texts(24))]
    task = Task("mine", ("positive", "negative"), ("sentence",), ("accuracy",), rows)  # not in sst2's order
    learn(bert, task, fast(epochs=1), tmp_path / "a")
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "test.jsonl").write_text(
        "".join(json.dumps({"sentence": t, "label": -1}) + "\n" for t, _ in ROWS)
    )
    arguments = ["--task", "sst2", "--data-dir", tmp_path, "--format", "glue", "--out", tmp_path / "SST-2.tsv", "-q"]
    assert cli("predict", tmp_path / "a", *arguments).code == 0
    found = [line.split("\t")[1] for line in (tmp_path / "SST-2.tsv").read_text().splitlines()[1:]]
    expected = [
        str(("negative", "positive").index(label)) for label in beft.load(tmp_path / "a").predict([t for t, _ in ROWS])
    ]
    assert found == expected


OWN_TASKS = """
import beft

def rows(count):
    return [beft.Example(n, (f"w{n} {('red', 'green', 'blue')[n % 3]}",), n % 3) for n in range(count)]

def held(**splits):
    labels = ("red", "green", "blue")
    return beft.Task("mine", labels, ("text",), ("accuracy",), rows(9), splits)

def colours():
    return held(new=rows(5), old=rows(7))

def unjudged():
    return held()

def sizes():
    return beft.Task("mine", ("small", "large"), ("text",), ("accuracy",), rows(2), {"new": rows(2)})
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A file of own tasks."""
    path = tmp_path / "mine.py"
    path.write_text(OWN_TASKS)
    with new_session():
        yield path


def test_an_own_tasks_first_split_is_labelled_or_the_one_that_is_named(
    cli: Cli, adapter: Path, own: Path, tmp_path: Path
) -> None:
    for split, count in (([], 5), (["--split", "old"], 7)):
        done = cli("predict", adapter, "--task", f"{own}:colours", *split, "--out", tmp_path / "o.jsonl")
        assert done.code == 0, done.err
        assert f"{count} rows labelled" in done.err
        found = lines(tmp_path / "o.jsonl")
        assert [row["gold"] for row in found] == [COLOURS[n % 3] for n in range(count)]
        texts = [f"w{n} {COLOURS[n % 3]}" for n in range(count)]
        assert [row["prediction"] for row in found] == beft.load(adapter).predict(texts)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "colours",
            ["--split", "test"],
            "--split test: expected one of its evaluation splits (new, old), found 'test'",
        ),
        ("unjudged", [], "task mine: expected evaluation rows, found none"),
        ("sizes", [], "expected an adapter for large, small, found one for blue, green, red"),
        ("nothing", [], "nothing"),
        ("colours", ["--format", "glue"], "expected a GLUE task, found one of your own"),
    ],
)
def test_an_own_task_that_cannot_be_labelled_is_one_line(
    cli: Cli, adapter: Path, own: Path, tmp_path: Path, name: str, options: list[str], said: str
) -> None:
    done = cli("predict", adapter, "--task", f"{own}:{name}", *options, "--out", tmp_path / "o.jsonl")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert said in done.err
    assert not (tmp_path / "o.jsonl").exists()


def test_truths_of_a_benchmark_are_named_as_it_names_them(cli: Cli, entailment: Path, tmp_path: Path) -> None:
    names = ("entailment", "contradiction", "neutral")  # cb's own order
    (tmp_path / "cb").mkdir()
    rows = [json.dumps({"premise": a, "hypothesis": "good", "label": c}) + "\n" for a, c in texts(6, seed=8)]
    (tmp_path / "cb" / "validation.jsonl").write_text("".join(rows))
    arguments = ["--task", "cb", "--split", "validation", "--data-dir", tmp_path, "--out", tmp_path / "o.jsonl", "-q"]
    assert cli("predict", entailment, *arguments).code == 0
    assert [row["gold"] for row in lines(tmp_path / "o.jsonl")] == [names[c] for _, c in texts(6, seed=8)]


def test_a_failed_prediction_leaves_the_file_that_was_there(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "o.jsonl", tmp_path / "d.jsonl"
    out.write_text("precious\n")
    data.write_text('{"text": "red"}\nbroken\n')
    done = cli("predict", adapter, "--data", data, "--out", out, "-q")
    assert done.code == 2
    assert "line 2" in done.err
    assert out.read_text() == "precious\n"
    assert {path.name for path in tmp_path.iterdir()} == {"o.jsonl", "d.jsonl"}


def test_the_rows_themselves_are_not_replaced(cli: Cli, adapter: Path, rows: Path) -> None:
    before = rows.read_bytes()
    done = cli("predict", adapter, "--data", rows, "--out", rows)
    assert done.code == 2
    assert "expected another file than --data" in done.err
    assert rows.read_bytes() == before
