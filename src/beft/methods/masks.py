"""Random masks: some entries of the model's weights are trained, the others stay. The baselines of the paper's table 2.

Sources: the random baselines of BitFit (arXiv 2106.10199, section 4) as used by arXiv 2509.15974, table 2. Leaves hold
the chosen entries alone, in fp32: their number is exact, and neither weight decay nor an optimiser's state touches an
entry outside the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.bank import Bank
from ..core.restore import read_tensors
from ..core.store import PEFT_CONFIG
from ..errors import RecipeError, StoreError
from ..files import Writer
from .method import HEAD_RATE, Method, Options
from .weights import WEIGHTS, in_use, norms
from .written import Written, add_gradient

SIZES = {("bert", 768): 100_000, ("bert", 1024): 280_000, ("roberta", 768): 105_000}
"""The paper's sizes of a uniform mask, by model type and hidden size."""
SHARE = 0.001
"""Of the parameters, in other models."""


def uniform(weights: Mapping[str, nn.Parameter], size: int, seed: int) -> dict[str, Tensor]:
    """Exactly `size` entries, spread over the weights in proportion to their size: flat indices, ascending, by name.

    Raises:
        RecipeError: more entries than there are.
    """
    counts = np.array([weight.numel() for weight in weights.values()])
    if size > counts.sum():
        raise RecipeError(f"--mask-size {size}", expected=f"at most {counts.sum()}, the model's", found=str(size))
    exact = size * counts / counts.sum()
    share = np.floor(exact).astype(int)
    largest = np.argsort(share - exact, kind="stable")  # the largest remainders get what is left
    share[largest[: size - share.sum()]] += 1
    random = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(np.sort(random.choice(count, taken, replace=False)))
        for name, count, taken in zip(weights, counts.tolist(), share.tolist(), strict=True)
        if taken
    }


def rows_columns(model: nn.Module, weights: Mapping[str, nn.Parameter], norm: set[str], seed: int) -> dict[str, Tensor]:
    """Entries in the layers and the pooler: norms' weights whole; of each matrix one random column, or, by a coin and
    where it has at least as many outputs as inputs, `outputs // inputs` random rows. Flat indices by name."""
    random = np.random.default_rng(seed)
    chosen: dict[str, Tensor] = {}
    for name, weight in weights.items():
        parts = name.split(".")
        if parts[-1] != "weight" or not ("pooler" in parts or any(part.isdigit() for part in parts)):
            continue
        entries = torch.arange(weight.numel()).view(weight.shape)
        if name in norm:
            chosen[name] = entries
        elif weight.ndim == 2:
            module = model.get_submodule(name.rpartition(".")[0])
            if type(module).__name__ == "Conv1D":  # GPT-2 keeps (inputs, outputs)
                entries = entries.T
            outputs, inputs = entries.shape
            if outputs >= inputs and random.integers(2):
                rows = random.choice(outputs, outputs // inputs, replace=False)
                chosen[name] = entries[torch.from_numpy(np.sort(rows))]
            else:
                chosen[name] = entries[:, int(random.integers(inputs))]
    return {name: entries.reshape(-1).sort().values for name, entries in chosen.items()}


class Mask(Method):
    """Some entries of some weights, chosen by `entries`."""

    floats = True
    lr = 1e-3
    grid = (3e-4, 1e-3, 3e-3)
    head_lr = HEAD_RATE

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.own: dict[str, nn.Parameter] = {}
        self.indices: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.targets: dict[str, nn.Parameter] = {}
        self.written: Written | None = None

    def entries(self, bank: Bank, name: str) -> dict[str, Tensor]:
        """Flat indices of the entries to train, by the weight's name."""
        raise NotImplementedError

    def attach(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Method.attach`."""
        leaves = self.begin(bank, name)
        self.written = Written(bank)
        for key, index in self.entries(bank, name).items():
            target = bank.model.get_parameter(key)
            index = index.to(target.device)
            self.indices[key], self.targets[key] = index, target
            self.before[key] = target.detach().take(index)
            self.own[key] = leaf = nn.Parameter(self.before[key].to(torch.float32, copy=True))
            self.written.tie(target, [leaf], *_entries(target, index, leaf))
        return {**self.own, **leaves}

    def files(self) -> Mapping[str, Writer | str | None]:
        """See `Method.files`: `<weight>.indices` (flat, int64) and `<weight>.values` (fp32)."""
        tensors = {f"{key}.values": leaf.detach().cpu() for key, leaf in self.own.items()}
        tensors |= {f"{key}.indices": index.cpu() for key, index in self.indices.items()}
        return {WEIGHTS: lambda path: save_file(tensors, path, metadata={"format": "pt"}), PEFT_CONFIG: None}

    def restore(self, bank: Bank, name: str, directory: Path) -> None:
        """See `Method.restore`: by the indices in the file, whatever would be drawn today."""
        self.begin(bank, name)
        tensors = read_tensors(directory / WEIGHTS)
        weights = dict(bank.model.named_parameters())
        for key in (key.removesuffix(".values") for key in tensors if key.endswith(".values")):
            values, index = tensors[f"{key}.values"], tensors.get(f"{key}.indices")
            if key not in weights or index is None or len(index) != len(values) or _beyond(index, weights[key]):
                raise StoreError(
                    str(directory / WEIGHTS), expected=f"entries of {key}", found="some that the model does not have"
                )
            target = weights[key]
            self.targets[key], self.indices[key] = target, index.to(target.device)
            self.before[key] = target.detach().take(self.indices[key])
            with torch.no_grad():
                target.put_(self.indices[key], values.to(target))

    def detach(self) -> None:
        """See `Method.detach`."""
        if self.written is not None:
            self.written.release()
        with torch.no_grad():
            for key, target in self.targets.items():
                target.put_(self.indices[key], self.before[key])
                target.requires_grad_(False)


def _entries(target: nn.Parameter, index: Tensor, leaf: nn.Parameter) -> tuple[Any, Any]:
    """How some entries of a weight are written, and their gradient passed on."""
    return (
        lambda: target.put_(index, leaf.detach().to(target.dtype)),
        lambda gradient: add_gradient(leaf, gradient.take(index)),
    )


def _beyond(index: Tensor, weight: Tensor) -> bool:
    return bool(len(index)) and (int(index.min()) < 0 or int(index.max()) >= weight.numel())


class RandomMask(Mask):
    """A uniform subset of all entries that are used."""

    name = "random-mask"
    summary = "a random uniform subset of all weights (--mask-size), gradients masked"
    uses = ("mask_size",)

    def entries(self, bank: Bank, name: str) -> dict[str, Tensor]:
        """See `Mask.entries`."""
        weights = in_use(bank, name)
        return uniform(weights, self.options.mask_size or self._usual(bank), self.options.seed)

    def _usual(self, bank: Bank) -> int:
        config: Any = bank.model.config
        size = SIZES.get((getattr(config, "model_type", ""), getattr(config, "hidden_size", 0)))
        return size or max(1, round(SHARE * self.base_size))


class RowsColumns(Mask):
    """Rows and columns of the layers' matrices, and the norms' weights."""

    name = "rows-columns"
    summary = "a random row or column of every matrix, and the norms' weights"

    def entries(self, bank: Bank, name: str) -> dict[str, Tensor]:
        """See `Mask.entries`."""
        return rows_columns(bank.model, in_use(bank, name), set(norms(bank, name)), self.options.seed)
