"""Metrics of many draws at once are those of the rows repeated; their intervals agree with scipy's."""

import numpy as np
import pytest
from scipy import stats

from beft.analysis.resampled import RESAMPLED, paired_metric_bootstrap
from beft.tasks.metrics import METRICS

RANDOM = np.random.default_rng(5)
CLASSES = [RANDOM.integers(0, 3, 40) for _ in range(3)]
VALUES = [np.round(RANDOM.normal(0, 1, 40), 1) for _ in range(3)]  # some are equal


def rows(name: str) -> list[np.ndarray]:
    """Truths and two answers that go with them."""
    if name in ("spearman", "pearson"):
        return [VALUES[0], VALUES[0] + VALUES[1], VALUES[0] + 2 * VALUES[2]]
    kept = [np.where(np.arange(40) % 3 > share, CLASSES[0], each) for share, each in ((-1, CLASSES[0]), (0, CLASSES[1]),
                                                                                     (1, CLASSES[2]))]  # fmt: skip
    return [each % 2 for each in kept] if name == "f1" else kept


@pytest.mark.parametrize("name", RESAMPLED)
def test_an_example_that_is_drawn_twice_weighs_twice(name: str) -> None:
    gold, predicted, _ = rows(name)
    weights = RANDOM.multinomial(40, np.full(40, 1 / 40), size=25).astype(float)
    wanted = [METRICS[name](*(np.repeat(each, draw.astype(int)) for each in (gold, predicted))) for draw in weights]
    assert RESAMPLED[name](gold, predicted, weights) == pytest.approx(wanted)


@pytest.mark.parametrize("name", RESAMPLED)
def test_answers_that_are_all_alike_are_worth_what_the_metric_says(name: str) -> None:
    gold, alike = rows(name)[0], np.full(40, 0.1 if name in ("spearman", "pearson") else 0)
    assert RESAMPLED[name](gold, alike, np.ones((1, 40))) == pytest.approx([METRICS[name](gold, alike)])


@pytest.mark.parametrize("name", ["matthews", "spearman"])
def test_one_seed_gives_scipys_percentile_interval(name: str) -> None:
    gold, a, b = rows(name)
    found = paired_metric_bootstrap(name, ([gold], [a]), ([gold], [b]))
    theirs = stats.bootstrap(
        (gold, a, b), lambda g, x, y: METRICS[name](g, x) - METRICS[name](g, y), paired=True, method="percentile",
        vectorized=False, n_resamples=1500, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert found.difference == pytest.approx(METRICS[name](gold, a) - METRICS[name](gold, b))
    assert found.low == pytest.approx(theirs.low, abs=0.04)
    assert found.high == pytest.approx(theirs.high, abs=0.04)


def test_the_interval_covers_seeds_as_well() -> None:
    gold, a, b = rows("matthews")
    same = paired_metric_bootstrap("matthews", ([gold, gold], [a, b]), ([gold, gold], [a, b]))
    assert (same.low, same.difference, same.high) == (0.0, 0.0, 0.0)
    mixed = paired_metric_bootstrap("matthews", ([gold, gold], [a, b]), ([gold, gold], [b, a]))
    assert mixed.difference == pytest.approx(0.0)
    assert mixed.low < -0.3 < 0.3 < mixed.high, "one seed drawn twice speaks for one side"
