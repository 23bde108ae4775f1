"""Study files: beft's own are sound, and a faulty one is told all of its faults at once."""

from pathlib import Path

import pytest

from beft.errors import StudyError
from beft.methods.registry import find_method
from beft.studies.methods import known, names, rates_of, reason_not_to_run, settings_of
from beft.studies.study import NAMES, make_study, read_study, study_text
from beft.tasks.own import OwnRows

GOOD = 'models = ["m"]\ntasks = ["sst2"]\nmethods = ["value"]\nseeds = [0]\nregimes = ["low"]\n'
OWN = '[data.mine]\nfile = "a.csv"\ntext = "t"\nlabel = "l"\n'


@pytest.mark.parametrize("name", NAMES)
def test_befts_own_studies_are_sound(name: str, tmp_path: Path) -> None:
    study = read_study(name)
    assert study.question
    assert study.text == study_text(name)
    quick = study.quicker()
    assert quick.models != study.models
    assert not quick.quick
    assert len(quick.tasks) * len(quick.seeds) <= len(study.tasks) * len(study.seeds)
    printed = tmp_path / "mine.toml"
    printed.write_text(study_text(name), encoding="utf-8")
    assert read_study(str(printed)).tasks == study.tasks  # what --print gives is a study


def test_the_papers_tables_hold_the_papers_tasks() -> None:
    assert read_study("table1").regimes == ("low", "medium", "high")
    assert len(read_study("table1").tasks) == 8
    assert len(read_study("table5").tasks) == 11
    assert {"bitfit", "random-mask", "rows-columns", "full", "frozen"} <= set(read_study("table2").methods)


def test_all_faults_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        'model = ["m"]\nmodels = ["m", "m"]\ntasks = ["sst3"]\nmethods = ["valeu", "loar"]\nseeds = [0, "1"]\n'
        'regimes = ["lwo"]\nrecipe = "best"\nchanges = { epoch = 3, lr = -1 }\ngrid = { query = [0] }\n'
        'quick = { seeds = [], tasks = ["rt"] }\n'
    )
    with pytest.raises(StudyError) as caught:
        read_study(str(file))
    text = str(caught.value)
    assert "14 faults" in text
    for words in (
        "model: unknown, did you mean 'models'",
        "models: 'm' twice",
        "unknown task 'sst3', did you mean 'sst2'",
        "unknown method 'valeu', did you mean 'value'",
        "unknown method 'loar', did you mean 'lora'",
        "seeds: '1' is no whole number",
        "unknown regime 'lwo', did you mean 'low'",
        "recipe: 'best' is none of default, paper",
        "changes.epoch: no setting of a recipe, did you mean 'epochs'",
        "lr = -1",
        "grid.query: learning rates above 0",
        "quick.seeds: a list of one or more",
        "quick.tasks: unknown task 'rt', did you mean 'rte'",
    ):
        assert words in text, words
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = [", "text that is none"),
        ('models = ["m"]\n', "no tasks; \\(2\\) no seeds; \\(3\\) no methods"),
        (GOOD.replace('regimes = ["low"]', ""), "neither regimes nor train_size"),
        (GOOD + "train_size = 5\n", "not beside train_size"),
        (GOOD + "data = 3\n", r"data: tables such as \[data.tickets\] are expected, not 3"),
        (GOOD + 'objective = "prompt"\n', "not beside objective 'prompt'"),
        (GOOD + "[grid]\nquery = 1e-3\n", "grid.query: not one of the methods"),
        (GOOD + "eval_size = 0\n", "a number of rows"),
        (GOOD + "quick = 3\n", "a table is expected"),
        (GOOD + "banks = 1\n", "true or false"),
        (GOOD + 'grid = "mine"\n', "learning rates or 'own'"),
        (GOOD.replace("sst2", "boolq"), "unknown task 'boolq'"),
        (GOOD + "[data]\nmine = 3\n", "data.mine: a table of file, text and label is expected"),
        (GOOD + '[data.mine]\nfile = "a.csv"\n', "one fault|data.mine: no text; .*no label"),
        (GOOD + '[data.sst2]\nfile = "a.csv"\ntext = "t"\nlabel = "l"\n', "data.sst2: the name of a benchmark"),
        (GOOD + OWN.replace("label", "lable"), "data.mine.lable: unknown, did you mean 'label'.*no label"),
        (GOOD + OWN.replace('"t"', "[]"), r"data.mine.text: \[\] is no column or list of columns"),
        (GOOD + OWN, "1.* regimes: not for rows of one's own, which have none: give train_size"),
    ],
)
def test_single_faults(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(StudyError, match=words):
        read_study(str(tmp_path / "x.toml"))


def test_an_unknown_study_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="Did you mean 'table1'"):
        read_study("tabel1")
    with pytest.raises(StudyError, match="No such file"):
        read_study(str(tmp_path / "none.toml"))


def test_tasks_may_be_of_ones_own_rows() -> None:
    pair = {"file": "b.csv", "text": ["one", "two"], "label": "l", "evaluation": "held.csv", "regression": True}
    values = {"models": ["m"], "methods": ["value"], "seeds": [0], "train_size": "all",
              "data": {"mine": {"file": "a.csv", "text": "t", "label": "l"}, "pair": pair}}  # fmt: skip
    study = make_study(values, "x", "x")
    assert study.tasks == ("mine", "pair")
    assert study.data["mine"] == OwnRows("a.csv", ("t",), "l")
    assert study.data["pair"] == OwnRows("b.csv", ("one", "two"), "l", "held.csv", True)
    assert make_study({**values, "tasks": ["sst2", "pair"]}, "x", "x").tasks == ("sst2", "pair")
    with pytest.raises(StudyError, match="unknown task 'his'"):
        make_study({**values, "tasks": ["his"]}, "x", "x")


def test_prompt_studies_know_prompt_tasks() -> None:
    values = {"models": ["m"], "tasks": ["boolq"], "methods": ["value"], "seeds": [0], "objective": "prompt"}
    assert make_study(values, "x", "x").objective == "prompt"


def test_methods_are_names_of_methods_and_of_terms() -> None:
    assert all(known(name) for name in names())
    assert not any(known(name) for name in ("nonsense", "none", "value+nonsense"))
    assert settings_of("query+key") == {"method": "bias", "terms": "query+key"}
    assert settings_of("lora") == {"method": "lora"}
    assert settings_of("icl") == {}
    assert rates_of("b_v") == find_method("bias").grid
    assert rates_of("full") == find_method("full").grid
    assert rates_of("probe") == rates_of("zero-shot") == ()


@pytest.mark.parametrize(
    ("method", "objective", "head", "words"),
    [
        ("lora", "classify", "linear", ""),
        ("probe", "classify", "model", ""),  # it has its own head beside the others' model heads
        ("icl", "prompt", "linear", ""),
        ("prefix", "prompt", "linear", ""),
        ("icl", "classify", "linear", "asks a language model"),
        ("head", "prompt", "linear", "found prompts, which have no head"),
        ("lm-head", "classify", "linear", "expected prompts"),
    ],
)
def test_whether_a_method_runs_is_the_methods_own_word(method: str, objective: str, head: str, words: str) -> None:
    reason = reason_not_to_run(method, objective, head)
    assert words in reason
    assert bool(words) == bool(reason)


def test_a_grid_of_every_methods_own() -> None:
    values = {"models": ["m"], "tasks": ["sst2"], "methods": ["value", "lora", "probe"], "seeds": [0], "train_size": 9}
    study = make_study({**values, "grid": "own", "quick": {"methods": ["full"], "grid": "own"}}, "x", "x")
    assert study.grid == {"value": find_method("bias").grid, "lora": find_method("lora").grid}
    assert study.quicker().grid == {"full": find_method("full").grid}


def test_options_reach_who_heeds_them_and_somebody_must() -> None:
    values = {"models": ["m"], "tasks": ["sst2"], "methods": ["value", "lora"], "seeds": [0], "train_size": 9}
    assert make_study({**values, "changes": {"rank": 2}}, "x", "x").changes == {"rank": 2}
    for changes, words in (({"mask_size": 9}, "mask_size: none of the methods heeds it"), ({"rank": 0}, "rank = 0"),
                           ({"method": "lora"}, "changes.method: no setting")):  # fmt: skip
        with pytest.raises(StudyError, match=words):
            make_study({**values, "changes": changes}, "x", "x")
