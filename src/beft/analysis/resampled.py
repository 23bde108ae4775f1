"""Intervals of metrics that are no means over examples: F1, Matthews' correlation, rank and linear correlations.

An example that is drawn twice weighs twice, so that all draws of a bootstrap are measured at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .statistics import Floats, Interval

Answers = tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]
"""What is right and what was answered, each (seeds, examples)."""


def paired_metric_bootstrap(
    name: str, first: Answers, second: Answers, *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Percentile interval of the difference of a metric (one of `RESAMPLED`), the mean over seeds.

    Seeds and examples are drawn as in `paired_bootstrap`, the same for both.
    """
    measured = RESAMPLED[name]
    seeds, examples = np.shape(first[0])
    random = np.random.default_rng(seed)

    def difference(weights: Floats) -> Floats:  # (draws, seeds)
        ours, theirs = (
            [measured(np.asarray(gold), np.asarray(predicted), weights) for gold, predicted in zip(*side, strict=True)]
            for side in (first, second)
        )
        return np.stack(ours, 1) - np.stack(theirs, 1)

    found = []
    chunk = max(1, 1_000_000 // examples)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        by_example = random.multinomial(examples, np.full(examples, 1 / examples), size=count).astype(float)
        by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        found.append((difference(by_example) * by_seed).sum(1))
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference(np.ones((1, examples))).mean()), float(low), float(high), level)


# ---- (gold, predicted, weights of shape (draws, examples)) to (draws,) -----------------------------------------------


def _counts(gold: Floats, predicted: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """By draw and class: right answers, examples of the class, answers with the class."""
    classes = np.arange(2 + max(gold.max(), predicted.max()))
    of_gold, of_answers = (gold[:, None] == classes), (predicted[:, None] == classes)
    return weights @ (of_gold & of_answers), weights @ of_gold, weights @ of_answers


def _f1s(gold: Floats, predicted: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """F1 by draw and class, and how many classes a draw has."""
    right, here, said = _counts(gold, predicted, weights)
    return 2 * right / np.maximum(here + said, 1), np.sign(here + said).sum(1)


def _f1(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    return _f1s(gold, predicted, weights)[0][:, 1]


def _f1_macro(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    scores, classes = _f1s(gold, predicted, weights)
    return np.asarray(scores.sum(1) / classes)


def _matthews(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    right, here, said = _counts(gold, predicted, weights)
    total = weights.sum(1)
    top = right.sum(1) * total - (here * said).sum(1)
    return _ratio(top, (total**2 - (here**2).sum(1)) * (total**2 - (said**2).sum(1)))


def _pearson(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    return _correlation(gold - gold[0], predicted - predicted[0], weights)  # of equal values nothing is left


def _spearman(gold: Floats, predicted: Floats, weights: Floats) -> Floats:
    return _correlation(_ranks(gold, weights), _ranks(predicted, weights), weights)


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Ranks of the examples in each draw less the middle one, equal values sharing theirs."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    together = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = together.cumsum(1) - together / 2 - weights.sum(1, keepdims=True) / 2
    return np.asarray(ranks[:, np.unique(values, return_inverse=True)[1]])


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    total = weights.sum(1)
    mean_x, mean_y = (weights * x).sum(1) / total, (weights * y).sum(1) / total
    top = (weights * x * y).sum(1) / total - mean_x * mean_y
    spread_x, spread_y = (weights * x**2).sum(1) / total - mean_x**2, (weights * y**2).sum(1) / total - mean_y**2
    return _ratio(top, spread_x * spread_y)


def _ratio(top: Floats, square: Floats) -> Floats:
    """top / sqrt(square), 0 where that is nothing."""
    return np.where(square > 0, top / np.sqrt(np.where(square > 0, square, 1)), 0.0)


RESAMPLED: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "spearman": _spearman,
    "pearson": _pearson,
}
"""Names of `beft.tasks.metrics` to functions of (gold, predicted, weights), which give the same of rows repeated."""
