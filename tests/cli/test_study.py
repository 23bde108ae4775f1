"""`beft study` and `beft compare`: plan, run, go on, publish."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from beft.studies.plan import Plan
from beft.studies.runner import Outcome
from beft.studies.study import study_text
from cli.conftest import Cli
from studies.conftest import write_rows
from toys import COLOURS, texts, write_csv

FILE = """
title = "Toy"
question = "Which?"
models = ["{model}", "nowhere/none"]
tasks = ["sst2", "rte"]
methods = ["value", "probe", "icl"]
seeds = [0, 1]
train_size = 24
changes = {{ epochs = 2, batch_size = 8, max_length = 32 }}
[quick]
seeds = [0]
"""


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "data" / "sst2", 48, 20)
    monkeypatch.setenv("BEFT_DATA", str(tmp_path / "data"))


@pytest.fixture
def file(tmp_path: Path, bert: Path) -> Path:
    """A study of the tiny BERT on disk."""
    path = tmp_path / "toy.toml"
    path.write_text(FILE.format(model=bert))
    return path


def test_print_gives_the_file(cli: Cli) -> None:
    assert cli("study", "--print", "table2").out == study_text("table2")
    done = cli("study", "--print", "table9")
    assert done.code == 2
    assert "Did you mean 'table" in done.err


def test_a_dry_run_says_what_is_missing_and_how_long(cli: Cli, file: Path) -> None:
    done = cli("study", file, "--dry-run")
    assert done.code == 0
    assert "24 cells: 0 done, 4 to run (" in done.err
    for words in ("the model nowhere/none is not at hand", "the task rte is not at hand", "the method icl asks"):
        assert words in done.err
    assert json.loads(cli("study", file, "--dry-run", "--quick", "--json").out)["study"]["seeds"] == [0]


def test_all_studies_share_one_budget(cli: Cli, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("one", "two", "three")
    texts = {name: FILE.format(model=bert).replace("Toy", name) for name in names}
    monkeypatch.setattr("beft.studies.study.NAMES", names)
    monkeypatch.setattr("beft.studies.study.study_text", texts.__getitem__)
    monkeypatch.setattr("beft.studies.estimate.plain_seconds", lambda cell: 600.0)
    asked = ["study", "all", "--model", bert, "--dtype", "fp32"]
    planned = cli(*asked, "--dry-run", "--budget", 1)  # four cells of 10 minutes each in every study
    said = " ".join(planned.err.split())
    assert "one Which? 12 cells: 0 done, 4 to run (40 min by estimate), 8 missing" in said
    assert "two Which? 12 cells: 0 done, 2 to run (20 min by estimate), 2 beyond the budget" in said
    assert "three Which? 12 cells: 0 done, 0 to run (1 s by estimate), 4 beyond the budget" in said
    assert "3 studies: 60 min by estimate" in said
    listed = json.loads(cli(*asked, "--dry-run", "--json").out)
    assert [each["study"]["name"] for each in listed] == list(names)

    def ran(plan: Plan, out: Path, *args: object, budget: float, **options: object) -> Outcome:
        budgets.append(budget)
        clock[0] += 1800.0
        return Outcome([])

    budgets: list[float] = []
    clock = [0.0]
    monkeypatch.setattr("beft.studies.runner.run_plan", ran)
    monkeypatch.setattr("beft.studies.publish.publish", lambda *args: [])
    monkeypatch.setattr("beft.cli.study.time", SimpleNamespace(monotonic=lambda: clock[0]))
    listed = json.loads(cli(*asked, "--out", tmp_path / "out", "--budget", 1.25, "--json").out)
    assert budgets == [1.25, 0.75, 0.25]
    assert [each["study"] for each in listed] == list(names)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)


def test_a_study_runs_once_and_publishes(cli: Cli, file: Path, bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("study", file, "--model", bert, "-o", out, "--dtype", "fp32")
    assert done.code == 0
    assert "missing" in done.err
    assert {path.name for path in out.iterdir()} == {"cells", "plan.json", "table.md", "table.tex", "table.csv",
                                                     "cells.jsonl", "report.html", "study.toml"}  # fmt: skip
    again = json.loads(cli("study", file, "--model", bert, "-o", out, "--dtype", "fp32", "--json").out)
    assert (again["ran"], again["records"]) == (0, 12)
    assert "expected a study" not in (out / "report.html").read_text()


@pytest.mark.parametrize("folder", ["cells", "cells.jsonl"])  # what is done is read from either
def test_a_study_goes_on_in_the_precision_it_has(
    cli: Cli, file: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    out = tmp_path / "out"
    machine = "beft.training.machine.native_bf16"
    monkeypatch.setattr(machine, lambda device: False)
    begun = json.loads(cli("study", file, "--model", bert, "-o", out, "--json").out)
    assert begun["ran"] == 4
    for each in {"cells", "cells.jsonl"} - {folder}:
        shutil.rmtree(out / each) if each == "cells" else (out / each).unlink()
    monkeypatch.setattr(machine, lambda device: True)  # what is timed on a busy machine may come out otherwise
    again = json.loads(cli("study", file, "--model", bert, "-o", out, "--json").out)
    assert (again["ran"], again["records"]) == (0, begun["records"])
    plan = json.loads((out / "plan.json").read_text())
    assert {cell["dtype"] for cell in plan["cells"]} == {"fp32"}
    asked = json.loads(cli("study", file, "--model", bert, "-o", out, "--dtype", "bf16", "--json").out)
    assert asked["ran"] == begun["ran"], "another precision that is asked for is another question"


def test_compare_asks_one_question(cli: Cli, bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ["compare", "-m", bert, "--task", "sst2", "--train-size", 24, "--seeds", 2, "--dtype", "fp32"]
    done = cli(*base, "--methods", "value,probe", "--epochs", 2, "-o", out)
    assert done.code == 0
    assert "value" in done.err
    cells = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    assert [(cell["method"], cell["seed"]) for cell in cells] == [
        ("value", 0),
        ("value", 1),
        ("probe", 0),
        ("probe", 1),
    ]
    wrong = cli(*base, "--methods", "valeu,quary", "-o", out)
    assert wrong.code == 2
    assert "'value'" in wrong.err
    assert "'query'" in wrong.err
    assert "1e-3,3e-3" in cli(*base, "--lrs", "fast", "-o", out).err


def test_compare_takes_own_rows(cli: Cli, bert: Path, tmp_path: Path) -> None:
    rows = [(text, COLOURS[colour]) for text, colour in texts(60)]
    data = write_csv(tmp_path / "tickets.csv", [*rows, (rows[0][0], "blue")])
    base = ["compare", "-m", bert, "--data", data, "--text", "text", "--label", "label", "--seeds", 2]
    base += ["--dtype", "fp32", "--methods", "value,probe", "--epochs", 2, "-o", tmp_path / "out"]
    done = cli(*base)
    assert done.code == 0
    assert "note: 1 training text has two labels" in done.err
    assert "tickets" in done.err
    cells = [json.loads(line) for line in (tmp_path / "out" / "cells.jsonl").read_text().splitlines()]
    assert [(cell["task"], cell["regime"], cell["method"], cell["seed"]) for cell in cells] == [
        ("tickets", "all rows", method, seed) for method in ("value", "probe") for seed in (0, 1)
    ]
    assert json.loads(cli(*base, "--json").out)["ran"] == 0
    assert json.loads(cli(*base, "--train-size", 30, "--json").out)["ran"] == 4
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["study"]["data"]["tickets"]["file"] == str(data)
    base[base.index(data)] = data.rename(tmp_path / "SST2.csv")
    named = json.loads(cli(*base[:-2], "--dry-run", "--json").out)
    assert named["study"]["tasks"] == ["SST2.csv"]


def test_compare_reads_pairs_as_asked(cli: Cli, bert: Path, tmp_path: Path) -> None:
    pairs = zip(texts(40), texts(40, 1), strict=True)
    rows = [(text, other, number % 2) for number, ((text, _), (other, _)) in enumerate(pairs)]
    data = write_csv(tmp_path / "pairs.csv", rows, ("a", "b", "same"))
    base = ["compare", "-m", bert, "--data", data, "--text", "a", "--text", "b", "--label", "same", "--seeds", 1]
    base += ["--dtype", "fp32", "--methods", "value", "--epochs", 1]
    found = []
    for number, more in enumerate(([], ["--pairs", "apart"])):
        assert cli(*base, *more, "-o", tmp_path / str(number)).code == 0
        found += [json.loads(line) for line in (tmp_path / str(number) / "cells.jsonl").read_text().splitlines()]
    trained = [cell["efficiency"]["trained_parameters"] for cell in found]
    assert trained[1] - trained[0] == 2 * (3 * 32 + 1)  # of two classes: four states of 32 and a cosine in place of one


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "sst2", "--data", "x.csv"], "expected one of them, found both"),
        ([], "expected one of them, found neither"),
        (["--data", "x.csv", "--text", "text"], "expected --text COLUMN and --label COLUMN beside it"),
        (["--data", "none.csv", "--text", "text", "--label", "label"], "none.csv"),
        (["--data", "x.csv", "--text", "texts", "--label", "label"], "Did you mean 'text'"),
        (["--data", "x.csv", "--text", "text", "--label", "label", "--regime", "low"], "--regime: expected --task"),
        (["--data", "x.csv", "--text", "text", "--label", "label", "--train-size", "few"], "a number of rows or 'all'"),
        (["--data", "x.csv", "--text", "text", "--label", "label", "--train-size", "900"], "expected at least 900"),
        (["--task", "sst2", "--label", "label"], "expected --data beside them"),
        (["--task", "mrpc", "--pairs", "aprt"], "pairs = 'aprt' (expected auto, joint or apart)"),
        (["--task", "copa", "--objective", "choose", "--pairs", "apart"], "--pairs: expected a task with a head"),
        (["--task", "sst2", "--epochs", "0"], "epochs"),
    ],
)
def test_compare_refuses(
    cli: Cli, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "x.csv", [(text, COLOURS[colour]) for text, colour in texts(30)])
    done = cli("compare", "-m", bert, *options, "-o", tmp_path / "out")
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a study's name or file"),
        (["table1"], "--out DIR"),
        (["tabel1", "--dry-run"], "Did you mean 'table1'"),
        (["table1", "--budget", "0", "--dry-run"], "hours above 0"),
    ],
)
def test_bad_input(cli: Cli, arguments: list[str], words: str) -> None:
    done = cli("study", *arguments)
    assert done.code == 2
    assert words in done.err
