"""Tensors of a frozen model that are functions of trained leaves.

Some methods train less, or something finer, than a tensor the model reads: some entries of a weight, the factors of a
vector, an fp32 copy of a bf16 weight. The model keeps its own tensor. Before a forward the leaves' value is written
into it; in backward its gradient is passed on to the leaves by the chain rule and is not kept. So an optimiser, a norm
of gradients and a checkpoint see the leaves alone, and their count is the count of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.bank import Bank


class Written:
    """The tied tensors of one model."""

    def __init__(self, bank: Bank) -> None:
        self._writers: list[tuple[Sequence[nn.Parameter], Callable[[], Any]]] = []
        self._handles: list[Any] = []
        self._versions: list[int] = []
        model = bank.model
        for entrance in {model, getattr(model, "base_model", model)}:  # OPT's language model does not call its base
            self._handles.append(entrance.register_forward_pre_hook(lambda module, args: self.write()))

    def tie(
        self,
        target: nn.Parameter,
        leaves: Sequence[nn.Parameter],
        write: Callable[[], Any],
        pass_on: Callable[[Tensor], None],
    ) -> None:
        """Tie a tensor of the model to leaves.

        Args:
            target: it begins to require gradients.
            write: puts the leaves' value into the target, called without gradients.
            pass_on: adds a gradient of the target's shape to the leaves' own.
        """
        target.requires_grad_(True)

        def after(parameter: Tensor) -> None:
            if parameter.grad is not None:
                pass_on(parameter.grad)
                parameter.grad = None

        self._handles.append(target.register_post_accumulate_grad_hook(after))
        self._writers.append((leaves, write))
        self._versions.append(-1)

    def write(self) -> None:
        """Bring every target up to date with its leaves."""
        with torch.no_grad():
            for number, (leaves, write) in enumerate(self._writers):
                version = sum(leaf._version for leaf in leaves)
                if version != self._versions[number]:
                    write()
                    self._versions[number] = version

    def release(self) -> None:
        """Untie everything; the targets keep what was written last."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._writers.clear()


def add_gradient(leaf: nn.Parameter, gradient: Tensor) -> None:
    """Add to a leaf's gradient, in the leaf's dtype."""
    gradient = gradient.to(leaf.dtype)
    leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad + gradient
