"""How much fits: runs at once and tokens of a micro-batch, from the memory that is free; less when it runs short."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..core.heads import state_width
from ..core.sites import find_sites
from ..errors import RecipeError, TrainingError
from ..tasks.task import Task
from .allocator import give_back
from .base import head_paths
from .machine import Choices, out_of_memory
from .plan import Plan
from .progress import Listener

T = TypeVar("T")

SHARE = 0.5
"""Of the free memory, what training takes where nothing is said."""
COPIES = 8
"""Copies of a run's trained values: leaf, gradient, two moments, start, best, and two while a checkpoint is written."""
CPU_TOKENS = 1024
"""Of a micro-batch of many runs on a CPU: more take memory and gain nothing (docs/performance.md)."""
OVERHEAD = 256 * 1024
"""Bytes of a run beside its values: modules, hooks, rows of numbers."""
STATES = 24
"""Numbers of hidden size kept for backward a token and layer, the feed-forward's and the attention's included."""
_sharers = 1


def guard(model: Any, plans: Sequence[Plan], choices: Choices, memory: float | None, *, fixed: bool) -> int:
    """Runs at once within the memory. Lowers the token budget of `choices` to what fits, unless it is fixed.

    Args:
        model: the base with its bank, loaded.
        plans: of one group, resolved.
        memory: GiB, or None for half of what is free.

    Raises:
        RecipeError: memory for not one run.
    """
    check_memory(memory)
    room = (free_memory(choices.device) * SHARE if memory is None else memory * 2**30) / _sharers
    values = max(_trained_values(model, plan) for plan in _kinds(plans))
    a_run = COPIES * 4 * values + OVERHEAD
    budget = choices.token_budget
    if choices.device == "cpu" and not fixed:
        budget = min(budget, CPU_TOKENS)
    a_token = _bytes_a_token(model)
    if not fixed:
        longest = max(plan.recipe.max_length for plan in plans if plan.recipe is not None)
        budget = max(longest, min(budget, int(room / 2 / a_token)))
    left = room - (0 if fixed else budget * a_token)
    at_once = int(left // a_run)
    if at_once < 1:
        raise RecipeError(
            f"memory {room / 2**30:.2g} GiB",
            expected=f"{(budget * a_token + a_run) / 2**30:.2g} GiB for one run and one micro-batch",
            found="less",
            remedy="free some, or lower --token-budget or --max-length",
        )
    choices.token_budget = budget
    return min(at_once, len(plans))


def check_memory(memory: float | None) -> None:
    """Raises RecipeError for GiB that are none."""
    if memory is not None and not memory > 0:
        raise RecipeError(f"memory {memory:g} GiB", expected="a number above 0")


def share_memory(processes: int) -> None:
    """Have `guard` leave room for as many processes that do the same on this device; this one is counted."""
    global _sharers
    _sharers = processes


def free_memory(device: str) -> int:
    """Bytes that are free on a device: a GPU's own, else the machine's within the limits of a container."""
    if device.startswith("cuda"):
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = _number(Path("/proc/meminfo"), "MemAvailable:", 1024)
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number(Path("/sys/fs/cgroup/memory.max"))
    used = _number(Path("/sys/fs/cgroup/memory.current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def release() -> None:
    """Give memory back that nothing needs any more: a model and its hooks refer to one another, and wait for this."""
    gc.collect()
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _number(path: Path, key: str = "", unit: int = 1) -> int | None:
    """The number after `key` (or at the start) of a system file, if there is one."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    words = text.partition(key)[2].split() if key else text.split()
    return int(words[0]) * unit if words and words[0].isdigit() else None


def _kinds(plans: Sequence[Plan]) -> list[Plan]:
    """One plan for each size of adapter."""
    kinds = {}
    for plan in plans:
        assert plan.recipe is not None
        outputs = plan.task.outputs if isinstance(plan.task, Task) else 0
        kinds[(plan.recipe.terms, plan.recipe.layers, outputs)] = plan
    return list(kinds.values())


def _trained_values(model: Any, plan: Plan) -> int:
    recipe = plan.recipe
    assert recipe is not None
    vectors = sum(site.width for site in find_sites(model, recipe.terms, recipe.layers))
    if recipe.head == "model":
        modules = [model.get_submodule(path) for path in head_paths(model)]
        return vectors + sum(parameter.numel() for module in modules for parameter in module.parameters())
    outputs = plan.task.outputs if isinstance(plan.task, Task) and recipe.head == "linear" else 0
    return vectors + outputs * ((state_width(model) or 0) + 1)


def _bytes_a_token(model: Any) -> int:
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None) or 12
    return int(layers) * int(state_width(model) or 768) * STATES * (2 if model.dtype != torch.float32 else 4)


def within_memory(compute: Callable[[], T], choices: Choices, longest: int, listener: Listener) -> T:
    """What `compute` gives; where memory runs short, with half the token budget, until it does.

    Raises:
        TrainingError: the budget holds one row of `longest` tokens already.
    """
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            _shrink(choices, longest, listener)


def _shrink(choices: Choices, longest: int, listener: Listener) -> None:
    if choices.token_budget <= longest:
        raise TrainingError(
            "memory",
            expected=f"room for one row of {longest} tokens",
            found="too little",
            remedy="lower --max-length, or use a smaller model",
        )
    choices.token_budget = max(longest, choices.token_budget // 2)
    listener.note(
        f"memory ran short: going on with {choices.token_budget} tokens a micro-batch "
        "(same results; --token-budget sets it)"
    )
