"""One cell of a study: trained, or asked, and judged."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.measure import measure_importance, to_be_scored
from ..analysis.resampled import RESAMPLED
from ..core.bank import attach
from ..errors import BeftError, TrainingError
from ..objectives.classify import scores
from ..objectives.encode import encode
from ..report import plots
from ..report.cells import CellRecord
from ..tasks.metrics import token_f1
from ..tasks.question import PromptTask, Question
from ..tasks.task import Example, Task
from ..training import baselines
from ..training.base import load_base, token_limit
from ..training.checkpoint import NAME as CHECKPOINT
from ..training.grounds import probe_split
from ..training.infer import frozen_states
from ..training.machine import choose
from ..training.progress import Listener
from ..training.prompt_aims import PromptAim
from ..training.prompt_predictor import PromptPredictor, shown
from ..training.recipe import Recipe
from ..training.train import Result, train
from .at_hand import count_parameters
from .memory import forget_peak_memory, peak_memory
from .plan import Cell

SHOTS = 32
"""Demonstrations of in-context learning, the paper's number; as many as fit are shown."""


def run_cell(cell: Cell, work: Path, listener: Listener | None = None, *, device: str = "auto") -> CellRecord:
    """Train and judge one cell. `work` is a folder for its unfinished run, from which it goes on if it was stopped.

    Raises:
        BeftError: whatever training raises.
    """
    began = time.perf_counter()
    task = cell.load()
    measures_memory = forget_peak_memory()
    if cell.kind == "importance":
        record = _importance(cell, task, work, listener, device)
    elif cell.method == "probe":
        assert isinstance(task, Task)
        record = _probe(cell, task, device)
    elif cell.method in ("zero-shot", "icl"):
        assert isinstance(task, PromptTask)
        record = _asked(cell, task, listener, device)
    else:
        record = _trained(cell, task, work, listener, device)
    shutil.rmtree(work, ignore_errors=True)
    efficiency = {**record.efficiency, **({"peak_memory_mib": peak_memory()} if measures_memory else {})}
    seconds = round(time.perf_counter() - began, 3)
    extra = {**record.extra, "wall_seconds": seconds}
    return replace(record, efficiency=efficiency, extra=extra, made_by={"versions": versions()})


# ---- adapters --------------------------------------------------------------------------------------------------------


def _trained(cell: Cell, task: Task | PromptTask, work: Path, listener: Listener | None, device: str) -> CellRecord:
    tried: dict[float, Result | BeftError] = {}
    for rate in cell.rates:
        try:
            tried[rate] = _run(cell, unjudged(task), trial(cell, rate), work / f"lr-{rate:g}", listener, device)
        except TrainingError as error:
            tried[rate] = error
    recipe, extra = settle(cell, tried)
    result = _run(cell, task, recipe, work / "run", listener, device)
    return trained_record(cell, task, result, extra)


def trial(cell: Cell, rate: float) -> Recipe:
    """The recipe of a run that only tells what a learning rate is worth on dev rows, whatever the cell selects by."""
    return replace(Recipe.from_dict(dict(cell.recipe)), lr=rate, selection="dev", refit=False)


def settle(cell: Cell, tried: Mapping[float, Result | BeftError]) -> tuple[Recipe, dict[str, Any]]:
    """The cell's recipe with the rate that is best on the dev rows, and what is kept of the others.

    A rate at which training diverged is not chosen.

    Raises:
        TrainingError: it diverged at every rate, or there are too few rows for a dev score.
    """
    recipe = Recipe.from_dict(dict(cell.recipe))
    if not tried:
        return recipe, {}
    scores = {rate: _dev_score(rate, each) for rate, each in tried.items() if isinstance(each, Result)}
    failed = {f"{rate:g}": str(each) for rate, each in tried.items() if isinstance(each, BeftError)}
    if not scores:
        raise TrainingError("every learning rate", expected="one that trains", found=next(iter(failed.values())))
    extra: dict[str, Any] = {"learning_rates": {f"{rate:g}": score for rate, score in scores.items()}}
    if failed:
        extra["learning_rates_failed"] = failed
    return replace(recipe, lr=max(scores, key=lambda rate: scores[rate])), extra


def _dev_score(rate: float, result: Result) -> float:
    score = next(iter(result.metrics["dev"].values()), None)
    if score is None:
        raise TrainingError(
            f"learning rate {rate:g}",
            expected="a score on dev rows",
            found=f"none: {len(result.task.train)} training rows leave no dev part",
            remedy="give more rows, or one learning rate",
        )
    return float(score)


def trained_record(cell: Cell, task: Task | PromptTask, result: Result, extra: Mapping[str, Any]) -> CellRecord:
    """The record of a finished run and its answers."""
    metrics = result.metrics
    first = next(iter(task.evaluation))
    splits = metrics["evaluation_splits"]
    more: dict[str, Any] = {**extra, "lr": result.recipe.lr, "best_epoch": metrics["best_epoch"]}
    more["splits"] = {name: splits[name] for name in list(splits)[1:]}
    if metrics["selected_on"] == "evaluation":
        more["selected_on"] = "evaluation"
    return cell.record(
        metrics=result.evaluation,
        efficiency={
            "trained_parameters": metrics["trainable_parameters"],
            "share": metrics["trainable_share"],
            "adapter_bytes": sum(metrics["adapter_bytes"].values()),
            "seconds": metrics["train_seconds"],
            "examples_per_second": metrics["train_examples_per_second"],
        },
        **judged(task, task.evaluation[first], result.predictions[first]),
        extra={key: value for key, value in more.items() if value not in ({}, None)},
        made_by={"versions": versions()},
    )


def _run(
    cell: Cell,
    task: Task | PromptTask,
    recipe: Recipe,
    folder: Path,
    listener: Listener | None,
    device: str,
) -> Result:
    """One run in a folder, from its checkpoint if there is one."""
    resume = (folder / CHECKPOINT).exists()
    with plots.unseen():
        return train(cell.where, task, recipe, folder, listener=listener, **run_options(cell, device, resume))


def run_options(cell: Cell, device: str, resume: bool) -> dict[str, Any]:
    """How a cell's run, or a bank of runs with it, is trained: options of `train` and of `train_many`."""
    return {
        "device": device,
        "dtype": cell.dtype,
        "resume": resume,
        "overwrite": not resume,
        "with_baselines": False,
    }


def unjudged(task: Task | PromptTask) -> Any:
    """The task without its evaluation rows: learning rates are tried on dev rows alone."""
    return replace(task, evaluation={})  # type: ignore[arg-type]


# ---- what trains nothing ---------------------------------------------------------------------------------------------


def _probe(cell: Cell, task: Task, device: str) -> CellRecord:
    """Logistic (ridge) regression on frozen mean-pooled states, two texts compared, its strength chosen on dev rows."""
    recipe = Recipe.from_dict(dict(cell.recipe))
    choices = choose(device, "fp32", recipe.max_length)
    base = load_base(cell.where, choices, head="linear", outputs=task.outputs, labels=task.labels)
    bank = attach(base.model, "none", names=[])
    limit = token_limit(base, recipe.max_length)
    split, examples = next(iter(task.evaluation.items()))
    apart = recipe.pairs == "apart"

    def read(examples: Sequence[Example]) -> NDArray[np.float32]:
        encoded = encode(base.tokenizer, examples, limit, apart=apart)
        return frozen_states(bank, encoded, choices, pooling="pair" if apart else "mean").numpy()

    states = read(task.train)
    gold = [float(example.label) for example in task.train if example.label is not None]
    rest, dev = probe_split(task, recipe)
    began = time.perf_counter()
    probe = baselines.fit_probe(states, gold, rest, dev, task, compared=apart)
    seconds = time.perf_counter() - began
    predicted = probe.predict(read(examples))
    parameters = (states.shape[1] + 1) * task.outputs
    return cell.record(
        metrics=scores(task.metrics, examples, predicted),
        efficiency={
            "trained_parameters": parameters,
            **_share(parameters, cell),
            "adapter_bytes": 4 * parameters,
            "seconds": round(seconds, 3),
        },
        **judged(task, examples, predicted),
        extra={"strength": probe.strength, "split": split},
    )


def _asked(cell: Cell, task: PromptTask, listener: Listener | None, device: str) -> CellRecord:
    """The plain language model, without or with demonstrations."""
    predictor = PromptPredictor(
        None, model=cell.where, device=device, dtype=cell.dtype, max_length=int(cell.recipe["max_length"])
    )
    if cell.method == "icl":
        task = shown(task, predictor, min(SHOTS, len(task.train)), cell.seed)
    aim = PromptAim(predictor.bank, None, task, predictor.tokenizer, predictor.choices, predictor.max_length)
    questions = next(iter(task.evaluation.values()))
    listener = listener or Listener()
    listener.stage("evaluation", len(questions))
    found = aim.judge(aim.part(questions), lambda done, left: listener.step(None, done))
    return cell.record(
        metrics=found.metrics,
        efficiency={"trained_parameters": 0, "share": 0.0, "adapter_bytes": 0},
        **judged(task, questions, found.predictions),
    )


def _importance(cell: Cell, task: Task | PromptTask, work: Path, listener: Listener | None, device: str) -> CellRecord:
    """All biases tuned together, and their scores."""
    recipe = replace(Recipe.from_dict(dict(cell.recipe)), **to_be_scored(cell.where))
    result = _run(cell, task, recipe, work / "run", listener, device)
    measured = measure_importance(work / "run", task, device=device)
    kept = {"terms": measured.terms, "rows": [list(row) for row in measured.rows()], **measured.to_dict()}
    del kept["adapter"]  # a folder that is thrown away
    return cell.record(metrics=result.evaluation, extra={"importance": kept})


# ---- shared ----------------------------------------------------------------------------------------------------------


def judged(
    task: Task | PromptTask, examples: Sequence[Example | Question], predictions: Sequence[Any]
) -> dict[str, Any]:
    """What a record keeps of single answers, for paired intervals: `correct`, and `answers` where the leading metric is
    one of `RESAMPLED`."""
    kept: dict[str, Any] = {"correct": correctness(task, examples, predictions)}
    if task.metrics[0] in RESAMPLED:
        pairs = [(_gold(each, given), given) for each, given in zip(examples, predictions, strict=True)]
        gold, predicted = zip(*pairs, strict=True)
        kept["answers"] = {"gold": [_short(each) for each in gold], "predicted": [_short(each) for each in predicted]}
    return kept


def _gold(example: Example | Question, given: Any) -> float:
    """The right answer, as `measure_choices` has it where several are right."""
    if isinstance(example, Question):
        return given if given in example.gold else example.gold[0]
    assert example.label is not None
    return example.label


def _short(value: float) -> float:
    """A class's number, or a number to six places: records stay small."""
    return int(value) if float(value).is_integer() else round(float(value), 6)


def correctness(
    task: Task | PromptTask, examples: Sequence[Example | Question], predictions: Sequence[Any]
) -> list[float] | None:
    """1 or 0 for each answer, the token F1 of each written one; None for numbers to predict and without a truth."""
    right: list[float] = []
    for example, predicted in zip(examples, predictions, strict=True):
        if isinstance(example, Question):
            if isinstance(predicted, str):
                right.append(token_f1(predicted, example.answers))
            else:
                right.append(float(predicted in example.gold))
        elif task.labels is None or example.label is None:
            return None
        else:
            right.append(float(int(predicted) == example.label))
    return right


def _share(parameters: int, cell: Cell) -> dict[str, float]:
    """The trained share of the base model's parameters, if those can be counted."""
    counted = count_parameters(cell.where, cell.objective)
    return {"share": parameters / counted[0]} if counted else {}


def versions() -> dict[str, str]:
    """Of what results hang on besides beft's code."""
    import platform

    import torch
    import transformers

    from .. import __version__

    return {
        "beft": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
