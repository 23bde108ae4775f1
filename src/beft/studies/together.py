"""Cells that run side by side in one pass over the frozen model, each with the result it has alone."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BeftError, StoreError
from ..report import plots
from ..report.cells import CellRecord
from ..tasks.question import PromptTask, Question
from ..tasks.task import Example, Task
from ..training.many import ManyResult, train_many
from ..training.many_folder import NAME as BANK
from ..training.plan import Plan as RunPlan
from ..training.plan import folder_name
from ..training.progress import BankListener
from ..training.prompt_outputs import answer_names
from ..training.result import Result
from .execute import run_options, settle, trained_record, trial, unjudged
from .methods import kind_of
from .plan import Cell

Answer = CellRecord | BeftError
"""What a cell of a group gave: its record, or the error that ended it."""
MOST_RUNS = 16
"""Runs of one bank, all learning rates counted: more gain little, and none of their cells is done before the last."""


def can_share(cell: Cell) -> bool:
    """Whether a cell's runs may stand in a bank: a method of the adapter's own leaves, and no dropout, which would be
    drawn from the company's rows."""
    kind = kind_of(cell.method)
    return cell.kind == "scores" and kind is not None and kind.banked and not kind.fitted and not cell.recipe["dropout"]


def groups(
    cells: Sequence[Cell], numbers: Sequence[int], *, by_seed: bool = False, workers: int = 1
) -> list[list[int]]:
    """The numbered cells in the order they run, those together that can share passes; the others stand alone.

    Of one group are cells of one model, task, number of rows, precision, kind of head and length of texts; with
    `by_seed` of one seed too, so that a budget still cuts off seeds. Of several workers each is to have its part.
    """
    runs_of = {number: max(1, len(cells[number].rates)) for number in numbers}
    most = min(MOST_RUNS, math.ceil(sum(runs_of.values()) / workers))
    made: list[list[int]] = []
    open_groups: dict[Any, tuple[list[int], int]] = {}
    for number in numbers:
        cell = cells[number]
        if not can_share(cell):
            made.append([number])
            continue
        key = (cell.where, cell.task, cell.regime, cell.rows, cell.objective, cell.dtype, cell.recipe["head"],
               cell.recipe["max_length"], cell.seed if by_seed else None)  # fmt: skip
        members, runs = open_groups.get(key, ([], 0))
        if not members or runs + runs_of[number] > most:
            members, runs = [], 0
            made.append(members)
        members.append(number)
        open_groups[key] = (members, runs + runs_of[number])
    return made


def run_together(
    cells: Sequence[Cell], work: Path, listener: BankListener | None = None, *, device: str = "auto"
) -> list[Answer]:
    """Train and judge cells of one group: a record each, or the error that ended it.

    `work` is a folder for the unfinished bank. A run that has ended there is not repeated after a stop.

    Raises:
        BeftError: what concerns them all, such as a model that cannot be loaded.
    """
    began = time.perf_counter()
    tasks = [cell.load() for cell in cells]
    names = [folder_name(f"{cell.method}, seed {cell.seed}") for cell in cells]
    trials = [
        RunPlan(f"{name}, lr {rate:g}", trial(cell, rate), unjudged(task))
        for cell, task, name in zip(cells, tasks, names, strict=True)
        for rate in cell.rates
    ]
    tried = _ended(_bank(cells[0], tasks[0], trials, work / "rates", listener, device)) if trials else {}
    plans: list[RunPlan] = []
    answers: dict[str, BeftError] = {}
    extras: dict[str, dict[str, Any]] = {}
    for cell, task, name in zip(cells, tasks, names, strict=True):
        try:
            recipe, extras[name] = settle(cell, {rate: tried[f"{name}, lr {rate:g}"] for rate in cell.rates})
            plans.append(RunPlan(name, recipe, task))
        except BeftError as error:
            answers[name] = error
    ended = _ended(_bank(cells[0], tasks[0], plans, work / "runs", listener, device)) if plans else {}
    share = round((time.perf_counter() - began) / len(cells), 3)
    records: list[Answer] = []
    for cell, task, name in zip(cells, tasks, names, strict=True):
        result = answers[name] if name in answers else ended[name]
        if isinstance(result, BeftError):
            records.append(result)
            continue
        extra = {**extras[name], "bank": len(plans), "wall_seconds": share}
        if not result.predictions:  # of a run that ended before a stop they are in its folder alone
            assert result.directory is not None
            lines = (result.directory / "predictions.jsonl").read_text(encoding="utf-8")
            result.predictions[next(iter(task.evaluation))] = read_predictions(task, lines)
        records.append(trained_record(cell, task, result, extra))
    shutil.rmtree(work, ignore_errors=True)
    return records


def _bank(
    cell: Cell,
    task: Task | PromptTask,
    plans: Sequence[RunPlan],
    folder: Path,
    listener: BankListener | None,
    device: str,
) -> ManyResult:
    """The bank of a folder, from where it stands."""

    def train(resume: bool) -> ManyResult:
        with plots.unseen():
            return train_many(cell.where, task, plans, folder, listener=listener, **run_options(cell, device, resume))

    if not (folder / BANK).exists():
        shutil.rmtree(folder, ignore_errors=True)
        return train(False)
    try:
        return train(True)
    except StoreError:  # killed in the moment between two files: nothing there that can be gone on from
        shutil.rmtree(folder)
        return train(False)


def _ended(found: ManyResult) -> dict[str, Result | BeftError]:
    return {**found.results, **found.failures}


def read_predictions(task: Task | PromptTask, text: str) -> list[Any]:
    """The answers to the first evaluation split as the run gave them, of the lines of its predictions.jsonl: numbers of
    classes or candidates, numbers, or texts."""
    found: list[Any] = []
    examples: Sequence[Example | Question] = next(iter(task.evaluation.values()))
    for example, line in zip(examples, map(json.loads, text.splitlines()), strict=True):
        said = line["prediction"]
        if isinstance(example, Question):
            names = answer_names(task.labels, example)
        else:
            names = list(task.labels or ())
        found.append(names.index(said) if names else said)
    return found
