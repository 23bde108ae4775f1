"""Logits and frozen states of many examples: longest first, in batches cut by the token budget, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..core.adapter import Pooling, read
from ..core.bank import Bank
from ..objectives.encode import Encoded
from ..objectives.packing import Watch as Watch
from .batches import micro_batches
from .machine import Choices, out_of_memory
from .ranks import here

EVALUATION_FACTOR = 2
"""Without activations to keep, a micro-batch may hold this many times the training budget."""


def predict_logits(
    bank: Bank, name: str | None, encoded: Encoded, choices: Choices, watch: Watch | None = None
) -> Tensor:
    """Logits (rows, labels) in fp32 on the CPU, in the order of the examples, from one adapter."""
    return torch.stack(routed_logits(bank, [name] * len(encoded), encoded, choices, watch))


def routed_logits(
    bank: Bank, names: Sequence[str | None], encoded: Encoded, choices: Choices, watch: Watch | None = None
) -> list[Tensor]:
    """Logits of each example, fp32 on the CPU, from the adapter named for it: of as many labels as it has, or more,
    the rest then being -inf."""
    return _each(encoded, choices, lambda batch: bank.logits(**batch), lambda rows: route(bank, names, rows), watch)


def route(bank: Bank, names: Sequence[str | None], rows: Sequence[int]) -> AbstractContextManager[None]:
    """The route of some of the rows, as one name where one serves all: a single addition in place of a gather."""
    chosen = [names[row] for row in rows]
    return bank.route(chosen[0] if len(set(chosen)) == 1 else chosen)


def frozen_states(
    bank: Bank, encoded: Encoded, choices: Choices, watch: Watch | None = None, pooling: Pooling = "mean"
) -> Tensor:
    """Pooled last states (rows, hidden) of the plain model, fp32 on the CPU; ranks share the work."""
    base: Any = getattr(bank.model, "base_model", bank.model)
    if getattr(base.config, "is_encoder_decoder", False):
        base = base.get_encoder()

    def states(batch: dict[str, Any]) -> Tensor:
        each_input = inputs_of(batch)
        return read(pooling, *((base(**each).last_hidden_state, each.get("attention_mask")) for each in each_input))

    ranks = here()
    own = encoded if ranks.alone else encoded.take(ranks.stretch(range(len(encoded))))

    def own_rows() -> list[Tensor]:  # on their own: a row is sent with all that shares its storage
        return [row.clone() for row in _each(own, choices, states, lambda rows: bank.route(None), watch)]

    return torch.stack([row for piece in ranks.gather(own_rows) for row in piece])


def inputs_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch of `Encoded` as batches of the model: one, or those of first and of second texts."""
    first = {name: value for name, value in batch.items() if name != "second"}
    return [first, batch["second"]] if "second" in batch else [first]


def _each(
    encoded: Encoded,
    choices: Choices,
    compute: Callable[[dict[str, Any]], Tensor],
    under: Callable[[Sequence[int]], AbstractContextManager[None]],
    watch: Watch | None,
) -> list[Tensor]:
    lengths = encoded.lengths()
    results: list[Tensor | None] = [None] * len(encoded)
    pieces = micro_batches(range(len(encoded)), lengths, **choices.cutting(EVALUATION_FACTOR))
    pieces.reverse()  # a stack: longest first, so that memory that does not suffice shows at once
    with torch.inference_mode():
        while pieces:
            rows = pieces.pop()
            try:
                with under(rows):
                    values = compute(encoded.batch(rows, choices.device, choices.pad_multiple)).float().cpu()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(rows) == 1:
                    raise
                pieces += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
                continue
            for row, value in zip(rows, values, strict=True):
                results[row] = value
            if watch is not None:
                watch(len(rows), len(pieces))
    return [value for value in results if value is not None]
