"""Importance scores from outside: functions of a bias before and after tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import RecipeError
from ..own_file import load_object
from .importance import SCORES

RESERVED = ("effect", "others", "term", "layer", "module", "attention", "stack", "width")


@dataclass(frozen=True)
class Score:
    """An importance score: its name, what tables call it, and the function that computes it at a site.

    The function is given a bias before and after tuning, fp32 (width,) each; the model's own bias counts, and is zero
    where the model has none. It returns a number, larger for what tuning needed more, or None where it is undefined.
    """

    name: str
    title: str
    function: Callable[[Tensor, Tensor], float | None]


_REGISTERED: dict[str, Score] = {}


def register_score(score: Score) -> Score:
    """Make a score known: every later measurement computes it, tables and heatmaps show it.

    Raises:
        RecipeError: a name that is taken or is none.
    """
    if not score.name.isidentifier() or score.name in (*SCORES, *RESERVED):
        raise RecipeError(f"register_score({score.name!r})", expected="a new name", found=repr(score.name))
    _REGISTERED[score.name] = score
    SCORES[score.name] = score.title
    return score


def registered_scores() -> list[Score]:
    """The scores from outside."""
    return list(_REGISTERED.values())


def use_score(reference: str) -> Score:
    """The score that "my_file.py:name" points to, registered.

    Raises:
        ExtensionError: no such file or score.
        RecipeError: a name that is taken.
    """
    score: Score = load_object(reference, lambda each: isinstance(each, Score), "a score (beft.Score)")
    return score if _REGISTERED.get(score.name) == score else register_score(score)
