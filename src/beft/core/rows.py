"""Rows of a batch against those of a route: checked on the way into a model, counted where a row is several inputs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .patches import Patches
from .route import AnyRoute, Route


def count_rows(inputs: Mapping[str, Any], *others: Any) -> int | None:
    """Rows of a model's input, by its keywords and then what else it is given; None where that is no tensor."""
    named = [inputs.get(name) for name in ("input_ids", "inputs_embeds", "pixel_values")]
    first = next((each for each in (*named, *others) if each is not None), None)
    return first.shape[0] if isinstance(first, Tensor) else None


def rows_checked(current_route: Callable[[], AnyRoute]) -> Callable[..., None]:
    """A forward pre-hook that raises RouteError for an input whose rows are not those of the route in force."""

    def check(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        route = current_route()
        if isinstance(route, Route):
            rows = count_rows(kwargs, *args[:1])
            if rows is not None:
                route.repeats(rows, "the model's input")

    return check


def count_repeats(
    model: Any,
    patches: Patches,
    current_route: Callable[[], AnyRoute],
    using: Callable[[AnyRoute], AbstractContextManager[None]],
) -> None:
    """Let `generate`, if the model has it, tell the route how often it repeats each row, for as long as it runs."""
    if not hasattr(model, "_expand_inputs_for_generation") or not hasattr(model, "generate"):
        return
    expand, generate = model._expand_inputs_for_generation, model.generate

    @functools.wraps(expand)
    def expanding(expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        route = current_route()
        if isinstance(route, Route):
            route.expand = expand_size
        return expand(expand_size, *args, **kwargs)

    @functools.wraps(generate)
    def generating(*args: Any, **kwargs: Any) -> Any:
        with using(copy.copy(current_route())):  # its own, for the route may be in use elsewhere
            return generate(*args, **kwargs)

    patches.set(model, "_expand_inputs_for_generation", expanding)
    patches.set(model, "generate", generating)


def twice(route: AnyRoute) -> AnyRoute:
    """A route for twice as many inputs, each row's two one after the other."""
    found = copy.copy(route)  # its own, for the route may be in use elsewhere
    if isinstance(found, Route):
        found.expand = 2
    return found


def interleaved(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Tensor]:
    """Two batches of token ids, rows x length each, as one: the inputs of a row one after the other, padded alike."""
    longest = max(batch["input_ids"].shape[1] for batch in (first, second))

    def padded(batch: Mapping[str, Any], name: str) -> Tensor:
        values = batch["input_ids"] if name == "input_ids" else batch.get(name)
        values = torch.ones_like(batch["input_ids"]) if values is None else values
        return nn.functional.pad(values, (0, longest - values.shape[1]))

    names = ("input_ids", "attention_mask")
    return {name: torch.stack([padded(first, name), padded(second, name)], 1).flatten(0, 1) for name in names}
