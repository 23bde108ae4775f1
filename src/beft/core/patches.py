"""Instance attributes put in front of a module's own, and taken off again."""

from __future__ import annotations

from typing import Any

_NONE = object()


class Patches:
    """Sets attributes of objects for a while; `undo` leaves every object's `__dict__` as it was."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, target: Any, name: str, value: Any) -> None:
        """`target.name = value`, as an attribute of this object alone."""
        self._before.append((target, name, target.__dict__.get(name, _NONE)))
        target.__dict__[name] = value

    def undo(self) -> None:
        """Put back what was there, the last first. A second call does nothing."""
        while self._before:
            target, name, value = self._before.pop()
            if value is _NONE:
                target.__dict__.pop(name, None)
            else:
                target.__dict__[name] = value
