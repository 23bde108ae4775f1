"""What a long job tells whoever watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Listener:
    """Receives events; does nothing with them. The command line draws a progress bar, tests count."""

    def stage(self, name: str, steps: int) -> None:
        """A stage begins: "select" or "refit" of so many steps, "frozen" or "evaluation" of so many rows."""

    def resumed(self, steps: int) -> None:
        """The run goes on after so many steps of training, counted over its phases. Comes before its stages."""

    def step(self, loss: float | None, examples: int) -> None:
        """A step over so many examples is done; without a loss where nothing is trained."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; its line of the history."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class BankListener(Listener):
    """The same of many runs side by side; notes are of them all."""

    def begin(self, steps: Mapping[str, int], done: Sequence[str]) -> None:
        """Runs are to be trained, of so many steps at most; others are done already."""

    def of(self, name: str) -> Listener:
        """Who listens to one run. Runs that begin while others train have their stages in between."""
        return Listener()

    def restarted(self, name: str) -> None:
        """A run was lost with the worker that had it, and begins again (or goes on from its checkpoint) elsewhere."""

    def ended(self, name: str, scores: Mapping[str, float] | None, error: Exception | None) -> None:
        """A run ended with these evaluation scores, or with an error."""
