"""`--lr auto`: the learning rate of a recipe, chosen by one round of cross-validation on the training rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import RecipeError, TrainingError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .folds import fold_count, make_folds
from .many import train_many
from .pairs import settle_pairs
from .plan import Plan
from .progress import BankListener
from .recipe import Recipe

FACTORS = (1 / 3, 1.0, 3.0)
"""Rates to try, as multiples of the recipe's own."""
FOLDS = 3


@dataclass(frozen=True)
class Rates:
    """The learning rate that was chosen, the mean score of each that was tried (None: a run failed), and notices."""

    chosen: float
    scores: dict[float, float | None]
    metric: str
    notices: list[str]

    def described(self) -> str:
        """In words, for the screen."""
        tried = ", ".join(
            f"{lr:g}: {'failed' if score is None else f'{score:.3f}'}" for lr, score in self.scores.items()
        )
        return f"learning rate {self.chosen:g}, by {FOLDS} folds of the training rows ({self.metric} {tried})"


def choose_lr(
    model: str,
    task: Task | PromptTask,
    recipe: Recipe,
    lrs: Sequence[float] | None = None,
    *,
    listener: BankListener | None = None,
    **options: Any,
) -> Rates:
    """Try learning rates on three folds of the training rows, in one pass, with the recipe's epochs; of equals the one
    nearest to the recipe's own is taken. Other options are those of `train_many`.

    Raises:
        DataError: fewer than three different texts.
        RecipeError: dropout.
        TrainingError: every rate failed.
    """
    _, notices = fold_count(task, None, FOLDS)
    recipe = settle_pairs(recipe, task, model)
    if recipe.selection == "evaluation":
        raise RecipeError(
            "lr auto",
            expected="a recipe that selects on training rows",
            found="one that selects on the evaluation rows",
            remedy="give --lr a number",
        )
    tried = [float(f"{recipe.lr * factor:.1g}") for factor in FACTORS] if lrs is None else list(lrs)
    trial = replace(recipe.resolve_for(task), selection="none", refit=False)
    folds = make_folds(task, FOLDS, 0, recipe.seed)
    plans = {
        (lr, fold.number): Plan(f"lr{lr:g}-{fold.name}", replace(trial, lr=lr), rows=fold.rows, judged=fold.judged)
        for lr in tried
        for fold in folds
    }
    unjudged: Any = replace(task, evaluation={})  # type: ignore[arg-type]
    found = train_many(model, unjudged, list(plans.values()), with_baselines=False, listener=listener, **options)
    scores: dict[float, float | None] = {}
    for lr in tried:
        names = [plans[lr, fold.number].name for fold in folds]
        if all(name in found.results for name in names):
            mean = statistics.fmean(found.results[name].evaluation[task.metrics[0]] for name in names)
            scores[lr] = mean if math.isfinite(mean) else None
        else:
            scores[lr] = None
    good = {lr: score for lr, score in scores.items() if score is not None}
    if not good:
        raise TrainingError(
            f"lr auto, {', '.join(f'{lr:g}' for lr in tried)}",
            expected="a finite loss",
            found="none with any",
            remedy="give --lr a smaller number",
        )
    chosen = min(good, key=lambda lr: (-good[lr], abs(math.log(lr / recipe.lr))))
    return Rates(chosen, scores, task.metrics[0], notices)
