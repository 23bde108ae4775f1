"""Rows to batches within a budget of tokens, and batches halved when memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from ..core.adapter import real_device

T = TypeVar("T")
Watch = Callable[[int, int], None]
"""Called after every batch with the rows it held and the batches left; may raise to stop."""

EVEN = 0.8
"""A row shorter than this share of a batch's longest goes into the next batch, if the batch is large enough."""
ENOUGH = {"cpu": 256, "cuda": 8192}
"""Tokens of a batch that keep a device busy, by kind of device: below, shorter rows are padded to fill it."""
CPU_TOKEN_BUDGET = 2048
"""Tokens of one batch without gradients on a CPU: small batches stay in its caches and pad less."""
TOKEN_BUDGET = 65536
"""The same elsewhere."""


NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_status_alloc_failed")
"""Words of errors that say so without a type of their own: of the CPU, of CUDA and its libraries, of MPS."""


def default_budget(device: torch.device | str) -> int:
    """Tokens of one batch without gradients."""
    return CPU_TOKEN_BUDGET if torch.device(device).type == "cpu" else TOKEN_BUDGET


def pack(
    lengths: Sequence[int],
    budget: int,
    scored: Sequence[int] | None = None,
    most_scored: int = 0,
    alone: int | None = None,
    enough: int | None = None,
) -> list[list[int]]:
    """Row numbers in batches, longest first, so that rows x longest stays within the budget.

    Args:
        lengths: tokens of each row; one above the budget makes a batch of its own.
        scored: positions of each row that go through the output embedding, at most `most_scored` a batch.
        alone: rows longer than this make batches of their own.
        enough: tokens from which a batch takes no rows on that are much shorter than its longest; None: it does.
    """
    reads = [0] * len(lengths) if scored is None else scored
    pieces: list[list[int]] = []
    longest = read = 0  # of the last batch
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fits = bool(pieces) and longest * (len(pieces[-1]) + 1) <= budget and read + reads[row] <= most_scored
        full = enough is not None and longest * len(pieces[-1]) >= enough if pieces else False
        if fits and (alone is None or longest <= alone) and not (full and lengths[row] < EVEN * longest):
            pieces[-1].append(row)
            read += reads[row]
        else:
            pieces.append([row])
            longest, read = lengths[row], reads[row]
    return pieces


def in_pieces(
    pieces: Sequence[Sequence[T]], compute: Callable[[Sequence[T]], None], watch: Watch | None = None
) -> None:
    """Compute batch after batch; one that does not fit into memory is halved, down to a single row."""
    waiting = list(reversed(pieces))
    while waiting:
        rows = waiting.pop()
        try:
            compute(rows)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
            waiting += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
            continue
        if watch is not None:
            watch(len(rows), len(waiting))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def device_of(model: Any) -> torch.device:
    """Where a model takes its inputs; of embeddings that lie on disk, where the rest is."""
    device = next(model.get_input_embeddings().parameters()).device
    return real_device(model) if device.type == "meta" else device
