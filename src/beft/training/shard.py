"""A frozen base sharded over the ranks of a run: each holds a piece of every weight, and layers are whole as they run.

The engine is torch's `fully_shard` (FSDP2), put on by transformers as it loads: every rank reads its own pieces from
the checkpoint, none holds the whole. Each layer of a model's stacks is gathered by itself. Adapters and heads stay
whole in every rank; only methods that leave the model's own weights alone can train so.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError, StoreError
from .machine import Choices
from .plan import Plan
from .quantize import DeviceMap
from .ranks import here

LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Set by `accelerate launch --use_fsdp`: transformers then loads in the first rank alone, for Accelerate to send it."""


def check_shard(plan: Plan, choices: Choices, device_map: DeviceMap | None = None) -> None:
    """Refuse what cannot be trained on a sharded base.

    Raises:
        RecipeError: one process, a method that trains or needs the model's own weights, a base held in another way too,
            or a device that is not the ranks' own.
    """
    if here().alone:
        raise RecipeError(
            "--shard",
            expected="several processes, to share the base among",
            found="one",
            remedy="start it by torchrun --nproc-per-node N -m beft, or leave --shard out",
        )
    assert plan.recipe is not None
    method = type(plan.recipe.new_method())
    if not method.shards:
        raise RecipeError(
            f"method {method.name}",
            expected="a base that is whole in every process",
            found="--shard",
            remedy=f"leave --shard out, or train one of: {', '.join(_names_that_shard())}",
        )
    held = f"quantize {choices.quantize!r}" if choices.quantize else "device_map" if device_map is not None else None
    if held:
        raise RecipeError(held, expected="a base that is held in one way", found="--shard too", remedy="leave one out")
    own = torch._C._get_accelerator().type  # what transformers shards over
    if torch.device(choices.device).type != own:
        raise RecipeError(f"device {choices.device!r}", expected=f"{own}, to shard over", found=choices.device)


def _names_that_shard() -> list[str]:
    from ..methods.registry import find_method, method_names

    return [name for name in method_names() if find_method(name).shards]


def sharding_keywords(kind: Any, config: Any, trust_remote_code: bool, quantized: str | None = None) -> dict[str, Any]:
    """Keywords for `from_pretrained` that shard a model of a class (an Auto class) and a config over all ranks.

    `quantized` is the method of a checkpoint that is quantised.

    Raises:
        RecipeError: torch or transformers are too old, or a checkpoint is quantised.
        StoreError: a model without a stack of layers, or with several models in it.
    """
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        DistributedConfig(fsdp_size=here().size, fsdp_plan={})
        from torch.distributed.fsdp import FSDPModule

        assert hasattr(FSDPModule, "reset_iter_state")
    except (ImportError, TypeError, AssertionError) as error:
        raise RecipeError(
            "--shard",
            expected="transformers 5.23 and torch 2.13, or newer",
            found="an older one",
            remedy="upgrade both",
        ) from error
    if quantized is not None:
        raise RecipeError(
            "--shard",
            expected="a base in plain weights",
            found=f"one that is quantised ({quantized})",
            remedy="leave it out",
        )
    skeleton = here().each(lambda: _skeleton(kind, config, trust_remote_code))  # all are here: loading has no way back
    paths = layer_paths(skeleton)
    unfit = "" if paths else "no stack"
    if getattr(config, "is_encoder_decoder", False):
        unfit = "an encoder-decoder"
    elif getattr(config, "layerdrop", 0.0):
        unfit = "layers that are skipped at random (layerdrop)"
    if unfit:
        raise StoreError(
            type(skeleton).__name__,
            expected="an encoder or a causal model with a stack of layers that all run, to shard it",
            found=unfit,
            remedy="leave --shard out",
        )
    plan = {f"{path.rpartition('.')[0]}.*": "free_full_weight" for path in paths}
    return {"distributed_config": DistributedConfig(fsdp_size=here().size, fsdp_plan=plan)}


def _skeleton(kind: Any, config: Any, trust_remote_code: bool) -> Any:
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=trust_remote_code)


def layer_paths(model: nn.Module) -> list[str]:
    """Paths of the layers of a model's stacks: the members of its outermost module lists."""
    found: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not path.startswith(tuple(f"{each}." for each in found)):
            found += [f"{path}.{name}" for name, _ in module.named_children()]
    return found


def settle_sharded(model: Any) -> None:
    """Freeze a model that was just loaded in pieces, and keep its biases and norms whole besides."""
    from ..core.sharded import keep_small_whole

    model.requires_grad_(False)
    model._tp_size = None  # PEFT would gather all weights as it saves its own, in the one rank that saves
    model._is_fsdp_managed_module = False  # `generate` would wait for ranks that have nothing to write
    keep_small_whole(model)


@contextmanager
def own_loading() -> Iterator[None]:
    """Load in every rank what it asks for, whatever the launcher has promised to send later."""
    before = os.environ.get(LOADING)
    if before is not None:
        os.environ[LOADING] = "false"
    try:
        with warnings.catch_warnings():  # new weights of a head that each adapter starts anew
            warnings.filterwarnings("ignore", "DTensor random operators")
            yield
    finally:
        if before is not None:
            os.environ[LOADING] = before
