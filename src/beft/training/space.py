"""What `tune` may choose from, and in which order: settings near the usual ones come first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.terms import same_terms
from ..errors import RecipeError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .recipe import Recipe, prompt_recipe

HEADS: dict[str, dict[str, Any]] = {
    "linear": {"head": "linear", "head_start": "zero", "head_penalty": "none"},
    "means": {"head": "linear", "head_start": "means", "head_penalty": "none"},
    "regression": {"head": "linear", "head_start": "regression", "head_penalty": "none"},
    "apart": {"head": "linear", "head_start": "regression", "head_penalty": "regression", "pairs": "apart"},
    "joint": {"head": "linear", "head_start": "zero", "head_penalty": "none", "pairs": "joint"},
    "model": {"head": "model", "head_start": "zero", "head_penalty": "none", "pairs": "joint"},
    "none": {"head": "none", "head_start": "zero", "head_penalty": "none"},
}
"""Heads by the names `tune` has for them: linear from zero, from the classes' means or from the logistic regression; on
two texts read apart, kept near the regression, or as one input; and the model's own."""
LRS = (1e-3, 3e-3, 1e-2, 3e-2)
TERMS = ("value", "all", "query+value")
"""b_v, then all biases, which with 100 rows are ahead of it on most tasks tried (docs/results/few.md)."""
LAYERS: tuple[str | None, ...] = (None, "last:2")
MOST_EPOCHS = 60


@dataclass(frozen=True)
class Space:
    """Values to choose from on each axis; the first of each is where the search starts. None: the usual ones.

    `heads` are names of `HEADS`. `layers` may hold None for all layers. `epochs` are passes over the rows.
    """

    lrs: Sequence[float] | None = None
    terms: Sequence[str] | None = None
    layers: Sequence[str | None] | None = None
    heads: Sequence[str] | None = None
    epochs: Sequence[int] | None = None

    def resolve(self, task: Task | PromptTask, recipe: Recipe) -> Space:
        """The same with nothing left open.

        Raises:
            RecipeError: an axis without values, a value twice, or a head that the task cannot have.
        TermError: terms that are none.
        """
        prompts = isinstance(task, PromptTask)
        resolved = recipe.resolve_for(task)
        usual = resolved.epochs or 1
        full = Space(
            LRS if self.lrs is None else self.lrs,
            TERMS if self.terms is None else self.terms,
            LAYERS if self.layers is None else self.layers,
            _heads(task, resolved) if self.heads is None else self.heads,
            (usual, min(2 * usual, max(usual, MOST_EPOCHS))) if self.epochs is None else self.epochs,
        )
        if self.epochs is None:
            full = replace(full, epochs=tuple(dict.fromkeys(full.epochs or ())))
        for axis in ("lrs", "terms", "layers", "heads", "epochs"):
            values = list(getattr(full, axis))
            twice = next((each for each in values if values.count(each) > 1), None)
            if not values or twice is not None:
                found = f"{twice!r} twice" if values else "none"
                raise RecipeError(axis, expected="one value or more, every one once", found=found)
        same = same_terms(full.terms or ())
        if same is not None:
            raise RecipeError("terms", expected="every value once", found=f"{same[0]!r} and {same[1]!r}, the same")
        for head in full.heads or ():
            if head not in HEADS or (head == "none") != prompts:
                known = "none (prompts have no head)" if prompts else "linear, means, regression, apart, joint or model"
                raise RecipeError(f"head {head!r}", expected=known)
        if recipe.pairs == "joint" and {"linear", "joint"} <= set(full.heads or ()):
            raise RecipeError(
                "heads", expected="every value once", found="'linear' and 'joint', the same for this model"
            )
        return full


def _heads(task: Task | PromptTask, recipe: Recipe) -> tuple[str, ...]:
    """Heads to try where nobody named any."""
    if isinstance(task, PromptTask):
        return ("none",)
    if recipe.pairs == "apart":
        return ("apart", "linear", "joint")
    if task.regression:
        return ("linear",)
    return ("means", "linear", "regression") if recipe.head_start == "means" else ("linear", "regression")


@dataclass(frozen=True)
class Candidate:
    """Settings to try. `recipe` trains for all of its epochs and selects nothing: the folds do."""

    name: str
    lr: float
    terms: str
    layers: str | None
    head: str
    epochs: int
    recipe: Recipe
    usual: bool
    """Whether all but terms and learning rate are where the search starts: the lines of the learning-rate curve."""

    def shortened(self, share: float, seed: int) -> Recipe:
        """Its recipe with a share of the epochs, of another seed."""
        return replace(self.recipe, epochs=max(1, round(self.epochs * share)), seed=seed)

    def settings(self) -> dict[str, Any]:
        """What was tuned."""
        return {
            "terms": self.terms,
            "lr": self.lr,
            "epochs": self.epochs,
            "layers": self.layers or "all",
            "head": self.head,
        }

    def described(self) -> str:
        """In words."""
        layers = "all layers" if self.layers is None else f"layers {self.layers}"
        biases = "no biases" if self.terms == "none" else f"{self.terms} biases of {layers}"
        heads = {
            "linear": ", with a linear head",
            "means": ", with a linear head started at the classes' means",
            "regression": ", with a linear head started from logistic regression",
            "apart": ", with a linear head on both texts, read apart",
            "joint": ", with a linear head on both texts as one input",
            "model": ", with the model's own head",
            "none": "",
        }
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        return f"{biases} at lr {self.lr:g} for {epochs}{heads[self.head]}"


def base_recipe(task: Task | PromptTask) -> Recipe:
    """Where the search starts from."""
    return prompt_recipe(task.name) if isinstance(task, PromptTask) else Recipe()


def candidates(space: Space, recipe: Recipe) -> list[Candidate]:
    """Every point of a space (resolved), in the order in which a short budget takes them.

    The fewer places away from where the search starts, added over the axes, the earlier; of equals first other terms,
    then another learning rate. Rates are placed by their distance from the recipe's own, of like ones the higher first.

    Raises:
        RecipeError: values out of range.
        TermError: terms that are none.
    """
    assert space.lrs is not None
    assert space.terms is not None
    assert space.layers is not None
    assert space.heads is not None
    assert space.epochs is not None
    for lr in space.lrs:
        replace(recipe, lr=lr)  # its faults show before distances are taken
    rates = sorted(space.lrs, key=lambda lr: (round(abs(math.log(lr / recipe.lr))), -lr))
    axes = [range(len(axis)) for axis in (space.layers, space.heads, space.epochs, rates, space.terms)]
    found: list[Candidate] = []
    for layers, head, epochs, lr, terms in sorted(itertools.product(*axes), key=sum):
        own = replace(
            recipe,
            lr=rates[lr],
            terms=space.terms[terms],
            layers=space.layers[layers],
            epochs=space.epochs[epochs],
            selection="none",
            refit=False,
            **HEADS[space.heads[head]],
        )
        found.append(
            Candidate(
                f"c{len(found) + 1}",
                own.lr,
                own.terms,
                own.layers,
                space.heads[head],
                space.epochs[epochs],
                own,
                usual=not (head or epochs or layers),
            )
        )
    return found
