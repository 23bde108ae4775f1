"""`beft tune`, `beft learning-curve` and `beft train --lr auto`: screen, JSON, and what is refused."""

import csv
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

import beft
import real
from beft.training.steps import Step, take
from cli.conftest import Cli
from cli.test_prompts import copa, decoder

__all__ = ["copa", "decoder"]


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


def test_seeds_are_combined_where_that_helps(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = rows(bert, out, toy_csv, *SEARCH, "--runs", 12, "--folds", 3, "--combine", "auto", "--seeds", 2)
    done = cli("tune", *options)
    assert done.code == 0, done.err
    found = json.loads((out / "tune.json").read_text())["combination"]
    for words in ("1 more seed of the best candidate on 3 folds", "the best settings with 2 seeds", "soup: their mean"):
        assert words in done.err
    assert set(found["scores"]) == {"one", "soup", "ensemble"}
    assert f"{found['gains']['soup']['mean']:+.3f} ± {found['gains']['soup']['error']:.3f}" in done.err
    done = cli("evaluate", out, "--data", toy_csv, "--json")
    assert done.code == 0, done.err


def test_an_ensemble_on_the_command_line(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = rows(bert, out, toy_csv, *SEARCH, "--runs", 12, "--folds", 3, "--combine", "ensemble", "--seeds", 2)
    monkeypatch.setattr("beft.training.seeds.keep", lambda scores, folds: "ensemble")
    assert cli("tune", *options, "-q").code == 0
    done = cli("evaluate", out, "--data", toy_csv, "--json")
    assert done.code == 0, done.err
    (scores,) = json.loads(done.out).values()
    done = cli("predict", out, "--data", toy_csv, "--out", tmp_path / "p.jsonl")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    with toy_csv.open() as handle:
        gold = [row["label"] for row in csv.DictReader(handle)]
    right = sum(line["prediction"] == label for line, label in zip(lines, gold, strict=True))
    assert right == round(scores["accuracy"] * 36)
    for command in ("merge", "inspect"):
        done = cli(command, out, *(["--out", tmp_path / "merged"] if command == "merge" else []))
        assert done.code == 2
        assert "expected one adapter, found an ensemble of 2" in done.err


def test_a_search_is_gone_on_with(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = rows(bert, tmp_path / "out", toy_csv, *SEARCH, "--runs", 6, "--folds", 3)
    steps: list[Step] = []

    def stopping(wishes: Sequence[Step]) -> list[float]:
        norms = take(wishes)
        if len(steps) < 9 <= len(steps) + len(wishes):
            signal.raise_signal(signal.SIGINT)
        steps.extend(wishes)
        return norms

    monkeypatch.setattr("beft.training.company.take", stopping)
    done = cli("tune", *options)
    assert done.code == 130
    assert "Repeat the command with --resume to go on" in done.err
    done = cli("tune", *options)
    assert done.code == 2
    assert "Use --resume to go on" in done.err
    assert cli("tune", *options, "--resume", "--seed", 1).code == 2
    done = cli("tune", *options, "--resume", "--json")
    assert done.code == 0, done.err
    again = cli("tune", *rows(bert, tmp_path / "whole", toy_csv, *SEARCH, "--runs", 6, "--folds", 3, "--json"))
    first, second = json.loads(done.out), json.loads(again.out)
    assert first["candidates"] == second["candidates"]
    assert first["recommendation"] == second["recommendation"]


PROMPT = ("--template", "{text} !", "--candidates", "red= red,green= green,blue= blue")
SHORT = ("--lrs", "1e-2,5e-2", "--terms", "value", "--epochs", "1", "--layers", "all", "--runs", 6, "--folds", 3)


def test_own_prompts(cli: Cli, decoder: Path, toy_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["-m", decoder, "-o", out, "--dtype", "fp32", "--max-length", 64]
    done = cli("tune", *options, "--data", toy_csv, *PROMPT, "--label", "label", *SHORT)
    assert done.code == 0, done.err
    assert "the plain model" in json.loads((out / "tune.json").read_text())["recommendation"]
    done = cli("evaluate", out, "--data", toy_csv, "--json")
    assert done.code == 0, done.err


def test_more_folds_than_an_answer_has_rows(cli: Cli, decoder: Path, toy_csv: Path, tmp_path: Path) -> None:
    options = ["-m", decoder, "-o", tmp_path / "out", "--data", toy_csv, *PROMPT, "--label", "label", "--folds", 13]
    done = cli("tune", *options)
    assert done.code == 2
    assert "13 folds: expected as many rows of every class, found 11 of 'green'" in done.err


def test_a_prompt_benchmark_for_a_real_decoder(cli: Cli, copa: Path, tmp_path: Path) -> None:
    options = ["-m", real.model("stories260k-llama"), "-o", tmp_path / "out", "--dtype", "fp32", "--task", "copa"]
    done = cli("tune", *options, "--data-dir", copa, *SHORT)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert found["winner"]["head"] == "none"
    assert set(found["evaluation"]) == {"accuracy"}


def test_a_search_for_a_rate_that_is_stopped_keeps_nothing(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []

    def once(wishes: Sequence[Step]) -> list[float]:
        if not asked:
            asked.append(signal.raise_signal(signal.SIGINT))
        return take(wishes)

    monkeypatch.setattr("beft.training.company.take", once)
    done = cli("train", *rows(bert, tmp_path / "out", toy_csv, "--epochs", 1, "--lr", "auto"))
    assert done.code == 130
    assert "Start anew: nothing was kept" in done.err


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


def test_train_with_lr_auto_of_all_weights(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("train", *rows(bert, tmp_path / "out", toy_csv, "--epochs", 1, "--method", "full", "--lr", "auto"))
    assert done.code == 0, done.err
    assert "learning rate" in done.err
    assert json.loads((tmp_path / "out" / "run.json").read_text())["recipe"]["method"] == "full"


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
        ("tune", ["--folds", "13"], "13 folds: expected as many rows of every class, found 11 of"),
        ("tune", ["--lrs", "fast"], "--lrs fast: expected numbers with commas between"),
        ("tune", ["--terms", "vallue"], "vallue"),
        ("tune", ["--combine", "stew"], "combine 'stew': expected none, soup, ensemble or auto"),
        ("tune", ["--seeds", "2"], "--seeds: expected --combine soup, ensemble or auto beside it"),
        ("tune", ["--combine", "soup", "--runs", "14"], "a budget of 14 runs: expected at least 15"),
        ("tune", ["--resume", "--overwrite"], "--resume and --overwrite: expected one of them, found both"),
        ("tune", ["--candidates", "a,b"], "--candidates: expected a prompt, found a task of labels"),
        ("tune", ["--template", "{text} !"], "--text: expected --objective classify beside it, found a prompt"),
        ("tune", ["--heads", "round"], "head 'round': expected linear, means, regression, apart, joint or model"),
        ("tune", ["--pairs", "both"], "pairs = 'both' (expected auto, joint or apart)"),
        ("learning-curve", ["--pairs", "both"], "pairs = 'both' (expected auto, joint or apart)"),
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
