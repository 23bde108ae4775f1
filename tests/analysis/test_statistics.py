"""Statistics agree with scipy and with worked examples."""

import math

import numpy as np
import pytest
from scipy import stats

from beft.analysis.statistics import (
    average_ranks,
    critical_difference,
    holm,
    paired_bootstrap,
    sign_test,
    summarise,
    wilcoxon_test,
)
from beft.errors import DataError

RANDOM = np.random.default_rng(3)
A, B = RANDOM.normal(0.3, 1, 14), RANDOM.normal(0, 1, 14)


def test_the_spread_is_the_samples() -> None:
    values = [0.7, 0.8, 0.75]
    found = summarise(values)
    assert found.mean == pytest.approx(0.75)
    assert found.sd == pytest.approx(stats.tstd(values))
    assert math.isnan(summarise([0.5]).sd)
    with pytest.raises(DataError, match="at least one value"):
        summarise([])


def test_one_seed_gives_scipys_percentile_interval() -> None:
    a, b = (RANDOM.random(400) < 0.8).astype(float), (RANDOM.random(400) < 0.7).astype(float)
    found = paired_bootstrap(a, b)
    theirs = stats.bootstrap(
        (a, b), lambda x, y: np.mean(x) - np.mean(y), paired=True, method="percentile", vectorized=False,
        n_resamples=3000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.006)
    assert found.high == pytest.approx(theirs.high, abs=0.006)


def test_the_interval_covers_seeds_as_well_as_examples() -> None:
    per_seed = np.array([[0.0], [0.4], [0.8], [1.2]])  # seeds differ, examples do not
    over_seeds = paired_bootstrap(per_seed + np.zeros((4, 200)), np.zeros((4, 200)))
    alone = paired_bootstrap(per_seed.ravel(), np.zeros(4))
    assert over_seeds.low == pytest.approx(alone.low, abs=0.03)
    assert over_seeds.high == pytest.approx(alone.high, abs=0.03)
    assert not paired_bootstrap(per_seed, np.full((4, 1), 0.6)).excludes_zero
    assert paired_bootstrap(per_seed + 1, np.zeros((4, 1))).excludes_zero
    assert paired_bootstrap(A, B, seed=1) == paired_bootstrap(A, B, seed=1)


def test_pairs_stay_together() -> None:
    shared = RANDOM.normal(0, 10, 300)
    found = paired_bootstrap(shared + 0.1, shared)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)


def test_wilcoxon_is_scipys() -> None:
    theirs = stats.wilcoxon(A, B)
    found = wilcoxon_test(A, B)
    assert (found.statistic, found.p) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))
    assert found.pairs == 14
    assert wilcoxon_test([1, 2], [1, 2]).p == 1.0


def test_the_sign_test_leaves_ties_out() -> None:
    found = sign_test([1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 0, 0, 0, 0, 0, 0, 9, 9])
    assert (found.statistic, found.pairs) == (7, 8)
    assert found.p == pytest.approx(2 * 9 / 2**8)  # (8 over 0) + (8 over 1) = 9 ways
    assert sign_test([1.0], [1.0]).p == 1.0


def test_average_ranks_and_friedman() -> None:
    scores = {"a": [0.9, 0.8, 0.7, 0.9], "b": [0.8, 0.8, 0.6, 0.7], "c": [0.1, 0.2, 0.3, 0.8]}
    found = average_ranks(scores)
    assert found.average == {"a": (1 + 1.5 + 1 + 1) / 4, "b": (2 + 1.5 + 2 + 3) / 4, "c": (3 + 3 + 3 + 2) / 4}
    theirs = stats.friedmanchisquare(*scores.values())
    assert (found.friedman.statistic, found.friedman.p) == (
        pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue),
    )  # fmt: skip
    assert average_ranks({name: [0.5, 0.5] for name in "abc"}).friedman.p == 1.0


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_nemenyis_quantiles_are_demsars(methods: int, quantile: float) -> None:
    """Table 5a of Demšar (2006), to its three decimals."""
    assert critical_difference(methods, 14) == pytest.approx(
        quantile * math.sqrt(methods * (methods + 1) / 84), abs=6e-4
    )


def test_holm_by_hand() -> None:
    assert holm({"x": 0.04, "y": 0.01, "z": 0.03}) == {"x": pytest.approx(0.06), "y": 0.03, "z": pytest.approx(0.06)}


@pytest.mark.parametrize("scores", [{"a": [1.0, 2.0], "b": [1.0, 2.0]}, {n: [1.0] for n in "abc"},
                                    {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0, 3.0]}])  # fmt: skip
def test_ranks_need_methods_and_tasks(scores: dict[str, list[float]]) -> None:
    with pytest.raises(DataError, match="at least three methods"):
        average_ranks(scores)


def test_values_must_pair() -> None:
    for first, second in (([1, 2], [1]), ([], []), (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)))):
        with pytest.raises(DataError, match="paired values"):
            paired_bootstrap(first, second)
