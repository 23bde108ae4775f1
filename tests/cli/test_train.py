"""`beft train` on own rows and benchmarks, its output modes, and signals."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import real
from beft.training.pairs import settle_pairs
from beft.training.progress import Listener
from cli.conftest import Cli, fast_options
from toys import COLOURS, adapter_files, texts, write_csv


def options(base: Path, out: Path, data: Path, *more: object) -> list[object]:
    return [*fast_options(base, out), "--data", data, "--text", "text", "--label", "label", *more]


def test_own_rows_end_in_a_table_and_a_folder(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("train", *options(bert, tmp_path / "out", toy_csv))
    assert done.code == 0
    assert done.out == ""
    for words in ("29 training rows", "7 held-out", "majority", "frozen states", "beft, value bias", "accuracy"):
        assert words in done.err
    assert str(tmp_path / "out") in done.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["train_examples"] == 29


def test_json_is_the_metrics_and_nothing_else(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("train", *options(bert, tmp_path / "out", toy_csv, "--json"))
    assert done.err == ""
    assert json.loads(done.out) == json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_quiet_is_silent(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("train", *options(bert, tmp_path / "out", toy_csv, "--quiet"))
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_benchmark_with_a_training_size(cli: Cli, bert: Path, tmp_path: Path) -> None:
    arguments = ["--task", "SST-2", "--data-dir", real.data(), "--train-size", 40, "--eval-size", 25, "--json"]
    done = cli("train", *fast_options(bert, tmp_path / "out"), *arguments)
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    assert metrics["train_examples"] == 40
    assert metrics["evaluation_rows"] == {"validation": 25}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["recipe"]["epochs"] == 2


def test_every_option_reaches_the_recipe(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    more = {
        "--terms": "value+query", "--layers": "last:1", "--head": "model", "--lr": 0.02, "--epochs": 3, "--seed": 5,
        "--batch-size": 4, "--max-length": 16, "--schedule": "constant", "--dropout": 0.1, "--class-weight": "balanced",
        "--patience": 2, "--train-size": 20, "--eval-size": 4,
    }  # fmt: skip
    flags = [word for pair in more.items() for word in pair]
    done = cli("train", *options(bert, tmp_path / "out", toy_csv, *flags, "--no-refit", "-q"))
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    for name, value in more.items():
        key = name.removeprefix("--").replace("-", "_")
        if key in record["recipe"]:
            assert record["recipe"][key] == value, key
    assert record["recipe"]["refit"] is False
    assert record["data"]["train"] == 20
    assert record["data"]["evaluation"] == {"held-out": 4}


def test_an_evaluation_file_and_none_at_all(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    other = write_csv(tmp_path / "other.csv", [(text, COLOURS[colour]) for text, colour in texts(9, seed=4)])
    assert cli("train", *options(bert, tmp_path / "a", toy_csv, "--eval", other, "-q")).code == 0
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["evaluation_rows"] == {"evaluation": 9}
    assert cli("train", *options(bert, tmp_path / "b", toy_csv, "--no-eval", "-q")).code == 0
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert (metrics["train_examples"], metrics["evaluation"]) == (36, {})


def test_the_papers_recipe_says_that_it_is_optimistic(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("train", *options(bert, tmp_path / "out", toy_csv, "--recipe", "paper"))
    assert done.code == 0, done.err
    assert "chosen on the evaluation rows" in done.err
    assert json.loads((tmp_path / "out" / "run.json").read_text())["recipe"]["preset"] == "paper"


def test_notes_name_contradictions_and_texts_that_were_cut(cli: Cli, bert: Path, tmp_path: Path) -> None:
    rows = [(text, COLOURS[colour]) for text, colour in texts(36)]
    rows += [("[/b] red w1", "red"), ("[/b] red w1", "blue"), ("green " * 10_000, "green")]
    data = write_csv(tmp_path / "toy[1].csv", rows)
    done = cli("train", *options(bert, tmp_path / "out[/x]", data, "--no-eval"))
    assert done.code == 0, done.err
    assert "note: 1 training text has two labels, e.g. '[/b] red w1'" in done.err
    assert "note: 1 of 39 train texts were cut to 32 tokens (--max-length sets the limit)" in done.err
    assert "out[/x]" in done.err
    notices = json.loads((tmp_path / "out[/x]" / "run.json").read_text())["notices"]
    assert len(notices) >= 2


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_ends_with_its_code_and_one_line_that_says_how_to_go_on(
    cli: Cli,
    bert: Path,
    adapter: Path,
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
) -> None:
    def step(self: Listener, loss: float | None, examples: int) -> None:
        if loss is not None:  # a step of training
            os.kill(os.getpid(), getattr(signal, name))

    with monkeypatch.context() as patch:
        patch.setattr(Listener, "step", step)
        done = cli("train", *options(bert, tmp_path / "out", toy_csv, "-q"))
    assert done.code == code
    assert done.err.count("\n") == 1
    assert "stopped in epoch 1 (select). Repeat the command with --resume to go on." in done.err
    assert cli("train", *options(bert, tmp_path / "out", toy_csv, "-q", "--resume")).code == 0
    assert adapter_files(tmp_path / "out") == adapter_files(adapter)


def test_ctrl_c_that_an_import_swallows_is_not_lost(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def swallows(*arguments: Any) -> Any:
        if not asked:  # a module that is imported meanwhile keeps this function
            asked.append(1)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return settle_pairs(*arguments)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr("beft.training.pairs.settle_pairs", swallows)  # called before the run listens to signals
            done = cli("train", *options(bert, tmp_path / "out", toy_csv, "-q"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.code == 130
    assert "Repeat the command with --resume to go on." in done.err
    assert cli("train", *options(bert, tmp_path / "out", toy_csv, "-q", "--resume")).code == 0


def test_a_run_with_epochs_left_to_the_recipe_resumes(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[Any] = ["-m", bert, "-o", tmp_path / "out", "--data", toy_csv, "--text", "text", "--label", "label"]
    arguments += ["--batch-size", 29, "--patience", 1, "--lr", 1e-9, "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(Listener, "step", lambda self, loss, rows: loss and os.kill(os.getpid(), signal.SIGTERM))
        assert cli("train", *arguments).code == 143
    done = cli("train", *arguments, "--resume")
    assert done.code == 0, done.err


def test_numbers_that_one_row_judges(cli: Cli, bert: Path, tmp_path: Path) -> None:
    numbers = write_csv(tmp_path / "d.csv", [(f"w{number} red", number / 2) for number in range(7)])
    own = ["--data", numbers, "--text", "text", "--label", "label", "--eval-size", 1, "-q"]
    done = cli("train", *fast_options(bert, tmp_path / "out"), *own)
    assert done.code == 0, done.err
    one = write_csv(tmp_path / "one.csv", [("w1 red", 0.5)])
    done = cli("evaluate", tmp_path / "out", "--data", one, "--json")
    assert json.loads(done.out) == {str(one): {"rows": 1, "spearman": 0.0, "pearson": 0.0}}
