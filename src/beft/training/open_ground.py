"""The ground of a plan: its base loaded as labels or as prompts need it, with an empty bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.bank import attach
from ..tasks.question import PromptTask
from .base import load_base
from .grounds import LabelGround
from .machine import Choices
from .plan import Plan
from .quantize import DeviceMap

if TYPE_CHECKING:
    from .prompt_ground import PromptGround


def open_ground(
    model: str, plan: Plan, choices: Choices, *, trust_remote_code: bool = False, device_map: DeviceMap | None = None
) -> LabelGround | PromptGround:
    """Load the model for a plan (resolved). Plans that can share forwards can share the ground of one of them.

    Raises:
        StoreError: a model that cannot be loaded.
        RecipeError: a quantisation, a device map or gradient checkpointing that cannot be had here.
    """
    task, recipe = plan.task, plan.recipe
    assert task is not None
    assert recipe is not None
    if isinstance(task, PromptTask):
        from .language import load_language_model
        from .prompt_ground import PromptGround

        base = load_language_model(
            model, choices, trust_remote_code=trust_remote_code, quantize=choices.quantize, device_map=device_map
        )
        return PromptGround(model, base, attach(base.model, "none", names=[]), choices)
    base = load_base(
        model,
        choices,
        head=recipe.head,
        outputs=task.outputs,
        labels=task.labels,
        trust_remote_code=trust_remote_code,
        quantize=choices.quantize,
        device_map=device_map,
    )
    return LabelGround(model, base, attach(base.model, "none", names=[]), choices)
