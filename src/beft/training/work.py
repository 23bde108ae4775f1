"""How much work a run is, before it is begun; and runs dealt out so that all hands have about as much."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..tasks.question import PromptTask
from ..tasks.task import Task
from .plan import Plan

LOOKED_AT = 200
"""Rows whose words are counted."""


def most_steps(plan: Plan) -> int:
    """Steps of a run (resolved) that loses no patience and refits for as many epochs as it may."""
    recipe = plan.recipe
    assert recipe is not None
    return (recipe.epochs or 1) * sum(math.ceil(count / recipe.batch_size) for count in _phases(plan))


def expected_work(plan: Plan) -> float:
    """Tokens that a run (resolved) goes through, in forward and backward; a row only judged counts half."""
    recipe, task = plan.recipe, plan.own_task()
    assert recipe is not None
    judged = sum(len(part) for part in task.evaluation.values())
    rows = (recipe.epochs or 1) * sum(_phases(plan)) + judged / 2
    return rows * min(row_tokens(task), float(recipe.max_length))


def row_tokens(task: Task | PromptTask) -> float:
    """Rough mean length of a training row: words of the first ones by 1.4, and the special tokens."""
    if isinstance(task, PromptTask):
        words = [len(q.prompt.split()) + sum(len(c.split()) for c in q.candidates) for q in task.train[:LOOKED_AT]]
    else:
        words = [sum(len(text.split()) for text in example.texts) for example in task.train[:LOOKED_AT]]
    return 1.4 * sum(words) / max(1, len(words)) + 3


def deal(plans: Sequence[Plan], hands: int) -> list[list[Plan]]:
    """Plans (resolved) in at most so many hands of about as much work, each in the order of the plans.

    The greatest first, each to the hand that has least so far: within a third of the best deal there is.
    """
    dealt: list[list[int]] = [[] for _ in range(min(hands, len(plans)))]
    loads = [0.0] * len(dealt)
    work = [expected_work(plan) for plan in plans]
    for number in sorted(range(len(plans)), key=lambda each: -work[each]):
        least = loads.index(min(loads))
        dealt[least].append(number)
        loads[least] += work[number]
    return [[plans[number] for number in sorted(hand)] for hand in dealt]


def _phases(plan: Plan) -> list[int]:
    """Rows of an epoch of each phase."""
    recipe, rows = plan.recipe, len(plan.own_task().train)
    assert recipe is not None
    dev = round(rows * recipe.dev_fraction) if recipe.selection == "dev" else 0
    return [rows - dev, rows] if dev and recipe.refit else [rows - dev]
