"""Whether two models give the same outputs: on real sentences of unlike lengths, at the positions that hold a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .probe import evaluating, tiny_inputs

SENTENCES = (
    "The parcel came two days late, and the box was open.",
    "Please cancel my order.",
    "I was charged twice for the same month; could somebody look at the invoice from March and send the money back?",
    "Thanks!",
)


def real_inputs(model: nn.Module, tokenizer: Any = None) -> dict[str, Any]:
    """`SENTENCES` as one padded batch; without a tokenizer random tokens, and random pixels for a model of images."""
    if tokenizer is None or getattr(model, "main_input_name", "input_ids") != "input_ids":
        return tiny_inputs(model, rows=4, length=8)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    limit = getattr(model.config, "max_position_embeddings", None) or 128
    encoded = tokenizer(list(SENTENCES), padding=True, truncation=True, max_length=min(limit, 128), return_tensors="pt")
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in encoded.items() if key in tokenizer.model_input_names}
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


def outputs(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """What the model gives first (logits, or last states) at the inputs' unpadded positions, in fp64."""
    with evaluating(model):
        first: Tensor = model(**_as_precise(inputs, model))[0].detach().double()
    mask = inputs.get("attention_mask")
    if mask is not None and first.ndim == 3 and first.shape[:2] == mask.shape:
        first = first[mask.bool()]
    return first


def _as_precise(inputs: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Pixels in the model's dtype."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; NaN where either has one."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def allowed(dtype: torch.dtype) -> float:
    """How far a merged model may be from the attached one: rounding in fp32; in half precision that of the new biases.

    A bias in bf16 keeps 8 bits, and its error of one rounding passes through every layer behind it.
    """
    return 1e-5 if dtype in (torch.float32, torch.float64) else 5e-2
