"""The folder of a search, inside the adapter's: search.json says what was asked for, what was decided and the time it
took; each round is a bank of runs beside it. So a search that was stopped goes on, and decides nothing twice."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BeftError, Interrupted, StoreError
from ..files import clear_parts, read_json, to_json, write
from .folder import check_new, gone_if_it_fails, is_empty, unlike
from .ranks import here

NAME = "search"
RECORD = "search.json"
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


@dataclass(frozen=True)
class Unfinished:
    """What a folder holds until its result is there: a search or the like, in the subfolder `name`. It has begun when
    the file `record` lies in that, and the result is there when the file `end` lies beside it."""

    what: str
    name: str
    record: str
    end: str

    @property
    def removed(self) -> str:
        """What the subfolder is called while it is taken away."""
        return f".{self.name}.part"


SEARCH = Unfinished("a search", NAME, RECORD, "tune.json")


@contextmanager
def kept_until_done(directory: Path, kind: Unfinished, *, resume: bool, overwrite: bool) -> Iterator[tuple[Path, bool]]:
    """The subfolder, and whether there is something to go on with in it. It is removed at the end; an error leaves it,
    unless no run had ended yet.

    Raises:
        What `open_unfinished` raises.
    """
    ranks, under = here(), directory / kind.name
    with gone_if_it_fails(directory):
        goes_on = ranks.first(lambda: open_unfinished(directory, kind, resume=resume, overwrite=overwrite))
        try:
            yield under, goes_on
        except BeftError as error:
            stopped = isinstance(error, Interrupted) or goes_on
            if ranks.leads and not stopped and not any(under.rglob("metrics.json")):
                shutil.rmtree(under, ignore_errors=True)
            raise
    if ranks.leads:
        _remove(directory, kind)


def open_unfinished(directory: Path, kind: Unfinished, *, resume: bool, overwrite: bool) -> bool:
    """Check a folder before anything long begins; gives whether there is something to go on with.

    Raises:
        StoreError: not a folder, not empty without `resume` or `overwrite`, not writable, or nothing to resume in it.
    """
    under = directory / kind.name
    shutil.rmtree(directory / kind.removed, ignore_errors=True)
    begun = (under / kind.record).exists()
    if resume and begun:
        clear_parts(directory)
        return True
    if not begun and under.exists() and not is_empty(under):
        raise StoreError(
            str(under),
            expected=f"{kind.what}, or nothing there yet",
            found="other files",
            remedy="choose another --out",
        )
    if not begun and is_empty(under):
        shutil.rmtree(under)  # one that was killed before it had written anything
    if resume and directory.is_dir() and any(directory.iterdir()):
        finished = (directory / kind.end).exists()
        raise StoreError(
            str(directory),
            expected=f"{kind.what} to resume",
            found="a finished one" if finished else "other files",
            remedy=f"read its {kind.end}, or start anew with --overwrite" if finished else "choose another --out",
        )
    check_new(directory, overwrite, "use --resume to go on, --overwrite to replace it, or another --out")
    if begun:
        shutil.rmtree(under)
    return False


def _remove(directory: Path, kind: Unfinished) -> None:
    """Take the subfolder away, under another name first: killed meanwhile, half of one is none to go on with."""
    with suppress(OSError):
        (directory / kind.name).rename(directory / kind.removed)
    for name in (kind.name, kind.removed):
        shutil.rmtree(directory / name, ignore_errors=True)
