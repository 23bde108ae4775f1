"""Two processes that stand for two ranks, kept over tests: importing torch takes longer than a toy run."""

import io
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

PATIENCE = 90
"""Seconds after which a pair is taken to hang."""


@dataclass
class Outcome:
    """What a rank's call gave: its value or its error, and what it wrote to standard error. Neither: it died."""

    value: Any = None
    error: BaseException | None = None
    text: str = ""


class Pair:
    """Calls a function in both ranks at once."""

    def __init__(self) -> None:
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *args: Any) -> list[Outcome]:
        """The outcome of `function(*args)` in each rank; a function of a module, for it is imported there."""
        if not self.processes:
            self._start()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for pipe in self.pipes:
            pipe.send((port, function, args))
        outcomes = [self._hear(pipe) for pipe in self.pipes]
        if not all(process.is_alive() for process in self.processes):
            self.end()
        return outcomes

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def _hear(self, pipe: Connection) -> Outcome:
        try:
            if pipe.poll(PATIENCE):
                found: Outcome = pipe.recv()
                return found
        except EOFError:
            for process in self.processes:
                process.join(0.1)
            return Outcome()
        self.end()
        raise AssertionError("a rank hangs")

    def end(self) -> None:
        """End both."""
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes = [], []


def _serve(rank: int, pipe: Connection) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    from beft.report import plots

    plots.available = lambda: False  # drawing takes longer than a toy run
    while True:
        port, function, args = pipe.recv()
        os.environ["MASTER_PORT"] = str(port)
        text = io.StringIO()
        try:
            with redirect_stderr(text):
                outcome = Outcome(function(*args))
        except (Exception, SystemExit) as error:
            outcome = Outcome(error=error)
        outcome.text = text.getvalue()
        try:
            pipe.send(outcome)
        except (TypeError, AttributeError, ValueError) as error:  # what cannot be pickled
            sys.exit(f"{error}")
