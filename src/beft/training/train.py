"""`train`: a model, a task and a recipe in; an adapter folder with its scores and pictures out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.bank import attach
from ..core.store import HEAD, WEIGHTS, peft_can_load, save_adapter
from ..errors import TrainingError
from ..objectives.classify import trained_parameters
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .aims import Judgement
from .base import load_base
from .checkpoint import NAME as CHECKPOINT
from .folder import prepare
from .grounds import LabelGround, check_selection, watching
from .machine import Choices, choose, peak_memory_mib
from .outputs import clear_results, write_failure, write_results, write_run
from .plan import Plan
from .progress import Listener
from .quantize import DeviceMap, chosen
from .recipe import Recipe, prompt_recipe
from .result import Begun
from .result import Result as Result
from .signals import StopRequest

if TYPE_CHECKING:
    from .prompt_ground import PromptGround

ADAPTER = "default"


def train(
    model: str,
    task: Task | PromptTask,
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    with_baselines: bool = True,
    trust_remote_code: bool = False,
    quantize: str | None = None,
    device_map: DeviceMap | None = None,
    listener: Listener | None = None,
) -> Result:
    """Train one adapter on a task and judge it on the task's evaluation rows.

    Args:
        model: a folder, a Hub id, or the name of a packaged model.
        task: rows with labels for a head; or questions, for which see `train_prompts` (and `prompt_recipe`).
        out: the adapter folder to write; None keeps everything in memory.
        token_budget: tokens of one micro-batch at most; changes speed and memory, not results.
        quantize: hold the frozen base in "8bit" or "4bit"; `device_map`: spread it over devices; see `quantize`.
        resume: go on from the folder's checkpoint; `overwrite`: replace a folder that is not empty.

    Raises:
        StoreError: a folder that cannot be used, or a model that cannot be loaded.
        RecipeError: a device, a quantisation or a device map that cannot be had here.
        TrainingError: the loss is not finite; the last good adapter is in the folder.
        Interrupted: a signal asked to stop; the folder holds a checkpoint.
    """
    if isinstance(task, PromptTask):
        from .train_prompts import train_prompts

        return train_prompts(
            model,
            task,
            recipe or prompt_recipe(task.name),
            out,
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            resume=resume,
            overwrite=overwrite,
            with_baselines=with_baselines,
            trust_remote_code=trust_remote_code,
            listener=listener,
        )
    plan = Plan(ADAPTER, recipe, task).resolve(task)
    assert plan.recipe is not None
    choices = choose(device, dtype, plan.recipe.max_length, token_budget)
    choices.quantize = chosen(quantize)

    def ground() -> LabelGround:
        assert plan.recipe is not None
        base = load_base(
            model,
            choices,
            head=plan.recipe.head,
            outputs=task.outputs,
            labels=task.labels,
            trust_remote_code=trust_remote_code,
            quantize=choices.quantize,
            device_map=device_map,
        )
        bank = attach(base.model, plan.recipe.terms, names=[], layers=plan.recipe.layers)
        return LabelGround(model, base, bank, choices)

    return carry_out(
        plan,
        ground,
        model,
        choices,
        out,
        resume=resume,
        overwrite=overwrite,
        with_baselines=with_baselines,
        listener=listener,
    )


def carry_out(
    plan: Plan,
    open_ground: Callable[[], LabelGround | PromptGround],
    model: str,
    choices: Choices,
    out: str | Path | None,
    *,
    resume: bool,
    overwrite: bool,
    with_baselines: bool,
    listener: Listener | None,
) -> Result:
    """Train one plan (resolved) alone, on the ground that is opened once its folder may be used."""
    task, recipe = plan.task, plan.recipe
    assert task is not None
    assert recipe is not None
    listener = listener or Listener()
    directory = None if out is None else Path(out)
    check_selection(task, recipe)
    if directory is not None:
        resume = prepare(directory, model, task, recipe, choices, resume, overwrite)
    torch.set_num_threads(choices.threads)
    with StopRequest() as stop:
        ground = open_ground()
        begun = ground.begin(plan, directory, listener, stop, with_baselines=with_baselines, resume=resume)
        ground.bank.active = plan.name
        open_folder(begun, resume)
        try:
            begun.run.learn(resume=resume)
        except TrainingError as error:
            fail(begun, error)
            raise
        judged, seconds = {}, 0.0
        rows = sum(len(part.examples) for part in begun.evaluation.values())
        watch = watching(listener, stop, "evaluation", rows) if rows else None
        for name, part in begun.evaluation.items():
            began = time.perf_counter()
            judged[name] = begun.run.aim.judge(part, watch)
            seconds += time.perf_counter() - began
        return conclude(begun, judged, seconds)


# ---- from a run's beginning to its end, whoever drives it ------------------------------------------------------------


def open_folder(begun: Begun, resume: bool) -> None:
    """Take a run's folder, if it has one: say in it that the run is on its way."""
    result = begun.result
    if result.directory is not None:
        if not resume:
            clear_results(result.directory)
        write_run(
            result.directory, begun.model, result.task, result.recipe, result.choices, result.notices, status="running"
        )


def fail(begun: Begun, error: TrainingError) -> None:
    """Keep the last good adapter of a run whose training failed, and say so in its folder."""
    directory = begun.result.directory
    if directory is not None:
        save_adapter(begun.run.bank, begun.run.name, directory, begun.description)
        write_failure(directory, error)


def conclude(begun: Begun, judged: dict[str, Judgement], seconds: float | None) -> Result:
    """Complete the metrics of a trained adapter, and write everything if the run has a folder.

    `judged` holds the answers to each evaluation split; they took so many seconds, if that is known.
    """
    run, result = begun.run, begun.result
    recipe, position = result.recipe, run.position
    result.history = position.history
    splits = {name: each.metrics for name, each in judged.items() if each.metrics}
    for name, each in judged.items():
        result.predictions[name], result.probabilities[name] = each.predictions, each.scores
    rows = {name: len(part.examples) for name, part in begun.evaluation.items()}
    result.metrics.update(
        dev=run.best_dev() if recipe.selection == "dev" else {},
        evaluation=dict(next(iter(splits.values()))) if splits else {},
        evaluation_splits=splits,
        evaluation_rows=rows,
        eval_examples_per_second=round(sum(rows.values()) / seconds, 1) if seconds else None,
        selected_on=recipe.selection if "dev" in run.parts else None,
        best_epoch=position.best_epoch or recipe.epochs,
        trainable_parameters=trained_parameters(run.bank, run.name),
        train_examples=len(result.task.train),
        train_seconds=round(position.train_seconds, 3),
        train_examples_per_second=round(position.trained_rows / max(position.train_seconds, 1e-9), 1),
        peak_memory_mib=round(peak_memory_mib(result.choices.device), 1),
    )
    if result.directory is not None:
        _finish(begun, result.directory)
    return result


def _finish(begun: Begun, directory: Path) -> None:
    bank, name, result = begun.run.bank, begun.run.name, begun.result
    save_adapter(bank, name, directory, begun.description)
    sizes = {"vectors": (directory / WEIGHTS).stat().st_size, "head": 0}
    if (directory / HEAD).exists():
        sizes["head"] = (directory / HEAD).stat().st_size
    result.metrics["adapter_bytes"] = sizes
    result.metrics["peft"] = peft_can_load(bank[name], bank.model) or "stock PEFT loads this adapter"
    write_results(directory, result, begun.model)
    (directory / CHECKPOINT).unlink(missing_ok=True)
