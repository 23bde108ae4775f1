"""The folder of a search, inside the adapter's: search.json says what was asked for, what was decided and the time it
took; each round is a bank of runs beside it. So a search that was stopped goes on, and decides nothing twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..files import read_json, to_json, write
from .folder import unlike
from .ranks import here
from .unfinished import Unfinished

NAME = "search"
RECORD = "search.json"
SEARCH = Unfinished("a search", NAME, RECORD, "tune.json")
T = TypeVar("T")


class Journal:
    """What a search has decided so far, written whenever that changes. `directory` holds the banks of its rounds."""

    def __init__(self, directory: Path, settings: dict[str, Any], resume: bool) -> None:
        self.directory = directory
        self._before = 0.0
        self.decided: dict[str, Any] = {}
        if resume:
            self._go_on(settings)
        self._settings = settings
        self._began = time.perf_counter()
        here().first(self._write)

    def _go_on(self, settings: dict[str, Any]) -> None:
        former = read_json(self.directory / RECORD)
        asked = json.loads(to_json(settings))
        former["settings"]["recipe"].setdefault("head_penalty", "auto")  # before there was a choice
        changed = [key for key, value in asked.items() if former["settings"].get(key) != value]
        if changed:
            raise unlike(self.directory.parent, "settings", f"another {', '.join(changed)}")
        self.decided = former["decided"]
        written = (self.directory / RECORD).stat().st_mtime  # what was done after that shows in the files
        last = max(path.stat().st_mtime for path in self.directory.rglob("*"))
        self._before = former["seconds"] + max(0.0, last - written)

    @property
    def seconds(self) -> float:
        """How long the search has taken, in all of its sessions."""
        return self._before + time.perf_counter() - self._began

    def decide(self, what: str, compute: Callable[[], T]) -> T:
        """A decision that hangs on the clock: taken once, and by the first of several processes. It must be JSON."""
        if what not in self.decided:
            self.decided[what] = here().first(compute)
            here().first(self._write)
        found: T = self.decided[what]
        return found

    def _write(self) -> None:
        record = {"settings": self._settings, "decided": self.decided, "seconds": round(self.seconds, 3)}
        write(self.directory / RECORD, to_json(record))
