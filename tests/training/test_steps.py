"""Steps of many runs at once are those of torch's optimiser, one run after the other."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from beft import Recipe
from beft.training.steps import AdamW, Step, take

RECIPES = [
    Recipe(lr=1e-3, clip=1.0, weight_decay=0.0),
    Recipe(lr=5e-3, head_lr=1e-2, clip=0.0, weight_decay=0.1),
    Recipe(lr=2e-3, clip=1e-3, beta1=0.8, beta2=0.99, eps=1e-6),
    Recipe(lr=1e-2, clip=100.0, beta1=0.0),
]


def leaves_of(number: int) -> dict[str, nn.Parameter]:
    """A run's leaves, each run with sizes of its own."""
    random = torch.Generator().manual_seed(number)
    sizes = {"layer.0.value": (8 + number,), "layer.1.value": (8,), "head.weight": (3, 8), "unused": (5,)}
    return {key: nn.Parameter(torch.randn(size, generator=random)) for key, size in sizes.items()}


def give_gradients(leaves: dict[str, nn.Parameter], number: int, moment: int) -> None:
    random = torch.Generator().manual_seed(1000 * number + moment)
    for key, leaf in leaves.items():
        without = key == "unused" or (key == "layer.1.value" and moment % 3 == number % 3)  # one comes and goes
        leaf.grad = None if without else torch.randn(leaf.shape, generator=random)


def of_torch(leaves: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    head = [leaf for key, leaf in leaves.items() if key.startswith("head.")]
    rest = [leaf for key, leaf in leaves.items() if not key.startswith("head.")]
    return torch.optim.AdamW(
        [{"params": rest, "lr": recipe.lr}, {"params": head, "lr": recipe.head_rate}],
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )


def step_of_torch(optimiser: torch.optim.AdamW, leaves: dict[str, nn.Parameter], recipe: Recipe, rate: float) -> float:
    for group, base in zip(optimiser.param_groups, (recipe.lr, recipe.head_rate), strict=True):
        group["lr"] = base * rate
    norm = torch.nn.utils.clip_grad_norm_(leaves.values(), recipe.clip or math.inf)
    optimiser.step()
    return float(norm)


@pytest.mark.parametrize("company", [1, 2, 40])
def test_each_run_moves_as_under_torch_to_the_bit(company: int) -> None:
    recipes = [RECIPES[number % len(RECIPES)] for number in range(company)]
    ours = [leaves_of(number) for number in range(company)]
    theirs = copy.deepcopy(ours)
    optimisers = [AdamW(leaves, recipe) for leaves, recipe in zip(ours, recipes, strict=True)]
    stock = [of_torch(leaves, recipe) for leaves, recipe in zip(theirs, recipes, strict=True)]
    for moment in range(6):
        active = [number for number in range(company) if (number + moment) % 3 or company == 1]  # others wait
        rates = {number: 1 / (1 + moment + number % 2) for number in active}
        for number in active:
            give_gradients(ours[number], number, moment)
            give_gradients(theirs[number], number, moment)
        found = take([Step(optimisers[number], 0.5, rates[number]) for number in active])
        wanted = [step_of_torch(stock[each], theirs[each], recipes[each], rates[each]) for each in active]
        assert found == wanted
        for number in active:
            for key, leaf in ours[number].items():
                assert torch.equal(leaf, theirs[number][key]), (number, key)
                kept = stock[number].state.get(theirs[number][key], {})
                assert optimisers[number].state.get(leaf, {}).keys() == kept.keys()
                assert all(
                    torch.equal(torch.as_tensor(optimisers[number].state[leaf][each]), kept[each]) for each in kept
                )


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_what_is_not_finite_stays_and_its_neighbours_go_on(wrong: str) -> None:
    ours, alone = [leaves_of(number) for number in range(3)], leaves_of(2)
    optimisers = [AdamW(leaves, RECIPES[0]) for leaves in ours]
    by_itself = AdamW(alone, RECIPES[0])
    before = copy.deepcopy(ours[1])
    for number, leaves in enumerate(ours):
        give_gradients(leaves, number, 0)
    give_gradients(alone, 2, 0)
    if wrong == "gradient":
        gradient: Any = ours[1]["layer.1.value"].grad
        gradient[3] = math.inf
    losses = [0.5, math.nan if wrong == "loss" else 0.5, 0.5]
    norms = take([Step(optimiser, loss) for optimiser, loss in zip(optimisers, losses, strict=True)])
    take([Step(by_itself, 0.5)])
    assert [math.isfinite(norm) for norm in norms] == [True, wrong == "loss", True]
    assert all(torch.equal(ours[1][key], leaf) for key, leaf in before.items())
    assert not optimisers[1].state
    assert all(torch.equal(ours[2][key], leaf) for key, leaf in alone.items())


def test_penalties_are_part_of_the_gradient_and_of_its_norm() -> None:
    leaves, other = leaves_of(0), leaves_of(0)
    give_gradients(leaves, 0, 0)
    give_gradients(other, 0, 0)
    head = other["head.weight"]
    assert head.grad is not None
    factors = torch.full(head.shape, 0.25)
    with torch.no_grad():
        head.grad += 0.25 * head
    found = take([Step(AdamW(leaves, RECIPES[2]), 0.5, penalties={leaves["head.weight"]: factors})])
    wanted = take([Step(AdamW(other, RECIPES[2]), 0.5)])
    assert found == pytest.approx(wanted, abs=1e-6)
    assert all(torch.allclose(leaf, other[key], atol=1e-7) for key, leaf in leaves.items())


def test_leaves_without_any_gradient_stay() -> None:
    leaves = leaves_of(0)
    assert take([Step(AdamW(leaves, RECIPES[0]), 0.5)]) == [0.0]
    assert take([]) == []
    assert all(torch.equal(leaf, leaves_of(0)[key]) for key, leaf in leaves.items())
