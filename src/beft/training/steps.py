"""Optimiser steps of many runs at once: AdamW and clipping, each run with rates, schedule and limit of its own.

A run's leaves are kilobytes, so its step is all dispatch and, on a GPU, waiting for a norm. The steps of all runs
together are as many calls as one run's, and their norms are read once. `torch.optim.AdamW` knows one rate for all
leaves of a call; its arithmetic and that of `clip_grads_with_norm_` are followed, to the same bits in any company.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .recipe import Recipe


class AdamW:
    """One run's leaves, the settings of their steps, and what their steps remember."""

    def __init__(self, leaves: Mapping[str, nn.Parameter], recipe: Recipe) -> None:
        self.recipe = recipe
        self.rates = {leaf: recipe.head_rate if key.startswith("head.") else recipe.lr for key, leaf in leaves.items()}
        """Of every leaf, before the schedule."""
        self.state: dict[nn.Parameter, dict[str, Any]] = {}
        """By leaf, of those that have moved: `step` counts its steps; `exp_avg`, `exp_avg_sq` are its moments."""

    def zero_grad(self) -> None:
        """No gradients in the leaves."""
        for leaf in self.rates:
            leaf.grad = None

    def moved(self) -> list[nn.Parameter]:
        """The leaves that have a gradient, each with a place to remember it."""
        leaves = [leaf for leaf in self.rates if leaf.grad is not None]
        for leaf in leaves:
            if leaf not in self.state:
                moments = {key: torch.zeros_like(leaf.detach()) for key in ("exp_avg", "exp_avg_sq")}
                self.state[leaf] = {"step": 0.0, **moments}
        return leaves


@dataclass(frozen=True)
class Step:
    """A wish: a step along the gradients in the leaves, of this loss. The answer is (their norm, seconds it took).

    Where loss or norm is not finite nothing moves. `rate` is the schedule's factor; `penalties` are, by leaf, factors
    that times its values are added to its gradient.
    """

    optimiser: AdamW
    loss: float
    rate: float = 1.0
    penalties: Mapping[nn.Parameter, Tensor] = field(default_factory=dict)


@torch.no_grad()
def take(steps: Sequence[Step]) -> list[float]:
    """Take steps of several runs together; the norm of each one's gradient, penalties included, before clipping."""
    _penalise(steps)
    norms, shares = _norms(steps)
    alike: dict[tuple[float, float, float], list[tuple[Step, float]]] = {}
    for step, norm, share in zip(steps, norms, shares, strict=True):
        if math.isfinite(step.loss) and math.isfinite(norm):
            recipe = step.optimiser.recipe
            alike.setdefault((recipe.beta1, recipe.beta2, recipe.eps), []).append((step, share))
    for betas, moving in alike.items():
        _move(moving, *betas)
    return norms


def _penalise(steps: Sequence[Step]) -> None:
    penalised = [(leaf, factors) for step in steps for leaf, factors in step.penalties.items() if leaf.grad is not None]
    if penalised:
        gradients: Any = [leaf.grad for leaf, _ in penalised]
        torch._foreach_addcmul_(gradients, [leaf for leaf, _ in penalised], [factors for _, factors in penalised])


def _norms(steps: Sequence[Step]) -> tuple[list[float], list[float]]:
    """Of each run the norm of its gradient, and the factor that clips it; read from the device together."""
    gradients = [[leaf.grad for leaf in step.optimiser.rates if leaf.grad is not None] for step in steps]
    every = [each for own in gradients for each in own]
    if not every:
        return [0.0] * len(steps), [1.0] * len(steps)
    parts = torch.stack([each.to(every[0].device) for each in torch._foreach_norm(every)])
    norms = torch.stack(torch._foreach_norm(parts.split([len(own) for own in gradients])))
    limits = torch.tensor([step.optimiser.recipe.clip or math.inf for step in steps]).to(norms)
    shares = ((norms + 1e-6).reciprocal() * limits).clamp(max=1.0)
    found = torch.stack([norms, shares]).tolist()
    return found[0], found[1]


def _move(moving: Sequence[tuple[Step, float]], beta1: float, beta2: float, eps: float) -> None:
    """Clip by each run's share, decay its leaves, and move them."""
    leaves: list[Tensor] = []
    shares, rates, decays, states = [], [], [], []
    for step, share in moving:
        optimiser = step.optimiser
        for leaf in optimiser.moved():
            rate = optimiser.rates[leaf] * step.rate
            leaves.append(leaf)
            shares.append(share)
            rates.append(rate)
            decays.append(1 - rate * optimiser.recipe.weight_decay)
            states.append(optimiser.state[leaf])
            states[-1]["step"] += 1
    if not leaves:
        return
    gradients: Any = [leaf.grad for leaf in leaves]
    first, second = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
    counts = [state["step"] for state in states]
    if any(share != 1.0 for share in shares):
        torch._foreach_mul_(gradients, shares)
    if any(decay != 1.0 for decay in decays):
        torch._foreach_mul_(leaves, decays)
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
    spread = torch._foreach_sqrt(second)
    torch._foreach_div_(spread, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(spread, eps)
    sizes = [-rate / (1 - beta1**count) for rate, count in zip(rates, counts, strict=True)]
    torch._foreach_addcdiv_(leaves, first, spread, sizes)
