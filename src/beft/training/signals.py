"""Ctrl-C, SIGTERM and SIGUSR1 ask a run to stop at the next step; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import Interrupted

HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


_asked: list[int] = []


def ask_to_stop(number: int) -> None:
    """Have every StopRequest of this process, also one that is entered later, see a signal that came elsewhere.

    For a process that trains in another thread than the main one, and is to end.
    """
    _asked.append(number)


@contextmanager
def ctrl_c_remembered() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt as ever, and every StopRequest sees it: libraries that are being imported
    may swallow the exception. Only in the main thread, and not where Ctrl-C is to be ignored (a shell's background)."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        ask_to_stop(number)
        raise KeyboardInterrupt

    before, known = signal.getsignal(signal.SIGINT), list(_asked)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _asked[:] = known


class StopRequest:
    """While entered, the handled signals set `received` in place of ending the process. Only in the main thread.

    `kept`: what is done until then lies in a folder, from where it can be gone on with."""

    def __init__(self, kept: bool = True) -> None:
        self.kept = kept
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def received(self) -> int | None:
        """The signal that has come, or None."""
        return next(iter(_asked), None) if self._received is None else self._received

    @received.setter
    def received(self, number: int | None) -> None:
        self._received = number

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self, where: str) -> None:
        """Raise Interrupted if a signal has come."""
        if self.received is not None:
            remedy = "repeat the command with --resume to go on" if self.kept else "start anew: nothing was kept"
            raise Interrupted(where, signal=self.received, remedy=remedy)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
