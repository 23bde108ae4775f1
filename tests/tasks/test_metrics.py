"""Metrics against scikit-learn, scipy and cases worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from beft.errors import DataError
from beft.tasks.metrics import (
    METRICS,
    exact_match,
    measure,
    measure_answers,
    measure_choices,
    standard_error,
    token_f1,
)
from beft.tasks.question import Question

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


@pytest.mark.parametrize("rows", [[], [2.5]])
def test_one_row_correlates_with_nothing(rows: list[float]) -> None:
    assert measure(["spearman", "pearson"], rows, rows) == {"spearman": 0.0, "pearson": 0.0}


def test_floats_of_class_numbers_count_as_classes() -> None:
    assert measure(["accuracy", "f1_macro"], [0.0, 1.0, 2.0], [0, 1, 2]) == {"accuracy": 1.0, "f1_macro": 1.0}


# ---- written answers and choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answers", "em", "f1"),
    [
        ("The Denver Broncos!", ["Denver Broncos", "x"], 1, 1),
        ("in 1999", ["1999"], 0, 2 / 3),
        ("a b c", ["b c d e"], 0, 4 / 6),  # without the article: b c in b c d e
        ("b b", ["b"], 0, 2 / 3),
        ("Theatre", ["the theatre", "atre"], 1, 1),
        ("x", ["y", "x z"], 0, 2 / 3),
        ("", ["x"], 0, 0),
        ("the", ["a"], 1, 1),
        ("it's", ["its"], 1, 1),
        ("x", [], 0, 0),
    ],
)
def test_words_in_common_as_squad_counts_them(text: str, answers: list[str], em: float, f1: float) -> None:
    assert exact_match(text, answers) == em
    assert token_f1(text, answers) == pytest.approx(f1)


def test_answers_are_averaged_over_questions() -> None:
    questions = [Question(0, "", answers=("a cat", "dog")), Question(1, "", answers=("big mouse",))]
    measured = measure_answers(["em", "token_f1"], questions, ["Cat.", "mouse"])
    assert list(measured) == ["em", "token_f1"]
    assert measured == pytest.approx({"em": 0.5, "token_f1": (1 + 2 / 3) / 2})


def test_choices_are_measured_as_classes() -> None:
    questions = [Question(n, "", (" no", " yes"), (gold,)) for n, gold in enumerate(GOLD)]
    names = ["f1_macro", "accuracy", "matthews"]
    assert measure_choices(names, questions, GUESS) == measure(names, GOLD, GUESS)
    assert list(measure_choices(names, questions, GUESS)) == names


def test_any_of_several_right_candidates_is_right_and_names_are_what_is_compared() -> None:
    question = Question(0, "", (" in Rome.", " in Oslo.", " in Old Rome."), (2, 0), names=("Rome", "Oslo", "Old Rome"))
    for chosen, accuracy, f1 in ((0, 1, 1), (2, 1, 1), (1, 0, 0)):
        assert measure_choices(["accuracy", "token_f1"], [question], [chosen]) == {"accuracy": accuracy, "token_f1": f1}
    only = replace(question, gold=(2,))
    assert measure_choices(["token_f1", "em"], [only], [0]) == pytest.approx({"token_f1": 2 / 3, "em": 0})


def test_without_a_truth_nothing_is_measured() -> None:
    for wrong in ([], [Question(3, "", ("a", "b"))]):
        with pytest.raises(DataError, match=r"expected questions|question 3: expected a right answer to compare with"):
            measure_choices(["accuracy"], wrong, [0] * len(wrong))
    with pytest.raises(DataError, match="question 4: expected a right answer"):
        measure_answers(["em"], [Question(4, "x")], ["x"])


def test_shares_of_questions_have_the_binomials_error() -> None:
    for name in ("accuracy", "token_f1", "em"):
        assert standard_error(name, 0.8, 100) == pytest.approx(0.04)
