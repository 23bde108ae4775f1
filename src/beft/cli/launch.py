"""A command as one of several processes that a launcher (torchrun, `accelerate launch`) started for one job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..launcher import check_meeting, place


def speaks() -> bool:
    """Whether this process is the one that prints: the first of its launch, or one without a launcher."""
    return place().rank == 0


def must_speak(error: Exception) -> bool:
    """Whether this process is to print an error: the first one, or another that the first cannot have heard of it."""
    return speaks() or bool(getattr(error, "__notes__", None))


@contextmanager
def side_by_side() -> Iterator[None]:
    """Meet the other processes, if there are any; without them torch is not imported."""
    check_meeting()
    if place().size == 1:
        yield
        return
    from ..training.ranks import together

    with together():
        yield
