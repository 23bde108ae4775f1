"""Each row of a batch through its own adapter's head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BankError, RouteError
from .adapter import Adapter, LinearHead, ModelHead, compares, read
from .route import AnyRoute, Route, SingleRoute
from .rows import count_rows


def head_paths(adapter: Adapter) -> list[str]:
    """Paths of the model's modules that an adapter's head stands in for."""
    return adapter.head.paths if isinstance(adapter.head, ModelHead) else []


def state_width(model: Any) -> int | None:
    """Features of the base model's last states, if its config says; OPT-350m projects them to its embeddings' width."""
    config = model.config.get_text_config()
    return getattr(config, "word_embed_proj_dim", None) or getattr(config, "hidden_size", None)


def bidirectional(kind: str) -> bool:
    """Whether states of all positions see the whole text: decided by a `model_type`'s causal class, if it has one."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    return kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def refuse_headless(route: AnyRoute) -> None:
    """Raises BankError if a row of the route has no head."""
    headless = [adapter.name for adapter in route.adapters if adapter.head is None]
    if isinstance(route, SingleRoute):
        plain = route.adapter is None
    else:
        plain = bool((route.index == len(route.adapters)).any())
    if headless or plain:
        raise BankError(
            "logits",
            expected="a head for every row",
            found=f"none on {headless or 'the plain model'}",
            remedy="give the adapter one with bank.set_head",
        )


def refuse_mixed_sizes(route: AnyRoute) -> None:
    """Raises RouteError if the model's own heads differ in their number of labels: no single loss fits them."""
    sizes = {adapter.head.outputs for adapter in route.adapters if isinstance(adapter.head, ModelHead)}
    if len(sizes) > 1:
        raise RouteError(
            "labels=",
            expected="one number of labels in a batch",
            found=f"heads of {sorted(sizes)} labels",
            remedy="leave labels out and compute each row's loss from its own logits",
        )


def refuse_unpaired(route: AnyRoute, batch: Mapping[str, Any], second: Any) -> None:
    """Raises BankError for heads that read another number of inputs a row, and for second inputs of other rows."""
    for adapter in route.adapters:
        pair = compares(adapter.head)
        if pair != (second is not None):
            raise BankError(
                f"logits of {adapter.name!r}",
                expected="two inputs a row, `second` beside the first" if pair else "one input a row",
                found="one" if pair else "two",
                remedy="rows of one input and of two are batches of their own" if len(route.adapters) > 1 else "",
            )
    if second is None:
        return
    if not isinstance(second, Mapping):
        raise BankError("second", expected="a batch, as the first inputs are", found=f"a {type(second).__name__}")
    rows, others = (count_rows(inputs) or 0 for inputs in (batch, second))
    if rows != others:
        raise BankError("second", expected=f"{rows} rows, as the first inputs have", found=f"{others}")


def linear_logits(route: AnyRoute, *inputs: tuple[Tensor, Tensor | None]) -> Tensor:
    """Logits (rows, labels) of linear heads, padded with -inf.

    Of each of a row's inputs, one or two: states (rows, length, hidden) and attention mask.
    """
    heads: dict[Adapter, LinearHead] = {}
    for adapter in route.adapters:
        if not isinstance(adapter.head, LinearHead):
            raise BankError(f"head of {adapter.name!r}", expected="a linear head", found="a model head beside one")
        heads[adapter] = adapter.head
    # pooled for all rows at once: picking an adapter's rows from the states would make their gradient as often
    pooled = {pooling: read(pooling, *inputs) for pooling in dict.fromkeys(head.pooling for head in heads.values())}
    if isinstance(route, SingleRoute):
        [head] = heads.values()
        return head(pooled[head.pooling])
    order, counts = by_owner(route, next(iter(pooled.values())))
    pieces = {pooling: (states if order is None else states[order]).split(counts) for pooling, states in pooled.items()}
    return in_row_order([head(pieces[head.pooling][number]) for number, head in enumerate(heads.values())], order)


def in_own_dtype(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A forward pre-hook of a head's modules: what an adapter's copy gave in fp32, the base's next one takes too."""
    own = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(own) if isinstance(value, Tensor) and value.is_floating_point() else value

    if not own.is_floating_point:
        return args, kwargs
    return tuple(cast(value) for value in args), {key: cast(value) for key, value in kwargs.items()}


def replaced(route: AnyRoute, path: str, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
    """Output of the head module at `path` with each row's from its own adapter's copy; None if nobody has a copy."""
    if not any(path in head_paths(adapter) for adapter in route.adapters):
        return None

    def apply(adapter: Adapter, rows: Tensor | None) -> Tensor:
        if path not in head_paths(adapter):
            return output if rows is None else output[rows]
        assert isinstance(adapter.head, ModelHead)
        own_args, own_kwargs = _take(args, kwargs, rows, len(output))
        return adapter.head.module(path)(*own_args, **own_kwargs)

    return by_adapter(route, output, apply, rest=output)


def by_adapter(
    route: AnyRoute, like: Tensor, apply: Callable[[Adapter, Tensor | None], Tensor], rest: Tensor
) -> Tensor:
    """Run each adapter's part on its own rows; `rest` gives the rows of the plain model."""
    if isinstance(route, SingleRoute):
        assert route.adapter is not None
        return apply(route.adapter, None)
    return _each_its_own(route, like, apply, rest)


@torch.compiler.disable  # a graph would be made for every mixture of rows
def _each_its_own(
    route: Route, like: Tensor, apply: Callable[[Adapter, Tensor | None], Tensor], rest: Tensor
) -> Tensor:
    order, counts = by_owner(route, like)
    pieces = (torch.arange(len(like), device=like.device) if order is None else order).split(counts)
    parts = [apply(adapter, rows) for adapter, rows in zip(route.adapters, pieces, strict=False)]
    return in_row_order([*parts, rest[pieces[-1]]], order)


def by_owner(route: Route, like: Tensor) -> tuple[Tensor | None, list[int]]:
    """The rows of a batch sorted by whose they are (None if they lie so), and how many each adapter and the plain model
    has of them."""
    repeats = route.repeats(len(like), "the head")
    counts = [count * repeats for count in route.counts]
    if route.grouped:
        return None, counts
    return route.index.repeat_interleave(repeats).to(like.device).argsort(stable=True), counts


def in_row_order(parts: Sequence[Tensor], order: Tensor | None) -> Tensor:
    """Rows of parts that were sorted, in their order again; the narrower are padded with -inf on the right."""
    width = max(part.shape[-1] for part in parts)
    whole = torch.cat([_widened(part, width) for part in parts])
    return whole if order is None else whole[order.argsort()]


def _widened(part: Tensor, width: int) -> Tensor:
    missing = width - part.shape[-1]
    return nn.functional.pad(part, (0, missing), value=-torch.inf) if missing else part


def _take(args: Any, kwargs: Any, rows: Tensor | None, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The given rows of every tensor argument that has `count` of them, floats in fp32."""

    def pick(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.float() if value.is_floating_point() else value
        return value[rows] if rows is not None and value.ndim and value.shape[0] == count else value

    return tuple(pick(value) for value in args), {key: pick(value) for key, value in kwargs.items()}
