"""Cells of a study: how many, in which order, and when their hashes change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import beft
from beft.methods.registry import find_method
from beft.own_file import digest
from beft.report.cells import CellRecord
from beft.studies import at_hand
from beft.studies import plan as plan_module
from beft.studies.at_hand import Absent, find_model
from beft.studies.estimate import Estimator, plain_seconds
from beft.studies.methods import source_digest
from beft.studies.plan import Cell, as_json, code_version, make_plan
from beft.training.machine import choose
from registries import new_session
from studies.conftest import StudyOf, write_rows
from toys import save_base, texts, write_csv


def test_every_combination_is_a_cell_or_missing(toy_study: StudyOf) -> None:
    plan = make_plan(toy_study(tasks=["sst2", "rte"], methods=["value", "icl"]))
    assert len(plan.cells) + len(plan.missing) == 2 * 2 * 2
    assert {(cell.task, cell.method) for cell in plan.cells} == {("sst2", "value")}
    reasons = " ".join(plan.absent())
    assert "the task rte is not at hand" in reasons
    assert "the method icl asks a language model" in reasons
    assert json.loads(json.dumps(as_json(plan), default=str))["code"] == code_version()


def test_all_of_a_seed_comes_before_the_next(toy_study: StudyOf) -> None:
    assert [cell.seed for cell in make_plan(toy_study(seeds=[3, 1])).cells] == [3] * 3 + [1] * 3


def test_missing_models_say_why(toy_study: StudyOf, tmp_path: Path) -> None:
    for name, words in ((str(tmp_path / "none"), "no such folder"), (str(tmp_path), "no weights"),
                        ("bert-base-cased", "Hub")):  # fmt: skip
        found = find_model(name)
        assert isinstance(found, Absent)
        assert words in found.reason
    plan = make_plan(toy_study(models=[str(tmp_path / "none")]))
    assert not plan.cells
    assert len(plan.missing) == 6


def test_models_lie_in_a_folder_of_models(toy_study: StudyOf, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEFT_MODELS", str(bert.parent))
    by_name, by_path = make_plan(toy_study(models=[bert.name])), make_plan(toy_study())
    assert [cell.question for cell in by_name.cells] == [cell.question for cell in by_path.cells]


def test_own_rows_are_held_out_alike_for_every_seed(toy_study: StudyOf, tmp_path: Path) -> None:
    def made(rows: int) -> list[Cell]:
        own = {"file": str(write_csv(tmp_path / "mine.csv", texts(rows))), "text": "text", "label": "label"}
        return make_plan(toy_study(tasks=["mine"], data={"mine": own}, train_size=20)).cells

    cells = made(60)
    tasks = [cell.load() for cell in cells if cell.method == "value"]
    assert [len(task.train) for task in tasks] == [20, 20]
    assert [row.id for row in tasks[0].train] != [row.id for row in tasks[1].train]
    assert tasks[0].evaluation == tasks[1].evaluation
    assert [cell.question for cell in made(60)] == [cell.question for cell in cells]
    at_hand._find_task.cache_clear()  # rows are read once a process
    assert made(63)[0].question != cells[0].question


def test_cells_from_before_there_was_a_choice_keep_their_keys(toy_study: StudyOf) -> None:
    cell = make_plan(toy_study(methods=["value"], seeds=[0])).cells[0]
    before = {key: value for key, value in cell.recipe.items() if key not in ("pairs", "head_penalty")}
    assert replace(cell, recipe=before).question == cell.question
    assert cell.recipe["layers"] is None
    del before["layers"]
    assert replace(cell, recipe=before).question != cell.question


def test_tasks_of_one_text_are_read_as_they_are_beside_texts_read_apart(toy_study: StudyOf, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("a,b,label\n" + "".join(f"w{n},v{n},{n % 2}\n" for n in range(60)))
    own = {"file": str(tmp_path / "two.csv"), "text": ["a", "b"], "label": "label"}
    changes = {"pairs": "apart", "epochs": 1, "max_length": 32}
    plan = make_plan(toy_study(tasks=["sst2", "two"], data={"two": own}, changes=changes, seeds=[0]))
    assert plan.missing == []
    assert {cell.task: cell.recipe["pairs"] for cell in plan.cells} == {"sst2": "joint", "two": "apart"}


def test_own_rows_that_are_not_there_are_missing(toy_study: StudyOf) -> None:
    own = {"file": "nowhere.csv", "text": "text", "label": "label"}
    (reason,) = make_plan(toy_study(tasks=["mine"], data={"mine": own})).absent()
    assert "the task mine is not at hand: nowhere.csv" in reason


@pytest.mark.parametrize("objective", ["classify", "prompt"])
def test_tasks_that_cannot_be_judged_are_missing(toy_study: StudyOf, objective: str) -> None:
    rows: list[Any] = [beft.Example(number, (text,), number % 2) for number, text in enumerate("abcd")]
    bare: list[Any] = [replace(row, label=None) for row in rows]
    if objective == "prompt":
        rows = [beft.Question(row.id, row.texts[0], ("x", "y"), (row.label,)) for row in rows]
        bare = [replace(row, gold=()) for row in rows]
    evaluations = {"none": {}, "empty": {"test": []}, "bare": {"test": [rows[0], bare[1]]}, "fine": {"test": rows}}
    with new_session():
        for name, evaluation in evaluations.items():
            labelled = beft.Task(name, ("a", "b"), ("text",), ("accuracy",), rows, evaluation)
            beft.register_task(name, beft.PromptTask(name, rows, evaluation) if objective == "prompt" else labelled)
        study = toy_study(tasks=list(evaluations), seeds=[0], methods=["value"], train_size=4, objective=objective)
        plan = make_plan(study)
    assert [cell.task for cell in plan.cells] == ["fine"]
    lacks = "expected evaluation rows with labels, found"
    assert [record.reason for record in plan.missing] == [
        f"the task none: {lacks} none", f"the task empty: {lacks} none", f"the task bare: {lacks} rows without one",
    ]  # fmt: skip


def test_what_an_own_task_says_beside_its_rows_is_asked_too(toy_study: StudyOf) -> None:
    rows = [beft.Example(number, (text,), number % 2) for number, text in enumerate("abcd")]
    asked = [beft.Question(number, text, ("x", "y"), (number % 2,)) for number, text in enumerate("abcd")]
    task = beft.Task("mine", ("a", "b"), ("text",), ("accuracy", "f1"), rows, {"test": rows})
    prompts = beft.PromptTask("mine", asked, {"test": asked}, ("x", "y"))

    def question(found: beft.Task | beft.PromptTask) -> str:
        at_hand._find_task.cache_clear()
        objective = "classify" if isinstance(found, beft.Task) else "prompt"
        with new_session():
            beft.register_task("mine", found)
            return first(toy_study, tasks=["mine"], train_size=4, objective=objective).question

    labelled = [task, replace(task, metrics=("f1", "accuracy")), replace(task, labels=("a", "c"))]
    named = [replace(row, names=("one", "two")) for row in asked]
    changes: list[dict[str, Any]] = [
        {"labels": None}, {"metrics": ("token_f1",)}, {"stop": (".",)}, {"chat": True}, {"writes": True},
        {"evaluation": {"test": named}},
    ]  # fmt: skip
    written = [prompts, *(replace(prompts, **each) for each in changes)]
    assert len({question(each) for each in (*labelled, *written)}) == len(labelled) + len(written)
    assert question(replace(task, notices=["x"])) == question(task)


def test_the_files_of_all_terms_count(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text("x = 1")
    other.write_text("x = 2")
    alone = source_digest(f"{mine}:gate")
    assert alone == digest(mine)
    assert source_digest(f"value+{mine}:gate") == source_digest(f"{mine}:gate@self+value") == alone
    both = source_digest(f"{mine}:gate+query+{other}:up")
    assert both == f"{alone}+{digest(other)}"
    assert source_digest("value+query") is None
    other.write_text("x = 3")
    assert source_digest(f"{mine}:gate+query+{other}:up") != both


def first(study: StudyOf, **changes: object) -> Cell:
    return make_plan(study(**changes)).cells[0]


def test_the_hash_is_of_what_is_asked(toy_study: StudyOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_plan(toy_study(), dtype="fp32").cells[0]
    monkeypatch.setattr(
        plan_module, "choose", lambda device, dtype: choose(device, "fp32" if dtype == "auto" else dtype)
    )
    assert base.question == first(toy_study, title="another", methods=["value", "query"]).question
    changed = {
        "method": first(toy_study, methods=["query"]).question,
        "seed": first(toy_study, seeds=[1]).question,
        "recipe": first(toy_study, changes={"epochs": 3}).question,
        "grid": first(toy_study, grid={"value": [1e-3, 1e-2]}).question,
        "rows": first(toy_study, train_size=25).question,
        "evaluation": first(toy_study, eval_size=10).question,
        "option": first(toy_study, methods=["lora"], changes={"epochs": 2, "rank": 2}).question,
        "another option": first(toy_study, methods=["lora"], changes={"epochs": 2, "rank": 3}).question,
        "precision": make_plan(toy_study(), dtype="bf16").cells[0].question,
        "weights": first(toy_study, models=[str(save_base(tmp_path / "other", seed=1))]).question,
    }
    write_rows(tmp_path / "data" / "sst2", 47, 20)
    monkeypatch.setenv("BEFT_DATA", str(tmp_path / "data"))
    changed["data"] = first(toy_study).question
    assert len({base.question, *changed.values()}) == 1 + len(changed)


def test_a_single_rate_is_the_recipes_own(toy_study: StudyOf) -> None:
    cell = first(toy_study, grid={"value": [5e-4]})
    assert (cell.recipe["lr"], cell.rates) == (5e-4, ())
    assert first(toy_study, grid={"value": [5e-4, 1e-3]}).rates == (5e-4, 1e-3)


def test_options_do_not_ask_the_others_anew(toy_study: StudyOf) -> None:
    changed = toy_study(methods=["value", "lora"], changes={**toy_study().changes, "rank": 3})
    value, lora = make_plan(changed).cells[:2]
    assert value.question == first(toy_study).question
    assert (value.recipe["rank"], lora.recipe["rank"]) == (None, 3)
    assert lora.recipe["lr"] == find_method("lora").lr


def test_the_papers_recipe(toy_study: StudyOf) -> None:
    recipe = first(toy_study, recipe="paper", changes={}).recipe
    assert (recipe["preset"], recipe["head"], recipe["lr"]) == ("paper", "model", 4e-4)


def test_estimates_grow_with_the_work_and_learn(toy_study: StudyOf) -> None:
    cell = first(toy_study)
    assert plain_seconds(first(toy_study, train_size=48)) > plain_seconds(cell)
    assert plain_seconds(first(toy_study, grid={"value": [1e-3, 1e-2]})) > plain_seconds(cell)
    estimator = Estimator()
    assert estimator.seconds(cell) == plain_seconds(cell)
    estimator.observe(cell, 3 * plain_seconds(cell))
    assert estimator.seconds(cell) == pytest.approx(3 * plain_seconds(cell))


def test_records_of_a_cell_carry_its_names(toy_study: StudyOf) -> None:
    cell = first(toy_study)
    record = cell.record(metrics={"accuracy": 0.5})
    assert record == CellRecord(cell.model, "sst2", "24 rows", "value", 0, {"accuracy": 0.5})
