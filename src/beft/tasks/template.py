"""Templates: text with `{field}`s. A field's name may hold anything but braces; braces of the text are doubled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..errors import DataError

_PIECES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


@dataclass(frozen=True)
class Template:
    """A text with fields to fill in.

    `parts` are (is it a field, its name or the literal text), in order.
    """

    text: str
    parts: tuple[tuple[bool, str], ...]

    @classmethod
    def parse(cls, text: str, where: str = "template") -> Template:
        """Cut a template into its parts.

        Raises:
            DataError: a brace without its partner, or a field without a name.
        """
        parts: list[tuple[bool, str]] = []
        for match in _PIECES.finditer(text):
            piece, name = match.group(0), match.group(1)
            if piece in ("{", "}"):
                raise DataError(
                    f"{where}, character {match.start() + 1}",
                    expected="a field as {column}",
                    found=f"a single {piece!r}",
                    remedy="double it to have the brace itself",
                )
            if name is not None and not name.strip():
                raise DataError(f"{where}, character {match.start() + 1}", expected="a field's name", found=repr(piece))
            parts.append(
                (name is not None, name.strip() if name is not None else {"{{": "{", "}}": "}"}.get(piece, piece))
            )
        return cls(text, tuple(parts))

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The fields' names, each once, in order."""
        return tuple(dict.fromkeys(part for is_field, part in self.parts if is_field))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every field's value, which is put in as it is.

        Raises:
            KeyError: no value for a field.
        """
        return "".join(values[part] if is_field else part for is_field, part in self.parts)
