"""The process of a Ray worker: does one job after the other, says meanwhile how it goes, and stops when asked to."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..extend import use, used
from .signals import ask_to_stop

PULSE = 0.2
"""Seconds between two answers to `hear`."""
PASSED_ON = ("BEFT_DATA", "BEFT_MODELS", "BEFT_TOKEN_BUDGET", "HF_HUB_OFFLINE")
"""Environment of the caller that workers are to have."""


@dataclass(frozen=True)
class Setup:
    """What a worker is like: the caller's folder and environment, the files it uses, its threads and sharers."""

    folder: str
    environment: dict[str, str]
    used: tuple[str, ...]
    threads: int
    sharers: int

    @classmethod
    def like_here(cls, threads: int, sharers: int) -> Setup:
        """A worker that finds what this process finds."""
        environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        return cls(os.getcwd(), environment, tuple(used), threads, sharers)


@dataclass(frozen=True)
class Place:
    """Where a worker stands."""

    host: str
    pid: int
    version: str


@dataclass
class Outcome:
    """What a job gave: its value, or its error with the trace of where it came up; and the events not yet heard."""

    events: list[tuple[Any, ...]]
    value: Any = None
    error: Exception | None = None
    trace: str = ""


class Worker:
    """Made by Ray in a process of its own. `do` runs in one thread, the other methods in another."""

    def __init__(self, setup: Setup) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        os.environ.update(setup.environment, OMP_NUM_THREADS=str(setup.threads), TOKENIZERS_PARALLELISM="false")
        if Path(setup.folder).is_dir():
            os.chdir(setup.folder)
        self.setup = setup
        self._events: deque[tuple[Any, ...]] = deque()

    def place(self) -> Outcome:
        """Where this is. Before it answers, it is ready; the error is of a file that the caller uses and this lacks."""
        return self._outcome(self._settle, ())

    def _settle(self, send: Callable[..., None]) -> Place:
        import torch

        from .machine import avoid_undescribed_amx
        from .memory import share_memory

        avoid_undescribed_amx()
        torch.set_num_threads(self.setup.threads)
        share_memory(self.setup.sharers)
        for source in self.setup.used:
            use(source)
        return Place(socket.gethostname(), os.getpid(), __version__)

    def do(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        """Call `function(send, *args)`, where what is sent will be heard."""
        return self._outcome(function, args)

    def _outcome(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        try:
            value = function(self._send, *args)
        except Exception as error:
            return Outcome(self._drain(), error=_portable(error), trace=traceback.format_exc())
        return Outcome(self._drain(), value)

    def hear(self) -> list[tuple[Any, ...]]:
        """Events sent since they were heard last."""
        time.sleep(PULSE)
        return self._drain()

    def stop(self, number: int) -> None:
        """Have whatever is done stop as at a signal of this number."""
        ask_to_stop(number)

    def _send(self, *event: Any) -> None:
        self._events.append(event)

    def _drain(self) -> list[tuple[Any, ...]]:
        return [self._events.popleft() for _ in range(len(self._events))]


def _portable(error: Exception) -> Exception:
    """The error, or its text as a RuntimeError where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# ---- folders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marked:
    """A folder of the caller with a mark in it, by which a worker knows whether it sees that folder too."""

    folder: Path
    mark: str

    @contextmanager
    def here(self) -> Iterator[tuple[Path, bool]]:
        """The folder, and whether it is the caller's; where the disk is not shared a new one, until the block ends."""
        if (self.folder / self.mark).exists():
            yield self.folder, True
            return
        with tempfile.TemporaryDirectory(prefix="beft-") as own:
            yield Path(own), False


@contextmanager
def marked(folder: Path) -> Iterator[Marked]:
    """Mark a folder, which is made if it is not there, as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".{uuid.uuid4().hex}.mark"
    mark.touch()
    try:
        yield Marked(folder.absolute(), mark.name)
    finally:
        mark.unlink(missing_ok=True)
