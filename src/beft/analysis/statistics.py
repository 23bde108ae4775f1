"""Statistics of results: spread over seeds, intervals over examples and seeds, tests and ranks across tasks.

scipy's where it has them. Across tasks the advice of Demšar (2006, "Statistical Comparisons of Classifiers over
Multiple Data Sets", JMLR 7) is followed: Wilcoxon and sign tests for two methods, Friedman and Nemenyi for several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation of the sample (n - 1; NaN for a single value) and how many values there are."""

    mean: float
    sd: float
    count: int


@dataclass(frozen=True)
class Interval:
    """A difference of means with the bounds of its bootstrap interval."""

    difference: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Test:
    """A test's statistic, its two-sided p-value, and the pairs it rests on (ties left out where the test does so)."""

    statistic: float
    p: float
    pairs: int

    __test__ = False  # the name is no invitation to pytest


@dataclass(frozen=True)
class Ranks:
    """Average ranks of methods over tasks (1 is best), Friedman's test, and Nemenyi's critical difference.

    Two methods whose average ranks differ by less than `critical_difference` are not told apart at level `alpha`.
    """

    average: dict[str, float]
    tasks: int
    friedman: Test
    critical_difference: float
    alpha: float


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of values, such as one score a seed.

    Raises:
        DataError: no values.
    """
    if not len(values):
        raise DataError("summary", expected="at least one value", found="none")
    array = np.asarray(values, dtype=float)
    return Summary(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan, len(array))


def paired_bootstrap(
    first: ArrayLike, second: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile interval of mean(first) - mean(second), of values that come in pairs.

    Args:
        first, second: shape (examples,), or (seeds, examples) where each seed was judged on the same examples. With two
            axes both are resampled, seeds and examples each with replacement, so that the interval covers another draw
            of either. One seed leaves the examples' part alone, and so does one example the seeds'.

    Raises:
        DataError: different shapes, no values, or more than two axes.
    """
    a, b = _pair(first, second)
    difference = np.atleast_2d(a - b)
    seeds, examples = difference.shape
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, 4_000_000 // (examples + seeds))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        by_example = random.multinomial(examples, np.full(examples, 1 / examples), size=count)
        by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)
        means[start : start + count] = ((by_seed @ difference) * by_example).sum(1) / (seeds * examples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high), level)


def wilcoxon_test(first: ArrayLike, second: ArrayLike) -> Test:
    """Wilcoxon's signed-rank test of paired values, such as two methods' scores on the same tasks.

    Equal pairs are left out (Wilcoxon's own treatment); if all are equal, p is 1.

    Raises:
        DataError: different shapes, or no pairs.
    """
    from scipy import stats

    a, b = _pair(first, second)
    unequal = int((a != b).sum())
    if not unequal:
        return Test(0.0, 1.0, 0)
    # On a result with few pairs scipy's "auto" takes the exact distribution, and with ties the permutation one.
    result = stats.wilcoxon(a.ravel(), b.ravel(), zero_method="wilcox")
    return Test(float(result.statistic), float(result.pvalue), unequal)


def sign_test(first: ArrayLike, second: ArrayLike) -> Test:
    """The sign test of paired values: how often the first is larger; the statistic is that count. Ties are left out.

    Raises:
        DataError: different shapes, or no pairs.
    """
    from scipy import stats

    a, b = _pair(first, second)
    wins, losses = int((a > b).sum()), int((a < b).sum())
    if not wins + losses:
        return Test(0.0, 1.0, 0)
    return Test(float(wins), float(stats.binomtest(wins, wins + losses, 0.5).pvalue), wins + losses)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment of several p-values, in the order given: keeps the family's error below alpha."""
    order = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def average_ranks(scores: Mapping[str, Sequence[float]], alpha: float = 0.05) -> Ranks:
    """Rank methods on every task (higher scores are better, ties share the mean rank) and compare the average ranks.

    Args:
        scores: method to its score on each task, tasks in the same order for all.
        alpha: level of the critical difference.

    Raises:
        DataError: fewer than three methods or two tasks, or methods judged on different tasks.
    """
    from scipy import stats

    names = list(scores)
    lengths = {len(values) for values in scores.values()}
    if len(names) < 3 or len(lengths) != 1 or min(lengths) < 2:
        raise DataError(
            "average ranks",
            expected="at least three methods, each judged on the same two or more tasks",
            found=f"{len(names)} methods on {', '.join(map(str, sorted(lengths))) or 'no'} tasks",
            remedy="two methods are compared by the Wilcoxon and sign tests",
        )
    table = np.asarray([scores[name] for name in names], dtype=float).T.round(
        12
    )  # (tasks, methods); sums' last bits tie
    if np.isnan(table).any():
        raise DataError("average ranks", expected="a score for every method and task", found="NaN")
    ranks = stats.rankdata(-table, axis=1)
    tasks, methods = table.shape
    if (table == table[:, :1]).all():  # nothing differs: the statistic would be 0 / 0
        friedman = Test(0.0, 1.0, tasks)
    else:
        result = stats.friedmanchisquare(*(-table).T)
        friedman = Test(float(result.statistic), float(result.pvalue), tasks)
    average = dict(zip(names, (float(rank) for rank in ranks.mean(0)), strict=True))
    return Ranks(average, tasks, friedman, critical_difference(methods, tasks, alpha), alpha)


def critical_difference(methods: int, tasks: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks: `q_alpha sqrt(k (k + 1) / 6 N)` for k methods on N tasks."""
    from scipy import stats

    quantile = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * tasks))


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or not a.size or a.ndim > 2:
        raise DataError(
            "paired values", expected="two of the same shape, with one or two axes", found=f"{a.shape} and {b.shape}"
        )
    return a, b
