"""A cell gives what training the same by hand gives, whatever ran before it."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import beft
from beft.errors import Interrupted, TrainingError
from beft.report.cells import CellRecord
from beft.studies.execute import correctness, judged, run_cell, settle, trial
from beft.studies.memory import forget_peak_memory, peak_memory
from beft.studies.plan import Cell, make_plan
from beft.studies.publish import publish
from beft.studies.runner import run_plan
from beft.studies.together import run_together
from beft.tasks.metrics import METRICS
from beft.tasks.question import PromptTask, Question
from beft.training.machine import choose
from beft.training.recipe import Recipe
from beft.training.train import Result
from registries import new_session
from studies.conftest import StudyOf
from training.common import After


def cells(study: StudyOf, **changes: object) -> dict[str, Cell]:
    return {cell.method: cell for cell in make_plan(study(seeds=[0], **changes), dtype="fp32").cells}


def test_terms_heads_and_probes_are_what_train_gives(toy_study: StudyOf, bert: Path, tmp_path: Path) -> None:
    found = {method: run_cell(cell, tmp_path / "w") for method, cell in cells(toy_study).items()}
    task = beft.benchmark_task("sst2", size=24)
    recipe = beft.Recipe(epochs=2, batch_size=8, max_length=32)
    by_hand = beft.train(str(bert), task, recipe, dtype="fp32")
    value = found["value"]
    assert value.metrics == by_hand.evaluation
    gold = [int(example.label or 0) for example in task.evaluation["validation"]]
    assert value.correct == [float(a == b) for a, b in zip(by_hand.predictions["validation"], gold, strict=True)]
    assert value.efficiency["trained_parameters"] == 2 * 32 + 2 * 33
    assert found["head"].efficiency["trained_parameters"] == 2 * 33
    assert found["probe"].metrics == {
        name: score
        for name, score in by_hand.metrics["baselines"]["frozen_logistic_regression"].items()
        if name != "splits"
    }
    assert value.efficiency["share"] == pytest.approx(130 / 27_000, rel=0.5)
    assert value.efficiency["adapter_bytes"] > 4 * 130
    assert not (tmp_path / "w").exists()


def test_the_rate_is_chosen_on_dev_rows(toy_study: StudyOf, tmp_path: Path) -> None:
    cell = cells(toy_study, methods=["value"], grid={"value": [1e-6, 3e-2]})["value"]
    record = run_cell(cell, tmp_path / "w")
    tried = record.extra["learning_rates"]
    assert set(tried) == {"1e-06", "0.03"}
    assert record.extra["lr"] == float(max(tried, key=lambda rate: tried[rate]))
    alone = replace(cell, rates=(), recipe={**cell.recipe, "lr": record.extra["lr"]})
    assert run_cell(alone, tmp_path / "w").metrics == record.metrics


def test_every_method_is_trained_as_by_hand(toy_study: StudyOf, bert: Path, tmp_path: Path) -> None:
    changes = {"epochs": 1, "max_length": 32, "rank": 2, "mask_size": 50}
    found = cells(toy_study, methods=["lora", "full", "random-mask", "bias-lora"], changes=changes)
    assert len(found) == 4
    for method, options in (("lora", {"rank": 2}), ("random-mask", {"mask_size": 50})):
        record = run_cell(found[method], tmp_path / "w")
        recipe = beft.Recipe(method=method, epochs=1, max_length=32, **options)
        by_hand = beft.train(str(bert), beft.benchmark_task("sst2", size=24), recipe, tmp_path / method, dtype="fp32",
                             with_baselines=False)  # fmt: skip
        assert record.metrics == by_hand.evaluation
        wanted = ("trainable_parameters", "trainable_share")
        assert [record.efficiency["trained_parameters"], record.efficiency["share"]] == [
            by_hand.metrics[name] for name in wanted
        ]
        assert record.efficiency["adapter_bytes"] == sum(by_hand.metrics["adapter_bytes"].values())


def test_a_rate_that_diverges_is_not_chosen(toy_study: StudyOf) -> None:
    cell = cells(toy_study, methods=["value"], grid={"value": [1e-3, 1e-2]})["value"]
    error = TrainingError("step 1", expected="a finite loss", found="nan")
    fine = Result({"dev": {"accuracy": 0.5}}, None, cell.load(), Recipe(), choose("cpu", "fp32"), [])
    recipe, extra = settle(cell, {1e-3: fine, 1e-2: error})
    assert recipe.lr == 1e-3
    assert "nan" in extra["learning_rates_failed"]["0.01"]
    with pytest.raises(TrainingError, match="every learning rate"):
        settle(cell, {1e-3: error, 1e-2: error})


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("objective", ["classify", "prompt"])
def test_rates_are_tried_on_dev_rows_whatever_the_cell_selects_by(
    toy_study: StudyOf, llama: Path, tmp_path: Path, recipe: str, objective: str
) -> None:
    changes = {"epochs": 1, "batch_size": 8, "max_length": 48}
    if recipe == "default":
        changes["selection"] = "none"  # type: ignore[assignment]
    study = toy_study(methods=["value"], seeds=[0], recipe=recipe, changes=changes, grid={"value": [1e-6, 3e-2]})
    if objective == "prompt":
        study = replace(study, objective="prompt", models=(str(llama),), tasks=("copa",), train_size=10, eval_size=4)
    (cell,) = make_plan(study, dtype="fp32").cells
    selection = "evaluation" if (recipe, objective) == ("paper", "classify") else "none"
    assert cell.recipe["selection"] == selection
    assert trial(cell, 1e-6).selection == "dev"
    record = run_cell(cell, tmp_path / "w")
    assert set(record.extra["learning_rates"]) == {"1e-06", "0.03"}
    assert record.extra.get("selected_on") == (selection if selection == "evaluation" else None)


def test_too_few_rows_for_a_dev_score_fail_the_cell_alone(toy_study: StudyOf, tmp_path: Path) -> None:
    grid = {"value": [1e-3, 1e-2], "query": [1e-3, 1e-2]}
    task = beft.benchmark_task("sst2", size=24)
    few = [next(row for row in task.train if row.label == label) for label in (0, 1)]
    methods = ["value", "query", "key"]
    with new_session():
        beft.register_task("few", replace(task, train=few))
        plan = make_plan(
            toy_study(tasks=["few"], methods=methods, seeds=[0], grid=grid, train_size="all"), dtype="fp32"
        )
        for name, together in (("alone", None), ("together", run_together)):
            records = run_plan(plan, tmp_path / name, run_cell, together).records
            assert [record.status for record in records] == ["failed", "failed", "done"]
            assert "expected a score on dev rows, found none: 2 training rows leave no dev part" in records[0].reason


@pytest.mark.parametrize("metric", ["matthews", "f1_macro", "spearman", "accuracy"])
def test_single_answers_are_kept_where_the_metric_is_no_mean(metric: str) -> None:
    task = replace(beft.benchmark_task("sst2", size=24), metrics=(metric, "accuracy"))
    if metric == "spearman":
        task = replace(task, labels=None)
    examples = task.evaluation["validation"][:2]
    gold = [example.label or 0 for example in examples]
    kept = judged(task, examples, [float(gold[0]), 0.123456789])
    assert ("answers" in kept) == (metric != "accuracy")
    if metric != "accuracy":
        assert kept["answers"] == {"gold": gold, "predicted": [gold[0], 0.123457]}
        record = CellRecord("m", "t", "low", "value", 0, {metric: 0.5}, **kept)
        assert CellRecord.read(json.loads(record.to_line())) == record


def test_the_leading_metric_is_that_of_the_answers_kept(toy_study: StudyOf, tmp_path: Path) -> None:
    mine = replace(beft.benchmark_task("sst2", size=24), metrics=("matthews", "accuracy"))
    with new_session():
        beft.register_task("mine", mine)
        found = list(cells(toy_study, tasks=["mine"]).values())
        alone = [run_cell(cell, tmp_path / "w") for cell in found]
        for record in (*alone, *run_together(found[:2], tmp_path / "w")):
            assert isinstance(record, CellRecord)
            assert record.answers is not None
            gold, predicted = (np.array(record.answers[name]) for name in ("gold", "predicted"))
            assert list(gold) == [example.label for example in mine.evaluation["validation"]]
            assert record.metrics["matthews"] == pytest.approx(METRICS["matthews"](gold, predicted))


def test_a_stopped_cell_goes_on_from_its_checkpoint(toy_study: StudyOf, tmp_path: Path) -> None:
    cell = cells(toy_study, methods=["value"], changes={"epochs": 6, "batch_size": 4, "max_length": 32})["value"]
    whole = run_cell(cell, tmp_path / "a")
    stopping = After(8, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        run_cell(cell, tmp_path / "b", stopping)
    counting = After(10**9, lambda: None)
    again = run_cell(cell, tmp_path / "b", counting)
    assert again.metrics == whole.metrics
    assert again.correct == whole.correct
    assert counting.steps < 8 + 6 * 5 + 6 * 6


def test_correctness_of_every_kind_of_answer() -> None:
    task = beft.benchmark_task("sst2", size=24)
    examples = task.evaluation["validation"][:2]
    gold = [float(example.label or 0) for example in examples]
    assert correctness(task, examples, [gold[0], 1 - gold[1]]) == [1.0, 0.0]
    assert correctness(replace(task, labels=None), examples, gold) is None
    assert correctness(task, [replace(examples[0], label=None)], [0]) is None
    asked = PromptTask("x", [])
    chosen = Question(0, "p", ("a", "b", "c"), (0, 2))
    written = Question(1, "p", answers=("the red house", "blue"))
    assert correctness(asked, [chosen, chosen, written], [2, 1, "a red car"]) == [1.0, 0.0, 0.5]


def test_language_models_are_trained_and_asked(toy_study: StudyOf, llama: Path, tmp_path: Path) -> None:
    methods = ["value", "zero-shot", "icl", "probe"]
    study = toy_study(objective="prompt", models=[str(llama)], tasks=["copa"], methods=methods, train_size=8,
                      eval_size=6, changes={"epochs": 1, "max_length": 48})  # fmt: skip
    plan = make_plan(study, dtype="fp32")
    outcome = run_plan(plan, tmp_path, lambda cell, work, listener: run_cell(cell, work, listener))
    by_method = {record.method: record for record in outcome.records if record.seed == 0}
    assert [by_method[name].status for name in ("value", "zero-shot", "icl", "probe")] == ["done"] * 3 + ["missing"]
    assert all(len(by_method[name].correct or []) == 6 for name in ("value", "zero-shot", "icl"))
    assert by_method["zero-shot"].efficiency["trained_parameters"] == 0


def test_importance_is_a_study_too(toy_study: StudyOf, pictures: None, tmp_path: Path) -> None:
    study = toy_study(kind="importance", seeds=[0])
    plan = make_plan(study, dtype="fp32")
    assert [cell.method for cell in plan.cells] == ["all"]
    outcome = run_plan(plan, tmp_path, lambda cell, work, listener: run_cell(cell, work, listener))
    files = publish(tmp_path, study, outcome, ["beft", "study", "toy"])
    assert sum(name.endswith(".png") for name in files) == 4
    assert "projection" in (tmp_path / "table.md").read_text(encoding="utf-8")
    record = CellRecord.read(json.loads((tmp_path / "cells.jsonl").read_text(encoding="utf-8")))
    assert record.extra["importance"]["rankings"]["projection"]


def test_the_peak_is_of_what_came_after_the_mark() -> None:
    if not forget_peak_memory():
        pytest.skip("this system has no mark to put back")
    before = peak_memory()
    large = torch.ones(64 << 18)
    high = peak_memory()
    assert high > before + 32
    del large
    forget_peak_memory()
    assert peak_memory() < high - 32


def test_recipes_of_cells_are_whole(toy_study: StudyOf) -> None:
    for cell in cells(toy_study).values():
        assert Recipe.from_dict(dict(cell.recipe)).epochs == 2
