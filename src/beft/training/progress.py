"""What a long job tells whoever watches."""

from __future__ import annotations

from typing import Any


class Listener:
    """Receives events; does nothing with them. The command line draws a progress bar, tests count."""

    def stage(self, name: str, steps: int) -> None:
        """A stage of so many steps begins."""

    def step(self, loss: float | None, examples: int) -> None:
        """A step over so many examples is done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; its line of the history."""

    def note(self, text: str) -> None:
        """Something the user should know."""
