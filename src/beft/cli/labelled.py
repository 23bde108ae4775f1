"""Labelled rows and the recipe for them, from what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError

if TYPE_CHECKING:
    from ..tasks.task import Task
    from ..training.recipe import Recipe


def load_task(
    task: str | None,
    data: str | None,
    text: list[str] | None,
    label: str | None,
    data_dir: Path | None,
    eval_data: str | None,
    no_eval: bool,
    train_size: str | None,
    eval_size: int | None,
    regime: str | None,
    regression: bool,
    seed: int,
) -> Task:
    """A benchmark or own rows, from the options.

    Raises:
        RecipeError: options that contradict one another or are missing.
        DataError: see `beft.tasks.load`.
    """
    from ..tasks.load import benchmark_task
    from ..tasks.own import own_task

    check_source(task, data, text, label)
    if task is not None:
        given = [
            name
            for name, value in {
                "--text": text,
                "--label": label,
                "--eval": eval_data,
                "--no-eval": no_eval,
                "--regression": regression,
            }.items()
            if value
        ]
        if given:
            raise RecipeError(given[0], expected="--data beside it", found=f"--task {task}")
        return benchmark_task(task, data_dir, size=train_size, regime=regime, eval_size=eval_size, seed=seed)
    if regime:
        raise RecipeError("--regime", expected="--task beside it", found="--data", remedy="use --train-size N")
    assert data is not None
    assert text is not None
    assert label is not None
    return own_task(
        data,
        text,
        label,
        eval_data=eval_data,
        hold_out=not no_eval,
        size=train_size,
        eval_size=eval_size,
        regression=regression,
        seed=seed,
    )


def check_source(task: str | None, data: str | None, text: list[str] | None, label: str | None) -> None:
    """Raises RecipeError unless there is a task or own rows, these with their columns."""
    check_one(task, data)
    if data is not None and not (text and label):
        raise RecipeError("--data", expected="--text COLUMN and --label COLUMN beside it", found="not both")


def check_one(task: str | None, data: str | None) -> None:
    """Raises RecipeError unless there is either a task or own rows."""
    if (task is None) == (data is None):
        raise RecipeError("--task and --data", expected="one of them", found="both" if task else "neither")


def make_recipe(preset: str, task: str | None, model: str, changes: dict[str, Any]) -> Recipe:
    """The recipe of a preset with the user's changes. `task` is a benchmark's name, or None for own rows.

    Raises:
        RecipeError: an unknown preset, or values out of range.
        DataError: an unknown task.
    """
    from ..tasks.load import benchmark
    from ..tasks.registered import is_registered
    from ..training.recipe import Recipe, paper_recipe

    if preset == "paper":
        known = task is not None and not is_registered(task)
        return paper_recipe(benchmark(task or "").name if known else "", model, **changes)
    if preset != "default":
        raise RecipeError(f"--recipe {preset}", expected="default or paper")
    return Recipe(**changes)


def dropout_rate(value: str | None) -> float | str | None:
    """A rate, or "model".

    Raises:
        RecipeError: neither.
    """
    if value is None or value == "model":
        return value
    try:
        return float(value)
    except ValueError:
        raise RecipeError(f"--dropout {value}", expected="a rate such as 0.1, or 'model'") from None
