"""docs/extending.md does what it says: its files are written, its commands and lines are run, in its order."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import beft
from beft.core.sites import available_terms
from beft.errors import DataError, ExtensionError, RecipeError, SiteError, StudyError, TermError
from beft.methods.registry import find_method
from beft.studies.execute import run_cell
from beft.studies.plan import make_plan
from beft.studies.runner import run_plan
from beft.studies.study import make_study
from beft.studies.together import run_together
from cli.conftest import Cli, cli
from registries import new_session
from tiny import build
from toys import save_base

__all__ = ["cli"]

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"# (\w+\.(?:py|toml))\n")


def files() -> dict[str, str]:
    """The page's files by name."""
    return {found[1]: block for _, block in BLOCKS if (found := TITLE.match(block))}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the page's files, in which nothing is registered yet."""
    monkeypatch.chdir(tmp_path)
    bases = {"MODEL": "bert", "DECODER": "llama"}
    for name, family in bases.items():
        save_base(tmp_path / name, family)
    for name, text in files().items():
        Path(name).write_text(text, encoding="utf-8")
    with new_session():
        yield tmp_path


def test_the_page_adds_one_of_each_and_every_block_is_known() -> None:
    assert set(files()) == {f"my_{kind}.py" for kind in ("task", "method", "term", "score", "family")} | {
        "my_study.toml"
    }
    assert {kind for kind, _ in BLOCKS} == {"python", "bash", "toml"}


def test_the_page_runs(here: Path, cli: Cli) -> None:
    for kind, block in BLOCKS:
        if TITLE.match(block):
            continue
        if kind == "python":
            exec(block, {})
            continue
        if kind == "toml":  # part of a study
            rest = {"models": ["m"], "methods": ["value"], "seeds": [0], "train_size": "all"}
            assert make_study({**tomllib.loads(block), **rest}, "mine", "mine.toml").tasks == ("tickets",)
            continue
        for line in block.strip().splitlines():
            command = shlex.split(line)[1:]
            fast = ["--epochs", "2"] if command[0] in ("train", "importance") else []
            with new_session():  # commands know nothing of one another
                done = cli(*command, *fast)
            assert done.code == 0, (line, done.err)
    record = json.loads(Path("runs/scales/beft.json").read_text())["method"]
    assert record["name"] == "scales"
    assert record["source"]["reference"] == "my_method.py:Scales"
    assert json.loads(Path("runs/scales/metrics.json").read_text())["method"] == "my_method.py:scales"
    importance = json.loads(Path("runs/importance/importance.json").read_text())
    assert importance["scores"]["peak"].keys() == importance["scores"]["magnitude"].keys()
    assert "Largest change" in Path("runs/importance/ranking.md").read_text()
    cells = [json.loads(line) for line in Path("runs/study/cells.jsonl").read_text().splitlines()]
    assert [(cell["method"], cell["status"]) for cell in cells] == [("value", "done"), ("my_method.py:scales", "done")]
    assert cells[1]["efficiency"]["trained_parameters"] == 2 + 2 * (32 + 1)


def test_a_folder_of_an_own_method_says_how_to_load_it_and_that_its_file_changed(here: Path, cli: Cli) -> None:
    train = ["train", "--model", "MODEL", "--task", "my_task.py:manners", "--epochs", "1"]
    assert cli(*train, "--method", "my_method.py:Scales", "--out", "out").code == 0
    with new_session():
        with pytest.raises(RecipeError, match=r"beft --use my_method\.py:Scales COMMAND"):
            beft.load("out")
        beft.use("my_method.py:Scales")
        before = beft.load("out").predict_proba(["Just call me back"])
    Path("my_method.py").write_text(files()["my_method.py"] + "\n# another version\n")
    with new_session():
        beft.use("my_method.py:Scales")
        with pytest.warns(UserWarning, match="another version of my_method"):
            again = beft.load("out").predict_proba(["Just call me back"])
    assert (before == again).all()


def test_an_adapter_of_an_own_term_loads_without_its_file(here: Path, cli: Cli) -> None:
    train = ["train", "--model", "DECODER", "--task", "my_task.py:manners", "--epochs", "4", "--lr", "0.1"]
    with new_session():
        assert cli(*train, "--terms", "my_term.py:gate", "--out", "out").code == 0
    predictor = beft.load("out")
    vectors = [vector for _, vector in predictor.bank[predictor.name].items()]
    assert len(vectors) == 2
    assert all(vector.abs().max() > 0 for vector in vectors)


def test_own_terms_stand_in_grids(here: Path, cli: Cli) -> None:
    (here / "deep").mkdir()
    Path("my_term.py").rename("deep/my_term.py")
    own = "deep/my_term.py:gate"
    train = ["train", "--model", "DECODER", "--task", "my_task.py:manners", "--epochs", "1", "--quiet"]
    with new_session():
        done = cli(*train, "--terms", f"value,{own},value+{own}", "--out", "out")
    assert done.code == 0, done.err
    runs = json.loads(Path("out/summary.json").read_text())["runs"]
    assert [run["run"] for run in runs] == ["value", "deep-my_term.py-gate", "value+deep-my_term.py-gate"]
    assert [run["terms"] for run in runs] == ["value", own, f"value+{own}"]


def test_cells_of_own_terms_run_side_by_side(here: Path) -> None:
    values = {"models": ["DECODER"], "train_size": 8, "seeds": [0], "tasks": ["my_task.py:manners"]}
    methods = ["value", "my_term.py:gate", "value+my_term.py:gate", "my_term.py:gate+value"]
    study = make_study({**values, "methods": methods, "changes": {"epochs": 1}}, "mine", "mine.toml")
    records = run_plan(make_plan(study), Path("out"), run_cell, run_together).records
    assert [(record.method, record.status, record.extra.get("bank")) for record in records] == [
        (method, "done", 4) for method in methods
    ]


def test_an_own_term_is_found_and_leaves_the_papers_sets_alone(here: Path) -> None:
    model = build("llama")
    before = [site.key for site in beft.find_sites(model, "all")]
    beft.use("my_term.py:gate")
    assert [site.module for site in beft.find_sites(model, "gate")] == [f"layers.{n}.mlp.gate_proj" for n in (0, 1)]
    assert "gate" in {term.name for term in available_terms(model)}
    assert [site.key for site in beft.find_sites(model, "all")] == before
    assert "gate" not in find_method("bitfit")().terms(model, "linear").split("+")


def test_names_that_are_taken_raise(here: Path) -> None:
    for source in ("my_term.py:gate", "my_score.py:peak", "my_method.py:scales", "my_task.py:manners"):
        beft.use(source)
        beft.use(source)  # the same object again is no clash
    beft.use("my_family.py")

    class Taken(beft.Method):
        name = "scales"

    term = beft.Term("gate", "b_x", "x", "x", paths=("a",))
    calls = [
        (RecipeError, lambda: beft.register_method(Taken)),
        (TermError, lambda: beft.register_term(term)),
        (TermError, lambda: beft.register_term(beft.Term("new", "b_v", "x", "x", paths=("a",)))),
        (TermError, lambda: beft.register_term(beft.Term("new", "b_n", "x", "x"))),
        (TermError, lambda: beft.register_term(beft.Term("a+b", "b_n", "x", "x", paths=("a",)))),
        (RecipeError, lambda: beft.register_score(beft.Score("projection", "x", lambda before, after: 0.0))),
        (RecipeError, lambda: beft.register_score(beft.Score("peak", "x", lambda before, after: 0.0))),
        (DataError, lambda: beft.register_task("SST-2", lambda: None)),  # type: ignore[arg-type, return-value]
        (DataError, lambda: beft.register_task("manners", lambda: None)),  # type: ignore[arg-type, return-value]
        (DataError, lambda: beft.register_task("new", 3)),  # type: ignore[arg-type]
        (SiteError, lambda: beft.register_family("ctrl", query="a", key="b", value="c", output="d")),
        (SiteError, lambda: beft.register_family("bert", query="a", key="b", value="c", output="d")),
        (SiteError, lambda: beft.register_family("x", query="a", key="b", value="c", output="d", layout="block")),
        (SiteError, lambda: beft.register_family("x", query="a", key="b", value="c", output="d", paths={"valu": "e"})),
    ]
    for kind, call in calls:
        with pytest.raises(kind, match="expected"):
            call()


@pytest.mark.parametrize(
    ("option", "reference", "words"),
    [
        ("--method", "absent.py:scales", "absent.py: expected a Python file, found no such file"),
        ("--method", "my_method.py", "expected FILE.py:NAME, found no name"),
        ("--method", "my_method.py:scale", "Did you mean 'Scales'?"),
        ("--method", "my_task.py:manners", "expected a method (a class derived from beft.Method), found an object of"),
        ("--terms", "my_method.py:Scales", "expected a term (beft.Term), found the class Scales"),
        ("--terms", "my_term.py:gate@crosss", "did you mean 'cross'"),
        ("--task", "my_score.py:peak", "expected a task (beft.Task, beft.PromptTask, or a function that makes one)"),
        ("--task", "my_score.py:largest", "TypeError"),
        ("--method", "broken.py:scales", "ZeroDivisionError: division by zero (line 2)"),
        ("--method", "torn.py:scales", "SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(here: Path, cli: Cli, option: str, reference: str, words: str) -> None:
    Path("broken.py").write_text("x = 1\n1 / 0\n")
    Path("torn.py").write_text("def x(:\n")
    task = [] if option == "--task" else ["--task", "my_task.py:manners"]
    done = cli("train", "--model", "MODEL", *task, option, reference, "--out", "out")
    assert done.code == 2
    assert words.lower() in " ".join(done.err.split()).lower()
    assert not Path("out").exists()


def test_a_file_runs_once_and_a_failed_one_again(here: Path) -> None:
    Path("counted.py").write_text(
        "import beft\nwith open('runs.txt', 'a') as file: file.write('x')\nvalue = beft.nothing"
    )
    for _ in range(2):
        with pytest.raises(ExtensionError, match="line 3"):
            beft.use("counted.py")
    Path("counted.py").write_text("with open('runs.txt', 'a') as file: file.write('x')\n")
    beft.use("counted.py")
    beft.use(str(here / "counted.py"))
    assert Path("runs.txt").read_text() == "xxx"


def test_own_tasks_take_sizes_seeds_and_no_regime(here: Path) -> None:
    full, small = (beft.benchmark_task("my_task.py:manners", size=size, seed=1, eval_size=3) for size in (None, 8))
    assert (len(full.train), len(small.train), len(full.evaluation["test"])) == (16, 8, 3)
    assert beft.benchmark_task("my_task.py:manners").train != beft.benchmark_task("my_task.py:manners", seed=1).train
    with pytest.raises(DataError, match="give the rows"):
        beft.benchmark_task("my_task.py:manners", regime="low")
    with pytest.raises(DataError, match="a task of labels"):
        beft.prompt_task("my_task.py:manners")


def test_own_prompts_are_prompts_wherever_they_are_named(here: Path, cli: Cli) -> None:
    question = beft.Question(0, "red It was", (" good", " bad"), (0,))
    task = beft.PromptTask("moods", [question] * 4, {"test": [question]}, ("good", "bad"))
    beft.register_task("moods", task)
    assert len(beft.prompt_task("Moods", size=2).train) == 2
    assert len(task.train) == 4
    assert cli("show", "moods").code == 0
    assert cli("train", "--model", "DECODER", "--task", "moods", "--epochs", 1, "--out", "out").code == 0
    assert cli("train", "--model", "MODEL", "--task", "moods", "--objective", "classify", "--out", "o").code == 2


def test_a_studys_faults_in_own_files_are_all_named(here: Path) -> None:
    values = {
        "models": ["MODEL"], "train_size": 8, "seeds": [0],
        "tasks": ["my_task.py:manners", "absent.py:x"], "methods": ["my_method.py:scale", "my_term.py:gate"],
    }  # fmt: skip
    with pytest.raises(StudyError, match="2 faults") as caught:
        make_study(values, "mine", "mine.toml")
    assert "absent.py" in str(caught.value)
    assert "Did you mean 'Scales'" in str(caught.value)


def test_a_cell_of_an_own_method_hangs_on_its_file(here: Path) -> None:
    values = {"models": ["MODEL"], "train_size": 8, "seeds": [0], "tasks": ["my_task.py:manners"]}
    study = make_study({**values, "methods": ["my_method.py:scales", "value"]}, "mine", "mine.toml")
    first = [cell.question for cell in make_plan(study).cells]
    Path("my_method.py").write_text(files()["my_method.py"] + "\n# another version\n")
    second = [cell.question for cell in make_plan(study).cells]
    assert len(first) == 2
    assert first[0] != second[0]
    assert first[1] == second[1]
