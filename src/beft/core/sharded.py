"""A base whose weights are sharded over processes (torch's `fully_shard`): reading a weight that lies in pieces.

While a layer runs its weights are whole; at rest each process holds its own piece. So hooks work as ever, and what is
special is reading a weight at rest: all processes have to take part, whoever wants it. Biases and norms are read where
one process works alone (saving); they are small, and each process keeps them whole besides.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights lie in pieces."""
    return any(_in_pieces(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor: itself, unless it lies in pieces. All processes must ask, but for biases and norms."""
    if not _in_pieces(tensor):
        return tensor
    pieces: Any = tensor
    kept = getattr(pieces, "beft_whole", None)
    result: Tensor = pieces.detach().full_tensor() if kept is None else kept
    return result


def stock_class(model: nn.Module) -> type:
    """A model's class as it was before torch made a class of its own of it, to shard it."""
    kind = type(model)
    return kind.__bases__[-1] if is_sharded(model) and kind.__name__.startswith("FSDP") else kind


def keep_small_whole(model: nn.Module) -> None:
    """Let each process keep what has one axis (biases, norms) whole besides its piece. All processes must call this."""
    for parameter in model.parameters():
        if _in_pieces(parameter) and parameter.ndim < 2:
            parameter.beft_whole = whole(parameter)  # type: ignore[attr-defined]


def make_whole(module: nn.Module) -> None:
    """Put whole parameters in place of those that lie in pieces. All processes must call this."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if _in_pieces(parameter):
                setattr(part, name, nn.Parameter(whole(parameter).clone(), requires_grad=parameter.requires_grad))


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's own parameters that this process holds while no layer runs."""
    own: Any
    total = 0
    for name, own in model.named_parameters():
        if not name.startswith("beft."):
            local: Tensor = own.to_local() if _in_pieces(own) else own
            total += local.numel() * local.element_size()
    return total


def _in_pieces(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module is not imported for asking
