"""What a job in another process tells its listeners, sent as tuples and told again to those who listen here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .progress import BankListener, Listener

Send = Callable[..., None]
"""Takes the parts of an event, which must travel between processes."""
BANK = ""
"""In an event, in place of a run's name: it concerns them all."""


class RelayedBank(BankListener):
    """Sends (name of the run, method, its arguments) of whatever it is told."""

    def __init__(self, send: Send) -> None:
        self.send = send

    def begin(self, steps: Mapping[str, int], done: Sequence[str]) -> None:
        """Send it."""
        self.send(BANK, "begin", dict(steps), list(done))

    def of(self, name: str) -> Listener:
        """A listener that sends what one run tells."""
        return RelayedRun(self.send, name)

    def ended(self, name: str, scores: Mapping[str, float] | None, error: Exception | None) -> None:
        """Send it."""
        self.send(BANK, "ended", name, None if scores is None else dict(scores), error)

    def note(self, text: str) -> None:
        """Send it."""
        self.send(BANK, "note", text)


class RelayedRun(Listener):
    """The same of one run."""

    def __init__(self, send: Send, name: str) -> None:
        self.send, self.name = send, name

    def stage(self, name: str, steps: int) -> None:
        self.send(self.name, "stage", name, steps)

    def resumed(self, steps: int) -> None:
        self.send(self.name, "resumed", steps)

    def step(self, loss: float | None, examples: int) -> None:
        self.send(self.name, "step", loss, examples)

    def epoch(self, row: dict[str, Any]) -> None:
        self.send(self.name, "epoch", dict(row))

    def note(self, text: str) -> None:
        self.send(self.name, "note", text)


class Retelling:
    """Tells a bank's listener what was relayed; every run keeps its listener, a note is told once."""

    def __init__(self, listener: BankListener) -> None:
        self.listener = listener
        self._runs: dict[str, Listener] = {}
        self._noted: set[str] = set()

    def tell(self, name: str, method: str, *args: Any) -> None:
        """Pass an event on."""
        if method == "note":
            if args[0] in self._noted:
                return
            self._noted.add(args[0])
        listener: Listener = self.listener
        if name != BANK:
            if name not in self._runs:
                self._runs[name] = self.listener.of(name)
            listener = self._runs[name]
        getattr(listener, method)(*args)

    def forget(self, name: str) -> None:
        """A run begins anew: with a listener of its own."""
        self._runs.pop(name, None)
