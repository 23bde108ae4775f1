"""`beft train` of a grid: which options make one, its folders and tables, and what is refused."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from beft.cli.grid import BankScreen, read_axes
from beft.cli.screen import baseline_names, training_bars
from beft.training.progress import Listener
from cli.conftest import Cli, fast_options
from toys import adapter_files, toy_task


def options(base: Path, out: Path, data: Path, *more: object) -> list[object]:
    return [*fast_options(base, out), "--data", data, "--text", "text", "--label", "label", *more]


def test_a_grid_is_a_folder_a_run_and_a_table(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    grid = ["--seeds", "0,1", "--terms", "value,query+key", "--lrs", "1e-3,5e-3"]
    done = cli("train", *options(bert, tmp_path / "out", toy_csv, *grid))
    assert done.code == 0, done.err
    names = [f"{t}-lr{r}-seed{s}" for t in ("value", "query+key") for r in ("0.001", "0.005") for s in (0, 1)]
    with (tmp_path / "out" / "summary.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["run"] for row in rows] == names
    assert [(row["terms"], float(row["lr"]), row["seed"]) for row in rows[:3]] == [
        ("value", 0.001, "0"), ("value", 0.001, "1"), ("value", 0.005, "0"),
    ]  # fmt: skip
    for words in ("8 runs, 29 training rows each", *names, "over seeds: mean ± sd", "evaluation", "accuracy", "±"):
        assert words in done.err
    single = cli("train", *options(bert, tmp_path / "one", toy_csv, "--seed", 1, "--lr", "5e-3", "-q"))
    assert single.code == 0, single.err
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "out" / "value-lr0.005-seed1").iterdir()} == files
    ours, theirs = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "out" / "value-lr0.005-seed1", tmp_path / "one")
    )
    assert ours["baselines"] == theirs["baselines"]
    for key in ("evaluation", "dev", "best_epoch"):
        assert ours[key] == pytest.approx(theirs[key]), key
    assert "without an adapter, on the same evaluation rows" in done.err
    frozen = json.loads((tmp_path / "out" / "summary.json").read_text())["baselines"]["frozen_logistic_regression"]
    two = [json.loads((tmp_path / "out" / f"value-lr0.005-seed{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    scores = [each["baselines"]["frozen_logistic_regression"]["accuracy"] for each in two]
    assert frozen["accuracy"]["mean"] == pytest.approx(sum(scores) / 2)
    assert f"{frozen['accuracy']['mean']:.3f}" in done.err


def test_runs_that_change_the_model_follow_one_another(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    done = cli(
        "train", *options(bert, tmp_path / "out", toy_csv, "--method", "lora", "--rank", 2, "--lrs", "1e-4,3e-4")
    )
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(row["run"], row["lr"]) for row in record["runs"]] == [("lr0.0001", 1e-4), ("lr0.0003", 3e-4)]
    for row in record["runs"]:
        run = json.loads((tmp_path / "out" / row["run"] / "run.json").read_text())
        assert (run["recipe"]["method"], run["status"]) == ("lora", "finished")


def test_json_and_quiet(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    done = cli("train", *options(bert, tmp_path / "a", toy_csv, "--seeds", "3", "--json"))
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((tmp_path / "a" / "summary.json").read_text())
    assert json.loads(done.out)["runs"][0]["run"] == "seed3"
    done = cli("train", *options(bert, tmp_path / "b", toy_csv, "--lrs", "1e-3,2e-3", "-q"))
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "b" / "lr0.002" / "adapter_model.safetensors").exists()


def test_a_signal_and_a_resume(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = options(bert, tmp_path / "out", toy_csv, "--seeds", "0,1", "-q")
    with monkeypatch.context() as patch:
        patch.setattr(Listener, "step", lambda self, loss, rows: loss and os.kill(os.getpid(), signal.SIGTERM))
        done = cli("train", *arguments)
    assert done.code == 143
    assert "Repeat the command with --resume to go on." in done.err
    done = cli("train", *arguments, "--resume")
    assert done.code == 0, done.err
    files = adapter_files(tmp_path / "out" / "seed1")
    assert cli("train", *arguments, "--resume").code == 0
    assert adapter_files(tmp_path / "out" / "seed1") == files


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0,1,0"], "--seeds: expected every value once, found 0 twice"),
        (["--seeds", "a"], "--seeds a: expected numbers with commas between"),
        (["--lrs", ","], "--lrs ,: expected numbers with commas between"),
        (["--lrs", "1e-3", "--lr", "1e-2"], "--lr and --lrs: expected one of them, found both"),
        (["--seeds", "1", "--seed", "0"], "--seed and --seeds: expected one of them, found both"),
        (
            ["--terms", "value+query,query,query+value"],
            "found value+query and query+value, the same",
        ),
        (["--seeds", "0,1", "--memory", "0"], "memory 0 GiB: expected a number above 0"),
        (["--terms", "value,query", "--report-to", "wandb"], "--report-to: expected one run"),
        (["--seeds", "0,1", "--dropout", "0.1"], "dropout 0.1: expected 0 in a bank"),
        (["--seeds", "0,1", "--lrs", "-1"], "lr = -1.0"),
        (["--seeds", "-1"], "seed = -1"),
        (["--terms", "value,vallue"], "terms='vallue'"),
        (["--seeds", "0", "--memory", "1e-9"], "for one run and one micro-batch"),
        (["--memory", "1"], "--memory: expected many runs beside it"),
        (["--ray", "local"], "--ray: expected many runs beside it"),
        (["--seeds", "0,1", "--ray", "here"], "ray 'here': expected local, auto, HOST:PORT or ray://HOST:PORT"),
        (["--seeds", "0,1", "--ray", "127.0.0.1:1"], "Ray at 127.0.0.1:1: expected a cluster that answers"),
    ],
)
def test_refused(cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, more: list[str], message: str) -> None:
    done = cli("train", *options(bert, tmp_path / "out", toy_csv, *more))
    assert done.code == 2
    assert message in done.err
    assert done.err.strip().splitlines()[-1].startswith("error: ")


def test_one_value_of_terms_is_one_run() -> None:
    nothing: dict[str, Any] = {"lrs": None, "seeds": None}
    assert read_axes({}, terms="value+query", **nothing) is None
    assert read_axes({}, terms=None, **nothing) is None
    axes = read_axes({"lr": 0.1, "seed": 4}, terms="value, query", **nothing)
    assert axes is not None
    assert (axes.terms, axes.lrs, axes.seeds) == (["value", "query"], [0.1], [4])


def test_the_bar_reaches_its_end_however_runs_end() -> None:
    with training_bars() as bars:
        screen = BankScreen(bars, "accuracy")
        screen.begin({"a": 10, "b": 10, "c": 10}, ["d"])
        a, b, c = (screen.of(name) for name in "abc")
        a.stage("select", 5)
        for _ in range(5):
            a.step(1.0, 8)
        a.epoch({"dev_accuracy": 0.5})
        a.stage("refit", 2)
        for _ in range(2):
            a.step(0.5, 8)
        screen.ended("a", {"accuracy": 0.5}, None)
        b.stage("select", 10)
        b.step(float("nan"), 8)
        screen.ended("b", None, ValueError("no"))
        c.resumed(7)
        c.stage("frozen", 40)
        c.step(None, 40)
        for _ in range(3):
            c.step(0.1, 8)
        screen.ended("c", {"accuracy": 1.0}, None)
        task = bars.tasks[0]
        assert task.completed == task.total == 7 + 1 + 3
        assert task.description == "4/4 runs done"
        assert task.fields["dev"] == "best dev 0.500"


def test_a_run_that_begins_again_is_counted_again() -> None:
    with training_bars() as bars:
        screen = BankScreen(bars, "accuracy")
        screen.begin({"a": 10}, [])
        for _ in range(6):
            screen.of("a").step(1.0, 8)
        screen.restarted("a")
        assert bars.tasks[0].total == 6 + 10
        again = screen.of("a")
        again.resumed(4)
        for _ in range(6):
            again.step(0.5, 8)
        screen.ended("a", {"accuracy": 1.0}, None)
        assert bars.tasks[0].completed == bars.tasks[0].total == 12


def test_baselines_of_numbers_go_by_their_names() -> None:
    assert baseline_names(toy_task(regression=True))["majority"] == "the mean"
    assert baseline_names(toy_task())["majority"] == "majority"
