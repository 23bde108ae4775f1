"""Quantised linear layers in a frozen base: how to tell them, and what one make of them needs for right gradients.

A bias is added to a layer's output, so it does not matter how the layer keeps its weight. What does not work is reading
that weight: a base that is quantised has no fingerprint and cannot take a merged vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import BankError
from .patches import Patches

PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CPU_PACKING = "support_avx512bf16_for_cpu"


def is_quantized(module: nn.Module) -> bool:
    """Whether a linear layer of any make keeps something else than a plain weight.

    Either its weight is of integers, of 8-bit floats or of another library's tensor class, or it has output features
    but no weight among its parameters (packed by torch, GPTQ, AWQ, HQQ).
    """
    if not isinstance(getattr(module, "out_features", None), int):
        return False
    weight = module._parameters.get("weight")
    if weight is None:
        return True
    return weight.dtype not in PLAIN or type(weight).__module__.partition(".")[0] != "torch"


def rounds_inputs(model: nn.Module) -> bool:
    """Whether layers round their inputs by what the whole batch holds (LLM.int8()): rows then are not independent."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


def first_quantized(model: nn.Module) -> str | None:
    """Path of the first quantised linear layer, or None."""
    return next((path for path, module in model.named_modules() if is_quantized(module)), None)


def refuse_quantized(model: nn.Module, where: str) -> None:
    """Raises BankError if a model has a quantised linear layer."""
    path = first_quantized(model)
    if path is not None:
        raise BankError(
            where,
            expected="a base in plain weights",
            found=f"{path}, a quantised {type(model.get_submodule(path)).__name__}",
            remedy="merge into the unquantised base, then quantise the merged model",
        )


def keep_gradients(model: nn.Module, patches: Patches) -> None:
    """Keep the 4-bit layers of bitsandbytes off a path that loses gradients.

    On processors with AVX-512 bf16 their first forward without gradients packs the weight for a kernel that has no
    backward, and for good: every later training step would silently learn nothing below the last layer. What was packed
    before is unpacked here (writing the layer's state does that), and packing stays off while the bank is attached.
    """
    for module in model.modules():
        if not hasattr(module, _CPU_PACKING):
            continue
        weight: Any = module._parameters.get("weight")
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            module.state_dict()
        patches.set(module, _CPU_PACKING, False)
