"""A plan: one run to be made, told apart from others of its bank by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DataError, RecipeError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .pairs import settle_pairs
from .recipe import Pairs, Recipe, prompt_recipe

HELD_OUT = "held-out"
"""The evaluation split that `Plan.judged` makes."""


def folder_name(text: str) -> str:
    """The text as a run may be called: "-" in place of what no folder's name holds, as in "my_term.py:gate"."""
    return re.sub(r"[^\w.+=,@~ -]", "-", text).lstrip(". ")


@dataclass(frozen=True)
class Plan:
    """A run to be made.

    `name` is also its folder's. Without a `recipe` the default of the task's kind holds. `task` may differ from run to
    run, labels and all. `rows` are numbers of the task's training rows to learn from (all if None); `judged` are
    numbers of training rows to be judged on, in place of the task's evaluation rows: a fold. `probed` is how the linear
    model beside the run reads two texts, if not as the run does.
    """

    name: str
    recipe: Recipe | None = None
    task: Task | PromptTask | None = None
    rows: Sequence[int] | None = None
    judged: Sequence[int] | None = None
    probed: Pairs | None = None

    def resolve(self, task: Task | PromptTask, model: str) -> Plan:
        """The same with nothing left open: the task its own or the given one, the recipe with a number of epochs and
        how `model` reads two texts.

        Raises:
            RecipeError: a name that is no folder name, or a head that the task cannot have.
            DataError: no rows, or rows that the task does not have.
        """
        if not re.fullmatch(r"[\w+=,@~-][\w.+=,@~ -]*", self.name):
            raise RecipeError(f"run {self.name!r}", expected="a folder name of letters, digits and . _ - + = , @")
        own = self.task if self.task is not None else task
        recipe = self.recipe
        if recipe is None:
            recipe = prompt_recipe(own.name) if isinstance(own, PromptTask) else Recipe()
        if recipe.head == "none" and not isinstance(own, PromptTask):
            raise RecipeError(
                f"run {self.name!r}, head 'none'",
                expected="linear or model",
                found="a task of labels",
                remedy="leave head out",
            )
        for what, numbers in (("rows", self.rows), ("judged", self.judged)):
            wrong = [number for number in numbers or () if not 0 <= number < len(own.train)]
            if wrong or (numbers is not None and not len(numbers)):
                raise DataError(
                    f"run {self.name!r}, {what}",
                    expected=f"numbers of the {len(own.train)} training rows",
                    found=str(wrong[0]) if wrong else "none",
                )
        count = len(own.train) if self.rows is None else len(self.rows)
        recipe = settle_pairs(recipe, own, model).resolve(count, len(own.labels or ()))
        return replace(self, task=own, recipe=recipe)

    def own_task(self) -> Task | PromptTask:
        """The task as this run sees it, of a resolved plan."""
        assert self.task is not None
        if self.rows is None and self.judged is None:
            return self.task
        changes: dict[str, Any] = {}
        if self.rows is not None:
            changes["train"] = [self.task.train[number] for number in self.rows]
        if self.judged is not None:
            changes["evaluation"] = {HELD_OUT: [self.task.train[number] for number in self.judged]}
        return replace(self.task, **changes)


def check_plans(plans: Sequence[Plan]) -> None:
    """Raise for plans (resolved) that cannot be one bank.

    Raises:
        RecipeError: no plans, two of one name, dropout, or labels beside prompts.
    """
    if not plans:
        raise RecipeError("runs", expected="at least one", found="none")
    names = [plan.name for plan in plans]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(
            "runs", expected="every name once", found=f"{twice!r} twice", remedy="give each run a name of its own"
        )
    for plan in plans:
        assert plan.recipe is not None
        if plan.recipe.dropout != 0:
            raise RecipeError(
                f"run {plan.name!r}, dropout {plan.recipe.dropout!r}",
                expected="0 in a bank",
                found="one that draws from the rows of other runs, which would change with the company",
                remedy="train it alone with beft.train, or leave dropout out",
            )
    kinds = {isinstance(plan.task, PromptTask) for plan in plans}
    if len(kinds) > 1:
        raise RecipeError(
            "runs",
            expected="tasks of labels or tasks of prompts",
            found="both",
            remedy="train the prompts in a bank of their own: they need the model's language-model head",
        )
