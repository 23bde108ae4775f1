"""`train`: a model, a task and a recipe in; an adapter folder with its scores and pictures out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..core.store import HEAD, MANIFEST
from ..errors import Interrupted, TrainingError
from ..files import clear_parts, read_json
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .aims import Judgement
from .checkpoint import NAME as CHECKPOINT
from .ended import find_ended
from .ensemble import judged_as_one
from .folder import gone_if_it_fails, prepare
from .grounds import check_selection, watching
from .machine import Choices, choose, peak_memory_mib, threads_restored
from .open_ground import open_ground
from .outputs import clear_results, write_failure, write_results, write_run
from .plan import Plan
from .progress import Listener
from .quantize import DeviceMap, chosen
from .ranks import here, together
from .recipe import Recipe, prompt_recipe
from .result import Begun
from .result import Result as Result
from .selection import kept_scores
from .signals import StopRequest

ADAPTER = "default"
STAYED = (
    "no epoch was better on the dev rows than the start: the head is the regression on frozen states, and nothing else "
    "was learned"
)
T = TypeVar("T")


@threads_restored()
def train(
    model: str,
    task: Task | PromptTask,
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    *,
    method: str | None = None,
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
    shard: bool | None = None,
    listener: Listener | None = None,
) -> Result:
    """Train one adapter on a task and judge it on the task's evaluation rows.

    Args:
        model: a folder, a Hub id, or the name of a packaged model.
        task: rows with labels for a head; or questions to a language model, for which no head is trained.
        recipe: by default the default recipe, or of questions `prompt_recipe`.
        out: the adapter folder to write; None keeps everything in memory.
        method: what is trained, in place of the recipe's: "bias", "bitfit", "full", "lora" ..., see `beft.methods`.
        token_budget: tokens of one micro-batch at most; changes speed and memory, not results: a step is
            `recipe.batch_size` rows, whose gradients are summed over micro-batches.
        micro_batch_size: rows of one micro-batch at most, likewise.
        gradient_checkpointing: run layers again during backward instead of keeping their activations.
        quantize: hold the frozen base in "8bit" or "4bit"; `device_map`: spread it over devices; see `quantize`.
        shard: spread the frozen base over the processes of the run, a piece each; None: if their launcher asks for it.
        resume: go on from the folder's checkpoint, or give the metrics (and no predictions) of a run that is finished;
            `overwrite`: replace a folder that is not empty.
        with_baselines: score the majority and a linear model on frozen states first; of questions, the plain model.

    Raises:
        StoreError: a folder that cannot be used, or a model that cannot be loaded.
        RecipeError: a device, a quantisation, a device map or sharding that cannot be had here.
        TrainingError: the loss is not finite; the last good adapter is in the folder.
        Interrupted: a signal asked to stop; the folder holds a checkpoint.
    """
    if method is not None:
        blank = prompt_recipe(task.name) if isinstance(task, PromptTask) else Recipe()
        recipe = (recipe or blank).with_method(method)
    plan = Plan(ADAPTER, recipe, task).resolve(task, model)
    recipe = plan.recipe
    assert recipe is not None
    choices = choose(device, dtype, recipe.max_length, token_budget)
    choices.quantize = chosen(quantize)
    choices.gradient_checkpointing, choices.micro_batch_size = gradient_checkpointing, micro_batch_size
    directory = None if out is None else Path(out)
    check_selection(task, recipe)
    with together() as ranks, StopRequest(directory is not None) as stop:
        listener = listener if listener and ranks.leads else Listener()
        with gone_if_it_fails(directory):
            found = settle(choices, lambda: _found(directory, model, plan, choices, resume, overwrite))
            if isinstance(found, Result):
                return found
            resume = found
            torch.set_num_threads(choices.threads)
            ground = open_ground(
                model, plan, choices, trust_remote_code=trust_remote_code, device_map=device_map, shard=shard
            )
            begun = ground.begin(plan, directory, listener, stop, with_baselines=with_baselines, resume=resume)
        ground.bank.active = plan.name
        open_folder(begun, resume)
        try:
            begun.run.learn(resume=resume)
        except TrainingError as error:
            fail(begun, error)
            raise
        try:
            judged = judge_splits(begun, listener, stop)
        except Interrupted:
            begun.run.save()
            raise
        return conclude(begun, *judged)


def _found(
    directory: Path | None, model: str, plan: Plan, choices: Choices, resume: bool, overwrite: bool
) -> Result | bool:
    """What `prepare` finds in the run's folder; on resume the run itself, if it is finished."""
    if directory is None:
        return False
    ended = find_ended(directory, model, plan, choices) if resume else None
    if ended is not None and ended.result is not None:
        ended.result.notices.append("this run is finished already: nothing was left to do")
        return ended.result
    assert plan.recipe is not None
    return prepare(directory, model, plan.own_task(), plan.recipe, choices, resume, overwrite)


def settle(choices: Choices, open_folder: Callable[[], T]) -> T:
    """What the first rank finds in the folder; all ranks take its choices, which the folder may have changed."""
    found, chosen = here().first(lambda: (open_folder(), choices.to_dict()))
    for key, value in chosen.items():
        setattr(choices, key, value)
    return found


# ---- from a run's beginning to its end, whoever drives it ------------------------------------------------------------


def open_folder(begun: Begun, resume: bool) -> None:
    """Take a run's folder, if it has one: say in it that the run is on its way."""
    result, directory = begun.result, begun.result.directory
    if directory is None:
        return

    def take() -> None:
        clear_parts(directory)
        if not resume:
            clear_results(directory)
        write_run(directory, begun.model, result.task, result.recipe, result.choices, result.notices, status="running")

    here().first(take)


def judge_splits(
    begun: Begun, listener: Listener, stop: StopRequest, names: Sequence[str] = ()
) -> tuple[dict[str, Judgement], float]:
    """Answer every evaluation split with the run's own adapter, or with several of its bank whose scores are averaged;
    the answers by split, and the seconds they took."""
    rows = sum(len(part.examples) for part in begun.evaluation.values())
    watch = watching(listener, stop, "evaluation", rows * max(1, len(names))) if rows else None
    began = time.perf_counter()
    judged = {
        name: judged_as_one(begun.run.aim, names or (begun.run.name,), part, watch)
        for name, part in begun.evaluation.items()
    }
    return judged, time.perf_counter() - began


def fail(begun: Begun, error: TrainingError) -> None:
    """Keep the last good adapter of a run whose training failed, and say so in its folder."""
    directory = begun.result.directory
    if directory is None:
        return

    def keep() -> None:
        begun.method.save(directory, begun.description)
        write_failure(directory, error)

    here().first(keep)


def conclude(begun: Begun, judged: dict[str, Judgement], seconds: float | None, *, bare: bool = False) -> Result:
    """Complete the metrics of a trained adapter, and write everything if the run has a folder.

    `judged` holds the answers to each evaluation split; they took so many seconds, if that is known. `bare` leaves out
    what is for a person to read.
    """
    run, result = begun.run, begun.result
    recipe, position = result.recipe, run.position
    result.history = position.history
    if position.stayed:
        result.notices.append(STAYED)
    splits = {name: each.metrics for name, each in judged.items() if each.metrics}
    for name, each in judged.items():
        result.predictions[name], result.probabilities[name] = each.predictions, each.scores
    rows = {name: len(part.examples) for name, part in begun.evaluation.items()}
    count = sum(leaf.numel() for leaf in run.leaves.values())
    result.metrics.update(
        dev=kept_scores(position, run.aim.metrics) if recipe.selection == "dev" else {},
        dev_start=position.start,
        evaluation=dict(next(iter(splits.values()))) if splits else {},
        evaluation_splits=splits,
        evaluation_rows=rows,
        eval_examples_per_second=round(sum(rows.values()) / seconds, 1) if seconds else None,
        selected_on=recipe.selection if "dev" in run.parts else None,
        best_epoch=position.epochs_kept(recipe.epochs or 1),
        method=recipe.method,
        trainable_parameters=count,
        trainable_share=count / begun.method.base_size,
        base_parameters=begun.method.base_size,
        train_examples=len(result.task.train),
        train_seconds=round(position.train_seconds, 3),
        train_examples_per_second=round(position.trained_rows / max(position.train_seconds, 1e-9), 1),
        peak_memory_mib=round(peak_memory_mib(result.choices.device), 1),
    )
    directory = result.directory
    if directory is not None:
        result.metrics, result.notices = here().first(lambda: _finish(begun, directory, bare))
    return result


def _finish(begun: Begun, directory: Path, bare: bool) -> tuple[dict[str, Any], list[str]]:
    """Write the files of a run; gives its metrics and notices, to which that has added."""
    method, result = begun.method, begun.result
    method.save(directory, begun.description)
    sizes = {file: (directory / file).stat().st_size for file in read_json(directory / MANIFEST)["sha256"]}
    head = sizes.pop(HEAD, 0)
    result.metrics["adapter_bytes"] = {"vectors": sum(sizes.values()), "head": head}
    result.metrics["peft"] = method.peft_loads() or "stock PEFT loads this adapter"
    refusal = method.peft_refuses()
    if refusal and not bare:
        result.notices.append(f"stock PEFT will refuse this adapter: {refusal}")
    write_results(directory, result, begun.model, bare=bare, peft_refuses=refusal)
    (directory / CHECKPOINT).unlink(missing_ok=True)
    return result.metrics, result.notices
