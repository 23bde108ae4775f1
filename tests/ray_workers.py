"""Ray on two processors, started once for a module's tests, with two workers that stay."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beft.report import plots
from beft.training import cluster
from beft.training.workers import Pool, staff


@contextmanager
def two_workers(**environment: str) -> Iterator[Pool]:
    """Workers that every call with ray="local" inside the block uses, however large the machine; without pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "processors", lambda: 2)
        patch.setattr(plots, "available", lambda: False)
        patch.setattr("beft.training.worker.used", [str(Path(__file__).with_name("no_pictures.py"))])
        for name, value in environment.items():
            patch.setenv(name, value)
        with staff("local", 2, "cpu", "no model") as pool:
            yield pool


def kill_worker_of(pool: Pool, tag: object) -> int:
    """Kill -9 the worker that has the job of this tag; its process id."""
    hand = next(hand for hand in pool._hands if hand.job is not None and hand.job.tag == tag)
    number = int(hand.at.split()[0])
    os.kill(number, signal.SIGKILL)
    return number
