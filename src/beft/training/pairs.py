"""Rows of two texts: read as one input, or each text by itself, as encoders of sentences were trained to read them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from ..core.dense import DENSE
from ..core.heads import bidirectional
from ..core.hub import resolve_model
from ..errors import RecipeError
from ..files import read_json
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .recipe import APART_RATE, OwnRate, Recipe

MODULES = "modules.json"
"""The file by which a model folder is one of sentence-transformers: the modules of an encoder, or of another kind."""
KIND = "config_sentence_transformers.json"
"""The file that says which kind it is, if it is none of an older version."""
NOTICE = "a row's two texts are read apart, as two inputs (--pairs joint: as one)"


def settle_pairs(recipe: Recipe, task: Task | PromptTask, model: str) -> Recipe:
    """The recipe with `pairs` "joint" or "apart": "auto" reads texts apart under a linear head on a sentence encoder.

    Where texts are read apart, what the recipe leaves open - learning rate, start and penalty of the head - is what
    that wants.

    Raises:
        RecipeError: "apart" for a task of one text or of prompts, or with a head that is not linear.
    """
    two = isinstance(task, Task) and len(task.fields) > 1
    if recipe.pairs == "apart":
        found = "" if two else f"the task {task.name} of one text" if isinstance(task, Task) else "prompts"
        found = found or ("" if recipe.head == "linear" else f"head {recipe.head!r}")
        if found:
            raise RecipeError(
                "pairs 'apart'", expected="two texts a row and a linear head", found=found, remedy="leave pairs out"
            )
    if recipe.pairs == "joint":
        return recipe
    if recipe.pairs == "auto" and not (two and recipe.head == "linear" and encodes_sentences(model)):
        return replace(recipe, pairs="joint")
    own_rate = recipe.method in ("bias", "head", "frozen") and isinstance(recipe.lr, OwnRate)
    return replace(
        recipe,
        pairs="apart",
        lr=APART_RATE if own_rate else recipe.lr,
        head_start="regression" if recipe.head_start == "auto" else recipe.head_start,
        head_penalty="regression" if recipe.head_penalty == "auto" else recipe.head_penalty,
    )


def encodes_sentences(model: str) -> bool:
    """Whether a model (folder, Hub id or packaged name) is an encoder of sentence-transformers, by its files.

    Neither is one that reads two texts as one input (a `CrossEncoder`), nor a classifier that `beft merge` wrote.
    """
    config, modules, kind = (_file(model, name) for name in ("config.json", MODULES, KIND))
    if config is None or modules is None or (kind is not None and read_json(kind).get("model_type") == "CrossEncoder"):
        return False
    return DENSE not in modules.read_text("utf-8") and bidirectional(read_json(config).get("model_type", ""))


def _file(model: str, name: str) -> Path | None:
    folder = Path(resolve_model(model)).expanduser()
    if not folder.is_dir():
        return _on_the_hub(model, name)
    return folder / name if (folder / name).exists() else None


@cache
def _on_the_hub(model: str, name: str) -> Path | None:
    from transformers.utils import cached_file

    try:
        found = cached_file(
            model,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no name that a repository can have: whoever loads the model says so
        return None
    return None if found is None else Path(found)
