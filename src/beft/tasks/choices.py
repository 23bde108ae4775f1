"""Candidates of the user's own questions: the same for all rows, or from a column; and which of them a label names."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, RecipeError, nearest
from .own import NO_LABEL, is_missing, label_word

Candidates = Sequence[str] | Mapping[str, str] | str
"""A list of candidates; a candidate for each label; or one of them as text, see `parse_choices`; or a column's name."""


@dataclass(frozen=True)
class Choices:
    """What a question's answer is chosen from.

    Either `candidates` are the same for all rows, and `names` are what labels call them, or `column` holds them.
    """

    candidates: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    column: str = ""

    def of(self, where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The candidates of one row.

        Raises:
            DataError: fewer than two, an empty one, or two alike.
        """
        return check_candidates(where, listed(where, row[self.column], bars=True)) if self.column else self.candidates


def parse_choices(given: Candidates, columns: Collection[str] = ()) -> Choices:
    r"""Candidates as a list, as a mapping of labels to candidates, or as one of these texts.

    `negative= bad,positive= good` is a candidate for each label, ` bad| good` a list, and the name of a column says
    that each row has its own list there (a JSON list, or separated by `|`). `\,`, `\=` and `\|` stand for the
    characters themselves. Spaces count, but not those around labels.

    Raises:
        DataError: neither of these, or candidates as `check_candidates` refuses them.
        RecipeError: no candidates at all, or a label twice.
    """
    if isinstance(given, str):
        if given in columns:
            return Choices(column=given)
        pairs = [_cut(part, "=", 1) for part in _cut(given, ",")]
        if all(len(pair) == 2 for pair in pairs):
            labels = [pair[0].strip() for pair in pairs]
            twice = [label for label in labels if labels.count(label) > 1]
            if twice:
                raise RecipeError("candidates", expected="every label once", found=f"{twice[0]!r} twice")
            given = {label: _plain(pair[1]) for label, pair in zip(labels, pairs, strict=True)}
        elif len(parts := _cut(given, "|")) > 1:
            given = [_plain(part) for part in parts]
        else:
            raise DataError(
                f"candidates {given!r}",
                expected="a column, ' bad| good', or 'negative= bad,positive= good'",
                found="columns " + ", ".join(columns) if columns else "none of them",
                remedy=nearest(given, columns) if columns else "check the spelling",
            )
    if isinstance(given, Mapping):
        return Choices(check_candidates("candidates", given.values()), tuple(str(label) for label in given))
    candidates = check_candidates("candidates", given)
    return Choices(candidates, tuple(candidate.strip() for candidate in candidates))


def check_candidates(where: str, candidates: Iterable[Any]) -> tuple[str, ...]:
    """The candidates as a tuple of texts.

    Raises:
        DataError: fewer than two, one that is no text or empty, or two that differ in nothing but spaces around them.
    """
    found = tuple(candidates)
    for number, candidate in enumerate(found, 1):
        if not isinstance(candidate, str) or not candidate.strip():
            what = "an empty one" if isinstance(candidate, str) else repr(candidate)
            raise DataError(f"{where}, candidate {number}", expected="a text", found=what)
    bare = [candidate.strip() for candidate in found]
    twice = [candidate for candidate in bare if bare.count(candidate) > 1]
    if twice:
        raise DataError(where, expected="candidates that differ", found=f"{twice[0]!r} twice")
    if len(found) < 2:
        raise DataError(where, expected="at least two candidates", found=str(len(found)))
    return found


def find_gold(where: str, label: Any, names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the candidates that a label names: by name, or by number from 0 if no name is a number.

    A list names several, all of them right.

    Raises:
        DataError: no label, or one that names no candidate.
    """
    if isinstance(label, (list, tuple)):
        if not label:
            raise DataError(where, expected="a label", found="an empty list")
        return tuple(dict.fromkeys(number for each in label for number in find_gold(where, each, names)))
    word = "" if is_missing(label) else label_word(label)
    if word in names:
        return (names.index(word),)
    if word in NO_LABEL:
        raise DataError(where, expected="a label", found=f"{label!r}", remedy="fill it in or take the row out")
    if not any(map(_is_number, names)) and _is_number(word) and 0 <= int(word) < len(names):
        return (int(word),)
    shown = ", ".join(map(repr, names[:6])) + (" ..." if len(names) > 6 else "")
    raise DataError(
        where, expected=f"a label among the candidates ({shown})", found=repr(word), remedy=_hint(word, names)
    )


def listed(where: str, value: Any, *, bars: bool) -> list[Any]:
    """A cell that holds a list: a list, its JSON text, or (`bars`) text separated by `|`; else the cell alone.

    Raises:
        DataError: nothing there.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    if is_missing(value) or not str(value).strip():
        raise DataError(where, expected="a text or a list of texts", found="an empty cell")
    text = str(value)
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, list):
            return found
    return [_plain(part) for part in _cut(text, "|")] if bars else [text]


def _hint(word: str, names: Sequence[str]) -> str:
    close = nearest(word, names)
    return close if close.endswith("?") else "check the label column, or give a candidate for each label"


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d+", word) is not None


def _cut(text: str, mark: str, most: int = 0) -> list[str]:
    return re.split(rf"(?<!\\){re.escape(mark)}", text, maxsplit=most)


def _plain(text: str) -> str:
    return re.sub(r"\\([,=|])", r"\1", text)
