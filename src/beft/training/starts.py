"""Where a linear head begins: at zero, at the means of the classes' frozen states, or at the regression on them; and
what holds it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.adapter import Head, LinearHead
from ..tasks.task import Task
from .baselines import Layer, Probe, linear_layer, penalty

MEANS_WEIGHT = 40.0
"""A logit is so many times the cosine between a row's state and a class's mean: sharp enough for rows of few classes'
worth of labels to keep the means, and still learnt from (docs/results/few.md)."""
UNSEEN = -3.0
"""Bias of a class without training rows."""


def means_layer(states: NDArray[np.float32], gold: NDArray[np.int64], outputs: int) -> Layer:
    """The layer whose logit of a class is `MEANS_WEIGHT` times the cosine with the mean of its rows' directions.

    `states` are (rows, hidden), `gold` their class numbers (rows,).
    What all classes share is subtracted, and the division by a row's own norm is one by their mean norm: neither
    changes which class comes first.
    """
    norms = np.linalg.norm(states.astype(np.float64), axis=1, keepdims=True)
    directions = states / np.maximum(norms, 1e-12)
    classes, places = np.unique(gold, return_inverse=True)
    means = np.stack([directions[places == place].mean(axis=0) for place in range(len(classes))])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    weight, bias = np.zeros((outputs, states.shape[1])), np.full(outputs, UNSEEN)
    weight[classes] = MEANS_WEIGHT * (means - means.mean(axis=0)) / norms.mean()
    bias[classes] = 0.0
    return weight, bias


def gold_of(task: Task) -> list[float]:
    """The training rows' class numbers, or numbers."""
    return [float(example.label or 0) for example in task.train]


def put(head: LinearHead, layer: Layer) -> None:
    """Give a head the values of a layer."""
    with torch.no_grad():
        for name, value in leaves(layer).items():
            getattr(head, name.removeprefix("head.")).copy_(value)


def leaves(layer: Layer) -> dict[str, Tensor]:
    """A layer's values by the names of a run's leaves."""
    return {
        f"head.{name}": torch.from_numpy(value).float() for name, value in zip(("weight", "bias"), layer, strict=True)
    }


def use_units_of(head: LinearHead, numbers: Sequence[float]) -> None:
    """Put a head that predicts a number to work in units of the training rows' own."""
    gold = torch.tensor(numbers)
    head.offset.fill_(float(gold.mean()))
    head.spread.fill_((float(gold.std()) if len(gold) > 1 else 0.0) or 1.0)


def regression_layer(head: LinearHead, estimator: Any) -> Layer:
    """The layer of a fitted regression, in the head's units."""
    weight, bias = linear_layer(estimator, head.outputs)
    spread, offset = float(head.spread), float(head.offset)
    return weight / spread, (bias - offset) / spread


def make_regression(head: Head | None, probe: Probe) -> None:
    """Make a linear head the regression on frozen states: nothing is left to train."""
    assert isinstance(head, LinearHead)
    put(head, regression_layer(head, probe.estimator))


def regression_penalty(head: LinearHead, estimator: Any, gold: Sequence[float]) -> dict[str, Tensor]:
    """The L2 penalty of a regression fitted to rows of these labels, for a phase of a run on the same rows.

    Factors (1, hidden) by the name of the leaf whose values, so multiplied, are the penalty's gradient. A head that is
    `regression_layer` has then no gradient at all, before the vectors move.
    """
    factors = penalty(estimator, len(gold))
    if head.labels is None:  # squared errors are in units of these rows' own spread
        factors *= (float(head.spread) / (float(np.std(gold)) or 1.0)) ** 2
    return {"head.weight": torch.from_numpy(factors).float()[None]}
