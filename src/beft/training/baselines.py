"""What a practitioner would compare with first: the majority, and a linear model on frozen mean-pooled states."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tasks.metrics import measure
from ..tasks.task import Task

Layer = tuple[NDArray[np.float64], NDArray[np.float64]]
"""A linear layer's weight (outputs, hidden) and bias (outputs,)."""
GRID = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Inverse regularisation strengths tried on the dev rows."""
WEIGHTY = 20.0
"""So many times its own spread the cosine of two texts counts, beside features that count theirs once: a penalty that
must hold back hundreds of them shall not hold back the one that encoders were trained for (docs/results/pairs.md)."""
UNMET = -10.0
"""Bias of a class without training rows."""
STILL = 1e-3
"""Of the median feature's spread: one that spreads less is left out. Norms that a model has learned to close leave
features of 1e-30, which would get weights of 1e30: no baseline suffers, but no head can be trained from there."""


@dataclass
class Probe:
    """A fitted linear model on frozen states: its scikit-learn estimator and the strength the dev rows chose.

    `without_dev` is the estimator that these rows were asked of: fitted to the others alone.
    """

    estimator: Any
    strength: float
    without_dev: Any

    def predict(self, states: NDArray[np.float32]) -> list[float]:
        """Class numbers, or numbers."""
        return [float(value) for value in self.estimator.predict(states)]


def fit_probe(
    states: NDArray[np.float32],
    gold: Sequence[float],
    rest: Sequence[int],
    dev: Sequence[int],
    task: Task,
    compared: bool = False,
    balanced: bool = False,
) -> Probe:
    """Logistic (or ridge) regression: strength chosen on the dev rows, then fitted to all rows.

    Of strengths with equal scores, which are common on few dev rows, the one that finds the labels likelier is taken.
    `compared` states are those of two texts, whose last feature is their cosine; there the likelihood alone chooses,
    which few rows tell more surely than how many are right: a head is held by the penalty that is found. `balanced`:
    every class weighs the same, however rare.
    """
    labels, states = np.asarray(gold), _without_still(states)
    if compared:
        states = states.astype(np.float64)  # in which the optimum can be found
    weights = np.ones(states.shape[1])
    if compared:
        weights[-1] = WEIGHTY

    def fitted(strength: float, rows: Sequence[int]) -> Any:
        classes = 2 if task.regression else len(set(labels[list(rows)]))
        estimator = _estimator(task, strength, classes, balanced, exact=compared)
        return _fit(estimator, states[list(rows)], labels[list(rows)], weights)

    everyone = range(len(labels))
    if not len(dev):
        model = fitted(1.0, everyone)
        return Probe(model, 1.0, model)
    if len(set(labels[list(rest)])) < 2:
        return Probe(fitted(1.0, everyone), 1.0, fitted(1.0, rest))
    seen, truth = states[list(dev)], labels[list(dev)]
    best: tuple[tuple[float, float], float, Any] | None = None
    for strength in GRID:
        model = fitted(strength, rest)
        likely = _log_likelihood(model, seen, truth)
        score = measure(task.metrics[:1], truth.tolist(), model.predict(seen).tolist())[task.metrics[0]]
        merit = (likely, score) if compared else (score, likely)
        if best is None or merit > best[0]:
            best = (merit, strength, model)
    assert best is not None
    return Probe(fitted(best[1], everyone), best[1], best[2])


def _without_still(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """The states with features that hardly vary made constant, which get a weight of zero."""
    spreads = states.std(axis=0, dtype=np.float64)
    return np.where(spreads < STILL * np.median(spreads), states[:1], states)


def _log_likelihood(model: Any, states: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """Mean log probability of the rows' labels, no row below that of 1e-3; so much has a class the model never met.

    Of numbers, which have no probability here, the negative mean squared error.
    """
    if not hasattr(model[-1], "classes_"):
        return -float(np.square(model.predict(states) - labels).mean())
    places = {label: place for place, label in enumerate(model.classes_)}
    probabilities = model.predict_proba(states)
    own = [row[places[label]] if label in places else 0.0 for row, label in zip(probabilities, labels, strict=True)]
    return float(np.log(np.maximum(own, 1e-3)).mean())


def _estimator(task: Task, strength: float, classes: int, balanced: bool, exact: bool) -> Any:
    """A regression to be fitted to rows of so many classes; of one, which scikit-learn refuses, that class for all."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if task.regression:
        return make_pipeline(StandardScaler(), Ridge(alpha=100.0 / strength))
    if classes < 2:
        return make_pipeline(StandardScaler(), DummyClassifier())
    weighing = "balanced" if balanced else None
    solver = "newton-cg" if exact else "lbfgs"  # which stops where the loss no longer falls, the weights still moving
    tolerance = 1e-9 if exact else 1e-4
    logistic = LogisticRegression(
        C=strength / 100.0, max_iter=2000, solver=solver, tol=tolerance, class_weight=weighing
    )
    return make_pipeline(StandardScaler(), logistic)


def _fit(estimator: Any, states: NDArray[np.float32], labels: NDArray[Any], weights: NDArray[np.float64]) -> Any:
    """The estimator fitted to features that are scaled to spreads of `weights`."""
    scaler, model = estimator
    scaler.fit(states)
    scaler.scale_ = scaler.scale_ / weights
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # with few rows of many classes as it must be
        model.fit(scaler.transform(states), labels)
    return estimator


def majority(task: Task) -> float:
    """The commonest class of the training rows (the lowest on a tie), or the mean of the numbers."""
    gold = [float(example.label) for example in task.train if example.label is not None]
    if task.regression:
        return float(np.mean(gold))
    return commonest(gold)


def commonest(labels: Iterable[float]) -> float:
    """The label that comes most often, the lowest on a tie."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def linear_layer(estimator: Any, outputs: int) -> Layer:
    """Weight (outputs, hidden) and bias (outputs,) of a fitted regression, logistic or ridge, its scaling folded in."""
    scaler, model = estimator[0], estimator[-1]
    if len(getattr(model, "classes_", ())) == 1:
        weight, bias = np.zeros((outputs, len(scaler.mean_))), np.full(outputs, UNMET)
        bias[int(model.classes_[0])] = 0.0
        return weight, bias
    coefficients, intercept = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if not hasattr(model, "classes_"):
        weight = coefficients / scaler.scale_
        return weight, intercept - weight @ scaler.mean_
    weight = np.zeros((outputs, coefficients.shape[1]))
    bias = np.full(outputs, UNMET)
    if len(model.classes_) == 2:
        weight[int(model.classes_[0])], bias[int(model.classes_[0])] = -coefficients[0] / 2, -intercept[0] / 2
        weight[int(model.classes_[1])], bias[int(model.classes_[1])] = coefficients[0] / 2, intercept[0] / 2
    else:
        for place, number in enumerate(model.classes_):
            weight[int(number)], bias[int(number)] = coefficients[place], intercept[place]
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def penalty(estimator: Any, rows: int) -> NDArray[np.float64]:
    """The L2 penalty of a fitted regression, in the terms of its `linear_layer`: factors (hidden,) by which weights
    are multiplied to give its gradient, beside that of the mean loss over so many rows (cross-entropy, or squared
    error)."""
    scaler, model = estimator[0], estimator[-1]
    if len(getattr(model, "classes_", ())) == 1:
        strength = 0.0
    elif not hasattr(model, "classes_"):
        strength = 2 * model.alpha
    else:  # of two classes the layer has one weight in two halves, each with its own penalty
        strength = (2 if len(model.classes_) == 2 else 1) / model.C
    return strength * np.square(scaler.scale_) / rows
