"""The linear model on frozen states: which strength it takes, and that it says what the layer made of it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from beft.tasks.task import Example, Task
from beft.training.baselines import GRID, fit_probe, linear_layer, majority


def make(outputs: int, rows: int, noise: float, seed: int = 0) -> tuple[np.ndarray, list[float], Task]:
    """States of classes around centres of their own, and the task whose labels they have."""
    random = np.random.default_rng(seed)
    gold = [float(number % outputs) for number in range(rows)]
    centres = random.normal(size=(outputs, 12))
    states = centres[np.asarray(gold, dtype=int)] + noise * random.normal(size=(rows, 12))
    examples = [Example(number, (f"row {number}",), int(label)) for number, label in enumerate(gold)]
    names = tuple(f"class {number}" for number in range(outputs))
    return states.astype(np.float32), gold, Task("made", names, ("text",), ("accuracy",), examples)


def tried(states: np.ndarray, gold: list[float], rest: list[int], dev: list[int], task: Task) -> dict[float, Any]:
    """By strength, accuracy and mean log probability of the dev rows' labels under a model of the other rows."""
    labels = np.asarray(gold, dtype=int)
    found = {}
    for strength in GRID:
        model = fit_probe(states[rest], labels[rest], [], [], task).estimator
        model.set_params(logisticregression__C=strength / 100).fit(states[rest], labels[rest])
        likelihood = np.log(model.predict_proba(states[dev])[range(len(dev)), labels[dev]]).mean()
        found[strength] = ((model.predict(states[dev]) == labels[dev]).mean(), likelihood)
    return found


def test_of_equal_scores_the_likelier_strength_is_taken() -> None:
    states, gold, task = make(2, 40, noise=0.2)
    rest, dev = list(range(30)), list(range(30, 40))
    each = tried(states, gold, rest, dev, task)
    assert {score for score, _ in each.values()} == {1.0}  # the classes lie apart
    likeliest = max(GRID, key=lambda strength: each[strength][1])
    assert fit_probe(states, gold, rest, dev, task).strength == likeliest != GRID[0]


def test_a_better_score_goes_before_likelihood() -> None:
    states, gold, task = make(3, 60, noise=2.0, seed=1)
    rest, dev = list(range(45)), list(range(45, 60))
    each = tried(states, gold, rest, dev, task)
    likeliest = max(GRID, key=lambda strength: each[strength][1])
    found = fit_probe(states, gold, rest, dev, task).strength
    assert each[found][0] == max(score for score, _ in each.values()) > each[likeliest][0]


def test_a_class_of_the_dev_rows_alone_is_no_obstacle() -> None:
    states, gold, task = make(3, 12, noise=0.1)
    rest = [row for row in range(12) if gold[row] != 2.0]
    found = fit_probe(states, gold, rest, [row for row in range(12) if gold[row] == 2.0], task)
    assert found.predict(states) == gold


@pytest.mark.parametrize("outputs", [2, 3])
def test_the_linear_layer_is_the_regression(outputs: int) -> None:
    states, gold, task = make(outputs, 30, noise=1.0)
    probe = fit_probe(states, gold, [], [], task)
    weight, bias = linear_layer(probe.estimator, outputs)
    logits = states @ weight.T + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(odds / odds.sum(axis=1, keepdims=True), probe.estimator.predict_proba(states), atol=1e-6)


def test_majority_is_the_commonest_class_and_the_lowest_of_equals() -> None:
    _, _, task = make(3, 10, noise=0.1)
    assert majority(task) == 0.0
    task.train = [Example(number, ("row",), label) for number, label in enumerate([2, 1, 2, 1])]
    assert majority(task) == 1.0


@pytest.mark.parametrize("numbers", [False, True])
def test_a_feature_that_hardly_varies_has_no_weight(numbers: bool) -> None:
    states, gold, task = make(3, 60, noise=0.5)
    if numbers:
        task = replace(task, labels=None)
    states[:, 4] = 1e-30 * states[:, 4]  # as a norm leaves it whose weight is closed
    states[:, 7] = 0.5
    probe = fit_probe(states, gold, list(range(45)), list(range(45, 60)), task)
    weight, bias = linear_layer(probe.estimator, task.outputs)
    assert not weight[:, [4, 7]].any()
    assert 0 < np.abs(weight).max() < 1e3
    scores = states @ weight.T + bias
    expected = scores[:, 0] if numbers else scores.argmax(axis=1)
    assert np.allclose(expected, probe.predict(states), atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_hardly_more_rows_than_classes_is_nothing_to_warn_of() -> None:
    states, gold, task = make(20, 30, noise=0.1)
    assert fit_probe(states, gold, list(range(25)), list(range(25, 30)), task).predict(states) == gold
