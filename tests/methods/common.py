"""A run of any method that stands before its first step, and what training changed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beft.core.bank import attach
from beft.methods.method import Method
from beft.methods.registry import method_names
from beft.objectives.encode import encode
from beft.tasks.task import Task
from beft.training.aims import ClassifyAim, Part
from beft.training.base import add_adapter, load_base
from beft.training.batches import epoch_batches
from beft.training.loop import Run
from beft.training.machine import choose
from beft.training.recipe import Recipe

PLAIN = {"selection": "none", "schedule": "constant", "epochs": 2}
"""Changes to a recipe that leave nothing to choose."""
TRAINED = [name for name in method_names() if name not in ("probe", "lm-head")]
"""Methods that take steps and go with a head."""
SMALL: dict[str, dict[str, Any]] = {
    "random-mask": {"mask_size": 500},
    "vera": {"rank": 4},
    "lora": {"rank": 2},
    "dora": {"rank": 2},
    "prompt": {"virtual_tokens": 4},
}
"""Options that fit a tiny model."""


def method_run(folder: Path, task: Task, recipe: Recipe, dtype: str = "fp32") -> tuple[Run, Method]:
    """A run of a recipe's method on all training rows, and the method."""
    choices = choose("cpu", dtype, recipe.max_length, 8192)
    base = load_base(str(folder), choices, head=recipe.head, outputs=task.outputs, labels=task.labels)
    method = recipe.new_method()
    bank = attach(base.model, "none", names=[])
    add_adapter(bank, base, "default", recipe, task.outputs, task.labels)
    bank.active = "default"
    leaves = method.attach(bank, "default")
    part = Part(task.train, encode(base.tokenizer, task.train, recipe.max_length))
    aim = ClassifyAim(bank, "default", task, choices)
    return Run(bank, "default", aim, recipe, choices, {"select": part, "refit": part}, leaves=leaves), method


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {key: value.detach().clone() for key, value in model.named_parameters()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that differ."""
    assert before.keys() == after.keys()
    return {key for key, value in after.items() if not torch.equal(value, before[key])}


def batches_of(run: Run) -> list[list[int]]:
    """The rows of every step of a run's first phase."""
    recipe, lengths = run.recipe, run.parts["select"].encoded.lengths()
    return [
        rows
        for epoch in range(recipe.epochs or 1)
        for rows in epoch_batches(lengths, recipe.batch_size, [recipe.seed, 1, epoch])
    ]


def stock_loop(run: Run, parameters: Iterable[nn.Parameter], logits: Any) -> None:
    """The same steps by hand: stock AdamW on cross-entropy; `logits` is a function of a batch."""
    recipe, part, everything = run.recipe, run.parts["select"], list(parameters)
    optimiser = torch.optim.AdamW(everything, lr=recipe.lr, eps=recipe.eps, weight_decay=0.0)
    for rows in batches_of(run):
        optimiser.zero_grad()
        targets = torch.tensor([part.examples[row].label for row in rows])
        nn.functional.cross_entropy(logits(part.encoded.batch(rows)), targets).backward()
        nn.utils.clip_grad_norm_([p for p in everything if p.grad is not None], recipe.clip)
        optimiser.step()


def mean_of(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """States of each row, averaged over its own tokens, by a loop. A batch without padding has no mask."""
    if mask is None:
        return hidden.mean(1)
    return torch.stack([states[own.bool()].mean(0) for states, own in zip(hidden, mask, strict=True)])
