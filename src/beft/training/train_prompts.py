"""`train_prompts`: a language model, a task of questions and a recipe in; an adapter folder with its scores out."""

from __future__ import annotations

from pathlib import Path

from ..core.bank import attach
from ..tasks.question import PromptTask
from .language import load_language_model
from .machine import choose
from .plan import Plan
from .progress import Listener
from .prompt_ground import PromptGround
from .recipe import Recipe
from .result import Result
from .train import ADAPTER, carry_out


def train_prompts(
    model: str,
    task: PromptTask,
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    with_baselines: bool = True,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> Result:
    """Train one adapter of a causal language model to choose or to write, and judge it. No head is trained.

    The arguments, and what is raised, are `train`'s, which calls this for a `PromptTask`. `with_baselines` judges the
    plain model first (zero-shot).
    """
    plan = Plan(ADAPTER, recipe, task).resolve(task)
    choices = choose(device, dtype, recipe.max_length, token_budget)

    def ground() -> PromptGround:
        base = load_language_model(model, choices, trust_remote_code=trust_remote_code)
        bank = attach(base.model, recipe.terms, names=[], layers=recipe.layers)
        return PromptGround(model, base, bank, choices)

    return carry_out(
        plan,
        ground,
        model,
        choices,
        out,
        resume=resume,
        overwrite=overwrite,
        with_baselines=with_baselines,
        listener=listener,
    )
