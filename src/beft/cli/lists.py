"""Options that list values: numbers with commas between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import RecipeError


def numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The numbers of a list.

    Raises:
        RecipeError: something that is no number, or none at all.
    """
    try:
        found = [kind(each) for each in text.split(",") if each.strip()]
    except ValueError:
        found = []
    if not found:
        raise RecipeError(f"{option} {text}", expected="numbers with commas between", found=repr(text))
    return found


def words(text: str) -> list[str]:
    """The words of a list."""
    return [each.strip() for each in text.split(",") if each.strip()]
