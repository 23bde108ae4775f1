"""Methods that train weights of the model itself: all of them, those of the norms, or the language-model head.

Sources: LayerNorm tuning, arXiv 2312.11420. A weight that is not fp32 is trained through an fp32 copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.adapter import ModelHead
from ..core.bank import Bank
from ..core.restore import read_tensors
from ..core.store import PEFT_CONFIG
from ..errors import RecipeError, StoreError
from ..files import Writer
from .method import HEAD_RATE, Method, Options
from .written import Written, add_gradient

WEIGHTS = "weights.safetensors"
"""Trained weights by their names in the model, where only some are trained."""


def in_use(bank: Bank, name: str) -> dict[str, nn.Parameter]:
    """All weights that a forward reads: no pooler under a linear head, no original of a head that is copied."""
    head = bank[name].head
    copied = tuple(path + "." for path in head.paths) if isinstance(head, ModelHead) else ()
    pooled = isinstance(head, ModelHead)
    return {
        key: parameter
        for key, parameter in bank.model.named_parameters()
        if not key.startswith(("beft.", *copied)) and (pooled or "pooler" not in key.split("."))
    }


def norms(bank: Bank, name: str) -> dict[str, nn.Parameter]:
    """Weight and bias of every LayerNorm and RMSNorm."""
    own = {path for path, module in bank.model.named_modules() if "norm" in type(module).__name__.lower()}
    return {key: weight for key, weight in in_use(bank, name).items() if key.rpartition(".")[0] in own}


class Weights(Method):
    """Some weights of the model, chosen by `chosen`."""

    floats = True
    head_lr = HEAD_RATE
    file: ClassVar[str] = WEIGHTS

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.targets: dict[str, nn.Parameter] = {}
        self.own: dict[str, nn.Parameter] = {}
        self.before: dict[str, Tensor] = {}
        self.written: Written | None = None

    def chosen(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """The weights to train, by name."""
        raise NotImplementedError

    def attach(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Method.attach`: an fp32 weight is its own leaf, any other has an fp32 copy."""
        leaves = self.begin(bank, name)
        self.targets = self.chosen(bank, name)
        if not self.targets:
            raise RecipeError(f"method {self.name}", expected="weights to train", found="none in this model")
        self.before = {key: target.detach().clone() for key, target in self.targets.items()}
        self.written = Written(bank)
        for key, target in self.targets.items():
            if target.dtype == torch.float32:
                target.requires_grad_(True)
                self.own[key] = target
            else:
                self.own[key] = leaf = nn.Parameter(target.detach().float())
                self.written.tie(target, [leaf], *_copying(target, leaf))
        return {**self.own, **leaves}

    def files(self) -> Mapping[str, Writer | str | None]:
        """See `Method.files`: fp32 tensors under the weights' names. PEFT knows no such adapter."""
        tensors = {key: leaf.detach().cpu().contiguous() for key, leaf in self.own.items()}
        return {self.file: lambda path: save_file(tensors, path, metadata={"format": "pt"}), PEFT_CONFIG: None}

    def restore(self, bank: Bank, name: str, directory: Path) -> None:
        """See `Method.restore`."""
        self.begin(bank, name)
        put_back(directory / self.file, self.chosen(bank, name))

    def detach(self) -> None:
        """See `Method.detach`: the weights are those from before training."""
        if self.written is not None:
            self.written.release()
        with torch.no_grad():
            for key, target in self.targets.items():
                target.copy_(self.before[key])
                target.grad = None
                target.requires_grad_(False)


def _copying(target: nn.Parameter, leaf: nn.Parameter) -> tuple[Callable[[], Any], Callable[[Tensor], None]]:
    return lambda: target.copy_(leaf), lambda gradient: add_gradient(leaf, gradient)


def put_back(path: Path, targets: Mapping[str, nn.Parameter]) -> None:
    """Copy a file's tensors over weights of the same names.

    Raises:
        StoreError: other names or shapes.
    """
    tensors = read_tensors(path)
    for key, target in targets.items():
        stored = tensors.get(key)
        if stored is None or stored.shape != target.shape:
            found = "none" if stored is None else str(tuple(stored.shape))
            raise StoreError(str(path), expected=f"{key} of shape {tuple(target.shape)}", found=found)
        with torch.no_grad():
            target.copy_(stored)


class Full(Weights):
    """Every weight that is used. The folder holds a stock transformers checkpoint (its tokenizer is the base's)."""

    name = "full"
    summary = "full fine-tuning: every weight that a forward uses"
    lr = 2e-5
    grid = (1e-5, 2e-5, 3e-5, 5e-5)
    file = "model.safetensors"

    def chosen(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Weights.chosen`."""
        return in_use(bank, name)

    def files(self) -> Mapping[str, Writer | str | None]:
        """See `Method.files`: config.json and all tensors under their stock names, the model's own head among them."""
        assert self.bank is not None
        assert self.adapter is not None
        model, head = self.bank.model, self.adapter.head
        tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **self.own}
        if isinstance(head, ModelHead):
            tensors |= {
                f"{path}.{key}": own for path in head.paths for key, own in head.module(path).named_parameters()
            }
        plain = {key: own.detach().cpu().contiguous() for key, own in tensors.items() if not key.startswith("beft.")}
        config: Any = model.config
        return {
            self.file: lambda path: save_file(plain, path, metadata={"format": "pt"}),
            "config.json": config.to_json_string(),
            PEFT_CONFIG: None,
        }


class LayerNorm(Weights):
    """Weight and bias of every norm."""

    name = "layernorm"
    summary = "weight and bias of every norm (LayerNorm tuning)"
    lr = 1e-3
    grid = (3e-4, 1e-3, 3e-3)

    def chosen(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Weights.chosen`."""
        return norms(bank, name)


class LanguageHead(Weights):
    """The language-model head, untied from the embeddings if the model ties them."""

    name = "lm-head"
    summary = "the language-model head alone (prompts)"
    lr = 1e-4
    grid = (3e-5, 1e-4, 3e-4)
    heads = ("none",)

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.tied: tuple[nn.Module, nn.Parameter] | None = None

    def chosen(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Weights.chosen`."""
        model: Any = bank.model
        head = model.get_output_embeddings()
        if head.weight is model.get_input_embeddings().weight:
            self.tied = (head, head.weight)
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        path = next(path for path, module in model.named_modules() if module is head)
        return {f"{path}.{key}": parameter for key, parameter in head.named_parameters()}

    def detach(self) -> None:
        """See `Method.detach`."""
        super().detach()
        if self.tied is not None:
            head, weight = self.tied
            head.weight = weight
