"""`train`: a model, a task and a recipe in; an adapter folder with its scores and pictures out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.adapter import LinearHead
from ..core.bank import Bank, attach
from ..core.store import HEAD, MANIFEST
from ..errors import RecipeError, StoreError, TrainingError
from ..files import read_json
from ..methods.method import Method
from ..objectives.classify import scores
from ..objectives.encode import encode
from ..tasks.question import PromptTask, Question
from ..tasks.task import Example, Task, stratified_split
from . import baselines
from .aims import Aim, ClassifyAim, Part
from .base import Base, add_adapter, load_base, token_limit
from .checkpoint import NAME as CHECKPOINT
from .checkpoint import Position
from .folder import prepare
from .infer import Watch, frozen_states
from .loop import Run
from .machine import Choices, choose, peak_memory_mib
from .outputs import clear_results, write_failure, write_results, write_run
from .progress import Listener
from .quantize import DeviceMap, chosen
from .recipe import Recipe, prompt_recipe
from .signals import StopRequest

ADAPTER = "default"


@dataclass
class Result:
    """What a run gave: `metrics` as in metrics.json, predictions of each evaluation split, and where files lie."""

    metrics: dict[str, Any]
    directory: Path | None
    task: Task | PromptTask
    recipe: Recipe
    choices: Choices
    history: list[dict[str, Any]]
    predictions: dict[str, list[float]] = field(default_factory=dict)
    probabilities: dict[str, list[list[float]]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def evaluation(self) -> dict[str, float]:
        """Metrics on the (first) evaluation split."""
        return dict(self.metrics.get("evaluation") or {})


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
    listener: Listener | None = None,
) -> Result:
    """Train one adapter on a task and judge it on the task's evaluation rows.

    Args:
        model: a folder, a Hub id, or the name of a packaged model.
        task: rows with labels for a head; or questions, for which see `train_prompts` (and `prompt_recipe`).
        out: the adapter folder to write; None keeps everything in memory.
        method: what is trained, in place of the recipe's: "bias", "bitfit", "full", "lora" ..., see `beft.methods`.
        token_budget: tokens of one micro-batch at most; changes speed and memory, not results.
        quantize: hold the frozen base in "8bit" or "4bit"; `device_map`: spread it over devices; see `quantize`.
        resume: go on from the folder's checkpoint; `overwrite`: replace a folder that is not empty.

    Raises:
        StoreError: a folder that cannot be used, or a model that cannot be loaded.
        RecipeError: a device, a quantisation or a device map that cannot be had here.
        TrainingError: the loss is not finite; the last good adapter is in the folder.
        Interrupted: a signal asked to stop; the folder holds a checkpoint.
    """
    if method is not None:
        blank = prompt_recipe(task.name) if isinstance(task, PromptTask) else Recipe()
        recipe = (recipe or blank).with_method(method)
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
    recipe = (recipe or Recipe()).resolve(len(task.train))
    if recipe.head == "none":
        raise RecipeError(
            "head 'none'", expected="linear or model", found="a task of labels", remedy="leave --head out"
        )
    listener = listener or Listener()
    directory = None if out is None else Path(out)
    choices = choose(device, dtype, recipe.max_length, token_budget)
    choices.quantize = chosen(quantize)
    check_selection(task, recipe)
    if directory is not None:
        resume = prepare(directory, model, task, recipe, choices, resume, overwrite)
    torch.set_num_threads(choices.threads)
    with StopRequest() as stop:
        base = load_base(
            model,
            choices,
            head=recipe.head,
            outputs=task.outputs,
            labels=task.labels,
            trust_remote_code=trust_remote_code,
            quantize=choices.quantize,
            device_map=device_map,
        )
        if recipe.head == "linear" and getattr(base.model.config, "is_encoder_decoder", False):
            raise StoreError(
                f"model {model!r}",
                expected="an encoder or a causal model for a linear head",
                found="an encoder-decoder",
                remedy="try --head model",
            )
        trained = recipe.new_method()
        terms = trained.terms(base.model, recipe.head)
        bank = attach(base.model, terms, names=[], layers=None if terms == "none" else recipe.layers)
        notices = list(task.notices)
        train_part, eval_parts = _encode(base, task, recipe, trained.reserved, notices)
        rest, dev = dev_split(task, recipe)
        add_adapter(bank, base, ADAPTER, recipe, task.outputs, task.labels)
        bank.active = ADAPTER
        metrics: dict[str, Any] = {"task": task.name, "baselines": {}}
        if with_baselines or recipe.head_start == "regression":
            rows = len(task.train) + sum(len(part.examples) for part in eval_parts.values())
            watch = watching(listener, stop, "frozen", rows)
            everything = {"train": train_part, **eval_parts}
            metrics["baselines"] = baseline_scores(bank, task, recipe, choices, everything, rest, dev, watch)
        leaves = trained.attach(bank, ADAPTER)
        start_head(bank, task)
        parts = make_parts(train_part, eval_parts, recipe, rest, dev)
        aim = ClassifyAim(bank, ADAPTER, task, choices, recipe.class_weight == "balanced")
        run = Run(bank, ADAPTER, aim, recipe, choices, parts, directory, listener, stop, leaves)
        if directory is not None:
            if not resume:
                clear_results(directory)
            write_run(directory, model, task, recipe, choices, notices, status="running")
        try:
            if trained.fitted:
                run.position = fit_head(
                    bank, task, choices, train_part, rest, dev, watching(listener, stop, "frozen", 0)
                )
            position = run.learn(resume=resume)
        except TrainingError:
            if directory is not None:
                trained.save(directory, task_description(base, task, recipe, choices))
                write_failure(directory)
            raise
        result = Result(metrics, directory, task, recipe, choices, position.history, notices=notices)
        conclude(result, run, trained, eval_parts, stop, model, task_description(base, task, recipe, choices))
    return result


# ---- steps of train --------------------------------------------------------------------------------------------------


def check_selection(task: Task | PromptTask, recipe: Recipe) -> None:
    """Raises RecipeError if the epoch is to be chosen on evaluation rows that are not there."""
    rows: Sequence[Example | Question] = next(iter(task.evaluation.values()), [])
    if recipe.selection == "evaluation" and (not rows or not all(_has_truth(row) for row in rows)):
        raise RecipeError(
            "selection 'evaluation'",
            expected="evaluation rows with labels",
            found="rows without one" if rows else "none",
            remedy="give evaluation rows, or use a recipe that selects on a part of the training rows",
        )


def _has_truth(row: Example | Question) -> bool:
    return row.label is not None if isinstance(row, Example) else bool(row.gold or row.answers)


def _encode(base: Base, task: Task, recipe: Recipe, reserved: int, notices: list[str]) -> tuple[Part, dict[str, Part]]:
    limit = token_limit(base, recipe.max_length, reserved)
    parts = {
        name: Part(examples, encode(base.tokenizer, examples, limit))
        for name, examples in {"train": task.train, **task.evaluation}.items()
    }
    for name, part in parts.items():
        if part.encoded.cut:
            notices.append(
                f"{part.encoded.cut} of {len(part.examples)} {name} texts were cut to {limit} tokens "
                "(--max-length sets the limit)"
            )
    return parts.pop("train"), parts


def dev_split(task: Task, recipe: Recipe) -> tuple[list[int], list[int]]:
    size = round(len(task.train) * recipe.dev_fraction)
    if recipe.selection != "dev" or size < 1:
        return list(range(len(task.train))), []
    return stratified_split(task.train, size, recipe.seed, classes=not task.regression)


def make_parts(
    train: Part, evaluation: dict[str, Part], recipe: Recipe, rest: list[int], dev: list[int]
) -> dict[str, Part]:
    parts = {"select": train.take(rest), "refit": train}
    if dev:
        parts["dev"] = train.take(dev)
    elif recipe.selection == "evaluation" and evaluation:
        parts["dev"] = next(iter(evaluation.values()))
    return parts


def start_head(bank: Bank, task: Task) -> None:
    head = bank[ADAPTER].head
    if isinstance(head, LinearHead) and task.regression:
        gold = torch.tensor([float(example.label or 0) for example in task.train])
        head.offset.fill_(float(gold.mean()))
        head.spread.fill_(float(gold.std()) or 1.0)


def watching(listener: Listener, stop: StopRequest, stage: str, rows: int) -> Watch:
    """Begin a stage without training: its batches move the bar and may be stopped between."""
    listener.stage(stage, rows)

    def after(done: int, left: int) -> None:
        listener.step(None, done)
        stop.check(f"stopped in the stage {stage!r}")

    return after


def baseline_scores(
    bank: Bank,
    task: Task,
    recipe: Recipe,
    choices: Choices,
    parts: dict[str, Part],
    rest: list[int],
    dev: list[int],
    watch: Watch,
) -> dict[str, Any]:
    """Scores of the majority and of a linear model on frozen states, and the head's start if the recipe wants it."""
    states = frozen_states(bank, parts["train"].encoded, choices, watch).numpy()
    gold = [float(example.label) for example in task.train if example.label is not None]
    if not dev:
        probe_rest, probe_dev = stratified_split(task.train, max(1, len(gold) // 5), recipe.seed, not task.regression)
    else:
        probe_rest, probe_dev = rest, dev
    probe = baselines.fit_probe(states, gold, probe_rest, probe_dev, task)
    head = bank[ADAPTER].head
    if recipe.head_start == "regression" and isinstance(head, LinearHead) and not task.regression:
        weight, bias = baselines.linear_layer(probe, task.outputs)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
    result: dict[str, Any] = {"majority": {}, "frozen_logistic_regression": {}}
    common = baselines.majority(task)
    for name, part in parts.items():
        if name == "train" or any(example.label is None for example in part.examples):
            continue
        predicted = probe.predict(frozen_states(bank, part.encoded, choices, watch).numpy())
        result["majority"][name] = scores(task.metrics, part.examples, [common] * len(part.examples))
        result["frozen_logistic_regression"][name] = scores(task.metrics, part.examples, predicted)
    first = next(iter(result["majority"]), None)
    return {kind: {**by_split.get(first, {}), "splits": by_split} for kind, by_split in result.items()} if first else {}


def fit_head(
    bank: Bank, task: Task, choices: Choices, part: Part, rest: list[int], dev: list[int], watch: Watch
) -> Position:
    """Fit the adapter's linear head to frozen states: nothing is left to train, at the position that this gives."""
    began = time.perf_counter()
    states = frozen_states(bank, part.encoded, choices, watch).numpy()
    gold = [float(example.label) for example in task.train if example.label is not None]
    probe = baselines.fit_probe(states, gold, rest, dev, task)
    head = bank[ADAPTER].head
    assert isinstance(head, LinearHead)
    weight, bias = baselines.linear_layer(probe, task.outputs)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight) / head.spread.cpu())
        head.bias.copy_((torch.from_numpy(bias) - head.offset.cpu()) / head.spread.cpu())
    return Position("done", best_epoch=0, train_seconds=time.perf_counter() - began, trained_rows=len(gold))


def conclude(
    result: Result,
    run: Run,
    trained: Method,
    evaluation: dict[str, Part],
    stop: StopRequest,
    model: str,
    description: dict[str, Any],
) -> None:
    """Judge the trained adapter, complete the metrics, and write everything if the run has a folder."""
    recipe, position = result.recipe, run.position
    result.metrics["dev"] = run.best_dev() if recipe.selection == "dev" else {}
    rows = sum(len(part.examples) for part in evaluation.values())
    _judge(result, run.aim, evaluation, watching(run.listener, stop, "evaluation", rows) if rows else None)
    count = sum(leaf.numel() for leaf in run.leaves.values())
    result.metrics.update(
        selected_on=recipe.selection if "dev" in run.parts else None,
        best_epoch=position.best_epoch or recipe.epochs,
        method=recipe.method,
        trainable_parameters=count,
        trainable_share=count / trained.base_size,
        base_parameters=trained.base_size,
        train_examples=len(result.task.train),
        train_seconds=round(position.train_seconds, 3),
        train_examples_per_second=round(position.trained_rows / max(position.train_seconds, 1e-9), 1),
        peak_memory_mib=round(peak_memory_mib(result.choices.device), 1),
    )
    if result.directory is not None:
        _finish(result, trained, result.directory, model, description)


def _judge(result: Result, aim: Aim, evaluation: dict[str, Part], watch: Watch | None) -> None:
    """Predict every evaluation split with the finished adapter, time it, and score what has labels."""
    seconds = rows = 0.0
    splits: dict[str, dict[str, float]] = {}
    for name, part in evaluation.items():
        began = time.perf_counter()
        judged = aim.judge(part, watch)
        seconds, rows = seconds + time.perf_counter() - began, rows + len(part.examples)
        result.predictions[name], result.probabilities[name] = judged.predictions, judged.scores
        if judged.metrics:
            splits[name] = judged.metrics
    result.metrics["evaluation"] = dict(next(iter(splits.values()))) if splits else {}
    result.metrics["evaluation_splits"] = splits
    result.metrics["evaluation_rows"] = {name: len(part.examples) for name, part in evaluation.items()}
    result.metrics["eval_examples_per_second"] = round(rows / seconds, 1) if seconds else None


def _finish(result: Result, trained: Method, directory: Path, model: str, description: dict[str, Any]) -> None:
    trained.save(directory, description)
    sizes = {file: (directory / file).stat().st_size for file in read_json(directory / MANIFEST)["sha256"]}
    head = sizes.pop(HEAD, 0)
    result.metrics["adapter_bytes"] = {"vectors": sum(sizes.values()), "head": head}
    result.metrics["peft"] = trained.peft_loads() or "stock PEFT loads this adapter"
    write_results(directory, result, model)
    (directory / CHECKPOINT).unlink(missing_ok=True)


def task_description(base: Base, task: Task, recipe: Recipe, choices: Choices) -> dict[str, Any]:
    """How texts become inputs, for `beft.load`, `evaluate` and `predict`."""
    return {
        "name": task.name,
        "objective": "classify",
        "benchmark": task.benchmark,
        "fields": list(task.fields),
        "label_field": task.label_field,
        "labels": None if task.labels is None else list(task.labels),
        "metrics": list(task.metrics),
        "max_length": recipe.max_length,
        "head": recipe.head,
        "pooling": base.pooling,
        "dtype": choices.dtype,
        "quantize": choices.quantize,
    }
