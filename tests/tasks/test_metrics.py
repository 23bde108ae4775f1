"""Metrics against scikit-learn, scipy and cases worked by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from beft.tasks.metrics import METRICS, measure

GOLD, GUESS = [0, 0, 0, 1, 1, 1, 1, 0], [0, 1, 0, 1, 1, 0, 1, 0]  # 3 true negatives, 1 false positive, 3 hits, 1 miss


def test_worked_by_hand() -> None:
    measured = measure(["accuracy", "f1", "f1_macro", "matthews"], GOLD, GUESS)
    assert measured == pytest.approx({"accuracy": 0.75, "f1": 0.75, "f1_macro": 0.75, "matthews": 0.5})


def test_against_scikit_learn_and_scipy() -> None:
    random = np.random.default_rng(0)
    gold, guess = random.integers(0, 4, 60), random.integers(0, 4, 60)
    assert METRICS["f1_macro"](gold, guess) == pytest.approx(sk.f1_score(gold, guess, average="macro"))
    assert METRICS["matthews"](gold, guess) == pytest.approx(sk.matthews_corrcoef(gold, guess))
    a, b = random.normal(size=50), random.normal(size=50)
    assert METRICS["spearman"](a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert METRICS["pearson"](a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_f1_is_of_class_one() -> None:
    assert measure(["f1"], [1, 1, 0, 0], [0, 0, 0, 0]) == {"f1": 0.0}


def test_a_constant_guess_correlates_with_nothing() -> None:
    assert measure(["spearman", "pearson", "matthews"], [0, 1, 2, 3], [1, 1, 1, 1]) == {
        "spearman": 0.0,
        "pearson": 0.0,
        "matthews": 0.0,
    }


def test_floats_of_class_numbers_count_as_classes() -> None:
    assert measure(["accuracy", "f1_macro"], [0.0, 1.0, 2.0], [0, 1, 2]) == {"accuracy": 1.0, "f1_macro": 1.0}
