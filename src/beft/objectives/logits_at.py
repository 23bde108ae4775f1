"""Next-token logits at chosen positions only.

The model's own forward runs as ever; on the way into its output embedding only the states at these positions go on. So
whatever a family does to its logits afterwards (a scale, a soft cap, a bias) is done by its own code, and the
vocabulary's worth of numbers is made for the positions that count.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def logits_at(model: Any, inputs: dict[str, Any], positions: Tensor) -> Tensor:
    """Logits (positions, vocabulary) of a causal language model.

    Args:
        model: with a language-model head.
        inputs: keyword arguments of its forward; `input_ids` is (rows, length).
        positions: numbers among rows x length, (positions,).
    """
    with _only(model.get_output_embeddings(), positions) as picked:
        logits: Tensor = model(**inputs).logits
    logits = logits.reshape(-1, logits.shape[-1])
    return logits if picked else logits.index_select(0, positions.to(logits.device))


@contextmanager
def _only(head: nn.Module | None, positions: Tensor) -> Iterator[list[bool]]:
    """Lets only the states at `positions` into the head. Yields a list that is empty until the head is called."""
    done: list[bool] = []
    if head is None:
        yield done
        return
    thread = threading.get_ident()  # a forward of another thread, at the same time, keeps all its states

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != thread:
            return None
        hidden = args[0]
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions.to(hidden.device))
        done.append(True)
        return (picked[None], *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield done
    finally:
        handle.remove()
