"""The ground of a plan: its base loaded as labels or as prompts need it, with an empty bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.bank import Bank, attach
from ..launcher import asks_to_shard
from ..tasks.question import PromptTask
from .base import Base, load_base
from .grounds import LabelGround
from .machine import Choices
from .plan import Plan
from .quantize import DeviceMap
from .ranks import here
from .shard import check_shard

if TYPE_CHECKING:
    from .prompt_ground import PromptGround


def open_ground(
    model: str,
    plan: Plan,
    choices: Choices,
    *,
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    shard: bool | None = None,
) -> LabelGround | PromptGround:
    """Load the model for a plan (resolved). Plans that can share forwards can share the ground of one of them.

    `shard` spreads the base over the ranks of the run; None: if their launcher asks for it.

    Raises:
        StoreError: a model that cannot be loaded.
        RecipeError: a quantisation, a device map, gradient checkpointing or sharding that cannot be had here.
    """
    here().lockstep = None
    shard = asks_to_shard() if shard is None else shard
    if shard:
        check_shard(plan, choices, device_map)
    task, recipe = plan.task, plan.recipe
    assert task is not None
    assert recipe is not None
    if isinstance(task, PromptTask):
        from .language import load_language_model
        from .prompt_ground import PromptGround

        base = here().each(
            lambda: load_language_model(
                model,
                choices,
                trust_remote_code=trust_remote_code,
                quantize=choices.quantize,
                device_map=device_map,
                shard=shard,
            )
        )
        return PromptGround(model, base, _bank(base, shard), choices)
    base = here().each(
        lambda: load_base(
            model,
            choices,
            head=recipe.head,
            outputs=task.outputs,
            labels=task.labels,
            trust_remote_code=trust_remote_code,
            quantize=choices.quantize,
            device_map=device_map,
            shard=shard,
        )
    )
    return LabelGround(model, base, _bank(base, shard), choices)


def _bank(base: Base, shard: bool) -> Bank:
    """An empty bank; of a sharded base, whose forwards are kept in step from now on."""
    bank = attach(base.model, "none", names=[])
    if shard:
        from .lockstep import Lockstep

        ranks = here()
        ranks.lockstep = Lockstep(bank, ranks.largest)
    return bank
