"""`train_many`: a model, a task and many plans in; one pass over the frozen model, a folder a run and a summary out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BeftError, RecipeError
from ..report.names import several
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .banks import BankOptions, train_banks
from .ended import Finished
from .grounds import check_selection
from .machine import choose
from .many_folder import gone_if_none_began, take_bank
from .memory import check_memory
from .plan import Plan, check_plans
from .progress import BankListener
from .ranks import together
from .result import Result
from .signals import StopRequest
from .spread import train_spread
from .summary import of_baselines, over_seeds, summarise, write_summary
from .train import settle
from .work import most_steps


@dataclass
class ManyResult:
    """What a bank of runs gave.

    `results` holds each finished run by name, in the order of the plans (of runs finished before a resume the metrics
    and no predictions); `failures` the errors of those that failed, whose folders hold their last good adapters;
    `table` the summary, a row a run; `spread` the scores' mean and spread over runs that differ in their seed alone;
    `baselines` those of what needs no adapter, on the same evaluation rows (see `summary.of_baselines`).
    """

    results: dict[str, Result]
    failures: dict[str, BeftError]
    table: list[dict[str, Any]]
    spread: list[dict[str, Any]]
    baselines: dict[str, dict[str, dict[str, float]]]
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
    bare: bool = False,
    trust_remote_code: bool = False,
    ray: str | None = None,
    shard: bool | None = None,
    listener: BankListener | None = None,
) -> ManyResult:
    """Train many adapters of one model side by side, each as it would be alone.

    Rows of all runs go through the frozen model in shared micro-batches; every run has its own optimiser, schedule,
    clipping, selection, refit and checkpoints. In fp32 a run's weights are those it has alone, to rounding. A run whose
    loss is not finite fails by itself. Runs of a method that changes the model itself, such as LoRA, follow one
    another, each with the model to itself.

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
        bare: of a finished run write the adapter, its scores and its history alone: no predictions, pictures or card.
        ray: deal the runs to Ray's workers, a bank each: "local" for the processors of this machine, or the address of
            a cluster. A worker that dies costs no finished run.
        shard: spread the frozen base over the processes of the launch; None: if their launcher asks for it.

    Raises:
        RecipeError: no plans, two of one name, dropout, labels beside prompts, or a device that is not at hand.
        DataError: rows that a task does not have.
        StoreError: a folder that cannot be used, or a model that cannot be loaded.
        WorkersError: Ray cannot be had, or a run whose workers died again and again.
        Interrupted: a signal asked to stop; `resume` goes on.
    """
    plans = [plan.resolve(task, model) for plan in runs]
    check_plans(plans)
    for plan in plans:
        assert plan.recipe is not None
        check_selection(plan.own_task(), plan.recipe)
    if ray is not None and shard:
        raise RecipeError("ray", expected="a whole base in each worker", found="shard", remedy="leave one of them out")
    check_memory(memory)
    directory = None if out is None else Path(out)
    longest = max(plan.recipe.max_length for plan in plans if plan.recipe is not None)
    machine = (device, dtype, longest, token_budget)
    options = BankOptions(with_baselines, trust_remote_code, memory, token_budget is not None, resume, bare, shard)
    found = ManyResult({}, {}, [], [], {}, directory)
    began = time.perf_counter()

    def ended(name: str, outcome: Result | BeftError) -> None:
        if isinstance(outcome, BeftError):
            found.failures[name] = outcome
        else:
            found.results[name] = outcome

    with together() as ranks, gone_if_none_began(directory):
        listener = listener if listener and ranks.leads else BankListener()
        if ray is not None:
            done = train_spread(ray, model, plans, directory, machine, options, listener, ended, overwrite=overwrite)
        else:
            choices = choose(*machine)
            with StopRequest(directory is not None) as stop:
                done = settle(choices, lambda: take_bank(directory, model, plans, choices, resume, overwrite, listener))
                listener.begin({plan.name: most_steps(plan) for plan in plans if plan.name not in done}, list(done))
                todo = [plan for plan in plans if plan.name not in done]
                train_banks(model, todo, directory, choices, options, listener, stop, ended)
        _complete(found, plans, done)
        if directory is not None and ranks.leads:
            write_summary(directory, found.table, found.spread, found.baselines, time.perf_counter() - began)
    return found


def _notices(results: Mapping[str, Result]) -> list[str]:
    """What the runs have to say, once each; with their names what not all of them say."""
    sayers: dict[str, list[str]] = {}
    for name, result in results.items():
        for note in dict.fromkeys(result.notices):
            sayers.setdefault(note, []).append(name)
    return [note if len(names) == len(results) else f"{several(names)}: {note}" for note, names in sayers.items()]


def _complete(found: ManyResult, plans: Sequence[Plan], done: dict[str, Finished]) -> None:
    """Add the runs that were done before, put all in the order of the plans, and make the tables."""
    for name, each in done.items():
        if each.error is None:
            assert each.result is not None
            found.results[name] = each.result
        else:
            found.failures[name] = each.error
    order = [plan.name for plan in plans]
    found.results = {name: found.results[name] for name in order if name in found.results}
    found.failures = {name: found.failures[name] for name in order if name in found.failures}
    found.notices = _notices(found.results)
    found.table = summarise(plans, found.results, found.failures)
    found.spread = over_seeds(found.table)
    found.baselines = of_baselines(found.results)
