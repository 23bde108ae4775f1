"""The end of a search: the winner trained on all rows, from one seed or several, and its folder written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ..core.bank import Bank
from ..core.restore import load_adapter
from ..core.store import MEMBERS
from ..files import read_json
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .checkpoint import Position
from .combination import ENSEMBLE, ONE
from .ensemble import write_ensemble
from .outputs import clear_results, write_results
from .plan import Plan
from .ranks import here
from .result import Begun, Result
from .search import Search, bank_of
from .seeds import make_soup
from .signals import StopRequest
from .space import Candidate
from .train import ADAPTER, conclude, judge_splits, open_folder

REFIT = "refit"


def refit(
    search: Search, task: Task | PromptTask, winner: Candidate, kept: str, seeds: int, directory: Path | None
) -> Result:
    """Train the winner on all rows and judge it on the task's evaluation rows, if there are any.

    Args:
        kept: "one" seed, the "soup" of `seeds` of them, or their "ensemble".
        directory: the folder to write; None for none.

    Raises:
        TrainingError: a loss that is not finite.
        What `train_many` raises.
    """
    numbers = range(1 if kept == ONE else seeds)
    search.listener.note(f"refit on all {len(task.train)} rows" + (f", {seeds} seeds" if kept != ONE else ""))
    recipes = [replace(winner.recipe, seed=search.seed + number) for number in numbers]
    plans = [Plan(f"seed{number}", recipe) for number, recipe in zip(numbers, recipes, strict=True)]
    found = bank_of(
        search.model, search.task, plans, search.journal, "refit", search.listener, search.options,
        with_baselines=False,
    )  # fmt: skip
    if found.failures:
        raise next(iter(found.failures.values()))
    folders = [search.journal.directory / "refit" / plan.name for plan in plans]
    plan = Plan(ADAPTER, recipes[0], probed=search.probed).resolve(task, search.model)
    listener = search.listener.of(REFIT)
    with StopRequest() as stop:
        ground = search.open_ground(plan)
        own = None if kept == ENSEMBLE else directory
        begun = ground.begin(plan, own, listener, stop, with_baselines=True)
        names = [load_adapter(ground.bank, folder, folder.name).name for folder in folders]
        begun.run.position = _position(list(found.results.values()), plan)
        begun.result.metrics["seeds"] = {"kept": kept, "numbers": [each.seed for each in recipes]}
        if kept == ENSEMBLE:
            result = conclude(begun, *judge_splits(begun, listener, stop, names))
            _count_members(result, folders)
            if directory is not None:
                here().first(lambda: _write_ensemble(begun, result, folders, directory))
        else:
            _become_soup(ground.bank, ADAPTER, names)
            open_folder(begun, resume=False)
            result = conclude(begun, *judge_splits(begun, listener, stop))
        ground.bank.detach()
    result.directory = directory
    return result


def _become_soup(bank: Bank, name: str, parts: Sequence[str]) -> None:
    """Give an adapter the mean of others, of the same sites and head."""
    soup, adapter = make_soup(bank, parts), bank[name]
    with torch.no_grad():
        for site, vector in adapter.items():
            vector.copy_(soup.vector(site))
    if adapter.head is not None:
        assert soup.head is not None
        adapter.head.load_state_dict(soup.head.state_dict())
    bank.remove(soup.name)


def _position(results: Sequence[Result], plan: Plan) -> Position:
    """Where the seeds ended: their losses averaged epoch by epoch, their costs summed."""
    assert plan.recipe is not None
    history: list[dict[str, Any]] = []
    for rows in zip(*(each.history for each in results), strict=True):
        history.append({key: value if isinstance(value, str) else fmean(row[key] for row in rows)
                        for key, value in rows[0].items()})  # fmt: skip
    for number, row in enumerate(history):
        row["epoch"] = number + 1
    epochs = plan.recipe.epochs or 1
    return Position(
        "done",
        train_seconds=sum(float(each.metrics["train_seconds"]) for each in results),
        trained_rows=len(results) * epochs * len(plan.own_task().train),
        history=history,
    )


def _count_members(result: Result, folders: Sequence[Path]) -> None:
    """Count what all members hold and weigh."""
    metrics = result.metrics
    metrics["trainable_parameters"] *= len(folders)
    metrics["trainable_share"] *= len(folders)
    sizes = [read_json(folder / "metrics.json")["adapter_bytes"] for folder in folders]
    metrics["adapter_bytes"] = {key: sum(size[key] for size in sizes) for key in ("vectors", "head")}
    metrics["peft"] = "PEFT knows no ensembles; each member is an adapter of its own"


def _write_ensemble(begun: Begun, result: Result, folders: Sequence[Path], directory: Path) -> None:
    clear_results(directory)
    for folder in folders:
        shutil.copytree(folder, directory / MEMBERS / folder.name, dirs_exist_ok=True)
    write_results(directory, result, begun.model)
    write_ensemble(directory, [folder.name for folder in folders])
