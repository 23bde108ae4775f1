"""A study as cells, each with the hashes that its result hangs on, and what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import BeftError, StudyError
from ..report.cells import CellRecord
from ..tasks.own import OwnRows
from ..tasks.question import PromptTask
from ..tasks.registered import is_registered
from ..tasks.task import Task
from ..training.folder import BEFORE
from ..training.grounds import unjudgeable
from ..training.machine import choose
from ..training.pairs import settle_pairs
from ..training.recipe import Recipe, paper_recipe, prompt_recipe
from ..training.work import row_tokens
from .at_hand import Absent, ModelHere, find_model, find_task
from .methods import heeded, reason_not_to_run, settings_of, source_digest
from .study import Study

RESULTS = (
    "core",
    "methods",
    "objectives",
    "tasks",
    "training",
    "analysis",
    "studies/execute.py",
    "studies/together.py",
)
"""Parts of the package that a cell's result hangs on."""


@dataclass(frozen=True)
class Cell:
    """One run (or a few, one a learning rate of `rates`, the best of which on dev rows counts).

    `recipe` holds every setting, the options of the method too; what trains nothing reads what it needs of it.
    `question` is the hash of what is asked: objective, method, precision, recipe, rates, rows and weights, and of a
    task or method out of a user's file what that says.
    """

    model: str
    task: str
    regime: str
    method: str
    seed: int
    kind: str
    objective: str
    where: str
    dtype: str
    recipe: Mapping[str, Any]
    rates: tuple[float, ...]
    rows: tuple[int | str | None, int | None]
    """Training rows (None: the regime's) and evaluation rows (None: all)."""
    data: str
    weights: str
    train_rows: int
    eval_rows: int
    tokens: float
    """Rough mean length of a training row."""
    model_bytes: int
    own: OwnRows | None = None
    """Where the rows lie, if they are the user's own."""
    beside: str = ""
    """Hash of what a task out of a user's file says beside its rows; empty for others, whose name or rows say all."""

    @property
    def question(self) -> str:
        """Hex digest of what is asked, 20 digits."""
        asked = {
            "kind": self.kind,
            "objective": self.objective,
            "method": self.method,
            "dtype": self.dtype,
            "recipe": {key: value for key, value in self.recipe.items() if (key, value) not in BEFORE.items()},
            "rates": list(self.rates),
            "data": self.data,
            "weights": self.weights,
        }
        source = source_digest(self.method)
        if source is not None:
            asked["source"] = source
        if self.beside:
            asked["beside"] = self.beside
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:20]

    @property
    def regime_of_task(self) -> str:
        """The regime as tasks are loaded: empty where rows are counted."""
        return self.regime if self.rows[0] is None else ""

    def load(self) -> Task | PromptTask:
        """The cell's rows.

        Raises:
            StudyError: they are no longer there, or not on this machine.
        """
        found = find_task(self.task, self.objective, self.regime_of_task, *self.rows, self.seed, self.own)
        if isinstance(found, Absent):  # they were there when the plan was made
            raise StudyError(f"the task {self.task}", expected="the planner's rows", found=found.reason)
        return found

    def record(self, **values: Any) -> CellRecord:
        """A record of this cell."""
        return CellRecord(self.model, self.task, self.regime, self.method, self.seed, **values)


@dataclass
class Plan:
    """Cells in the order they run (all of a seed before the next: what a budget cuts off is seeds), and the missing."""

    study: Study
    cells: list[Cell]
    missing: list[CellRecord] = field(default_factory=list)

    def absent(self) -> dict[str, list[str]]:
        """Reasons, and what of the study is missing for each."""
        found: dict[str, list[str]] = {}
        for record in self.missing:
            names = found.setdefault(record.reason, [])
            name = f"{record.model}, {record.task}, {record.regime}, {record.method}, seed {record.seed}"
            names.append(name)
        return found


def make_plan(study: Study, device: str = "auto", dtype: str = "auto") -> Plan:
    """Expand a study. Models and tasks that are not at hand give cells that are missing, with the reason.

    `dtype` is the precision of the frozen base; "auto" is settled for this machine here, for results hang on it.

    Raises:
        RecipeError: a device or dtype that is not at hand.
    """
    plan = Plan(study, [])
    dtype = choose(device, dtype).dtype
    models = {name: find_model(name) for name in study.models}
    regimes = study.regimes or (f"{study.train_size or 1000} rows",)
    methods = study.methods if study.kind == "scores" else ("all",)
    for seed in study.seeds:
        for name, model in models.items():
            for task in study.tasks:
                for regime in regimes:
                    for method in methods:
                        cell = _cell(study, name, model, task, regime, method, seed, dtype)
                        (plan.cells if isinstance(cell, Cell) else plan.missing).append(cell)  # type: ignore[arg-type]
    return plan


def _cell(
    study: Study, name: str, model: ModelHere | Absent, task: str, regime: str, method: str, seed: int, dtype: str
) -> Cell | CellRecord:
    def missing(reason: str) -> CellRecord:
        return CellRecord(name, task, regime, method, seed, status="missing", reason=reason)

    if isinstance(model, Absent):
        return missing(f"the model {name} is not at hand: {model.reason}")
    size = None if study.regimes else study.train_size
    own = study.data.get(task)
    rows = find_task(task, study.objective, regime if study.regimes else "", size, study.eval_size, seed, own)
    if isinstance(rows, Absent):
        return missing(f"the task {task} is not at hand: {rows.reason}")
    lacks = unjudgeable(rows)
    if lacks:
        return missing(f"the task {task}: expected evaluation rows with labels, found {lacks}")
    head = study.changes.get("head", "model" if study.recipe == "paper" else "linear")
    reason = reason_not_to_run(method, study.objective, head) if study.kind == "scores" else ""
    if reason:
        return missing(reason)
    try:
        recipe = _recipe(study, name, task, method, seed)
        if recipe.pairs == "apart" and isinstance(rows, Task) and len(rows.fields) < 2:
            recipe = replace(recipe, pairs="joint")  # the study's tasks of two texts are meant
        recipe = settle_pairs(recipe, rows, model.where).resolve_for(rows)
    except BeftError as error:
        return missing(str(error).rstrip("."))
    rates = study.grid.get(method, ()) if study.kind == "scores" else ()
    return Cell(
        model=name,
        task=task,
        regime=regime,
        method=method,
        seed=seed,
        kind=study.kind,
        objective=study.objective,
        where=model.where,
        dtype=dtype,
        recipe=recipe.to_dict(),
        rates=rates if len(rates) > 1 else (),
        rows=(size, study.eval_size),
        data=rows.fingerprint(),
        weights=model.fingerprint,
        train_rows=len(rows.train),
        eval_rows=sum(len(part) for part in rows.evaluation.values()),
        tokens=row_tokens(rows),
        model_bytes=model.bytes,
        own=own,
        beside=_beside_rows(rows) if own is None and is_registered(task) else "",
    )


def _beside_rows(task: Task | PromptTask) -> str:
    """Hash of what a task's scores hang on beside what its fingerprint covers."""
    said: list[Any] = [task.labels, task.metrics]
    if isinstance(task, PromptTask):
        names = [question.names for part in (task.train, *task.evaluation.values()) for question in part]
        said += [task.stop, task.writes, task.chat, task.generation, names]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:20]


def _recipe(study: Study, model: str, task: str, method: str, seed: int) -> Recipe:
    changes: dict[str, Any] = {**heeded(method, study.changes), "seed": seed, **settings_of(method)}
    rates = study.grid.get(method, ())
    if len(rates) == 1:
        changes["lr"] = rates[0]
    if study.objective == "prompt":
        paper = {"selection": "none", "preset": "paper"} if study.recipe == "paper" else {}
        return prompt_recipe(task, **{**paper, **changes})
    if study.recipe == "paper":
        return paper_recipe(task, model, **{"pairs": "joint", **changes})
    return Recipe(**changes)


@cache
def code_version() -> str:
    """beft's version and a digest of the code that results hang on: `0.1.0+1a2b3c4d5e6f`."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for part in RESULTS:
        place = package / part
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            total.update(str(file.relative_to(package)).encode())
            total.update(file.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"


def as_json(plan: Plan) -> dict[str, Any]:
    """The contents of plan.json."""
    return {
        "study": {**asdict(plan.study), "text": None},
        "code": code_version(),
        "cells": [{**asdict(cell), "question": cell.question} for cell in plan.cells],
        "missing": [asdict(record) for record in plan.missing],
    }
