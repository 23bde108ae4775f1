"""What the tests of the core share: random vectors, one output of any model, and comparisons."""

from typing import Any

import torch
from torch import Tensor, nn

import beft
from tiny import REGULAR, TINY

WITH_SITES = [*REGULAR, "mpt-clip", "olmo-clip", "gpt_oss", "qwen3_next"]
"""Families with softmax attention whose first axis is the batch: adapters can be routed there."""
EXPERTS = [name for name in TINY if name.startswith(("mixtral", "gpt_oss", "qwen3_next", "deepseek"))]
"""Families that sort tokens by expert: a row's rounding depends on its neighbours."""
DECODERS = [name for name in WITH_SITES if TINY[name].kind == "decoder"]

Batch = dict[str, Tensor]


def fill(bank: beft.Bank, seed: int = 0, scale: float = 0.3) -> beft.Bank:
    """Random numbers in every vector and head of a bank; the same name gets the same numbers."""
    with torch.no_grad():
        for name in bank.names:
            generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
            for parameter in bank.parameters(name):
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                if parameter.ndim > 1:
                    parameter.copy_(noise * scale)
                else:
                    parameter.add_(noise * scale)
    return bank


def states(model: nn.Module, inputs: Batch, **kwargs: Any) -> Tensor:
    """The logits of a model with a head, else its last states, with gradients if they are on."""
    output = model(**inputs, **kwargs)
    return output.logits if "logits" in output else output.last_hidden_state


def row(inputs: Batch, number: int) -> Batch:
    """One row of a batch, as a batch."""
    return {key: value[number : number + 1] for key, value in inputs.items()}


def close(a: Tensor, b: Tensor, bound: float = 1e-6) -> None:
    """Assert that two tensors differ by at most `bound` times the largest entry (at least 1)."""
    assert a.shape == b.shape
    finite = torch.isfinite(b)
    assert torch.equal(finite, torch.isfinite(a))
    a, b = a.detach()[finite].double(), b.detach()[finite].double()
    difference = float((a - b).abs().max()) if a.numel() else 0.0
    assert difference <= bound * max(1.0, float(b.abs().max()) if b.numel() else 0.0), difference


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that an attached bank could leave behind in a model."""
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "keys": list(model.state_dict()),
        "grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modules": {name: (type(m), m.training) for name, m in model.named_modules()},
        "attributes": {name: sorted(m.__dict__) for name, m in model.named_modules()},
        "hooks": {
            name: sorted(
                (key, len(value)) for key, value in m.__dict__.items() if key.endswith("hooks") and value is not None
            )
            for name, m in model.named_modules()
        },
        "ignored": model._keys_to_ignore_on_save,
    }


def same_snapshot(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Assert that two snapshots are equal, tensors bit by bit."""
    for key in before:
        if key != "state":
            assert before[key] == after[key], key
    for key, value in before["state"].items():
        assert torch.equal(value, after["state"][key]), key
