"""Metrics by name, from scikit-learn and scipy. Higher is better in all of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def _accuracy(gold: Array, predicted: Array) -> float:
    return float((gold == predicted).mean())


def _f1(gold: Array, predicted: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, pos_label=1, zero_division=0))


def _f1_macro(gold: Array, predicted: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0))


def _matthews(gold: Array, predicted: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(gold, predicted))


def _correlation(name: str) -> Callable[[Array, Array], float]:
    def measure(gold: Array, predicted: Array) -> float:
        from scipy import stats

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(getattr(stats, name)(gold, predicted)[0])
        return 0.0 if np.isnan(value) else value  # a constant prediction correlates with nothing

    return measure


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "spearman": _correlation("spearmanr"),
    "pearson": _correlation("pearsonr"),
}
"""Name to function of (gold, predicted): class numbers, or floats for the correlations. `f1` is of class 1."""


def standard_error(name: str, value: float, rows: int) -> float:
    """Rough standard error of a metric measured on so many rows: binomial for shares, (1 - r^2) / sqrt(n) else."""
    if name in ("accuracy", "f1", "f1_macro"):
        return math.sqrt(max(0.0, value * (1 - value)) / rows)
    return (1 - value * value) / math.sqrt(rows)


def measure(names: Sequence[str], gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """The named metrics of predictions against gold, in the order of the names."""
    a, b = np.asarray(gold), np.asarray(predicted)
    return {name: METRICS[name](a, b) for name in names}
