"""Frozen bases that are loaded once a process and lent to one fit or prediction after the other.

Loading a small encoder of 22 M weights and taking its fingerprint costs a third of a second, ten times a prediction of
one text, and more for larger ones; a grid search would pay it in every cell and fold. A base is frozen and an adapter
only adds to it, so the same one serves them all; what a borrower hangs in it is taken out when it gives it back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.bank import Bank, attach
from ..core.hub import resolve_model
from ..training.base import Base, load_base
from ..training.machine import Choices

KEPT = 2
"""Bases kept in memory at most; the one unused for longest goes first."""


@dataclass
class Shared:
    """A loaded base with its bank, which holds no adapter while nobody has borrowed it."""

    base: Base
    bank: Bank
    attention: str


_BASES: dict[tuple[Any, ...], Shared] = {}  # the last used last
_LOCK = threading.RLock()


@contextmanager
def shared_base(
    name: str,
    choices: Choices,
    *,
    head: str,
    outputs: int,
    labels: Sequence[str] | None,
    dropout: float | str = 0.0,
    trust_remote_code: bool = False,
) -> Iterator[tuple[Base, Bank]]:
    """Borrow a base and its bank, loading it if no base of this kind is in memory. One borrower at a time.

    torch's random numbers, which new heads and training draw on, are given back as they were.

    Args:
        choices: its `attention` becomes the kernel that the model was loaded with.
        head, outputs, labels: as for `load_base`; bases for a linear head serve any number of labels.
        dropout: the recipe's. A rate is written into the modules while training, so it gets a base of its own.

    Raises:
        StoreError: see `load_base`.
    """
    own_head = (outputs, None if labels is None else tuple(labels)) if head == "model" else None
    rate = "model" if dropout in (0, "model") else dropout
    kind = (choices.device, choices.dtype, choices.attention, trust_remote_code)
    key = (name, _files(name), head, own_head, rate, *kind)
    with _LOCK, torch.random.fork_rng(devices=[choices.device] if choices.device.startswith("cuda") else []):
        found = _BASES.pop(key, None)
        if found is None:
            base = load_base(
                name, choices, head=head, outputs=outputs, labels=labels, trust_remote_code=trust_remote_code
            )
            found = Shared(base, attach(base.model, "none", names=[]), choices.attention)
        _BASES[key] = found
        while len(_BASES) > KEPT:
            del _BASES[next(iter(_BASES))]
        choices.attention = found.attention
        try:
            yield found.base, found.bank
        finally:
            for adapter in found.bank.names:
                found.bank.remove(adapter)
            found.bank.model.eval()


def forget_bases() -> None:
    """Let go of every base kept in memory; the next fit or prediction loads its own anew."""
    with _LOCK:
        _BASES.clear()


def _files(name: str) -> tuple[tuple[str, int, int], ...] | None:
    """Names, sizes and times of a local model's files: a model written anew is another one. None for a Hub id."""
    folder = Path(resolve_model(name)).expanduser()
    if not folder.is_dir():
        return None
    known = ((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    return tuple(sorted((file, stat.st_size, stat.st_mtime_ns) for file, stat in known))
