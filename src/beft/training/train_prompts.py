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
from .quantize import DeviceMap, chosen
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
    quantize: str | None = None,
    device_map: DeviceMap | None = None,
    gradient_checkpointing: bool = False,
    micro_batch_size: int | None = None,
    listener: Listener | None = None,
) -> Result:
    """Train one adapter of a causal language model to choose or to write, and judge it. No head is trained.

    The arguments, and what is raised, are `train`'s, which calls this for a `PromptTask`. `with_baselines` judges the
    plain model first (zero-shot).
    """
    plan = Plan(ADAPTER, recipe, task).resolve(task)
    choices = choose(device, dtype, recipe.max_length, token_budget)
    choices.quantize = chosen(quantize)
    choices.gradient_checkpointing, choices.micro_batch_size = gradient_checkpointing, micro_batch_size

    def ground() -> PromptGround:
        base = load_language_model(
            model, choices, trust_remote_code=trust_remote_code, quantize=choices.quantize, device_map=device_map
        )
        return PromptGround(model, base, attach(base.model, "none", names=[]), choices)

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
