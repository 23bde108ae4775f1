"""Rows of two texts: read as one input, or each text by itself, as encoders of sentences were trained to read them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from ..core.hub import resolve_model
from ..errors import RecipeError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .recipe import Recipe

SENTENCES = "modules.json"
"""The file by which a model folder is one of sentence-transformers."""


def settle_pairs(recipe: Recipe, task: Task | PromptTask, model: str) -> Recipe:
    """The recipe with `pairs` "joint" or "apart": "auto" reads texts apart under a linear head on a sentence encoder.

    Raises:
        RecipeError: "apart" for a task of one text or of prompts, or with a head that is not linear.
    """
    two = isinstance(task, Task) and len(task.fields) > 1
    if recipe.pairs == "apart":
        found = "" if two else f"the task {task.name} of one text" if isinstance(task, Task) else "prompts"
        found = found or ("" if recipe.head == "linear" else f"head {recipe.head!r}")
        if found:
            raise RecipeError("pairs 'apart'", expected="two texts a row and a linear head", found=found)
    if recipe.pairs != "auto":
        return recipe
    apart = two and recipe.head == "linear" and encodes_sentences(model)
    return replace(recipe, pairs="apart" if apart else "joint")


def encodes_sentences(model: str) -> bool:
    """Whether a model (folder, Hub id or name of a packaged one) is one of sentence-transformers, by its files."""
    where = Path(resolve_model(model)).expanduser()
    return (where / SENTENCES).exists() if where.is_dir() else _on_the_hub(model)


@cache
def _on_the_hub(model: str) -> bool:
    from transformers.utils import cached_file

    found = cached_file(
        model,
        SENTENCES,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None
