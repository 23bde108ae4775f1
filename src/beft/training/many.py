"""`train_many`: a model, a task and many plans in; one pass over the frozen model, a folder a run and a summary out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import BeftError, TrainingError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .aims import Judgement
from .checkpoint import NAME as CHECKPOINT
from .company import Company, Member
from .grounds import LabelGround, check_selection
from .loop import Course, Judging
from .machine import choose
from .many_folder import Finished, clear_bank, open_bank, standing, write_bank
from .memory import guard
from .open_ground import open_ground
from .plan import Plan, check_plans
from .progress import BankListener
from .prompt_ground import PromptGround
from .ranks import here, together
from .result import Begun, Result
from .signals import StopRequest
from .summary import over_seeds, summarise, write_summary
from .train import conclude, fail, open_folder, settle


@dataclass
class ManyResult:
    """What a bank of runs gave.

    `results` holds each finished run by name, in the order of the plans (of runs finished before a resume the metrics
    and no predictions); `failures` the errors of those that failed, whose folders hold their last good adapters;
    `table` the summary, a row a run; `spread` the scores' mean and spread over runs that differ in their seed alone.
    """

    results: dict[str, Result]
    failures: dict[str, BeftError]
    table: list[dict[str, Any]]
    spread: list[dict[str, Any]]
    directory: Path | None
    notices: list[str] = field(default_factory=list)


def train_many(
    model: str,
    task: Task | PromptTask,
    runs: Sequence[Plan],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    memory: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    with_baselines: bool = True,
    trust_remote_code: bool = False,
    shard: bool | None = None,
    listener: BankListener | None = None,
) -> ManyResult:
    """Train many adapters of one model side by side, each as it would be alone.

    Rows of all runs go through the frozen model in shared micro-batches; every run has its own optimiser, schedule,
    clipping, selection, refit and checkpoints. In fp32 a run's weights are those it has alone, to rounding. A run whose
    loss is not finite fails by itself.

    Args:
        model: a folder, a Hub id, or the name of a packaged model.
        task: what a plan without a task of its own learns.
        runs: the plans. Without dropout; of labels or of prompts, not both.
        out: a folder to hold one a run, and the summary; None keeps everything in memory.
        token_budget: tokens of one micro-batch at most.
        memory: GiB that training may take beside the model: bounds the runs at once and the tokens of a micro-batch.
            Without it, half of what is free.
        resume: go on: finished runs are not repeated, others go on from their checkpoints, the rest begin.
        overwrite: replace a former bank.
        with_baselines: score the majority and a linear model on frozen states (or, of prompts, the plain model) too.
        shard: spread the frozen base over the processes of the launch; None: if their launcher asks for it.

    Raises:
        RecipeError: no plans, two of one name, dropout, labels beside prompts, or a device that is not at hand.
        DataError: rows that a task does not have.
        StoreError: a folder that cannot be used, or a model that cannot be loaded.
        Interrupted: a signal asked to stop; `resume` goes on.
    """
    plans = [plan.resolve(task) for plan in runs]
    check_plans(plans)
    for plan in plans:
        assert plan.recipe is not None
        check_selection(plan.own_task(), plan.recipe)
    directory = None if out is None else Path(out)
    longest = max(plan.recipe.max_length for plan in plans if plan.recipe is not None)
    choices = choose(device, dtype, longest, token_budget)

    def take_folder() -> dict[str, Finished]:
        if directory is None:
            return {}
        open_bank(directory, model, plans, choices, resume=resume, overwrite=overwrite)
        done = standing(directory, model, plans, choices) if resume else {}
        if not resume:
            clear_bank(directory)
        write_bank(directory, model, plans, choices)
        return done

    found = ManyResult({}, {}, [], [], directory)
    began = time.perf_counter()
    with together() as ranks, StopRequest() as stop:
        listener = listener if listener and ranks.leads else BankListener()
        done = settle(choices, take_folder)
        torch.set_num_threads(choices.threads)
        listener.begin({plan.name: _most_steps(plan) for plan in plans if plan.name not in done}, list(done))
        for group in _groups([plan for plan in plans if plan.name not in done]):
            ground = open_ground(model, group[0], choices, trust_remote_code=trust_remote_code, shard=shard)
            room = partial(guard, ground.bank.model, group, choices, memory, fixed=token_budget is not None)
            at_once = min(ranks.gather(room))
            crew = _Crew(ground, directory, listener, stop, with_baselines, resume, found)
            Company(choices, listener, stop).learn((crew.member(plan) for plan in group), at_once)
            ground.bank.detach()
            ranks.lockstep = None
    for name, each in done.items():
        if each.error is None:
            assert each.result is not None
            found.results[name] = each.result
        else:
            found.failures[name] = each.error
    order = [plan.name for plan in plans]
    found.results = {name: found.results[name] for name in order if name in found.results}
    found.failures = {name: found.failures[name] for name in order if name in found.failures}
    found.notices = list(dict.fromkeys(note for result in found.results.values() for note in result.notices))
    found.table = summarise(plans, found.results, found.failures)
    found.spread = over_seeds(found.table)
    if directory is not None and ranks.leads:
        write_summary(directory, found.table, found.spread, time.perf_counter() - began)
    return found


def _most_steps(plan: Plan) -> int:
    """Steps of a run that loses no patience and refits for as many epochs as it may."""
    recipe, rows = plan.recipe, len(plan.own_task().train)
    assert recipe is not None
    dev = round(rows * recipe.dev_fraction) if recipe.selection == "dev" else 0
    phases = [rows - dev, rows] if dev and recipe.refit else [rows - dev]
    return (recipe.epochs or 1) * sum(math.ceil(count / recipe.batch_size) for count in phases)


def _groups(plans: Sequence[Plan]) -> Iterator[list[Plan]]:
    """Plans that can share forwards: of prompts, of linear heads, or of model heads of one number of labels."""
    groups: dict[Any, list[Plan]] = {}
    for plan in plans:
        assert plan.recipe is not None
        task = plan.task
        outputs = (task.outputs, task.regression) if isinstance(task, Task) and plan.recipe.head == "model" else None
        groups.setdefault((plan.recipe.head, outputs), []).append(plan)
    yield from groups.values()


class _Crew:
    """Makes members of plans when there is room for them, and takes what they give."""

    def __init__(
        self,
        ground: LabelGround | PromptGround,
        directory: Path | None,
        listener: BankListener,
        stop: StopRequest,
        with_baselines: bool,
        resume: bool,
        found: ManyResult,
    ) -> None:
        self.ground, self.directory, self.listener, self.stop = ground, directory, listener, stop
        self.with_baselines, self.resume, self.found = with_baselines, resume, found

    def member(self, plan: Plan) -> Member:
        """A run before its first wish, its adapter in the bank and its folder taken."""
        folder = None if self.directory is None else self.directory / plan.name
        resume = here().first(lambda: self.resume and folder is not None and (folder / CHECKPOINT).exists())
        own = self.listener.of(plan.name)
        begun = self.ground.begin(plan, folder, own, self.stop, with_baselines=self.with_baselines, resume=resume)
        open_folder(begun, resume)

        def failed(error: TrainingError) -> None:
            fail(begun, error)
            self.found.failures[plan.name] = error
            self._leave(plan.name)

        return Member(begun.run, self._course(begun, resume), failed)

    def _course(self, begun: Begun, resume: bool) -> Course:
        """A run, then its evaluation splits, then its files."""
        yield from begun.run.course(resume)
        judged: dict[str, Judgement] = {}
        for name, part in begun.evaluation.items():
            judged[name] = yield Judging(part, final=True)
        name = begun.run.name
        self.found.results[name] = conclude(begun, judged, None)
        self._leave(name)

    def _leave(self, name: str) -> None:
        self.ground.bank.remove(name)
        result = self.found.results.get(name)
        self.listener.ended(name, None if result is None else result.evaluation, self.found.failures.get(name))
