"""Where runs of labels begin: a base with its bank, texts tokenised once, frozen states computed once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.adapter import Adapter, LinearHead, Pooling
from ..core.bank import Bank
from ..errors import RecipeError, StoreError
from ..methods.method import Method
from ..objectives.classify import scores
from ..objectives.encode import encode
from ..tasks.question import PromptTask, Question
from ..tasks.task import Example, Task, split_texts
from . import baselines, starts
from .aims import ClassifyAim, Part
from .base import Base, add_adapter, token_limit
from .checkpoint import Position
from .infer import Watch, frozen_states
from .loop import Penalties, Run
from .machine import Choices
from .pairs import NOTICE
from .plan import HELD_OUT, Plan
from .progress import Listener
from .ranks import here
from .recipe import Recipe
from .result import Begun, Result
from .signals import StopRequest


@dataclass
class Tokens:
    """A task's rows with their tokens, and what else is computed once for all runs on them."""

    task: Task
    train: Part
    evaluation: dict[str, Part]
    notices: list[str]
    states: dict[Pooling, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    """Frozen states by how they are pooled, then by split."""
    probes: dict[Any, baselines.Probe] = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        """Whether the two texts of a row are two inputs."""
        return self.train.encoded.second is not None

    def reads(self, pooling: Pooling) -> Pooling:
        """How states are pooled that are asked for in a way: compared, where there are two inputs a row."""
        return "pair" if self.apart else pooling


class LabelGround:
    """A base and its bank, on which runs of labelled rows begin."""

    def __init__(self, model: str, base: Base, bank: Bank, choices: Choices) -> None:
        self.model, self.base, self.bank, self.choices = model, base, bank, choices
        self._tokens: dict[tuple[int, int, bool], Tokens] = {}

    def begin(
        self,
        plan: Plan,
        directory: Path | None,
        listener: Listener,
        stop: StopRequest,
        *,
        with_baselines: bool,
        resume: bool = False,
    ) -> Begun:
        """Add the adapter of a plan (resolved) with its head, and everything its run needs.

        Raises:
            StoreError: a linear head on an encoder-decoder.
            DataError: see `encode`.
        """
        bank, task, recipe = self.bank, plan.own_task(), plan.recipe
        assert isinstance(task, Task)
        assert recipe is not None
        if recipe.head == "linear" and getattr(self.base.model.config, "is_encoder_decoder", False):
            raise StoreError(
                f"model {self.model!r}",
                expected="an encoder or a causal model for a linear head",
                found="an encoder-decoder",
                remedy="try --head model",
            )
        method = recipe.new_method()
        tokens = self._tokenise(plan, recipe, method.reserved)
        train = tokens.train if plan.rows is None else tokens.train.take(plan.rows)
        evaluation = tokens.evaluation if plan.judged is None else {HELD_OUT: tokens.train.take(plan.judged)}
        rest, dev = dev_split(task, recipe)
        add_adapter(bank, self.base, plan.name, recipe, task.outputs, task.labels)
        metrics: dict[str, Any] = {"task": task.name, "baselines": {}}
        if with_baselines:
            beside = tokens
            if plan.probed is not None:
                beside = self._tokenise(plan, replace(recipe, pairs=plan.probed), method.reserved)
            probe = self._probe(beside, plan, task, recipe, listener, stop)
            splits = {name: self._states(beside, name, plan, listener, stop) for name in evaluation}
            metrics["baselines"] = baseline_scores(task, probe, splits, evaluation)
        again, penalties = self._start(tokens, plan, task, recipe, rest, listener, stop)
        leaves = method.attach(bank, plan.name)  # after the frozen states, which are of the plain model
        if reads_frozen_states(bank[plan.name], method, recipe):
            pooling = self.base.pooling
            train = with_states(train, self._states(tokens, "train", plan, listener, stop, pooling))
            evaluation = {
                name: with_states(part, self._states(tokens, name, plan, listener, stop, pooling))
                for name, part in evaluation.items()
            }
        parts = make_parts(train, evaluation, recipe, rest, dev)
        aim = ClassifyAim(bank, plan.name, task, self.choices, recipe.class_weight == "balanced")
        run = Run(
            bank, plan.name, aim, recipe, self.choices, parts, directory, listener, stop, leaves, again, penalties
        )
        if method.fitted:
            began = time.perf_counter()
            pooling = self.base.pooling
            probe = self._probe(tokens, plan, task, recipe, listener, stop, pooling)
            starts.make_regression(bank[plan.name].head, probe)
            run.position = Position(
                "done", best_epoch=0, train_seconds=time.perf_counter() - began, trained_rows=len(task.train)
            )
        notices = [*task.notices, *tokens.notices, *([NOTICE] if tokens.apart else [])]
        result = Result(metrics, directory, task, recipe, self.choices, run.position.history, notices=notices)
        return Begun(
            run, method, result, evaluation, task_description(self.base, task, recipe, self.choices), self.model
        )

    def _tokenise(self, plan: Plan, recipe: Recipe, reserved: int) -> Tokens:
        """The whole task's tokens, made once for all runs of as many tokens at most."""
        task = plan.task
        assert isinstance(task, Task)
        limit = token_limit(self.base, recipe.max_length, reserved)
        apart = recipe.pairs == "apart"
        key = (id(task), limit, apart)  # the tokens keep the task, so that its id stays its own
        if key not in self._tokens:
            parts = {
                name: Part(examples, encode(self.base.tokenizer, examples, limit, apart=apart))
                for name, examples in {"train": task.train, **task.evaluation}.items()
            }
            notices = [
                f"{part.encoded.cut} of {part.encoded.inputs} {name} texts were cut to {limit} tokens "
                "(--max-length sets the limit)"
                for name, part in parts.items()
                if part.encoded.cut
            ]
            self._tokens[key] = Tokens(task, parts.pop("train"), parts, notices)
        return self._tokens[key]

    def _states(
        self,
        tokens: Tokens,
        split: str,
        plan: Plan,
        listener: Listener,
        stop: StopRequest,
        pooling: Pooling = "mean",
    ) -> NDArray[np.float32]:
        """Frozen states of a run's own rows of a split; where texts are read apart, compared."""
        pooling = tokens.reads(pooling)
        name, rows = (split, plan.rows) if split == "train" else (split, None)
        if split == HELD_OUT and plan.judged is not None:
            name, rows = "train", plan.judged
        if pooling not in tokens.states:
            parts = {"train": tokens.train, **tokens.evaluation}
            watch = watching(listener, stop, "frozen", sum(len(part.examples) for part in parts.values()))
            tokens.states[pooling] = {
                each: frozen_states(self.bank, part.encoded, self.choices, watch, pooling).numpy()
                for each, part in parts.items()
            }
        states = tokens.states[pooling][name]
        return states if rows is None else states[list(rows)]

    def _probe(
        self,
        tokens: Tokens,
        plan: Plan,
        task: Task,
        recipe: Recipe,
        listener: Listener,
        stop: StopRequest,
        pooling: Pooling = "mean",
        balanced: bool = False,
    ) -> baselines.Probe:
        """The linear model on frozen states of a run's own training rows; runs of the same rows share it."""
        rest, dev = probe_split(task, recipe)
        pooling = tokens.reads(pooling)
        key = (None if plan.rows is None else tuple(plan.rows), tuple(dev), pooling, balanced)
        if key not in tokens.probes:
            states = self._states(tokens, "train", plan, listener, stop, pooling)
            tokens.probes[key] = baselines.fit_probe(
                states, starts.gold_of(task), rest, dev, task, compared=tokens.apart, balanced=balanced
            )
        return tokens.probes[key]

    def _start(
        self,
        tokens: Tokens,
        plan: Plan,
        task: Task,
        recipe: Recipe,
        rest: list[int],
        listener: Listener,
        stop: StopRequest,
    ) -> tuple[dict[str, Tensor], Penalties]:
        """Put a linear head where the first phase begins, which has seen the rows of `rest` alone.

        Gives the values of its leaves where the second phase begins, on all rows, and the penalties of both.
        """
        head = self.bank[plan.name].head
        if not isinstance(head, LinearHead):
            return {}, {}
        gold = starts.gold_of(task)
        if task.regression:
            starts.use_units_of(head, gold)
        layers: list[baselines.Layer] = []
        penalties: Penalties = {}
        if recipe.head_start == "means" and not task.regression:
            states = self._states(tokens, "train", plan, listener, stop, head.pooling)
            numbers = np.asarray(gold, dtype=np.int64)
            layers = [starts.means_layer(states[rows], numbers[rows], task.outputs) for rows in (rest, slice(None))]
        if "regression" in (recipe.head_start, recipe.head_penalty):
            balanced = recipe.class_weight == "balanced"
            probe = self._probe(tokens, plan, task, recipe, listener, stop, head.pooling, balanced)
            before = probe.estimator if len(rest) == len(gold) else probe.without_dev
            if recipe.head_start == "regression":
                layers = [starts.regression_layer(head, each) for each in (before, probe.estimator)]
            if recipe.head_penalty == "regression":
                penalties = {
                    "select": starts.regression_penalty(head, before, [gold[row] for row in rest]),
                    "refit": starts.regression_penalty(head, probe.estimator, gold),
                }
        if not layers:
            return {}, penalties
        starts.put(head, layers[0])
        return starts.leaves(layers[1]), penalties


# ---- what a run of labels needs --------------------------------------------------------------------------------------


def check_selection(task: Task | PromptTask, recipe: Recipe) -> None:
    """Raises RecipeError if the epoch is to be chosen on evaluation rows that are not there."""
    found = unjudgeable(task) if recipe.selection == "evaluation" else ""
    if found:
        raise RecipeError(
            "selection 'evaluation'",
            expected="evaluation rows with labels",
            found=found,
            remedy="give evaluation rows, or use a recipe that selects on a part of the training rows",
        )


def unjudgeable(task: Task | PromptTask) -> str:
    """Why the first evaluation split cannot judge: "none" (no rows), "rows without one" (a label); empty if it can."""
    rows: Sequence[Example | Question] = next(iter(task.evaluation.values()), [])
    if not rows:
        return "none"
    return "" if all(_has_truth(row) for row in rows) else "rows without one"


def _has_truth(row: Example | Question) -> bool:
    return row.label is not None if isinstance(row, Example) else bool(row.gold or row.answers)


def dev_split(task: Task, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Numbers of the training rows to select on and of the rest: (rest, dev)."""
    size = round(len(task.train) * recipe.dev_fraction)
    if recipe.selection != "dev" or size < 1:
        return list(range(len(task.train))), []
    return split_texts(task.train, size, recipe.seed, classes=not task.regression)


def reads_frozen_states(adapter: Adapter, method: Method, recipe: Recipe) -> bool:
    """Whether all that a run trains is a linear head, above states that are the plain model's at every step."""
    frozen = method.plain and not adapter.sites and recipe.dropout == 0
    return frozen and isinstance(adapter.head, LinearHead)


def with_states(part: Part, states: NDArray[np.float32]) -> Part:
    """The part with its rows' frozen states."""
    return replace(part, states=torch.from_numpy(states))


def probe_split(task: Task, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Numbers of the training rows on which the linear model's strength is chosen, and of the rest: (rest, dev).

    They are the dev rows of the run beside it, or a fifth where that has none.
    """
    rest, dev = dev_split(task, recipe)
    if dev:
        return rest, dev
    return split_texts(task.train, max(1, len(task.train) // 5), recipe.seed, not task.regression)


def make_parts(
    train: Part, evaluation: dict[str, Part], recipe: Recipe, rest: list[int], dev: list[int]
) -> dict[str, Part]:
    """The rows of a run's phases, see `Run`."""
    parts = {"select": train.take(rest), "refit": train}
    if dev:
        parts["dev"] = train.take(dev)
    elif recipe.selection == "evaluation" and evaluation:
        parts["dev"] = next(iter(evaluation.values()))
    return parts


def watching(listener: Listener, stop: StopRequest, stage: str, rows: int) -> Watch:
    """Begin a stage without training: a rank's own batches move its bar, and may be stopped between."""
    listener.stage(stage, len(here().stretch(range(rows))))

    def after(done: int, left: int) -> None:
        listener.step(None, done)
        stop.check(f"stopped in the stage {stage!r}")

    return after


def baseline_scores(
    task: Task, probe: baselines.Probe, states: dict[str, NDArray[np.float32]], evaluation: dict[str, Part]
) -> dict[str, Any]:
    """Scores of the majority and of a linear model on frozen states, on each evaluation split with labels."""
    result: dict[str, Any] = {"majority": {}, "frozen_logistic_regression": {}}
    common = baselines.majority(task)
    for name, part in evaluation.items():
        if any(example.label is None for example in part.examples):
            continue
        predicted = probe.predict(states[name])
        result["majority"][name] = scores(task.metrics, part.examples, [common] * len(part.examples))
        result["frozen_logistic_regression"][name] = scores(task.metrics, part.examples, predicted)
    return {kind: with_splits(by_split) for kind, by_split in result.items()} if result["majority"] else {}


def with_splits(by_split: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A baseline's scores as metrics.json has them: the first split's by themselves, and those of all splits."""
    return {**next(iter(by_split.values())), "splits": by_split}


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
        "pooling": base.reads(recipe),
        "dtype": choices.dtype,
        "quantize": choices.quantize,
    }
