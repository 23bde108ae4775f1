"""`beft tune`, `beft learning-curve` and `beft train --lr auto`: screen, JSON, and what is refused."""

import json
from pathlib import Path

import pytest

import beft
from cli.conftest import Cli


def rows(base: Path, out: Path, data: Path, *more: object) -> list[object]:
    return ["-m", base, "-o", out, "--data", data, "--text", "text", "--label", "label", "--dtype", "fp32",
            "--batch-size", 8, "--max-length", 32, *more]  # fmt: skip


SEARCH = ("--lrs", "3e-3,3e-2", "--terms", "value", "--heads", "linear", "--epochs", "2", "--layers", "all")


def test_tune_shows_and_writes(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("tune", *rows(bert, tmp_path / "out", toy_csv, *SEARCH, "--runs", 6, "--folds", 3))
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    for words in ("36 training rows", "round 1: 2 candidates on 3 folds, all epochs", "the best of 2 candidates"):
        assert words in done.err
    assert found["recommendation"] in done.err
    assert "logistic regression" in found["recommendation"]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["recipe"]["lr"] == found["winner"]["lr"]
    assert len(beft.load(tmp_path / "out").predict(["w1 red"])) == 1


def test_tune_as_json_on_evaluation_rows(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    options = rows(bert, tmp_path / "out", toy_csv, *SEARCH, "--runs", 3, "--folds", 3, "--eval", toy_csv)
    done = cli("tune", *options, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found["evaluation"]) == {"accuracy", "f1_macro"}
    assert found["evaluation_baselines"]["frozen_logistic_regression"]
    again = cli("tune", *options)
    assert again.code == 2
    assert "expected an empty or new folder" in again.err
    done = cli("tune", *options, "--overwrite")
    assert done.code == 0, done.err
    assert "36 evaluation rows, which chose nothing" in done.err


def test_learning_curve_shows_and_writes(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    options = rows(bert, tmp_path / "out", toy_csv, "--sizes", "9,18", "--seeds", "0,1", "--epochs", 1)
    done = cli("learning-curve", *options)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "learning_curve.json").read_text())
    assert record["advice"] in done.err
    for words in ("accuracy on 7 held-out rows", "frozen + regression", "4 runs in"):
        assert words in done.err
    done = cli("learning-curve", *options, "--overwrite", "--json")
    assert json.loads(done.out)["points"] == record["points"]


def test_train_with_lr_auto(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("train", *rows(bert, tmp_path / "out", toy_csv, "--epochs", 2, "--lr", "auto"))
    assert done.code == 0, done.err
    chosen = json.loads((tmp_path / "out" / "run.json").read_text())["recipe"]["lr"]
    assert chosen in (0.001, 0.003, 0.009)
    assert f"learning rate {chosen:g}, by 3 folds of the training rows" in done.err


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("tune", ["--runs", "2"], "a budget of 2 runs: expected at least 5"),
        ("tune", ["--runs", "9", "--minutes", "1"], "--runs and --minutes: expected one of them, found both"),
        ("tune", ["--folds", "13"], "13 folds: expected as many rows of every class, found 12 of"),
        ("tune", ["--lrs", "fast"], "--lrs fast: expected numbers with commas between"),
        ("tune", ["--terms", "vallue"], "vallue"),
        ("tune", ["--heads", "round"], "head 'round': expected linear, regression or model"),
        ("learning-curve", ["--sizes", "500"], "size 500: expected 3 to 29"),
        ("learning-curve", ["--seeds", "0,0"], "seeds: expected one or more, every one once"),
        ("train", ["--lr", "fast"], "--lr fast: expected a number such as 3e-3, or 'auto'"),
        ("train", ["--lr", "auto", "--resume"], "--resume: expected --lr with a number beside it, found --lr auto"),
        ("train", ["--lr", "auto", "--seeds", "0,1"], "--lr auto: expected one run, found a grid of runs"),
        ("train", ["--lr", "auto", "--dropout", "0.1"], "expected 0 in a bank"),
    ],
)
def test_refused(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, command: str, more: list[str], message: str
) -> None:
    done = cli(command, *rows(bert, tmp_path / "out", toy_csv, *more))
    assert done.code == 2
    assert message in done.err
    assert done.err.strip().splitlines()[-1].startswith("error: ")
