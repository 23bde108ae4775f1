"""Tiny quantised bases by every library that runs here, and the plain models that compute the same."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tiny import build

WIDE: dict[str, dict[str, int]] = {
    "bert": {"hidden_size": 64, "intermediate_size": 128},
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64, "n_inner": 128},
}
"""Sizes in whole blocks of 64, which 4-bit weights are rounded in."""


def library(name: str) -> None:
    """Skip a test whose library is not installed; in CI it fails, but for torchao, which no extra brings."""
    if importlib.util.find_spec(name) is None:
        if os.environ.get("CI") and name != "torchao":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")


def plain(name: str) -> Any:
    """The model before it is quantised, attention and dropout as in training without dropout."""
    return build(name, attn_implementation="eager", **WIDE[name])


def _bitsandbytes(**options: Any) -> Callable[[str, Path], Any]:
    def load(name: str, folder: Path) -> Any:
        library("bitsandbytes")
        from transformers import AutoModel, BitsAndBytesConfig

        plain(name).save_pretrained(folder)
        return AutoModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", quantization_config=BitsAndBytesConfig(**options)
        )

    return load


def _torchao(name: str, folder: Path) -> Any:
    library("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = plain(name)
    quantize_(model, Int8WeightOnlyConfig())
    return model


def _dynamic(name: str, folder: Path) -> Any:
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(plain(name), {nn.Linear}, dtype=torch.qint8)


QUANTIZED: dict[str, Callable[[str, Path], Any]] = {
    "8bit": _bitsandbytes(load_in_8bit=True),
    "4bit": _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "torchao": _torchao,
    "dynamic": _dynamic,
}
TRAINABLE = ["8bit", "4bit", "torchao"]
"""torch's own dynamically quantised layers have no backward."""


def dequantized(model: Any, name: str) -> Any:
    """A plain model with the values that a quantised one's weights stand for."""
    result = plain(name)
    state = {}
    with torch.no_grad():
        for path, module in model.named_modules():
            weight = module._parameters.get("weight")
            if weight is not None:
                state[f"{path}.weight"] = _values(module, weight)
        for key, value in result.state_dict().items():
            new = state.get(key, value)
            turned = type(result.get_submodule(key.rpartition(".")[0])).__name__ == "Conv1D"  # keeps (inputs, outputs)
            value.copy_(new.T if turned and new.ndim == 2 else new)
    return result


def _values(module: Any, weight: Any) -> torch.Tensor:
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if type(weight).__name__ == "Int8Params":
        scale = module.state.SCB if weight.SCB is None else weight.SCB
        return weight.data.float() * scale.float()[:, None] / 127
    return weight.dequantize().float() if hasattr(weight, "qdata") else weight.detach().float()
