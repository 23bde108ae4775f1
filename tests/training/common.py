"""What the tests of training share: a run that stands before its first step, and its gradients and leaves."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import beft
from beft.core.bank import attach
from beft.objectives.encode import encode
from beft.tasks.task import Task
from beft.training.aims import ClassifyAim, Part
from beft.training.base import add_adapter, load_base
from beft.training.loop import PHASES, Run
from beft.training.machine import choose
from beft.training.progress import Listener
from beft.training.recipe import Recipe
from beft.training.train import Result


def new_run(
    base_folder: Path, task: Task, recipe: Recipe, token_budget: int = 8192, dev: int = 0, **machine: Any
) -> Run:
    """A run in fp32 on all training rows (the last `dev` of them held back), its adapter fresh; other `Choices`."""
    choices = replace(choose("cpu", "fp32", recipe.max_length, token_budget), **machine)
    base = load_base(str(base_folder), choices, head=recipe.head, outputs=task.outputs, labels=task.labels)
    bank = attach(base.model, recipe.terms, names=[], layers=recipe.layers)
    add_adapter(bank, base, "default", recipe, task.outputs, task.labels)
    bank.active = "default"
    part = Part(task.train, encode(base.tokenizer, task.train, recipe.max_length, apart=recipe.pairs == "apart"))
    count = len(task.train)
    parts = {"select": part.take(range(count - dev)), "refit": part}
    if dev:
        parts["dev"] = part.take(range(count - dev, count))
    aim = ClassifyAim(bank, "default", task, choices, recipe.class_weight == "balanced")
    return Run(bank, "default", aim, recipe, choices, parts)


def leaves_of(run: Run) -> dict[str, Tensor]:
    """Copies of a run's trained tensors by name."""
    return {key: leaf.detach().clone() for key, leaf in run.leaves.items()}


def gradients_of(run: Run, rows: int) -> tuple[dict[str, Tensor], float]:
    """Gradient and loss of one batch of the first rows, at vectors and heads that are not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in run.leaves.values():
            leaf.add_(0.1 * torch.randn(leaf.shape, generator=generator))
    part = run.parts["refit"]
    run.aim.fit(part)
    value = run._gradients(part, run.aim.lengths(part), list(range(rows)), [0])
    return {key: leaf.grad.clone() for key, leaf in run.leaves.items() if leaf.grad is not None}, value


def learn(base: Path, task: Task, recipe: Recipe, out: Path | None = None, **options: Any) -> Result:
    """`beft.train` in fp32 without the baselines, which take most of a toy run's time."""
    return beft.train(str(base), task, recipe, out, **{"dtype": "fp32", "with_baselines": False, **options})


class Notes(Listener):
    """Collects what a run tells; `steps` counts steps of training."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps = 0
        self.stages: list[tuple[str, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, steps: int) -> None:
        self.stages.append((name, steps))

    def step(self, loss: float | None, examples: int) -> None:
        self.steps += self.stages[-1][0] in PHASES


class After(Notes):
    """Calls a function after so many steps of training, counted over all phases."""

    def __init__(self, steps: int, call: Callable[[], Any]) -> None:
        super().__init__()
        self.at, self.call = steps, call

    def step(self, loss: float | None, examples: int) -> None:
        before = self.steps
        super().step(loss, examples)
        if before < self.steps == self.at:
            self.call()


def kill_midway(code: str, base: Path, out: Path, reached: Path, most: float) -> None:
    """Run code in a process of its own, which may import tests and has `base` and `out` as `BASE` and `OUT`; kill it at
    a random moment, up to so many seconds after it has made the file `reached`."""
    tests, draw = Path(__file__).parents[1], random.Random(time.time_ns())
    found = "import sys; sys.path[:0] = sys.argv[1:3]\nfrom pathlib import Path\nBASE, OUT = map(Path, sys.argv[3:])\n"
    process = subprocess.Popen([sys.executable, "-c", found + code, tests, tests.parent / "src", base, out])
    while not reached.exists():
        assert process.poll() is None, f"it ended before {reached.relative_to(out)}"
        time.sleep(0.002)
    time.sleep(draw.uniform(0, most))
    process.kill()
    process.wait()
