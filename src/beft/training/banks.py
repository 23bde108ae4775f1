"""Plans trained in this process: one pass over the frozen model for all that can share it, each to its very end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import BeftError, TrainingError
from ..methods.registry import find_method
from ..tasks.task import Task
from .aims import Judgement
from .checkpoint import NAME as CHECKPOINT
from .company import Company, Member
from .grounds import LabelGround
from .loop import Course, Judging
from .machine import Choices, threads_restored
from .memory import guard, release
from .open_ground import open_ground
from .plan import Plan
from .progress import BankListener
from .prompt_ground import PromptGround
from .ranks import here
from .result import Begun, Result
from .signals import StopRequest
from .train import conclude, fail, open_folder

Ended = Callable[[str, Result | BeftError], None]
"""Takes what a run of this name gave: its result, or the error it failed with."""


@dataclass(frozen=True)
class BankOptions:
    """What holds for all runs of a bank, see `train_many`; `fixed_budget`: the token budget is not to be lowered."""

    with_baselines: bool = True
    trust_remote_code: bool = False
    memory: float | None = None
    fixed_budget: bool = False
    resume: bool = False
    bare: bool = False
    shard: bool | None = None


@threads_restored()
def train_banks(
    model: str,
    plans: Sequence[Plan],
    directory: Path | None,
    choices: Choices,
    options: BankOptions,
    listener: BankListener,
    stop: StopRequest,
    ended: Ended,
) -> None:
    """Train plans (resolved), those that can share forwards side by side, one such bank after the other.

    Raises:
        StoreError: a model that cannot be loaded.
        RecipeError: memory for not one run.
        Interrupted: a signal asked to stop; every run has its checkpoint.
    """
    torch.set_num_threads(choices.threads)
    for group in _groups(plans):
        ground = open_ground(model, group[0], choices, trust_remote_code=options.trust_remote_code, shard=options.shard)
        room = partial(guard, ground.bank.model, group, choices, options.memory, fixed=options.fixed_budget)
        at_once = min(here().gather(room))
        crew = _Crew(ground, directory, options, listener, stop, ended)
        Company(choices, listener, stop).learn((crew.member(plan) for plan in group), at_once)
        ground.bank.detach()
        here().lockstep = None
        del ground, room, crew
        release()


def _groups(plans: Sequence[Plan]) -> Iterator[list[Plan]]:
    """Plans that can share forwards: of prompts, of linear heads on one input a row or on two, or of model heads of one
    number of labels.

    One whose method changes the model itself has a model to itself.
    """
    groups: dict[Any, list[Plan]] = {}
    for plan in plans:
        assert plan.recipe is not None
        task = plan.task
        outputs = (task.outputs, task.regression) if isinstance(task, Task) and plan.recipe.head == "model" else None
        own = None if find_method(plan.recipe.method).banked else plan.name
        groups.setdefault((plan.recipe.head, plan.recipe.pairs == "apart", outputs, own), []).append(plan)
    yield from groups.values()


class _Crew:
    """Makes members of plans when there is room for them, and hands on what they give."""

    def __init__(
        self,
        ground: LabelGround | PromptGround,
        directory: Path | None,
        options: BankOptions,
        listener: BankListener,
        stop: StopRequest,
        ended: Ended,
    ) -> None:
        self.ground, self.directory, self.options = ground, directory, options
        self.listener, self.stop, self.ended = listener, stop, ended

    def member(self, plan: Plan) -> Member:
        """A run before its first wish, its adapter in the bank and its folder taken."""
        folder = None if self.directory is None else self.directory / plan.name
        resume = here().first(lambda: self.options.resume and folder is not None and (folder / CHECKPOINT).exists())
        own, baselines = self.listener.of(plan.name), self.options.with_baselines
        begun = self.ground.begin(plan, folder, own, self.stop, with_baselines=baselines, resume=resume)
        open_folder(begun, resume)

        def failed(error: TrainingError) -> None:
            fail(begun, error)
            self._leave(plan.name, error)

        return Member(begun.run, self._course(begun, resume), failed)

    def _course(self, begun: Begun, resume: bool) -> Course:
        """A run, then its evaluation splits, then its files."""
        yield from begun.run.course(resume)
        judged: dict[str, Judgement] = {}
        for name, part in begun.evaluation.items():
            judged[name] = yield Judging(part, final=True)
        self._leave(begun.run.name, conclude(begun, judged, None, bare=self.options.bare))

    def _leave(self, name: str, outcome: Result | TrainingError) -> None:
        self.ground.bank.remove(name)
        self.ended(name, outcome)
        if isinstance(outcome, Result):
            self.listener.ended(name, outcome.evaluation, None)
        else:
            self.listener.ended(name, None, outcome)
