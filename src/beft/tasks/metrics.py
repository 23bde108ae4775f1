"""Metrics by name, of class numbers and of texts. Higher is better in all of them."""

from __future__ import annotations

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .question import Question

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

        if len(gold) < 2:  # as little as of a constant: scipy refuses it
            return 0.0
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


CLASS_TABLE = ("label", "precision", "recall", "f1", "rows")
"""Columns of `class_table`."""


def class_table(labels: Sequence[str], gold: Sequence[int], predicted: Sequence[int]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and rows of each class, rounded to four places."""
    from sklearn.metrics import precision_recall_fscore_support

    table = precision_recall_fscore_support(gold, predicted, labels=list(range(len(labels))), zero_division=0)
    return [
        {"label": label, "precision": round(p, 4), "recall": round(r, 4), "f1": round(f, 4), "rows": int(n)}
        for label, p, r, f, n in zip(labels, *table, strict=True)
    ]


# ---- written answers -------------------------------------------------------------------------------------------------


def normalise_answer(text: str) -> str:
    """A text as SQuAD compares it: lower case, without punctuation and English articles, single spaces."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if the text is one of the accepted answers after `normalise_answer`, else 0."""
    return float(normalise_answer(text) in {normalise_answer(answer) for answer in answers})


def token_f1(text: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 of the words in common with an answer, the best over the accepted answers; in [0, 1]."""
    return max((_word_overlap(normalise_answer(text).split(), normalise_answer(a).split()) for a in answers), default=0)


def _word_overlap(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


ANSWER_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"token_f1": token_f1, "em": exact_match}
"""Name to function of (text, accepted answers), to be averaged over questions."""


def measure_answers(names: Sequence[str], questions: Sequence[Question], texts: Sequence[str]) -> dict[str, float]:
    """Means of the named `ANSWER_METRICS` of one text a question, in the order of the names.

    A question with candidates is measured by the names of its right ones (ReCoRD's entities), without names by their
    texts.

    Raises:
        DataError: no questions, or one whose right answer is unknown.
    """
    pairs = [(text, _accepted(question)) for text, question in zip(texts, _known(questions), strict=True)]
    return {name: float(np.mean([ANSWER_METRICS[name](*pair) for pair in pairs])) for name in names}


def measure_choices(names: Sequence[str], questions: Sequence[Question], chosen: Sequence[int]) -> dict[str, float]:
    """The named metrics of one chosen candidate a question, in the order of the names.

    Where several candidates are right, choosing any of them is. `ANSWER_METRICS` are of the chosen candidate's name,
    or of its text if it has none.

    Raises:
        DataError: no questions, or one whose right candidate is unknown.
    """
    gold = [
        number if number in question.gold else question.gold[0]
        for question, number in zip(_known(questions), chosen, strict=True)
    ]
    texts = [(q.names or q.candidates)[number] for q, number in zip(questions, chosen, strict=True)]
    of_texts = measure_answers([name for name in names if name in ANSWER_METRICS], questions, texts)
    of_numbers = measure([name for name in names if name not in ANSWER_METRICS], gold, chosen)
    return {name: {**of_texts, **of_numbers}[name] for name in names}


def _accepted(question: Question) -> Sequence[str]:
    texts = question.names or question.candidates
    return [texts[number] for number in question.gold] if question.candidates else question.answers


def _known(questions: Sequence[Question]) -> Sequence[Question]:
    if not questions:
        raise DataError("evaluation", expected="questions", found="none")
    for question in questions:
        if not (question.gold if question.candidates else question.answers):
            raise DataError(f"question {question.id}", expected="a right answer to compare with", found="none")
    return questions


def standard_error(name: str, value: float, rows: int) -> float:
    """Rough standard error of a metric measured on so many rows: binomial for shares, (1 - r^2) / sqrt(n) else.

    For a mean of values in [0, 1], as `token_f1`, the binomial's is an upper bound.
    """
    if name in ("accuracy", "f1", "f1_macro", "token_f1", "em"):
        return math.sqrt(max(0.0, value * (1 - value)) / rows)
    return (1 - value * value) / math.sqrt(rows)


def measure(names: Sequence[str], gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """The named metrics of predictions against gold, in the order of the names."""
    a, b = np.asarray(gold), np.asarray(predicted)
    return {name: METRICS[name](a, b) for name in names}
