"""`train_prompts`: a language model, a task of questions and a recipe in; an adapter folder with its scores out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.bank import attach
from ..errors import TrainingError
from ..objectives.prompt_tokens import context_limit
from ..tasks.question import PromptTask, Question
from ..tasks.task import Example, stratified_split
from .base import add_adapter
from .folder import prepare
from .language import load_language_model
from .loop import Run
from .machine import Choices, choose
from .outputs import clear_results, write_failure, write_run
from .progress import Listener
from .prompt_aims import PromptAim
from .recipe import Recipe
from .signals import StopRequest
from .train import ADAPTER, Result, check_selection, conclude, watching


def train_prompts(
    model: str,
    task: PromptTask,
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    with_baselines: bool = True,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> Result:
    """Train one adapter of a causal language model to choose or to write, and judge it. No head is trained.

    The arguments, and what is raised, are `train`'s, which calls this for a `PromptTask`. `with_baselines` judges the
    plain model first (zero-shot).
    """
    recipe = recipe.resolve(len(task.train))
    listener = listener or Listener()
    directory = None if out is None else Path(out)
    choices = choose(device, dtype, recipe.max_length, token_budget)
    check_selection(task, recipe)
    if directory is not None:
        resume = prepare(directory, model, task, recipe, choices, resume, overwrite)
    torch.set_num_threads(choices.threads)
    with StopRequest() as stop:
        base = load_language_model(model, choices, trust_remote_code=trust_remote_code)
        trained = recipe.new_method()
        bank = attach(base.model, "none", names=[])
        add_adapter(bank, base, ADAPTER, replace(recipe, head="none"))
        bank.active = ADAPTER
        leaves = trained.attach(bank, ADAPTER)
        longest = context_limit(base.model.config, recipe.max_length + trained.reserved) - trained.reserved
        aim = PromptAim(bank, ADAPTER, task, base.tokenizer, choices, longest)
        notices = list(task.notices)
        learned = aim.part(task.train, to_learn=True)
        judged = {name: aim.part(questions) for name, questions in task.evaluation.items()}
        for name, part in {"train": learned, **judged}.items():
            cut = max(part.encoded.cut, 0 if part.learned is None else part.learned.cut)
            if cut:
                notices.append(
                    f"{cut} of {len(part.examples)} {name} prompts were cut on the left to {aim.limit} tokens"
                )
        rest, dev = _dev_split(task, recipe)
        parts = {"select": learned.take(rest), "refit": learned}
        if dev:
            parts["dev"] = learned.take(dev)
        elif recipe.selection == "evaluation" and judged:
            parts["dev"] = next(iter(judged.values()))
        metrics: dict[str, Any] = {"task": task.name, "objective": "generate" if task.generates else "choose"}
        metrics["baselines"] = {}
        run = Run(bank, ADAPTER, aim, recipe, choices, parts, directory, listener, stop, leaves)
        if directory is not None:
            if not resume:
                clear_results(directory)
            write_run(directory, model, task, recipe, choices, notices, status="running")
        if with_baselines and judged and not resume:
            plain = PromptAim(bank, None, task, base.tokenizer, choices, recipe.max_length)
            rows = sum(len(part.examples) for part in judged.values())
            watch = watching(listener, stop, "zero-shot", rows)
            splits = {name: plain.judge(part, watch).metrics for name, part in judged.items()}
            if all(splits.values()):
                metrics["baselines"]["zero_shot"] = {**next(iter(splits.values())), "splits": splits}
        try:
            position = run.learn(resume=resume)
        except TrainingError:
            if directory is not None:
                trained.save(directory, description(task, recipe, choices))
                write_failure(directory)
            raise
        result = Result(metrics, directory, task, recipe, choices, position.history, notices=notices)
        conclude(result, run, trained, judged, stop, model, description(task, recipe, choices))
    return result


def description(task: PromptTask, recipe: Recipe, choices: Choices) -> dict[str, Any]:
    """How rows become prompts, kept in beft.json for `evaluate` and `predict`."""
    return {
        "name": task.name,
        "objective": "generate" if task.generates else "choose",
        "benchmark": task.benchmark,
        "fields": list(task.fields),
        "labels": None if task.labels is None else list(task.labels),
        "metrics": list(task.metrics),
        "stop": list(task.stop),
        "asked": task.asked,
        "chat": task.chat,
        "max_length": recipe.max_length,
        "dtype": choices.dtype,
    }


def _dev_split(task: PromptTask, recipe: Recipe) -> tuple[list[int], list[int]]:
    size = round(len(task.train) * recipe.dev_fraction)
    if recipe.selection != "dev" or size < 1:
        return list(range(len(task.train))), []
    rows = [Example(number, (), _label(question)) for number, question in enumerate(task.train)]
    return stratified_split(rows, size, recipe.seed, classes=task.labels is not None)


def _label(question: Question) -> int:
    return question.gold[0] if question.gold else 0
