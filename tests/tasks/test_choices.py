"""Candidates in every form, and the labels that name them."""

from typing import Any

import pytest

from beft.errors import DataError, RecipeError
from beft.tasks.choices import Choices, check_candidates, find_gold, listed, parse_choices

WORDS = Choices((" bad", " good"), ("negative", "positive"))


@pytest.mark.parametrize("given", ["negative= bad,positive= good", " negative= bad, positive = good"])
def test_a_candidate_for_each_label_as_text(given: str) -> None:
    assert parse_choices(given) == WORDS


def test_a_mapping_and_a_list() -> None:
    assert parse_choices({"negative": " bad", "positive": " good"}) == WORDS
    assert parse_choices({0: " bad", 1: " good"}).names == ("0", "1")  # type: ignore[dict-item]
    assert parse_choices([" bad", " good"]) == Choices((" bad", " good"), ("bad", "good"))
    assert parse_choices(" bad| good") == Choices((" bad", " good"), ("bad", "good"))


def test_marks_are_escaped_by_a_backslash() -> None:
    assert parse_choices(r"a= x\, y\=z,b= u\|v").candidates == (" x, y=z", " u|v")
    assert parse_choices("a= x=y,b= z").candidates == (" x=y", " z")
    assert parse_choices(r"a\|b|c").candidates == ("a|b", "c")


def test_a_column_comes_before_every_other_reading() -> None:
    assert parse_choices("a|b", ["a|b", "text"]) == Choices(column="a|b")
    row = {"options": " a| b", "text": "x"}
    assert parse_choices("options", row).of("here", row) == (" a", " b")


BAD: dict[str, tuple[Any, str]] = {
    "no column": ("option", r"candidates 'option': expected a column.*found columns text, options.*mean 'options'"),
    "a label twice": ("a= x,a= y", "expected every label once, found 'a' twice"),
    "alike": ("a= x,b= x", "candidates: expected candidates that differ, found 'x' twice"),
    "alike but for spaces": ([" x", "x"], "expected candidates that differ, found 'x' twice"),
    "empty": ("a= x,b=", "candidates, candidate 2: expected a text, found an empty one"),
    "blank": (["x", " \n"], "candidate 2: expected a text, found an empty one"),
    "no text": (["x", 3], "candidate 2: expected a text, found 3"),
    "one": (["x"], "expected at least two candidates, found 1"),
    "none": ([], "expected at least two candidates, found 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_candidates_that_cannot_be_told_apart_are_refused(case: str) -> None:
    given, message = BAD[case]
    with pytest.raises((DataError, RecipeError), match=message):
        parse_choices(given, ["text", "options"])


def test_labels_name_candidates_by_name_or_number() -> None:
    names = ("bad", "good")
    assert find_gold("here", "good", names) == (1,)
    assert find_gold("here", " good ", names) == (1,)
    assert find_gold("here", 1, names) == find_gold("here", "1", names) == find_gold("here", 1.0, names) == (1,)
    assert find_gold("here", ["good", "bad", "good"], names) == (1, 0)
    assert find_gold("here", True, ("False", "True")) == (1,)
    assert find_gold("here", "none", ("some", "none")) == (1,)


def test_where_candidates_are_numbers_labels_are_never_their_places() -> None:
    assert find_gold("here", 1, ("1", "2")) == (0,)
    with pytest.raises(DataError, match=r"expected a label among the candidates \('1', '2'\), found '0'"):
        find_gold("here", 0, ("1", "2"))


@pytest.mark.parametrize("label", [None, "", " ", float("nan"), "nan"])
def test_a_missing_label_is_no_label(label: Any) -> None:
    with pytest.raises(DataError, match="here: expected a label, found"):
        find_gold("here", label, ("bad", "good"))


@pytest.mark.parametrize("label", ["goood", 2, -1, ["good", "better"]])
def test_a_label_among_no_candidates_is_refused(label: Any) -> None:
    with pytest.raises(DataError, match=r"here: expected a label among the candidates \('bad', 'good'\)"):
        find_gold("here", label, ("bad", "good"))


def test_cells_that_hold_lists() -> None:
    assert listed("here", ["a", "b"], bars=True) == ["a", "b"]
    assert listed("here", '["a|b", "c"]', bars=True) == ["a|b", "c"]
    assert listed("here", "a|b", bars=True) == ["a", "b"]
    assert listed("here", "a|b", bars=False) == ["a|b"]
    assert listed("here", "[sic] a", bars=False) == ["[sic] a"]
    for nothing in (None, "", " "):
        with pytest.raises(DataError, match="here: expected a text or a list of texts, found an empty cell"):
            listed("here", nothing, bars=True)


def test_checked_candidates_come_back_unchanged() -> None:
    assert check_candidates("here", iter([" a", "b\n"])) == (" a", "b\n")
