"""`beft train --lr auto`: the learning rate by cross-validation, before the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ..errors import RecipeError
from . import grid
from .screen import console, notes

if TYPE_CHECKING:
    from ..tasks.question import PromptTask
    from ..tasks.task import Task
    from ..training.recipe import Recipe

AUTO = "auto"


def rate(value: str | None) -> float | None:
    """A learning rate that is a number, or None.

    Raises:
        RecipeError: neither a number nor "auto".
    """
    try:
        return None if value is None else float(value)
    except ValueError:
        raise RecipeError(f"--lr {value}", expected="a number such as 3e-3, or 'auto'") from None


def refuse_beside(given: dict[str, Any]) -> None:
    """Raises RecipeError for an option that needs a learning rate known beforehand."""
    wrong = next((name for name, value in given.items() if value), None)
    if wrong:
        remedy = "give the --lr that the first command printed" if wrong == "--resume" else "give --lr a number"
        raise RecipeError(wrong, expected="--lr with a number beside it", found="--lr auto", remedy=remedy)


def with_best_lr(
    model: str,
    task: Task | PromptTask,
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> Recipe:
    """The recipe with the learning rate that cross-validation of the training rows prefers, which is printed."""
    from ..training.auto_lr import choose_lr
    from ..training.folder import check_new

    check_new(out, overwrite)
    with grid.bank_progress(task.metrics[0], quiet) as listener:
        rates = choose_lr(model, task, recipe, listener=listener, **options)
    if not quiet:
        notes(rates.notices)
        console.print(escape(rates.described()))
    return replace(recipe, lr=rates.chosen)
