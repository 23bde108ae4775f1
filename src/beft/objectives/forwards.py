"""Sums of candidates' log-probabilities: in rows that stand alone, or after prompts in a shared KV cache."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .logits_at import logits_at
from .packing import device_of
from .tree import Tree, collate, plant, read


def sums_of_rows(model: Any, trees: Sequence[Tree], pad_id: int) -> Tensor:
    """Sum of log-probabilities (candidates of all rows, in order), one forward of one row a tree; differentiable."""
    device = device_of(model)
    inputs = collate(trees, pad_id, model.config, model.dtype, device)
    reading = read(trees, inputs["input_ids"].shape[1], device)
    return reading.sums(logits_at(model, {**inputs, **_without_cache(model)}, reading.states).to(device))


def sums_by_cache(
    model: Any, prompts: Sequence[list[int]], candidates: Sequence[list[list[int]]], pad_id: int, budget: int
) -> Tensor:
    """The same, the prompts (padded on the left) computed once and their keys and values repeated for the candidates.

    For evaluation. `budget` bounds the tokens of one batch of candidates, those of their prompts counted.
    """
    device = device_of(model)
    states, last = left_inputs(model, prompts, pad_id)
    mask, length = states["attention_mask"], states["input_ids"].shape[1]
    keeper = _Keeper(model)
    first = logits_at(keeper, {**states, "use_cache": True}, last).float().log_softmax(-1)
    owner = [row for row, each in enumerate(candidates) for _ in each]
    flat = [candidate for each in candidates for candidate in each]
    begin = torch.tensor([candidate[0] for candidate in flat], device=device)
    sums = first[torch.tensor(owner, device=device), begin]
    longer = sorted((number for number, each in enumerate(flat) if len(each) > 1), key=lambda n: -len(flat[n]))
    pieces = list(_within(longer, flat, length, budget))
    for chosen in pieces:
        trees = [plant(flat[number][:1], [flat[number][1:]]) for number in chosen]
        inputs: dict[str, Any] = collate(trees, pad_id, model.config, model.dtype, device)
        size = inputs["input_ids"].shape[1]
        reading = read(trees, size, device)
        index = torch.tensor([owner[number] for number in chosen], device=device)
        own = torch.arange(size, device=device) < torch.tensor([[len(t)] for t in trees], device=device)
        inputs["attention_mask"] = torch.cat([mask[index], own.long()], 1)
        if "position_ids" in states:
            inputs["position_ids"] = mask[index].sum(1, keepdim=True) + torch.arange(size, device=device)
        cache = keeper.cache if chosen is pieces[-1] else copy.deepcopy(keeper.cache)
        cache.reorder_cache(index)
        more = reading.sums(logits_at(model, {**inputs, "past_key_values": cache, "use_cache": True}, reading.states))
        sums = sums.index_add(0, torch.tensor(chosen, device=device), more)
    return sums


def left_inputs(model: Any, prompts: Sequence[list[int]], pad_id: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs (rows, longest) of prompts padded on the left, and the places of their last tokens: (rows,)."""
    device, length = device_of(model), max(map(len, prompts))
    ids = [[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    inputs = {"input_ids": torch.tensor(ids, device=device), "attention_mask": mask}
    if _takes(model, "position_ids"):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return inputs, torch.arange(1, len(ids) + 1, device=device) * length - 1


def _within(numbers: Sequence[int], flat: Sequence[list[int]], length: int, budget: int) -> Iterator[list[int]]:
    """Candidates, longest first, in batches within the budget."""
    piece: list[int] = []
    for number in numbers:
        if piece and (length + len(flat[piece[0]])) * (len(piece) + 1) > budget:
            yield piece
            piece = []
        piece.append(number)
    if piece:
        yield piece


class _Keeper:
    """A model that keeps the cache it returns."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, cast(Any, None)
        self.get_output_embeddings = model.get_output_embeddings

    def __call__(self, **inputs: Any) -> Any:
        output = self.model(**inputs)
        self.cache = output.past_key_values
        return output


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _without_cache(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if _takes(model, "use_cache") else {}
