"""Which epoch is kept, and what a run is like that keeps none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import beft
from beft.training.checkpoint import Position
from beft.training.plan import Plan
from beft.training.progress import Listener
from beft.training.recipe import Recipe
from beft.training.selection import HELD_PATIENCE, is_kept, kept_scores, out_of_patience
from beft.training.train import STAYED
from toys import fast, toy_task
from training.common import learn


@pytest.mark.parametrize(
    ("selection", "scored", "losses", "chosen"),
    [
        ("dev", [0.50, 0.80, 0.78, 0.60], [1, 2, 3, 4], 3),  # .80 on 100 rows has a standard error of .04
        ("dev", [0.80, 0.70, 0.80, 0.75], [1, 2, 3, 4], 3),
        ("dev", [0.50, 0.70, 0.80, 0.77], [1, 2, 3, 4], 4),
        ("dev", [0.90, 0.70, 0.75, 0.74], [4, 3, 2, 2], 4),  # a lucky first epoch, its loss about to fall
        ("dev", [0.90, 0.70, 0.75, 0.60], [4, 3, 2, 3], 3),
        ("dev", [0.60, 0.80, 0.70, 0.77], [1, 2, 2, 1], 4),
        ("evaluation", [0.50, 0.80, 0.80, 0.60], [4, 3, 2, 1], 2),
    ],
)
def test_the_chosen_epoch(selection: str, scored: list[float], losses: list[float], chosen: int) -> None:
    assert choose(Position(), selection, scored, losses) == chosen


@pytest.mark.parametrize(
    ("losses", "chosen", "patience"), [([4, 3, 2, 3], 3, 1), ([2.5, 2.5, 2.6, 2.4], 4, 0), ([2.6, 2.5, 3, 2.7], 0, 4)]
)
def test_a_head_that_is_held_takes_the_lowest_loss_and_may_stay(
    losses: list[float], chosen: int, patience: int
) -> None:
    position = Position(start={"dev_loss": 2.5, "dev_accuracy": 0.5})
    assert choose(position, "dev", [0.9, 0.1, 0.1, 0.1], losses) == chosen
    assert position.epochs_without_gain == patience
    assert position.stayed == (chosen == 0)
    assert position.epochs_kept(7) == chosen
    assert kept_scores(position, ["accuracy"]) == {"accuracy": 0.1 if chosen else 0.5}


def choose(position: Position, selection: str, scored: list[float], losses: list[float]) -> int:
    recipe = fast(selection=selection)
    for score, loss in zip(scored, losses, strict=True):
        position.epoch += 1
        found = {"dev_accuracy": score, "dev_loss": loss}
        if is_kept(position, recipe, "accuracy", 100, found):
            position.best_epoch = position.epoch
        position.history.append({"phase": "select", **found})
    return position.best_epoch


def noise(rows: int) -> beft.Task:
    """Pairs whose labels follow from nothing."""
    task = toy_task(rows, 30, pairs=True)
    drawn = np.random.default_rng(0).integers(0, 3, rows).tolist()
    return replace(task, train=[replace(row, label=label) for row, label in zip(task.train, drawn, strict=True)])


class Stages(Listener):
    """Collects the stages that a run tells of."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def stage(self, name: str, total: int) -> None:
        self.seen.append(name)


@pytest.mark.parametrize("refit", [True, False])
def test_where_there_is_nothing_to_learn_the_regression_is_kept(bert: Path, tmp_path: Path, refit: bool) -> None:
    """Alone and in company, in its folder and in what it says."""
    task, recipe = noise(80), fast(pairs="apart", lr=1.0, epochs=3, refit=refit)
    stages = Stages()
    result = learn(bert, task, recipe, tmp_path / "out", with_baselines=True, listener=stages)
    assert result.metrics["best_epoch"] == 0
    assert "refit" not in stages.seen
    assert STAYED in result.notices
    assert result.metrics["dev"].keys() == {"accuracy", "f1_macro"}
    assert result.metrics["dev"]["accuracy"] == result.metrics["dev_start"]["dev_accuracy"]
    assert [row["phase"] for row in result.history] == ["select"] * 3
    predictor = beft.load(tmp_path / "out")
    adapter = predictor.bank[predictor.name]
    assert not any(vector.any() for _, vector in adapter.items())
    if refit:
        probe = learn(bert, task, recipe, method="probe")
        found, regression = (np.array(each.probabilities["evaluation"]) for each in (result, probe))
        assert np.abs(found - regression).max() < 1e-6
        beside = result.metrics["baselines"]["frozen_logistic_regression"]["splits"]["evaluation"]
        assert result.evaluation == pytest.approx(beside)
    both = beft.train_many(str(bert), task, [Plan("a", recipe), Plan("b", fast(pairs="apart"))], dtype="fp32")
    assert both.results["a"].metrics["best_epoch"] == 0
    ours = np.array(both.results["a"].probabilities["evaluation"])
    assert np.abs(ours - np.array(result.probabilities["evaluation"])).max() < 1e-5


def test_where_there_is_something_it_is_learned(bert: Path) -> None:
    result = learn(bert, toy_task(60, 30, pairs=True), fast(pairs="apart", lr=0.01, epochs=6))
    assert result.metrics["best_epoch"] > 0
    assert STAYED not in result.notices


@pytest.mark.parametrize("changes", [{}, {"head_start": "means"}, {"head_start": "zero"}])
def test_only_the_regression_is_a_start_to_keep(bert: Path, changes: dict[str, str]) -> None:
    """A penalty alone, as `--head-penalty regression` gives it on single texts, leaves no head of zeros behind."""
    recipe = fast(head_penalty="regression", lr=1.0, epochs=3, **changes)
    assert learn(bert, toy_task(60, 12), recipe).metrics["best_epoch"] > 0


def test_weighed_classes_weigh_in_the_start_too(bert: Path) -> None:
    task = noise(80)
    rare = [row for number, row in enumerate(task.train) if row.label != 0 or number % 4 == 0]
    task = replace(task, train=rare)
    for weight in (None, "balanced"):
        held = fast(pairs="apart", lr=1.0, epochs=2, class_weight=weight)
        shares = np.array(learn(bert, task, held).probabilities["evaluation"]).mean(0)
        assert (shares[0] > 0.28) == (weight == "balanced"), shares


def test_a_run_whose_rows_are_of_one_class_answers_it(bert: Path) -> None:
    """Beside another that is not; the regression, of which scikit-learn knows none, is that class."""
    task = toy_task(40, 12, pairs=True)
    one = [number for number, row in enumerate(task.train) if row.label == 1]
    plans = [Plan("one", fast(pairs="apart", epochs=1), rows=one), Plan("all", fast(pairs="apart", epochs=1))]
    found = beft.train_many(str(bert), task, plans, dtype="fp32")
    assert found.failures == {}
    assert set(found.results["one"].predictions["evaluation"]) == {1}
    assert set(found.results["all"].predictions["evaluation"]) != {1}


def test_a_held_head_stops_when_its_dev_loss_falls_no_more() -> None:
    held, free = Position(start={"dev_loss": 0.5}), Position()
    for position in (held, free):
        position.epochs_without_gain = HELD_PATIENCE
    assert out_of_patience(held, Recipe())
    assert not out_of_patience(held, Recipe(patience=HELD_PATIENCE + 1))
    assert not out_of_patience(free, Recipe())
    held.epochs_without_gain -= 1
    assert not out_of_patience(held, Recipe())


@pytest.mark.parametrize(("patience", "epochs"), [(0, HELD_PATIENCE), (3, 3), (40, 20)])
def test_so_does_a_run_that_does_not_move(bert: Path, patience: int, epochs: int) -> None:
    recipe = fast(pairs="apart", head_start="regression", head_penalty="regression", lr=1e-30, epochs=20)
    result = learn(bert, toy_task(pairs=True), replace(recipe, patience=patience))
    assert len(result.history) == epochs  # all of the first phase: it stays, and there is nothing to refit
    assert result.metrics["best_epoch"] == 0
