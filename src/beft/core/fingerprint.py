"""A fingerprint of a base model's weights: tells whether an adapter meets the weights it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .quantized import first_quantized
from .sharded import stock_class, whole

_PERIOD = 8191
_CHUNK = 1 << 22


def describe_base(model: nn.Module, head_paths: tuple[str, ...] = ()) -> dict[str, Any]:
    """Name, type, sizes and fingerprint of a base model, as stored with an adapter."""
    config: Any = model.config
    return {
        "name": str(getattr(config, "_name_or_path", "") or ""),
        "revision": getattr(config, "_commit_hash", None),
        "class": stock_class(model).__name__,
        "model_type": getattr(config, "model_type", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "layers": getattr(config, "num_hidden_layers", None),
        "fingerprint": fingerprint(model, head_paths),
    }


def fingerprint(model: nn.Module, head_paths: tuple[str, ...] = ()) -> str | None:
    """Hex digest over every weight of the base model (without heads and pooler), rounded to bfloat16.

    Rounding makes a model loaded in fp32 and in bf16 agree; a single weight that differs by more than the rounding
    changes the digest. None where weights cannot be read as floats of the checkpoint (quantised, fp16 or meta tensors).
    """
    if first_quantized(model) is not None:
        return None
    return digest(base_parameters(model, head_paths), lambda path: whole(model.get_parameter(path)))


def base_parameters(model: nn.Module, head_paths: tuple[str, ...] = ()) -> dict[str, str]:
    """The parameters that count: name without the base model's prefix, to path in `model`."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    return {n.removeprefix(prefix): n for n, _ in model.named_parameters() if _counts(n, model, head_paths)}


def digest(paths: Mapping[str, str], read: Callable[[str], Tensor]) -> str | None:
    """The fingerprint of parameters that are read one at a time by their paths."""
    total = hashlib.sha256()
    for name in sorted(paths):
        parameter = read(paths[name])
        if parameter.device.type == "meta" or parameter.dtype not in (torch.float32, torch.bfloat16):
            return None
        total.update(f"{name} {tuple(parameter.shape)} {_sums(parameter.detach())}".encode())
    return total.hexdigest()[:32]


def _counts(name: str, model: nn.Module, head_paths: tuple[str, ...]) -> bool:
    if name.startswith("beft.") or "pooler" in name.split("."):
        return False
    if any(name.startswith(path + ".") for path in head_paths):
        return False
    base = getattr(model, "base_model", model)
    prefix = getattr(model, "base_model_prefix", "")
    return base is model or name.startswith(prefix + ".")


def _sums(parameter: Tensor) -> tuple[int, int]:
    """Two sums over the 16-bit patterns: plain and weighted by position, so that order counts."""
    bits = parameter.reshape(-1).to(torch.bfloat16).view(torch.int16)
    plain = weighted = 0
    weights = torch.arange(1, _PERIOD + 1, device=bits.device).repeat(-(-min(len(bits), _CHUNK) // _PERIOD))
    for chunk in bits.split(_PERIOD * (_CHUNK // _PERIOD)):
        wide = chunk.to(torch.int64)
        plain += int(wide.sum())
        weighted += int((wide * weights[: len(wide)]).sum())
    return plain, weighted
