"""The loop: one adapter learns from its rows, step by step, and can be stopped and resumed at any step.

An adapter's own leaves are trained, or those that a method names in their place; the loop asks no more of them than
that they be parameters.

A run has up to two phases. "select" trains on the training rows less the dev part and scores the dev part after every
epoch; "refit" trains anew on all rows for as many epochs as were chosen (see `selection`), with the schedule fitted to
that length. Order, dropout and the head's start are functions of (seed, phase, epoch, step), so that a resumed run
makes the same weights, bit for bit, as one that was never stopped.

A run does not compute gradients or answers itself: its `course` yields what it wants next, and whoever drives it
computes that - `learn` for this run alone, `company` for many runs in shared forwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.bank import Bank
from ..errors import TrainingError
from .aims import Aim, Judgement, Part, Share, judged_together
from .batches import epoch_batches, micro_batches
from .checkpoint import Pace, Position, load_checkpoint, save_checkpoint
from .machine import Choices
from .memory import within_memory
from .progress import Listener
from .ranks import here
from .recipe import Recipe
from .selection import dev_scores, is_kept, out_of_patience
from .signals import StopRequest
from .steps import AdamW, Step, take

PHASES = {"select": 1, "refit": 2}


@dataclass(frozen=True)
class Gradients:
    """A wish: the gradient of these rows' mean loss in the leaves. The answer is (that loss, seconds it took).

    `lengths` are the tokens that each row of the part puts through the model."""

    part: Part
    lengths: list[int]
    rows: list[int]
    seed: list[int]


@dataclass(frozen=True)
class Judging:
    """A wish: all rows of a part answered, or, if final, those of the evaluation. The answer is a `Judgement`."""

    part: Part
    final: bool = False


Wish = Gradients | Step | Judging
Penalties = Mapping[str, Mapping[str, Tensor]]
"""By phase, then by leaf: factors by which its values are multiplied to give the gradient of an L2 penalty on them."""
Course = Generator[Wish, Any, None]
"""Wishes one after the other; each must be answered by `send` before the next."""


class Run:
    """One adapter of a bank in training. `learn` runs it to the end, or to a signal."""

    def __init__(
        self,
        bank: Bank,
        name: str,
        aim: Aim,
        recipe: Recipe,
        choices: Choices,
        parts: dict[str, Part],
        directory: Path | None = None,
        listener: Listener | None = None,
        stop: StopRequest | None = None,
        leaves: Mapping[str, nn.Parameter] | None = None,
        again: Mapping[str, Tensor] | None = None,
        penalties: Penalties | None = None,
    ) -> None:
        """`parts` holds "select" (rows of the first phase), "dev" (may be absent) and "refit" (rows of the second).

        `leaves` are what is trained, by name ("head..." has the head's rate), if that is more than the adapter's own.
        The second phase begins where the first did, but for leaves that `again` has values of. `penalties` are beside
        the loss, which is reported without them.
        """
        self.bank, self.name, self.aim, self.choices = bank, name, aim, choices
        self.recipe = recipe.resolve(len(parts["refit"].examples))
        self.parts, self.directory = parts, directory
        self.listener = listener or Listener()
        self.stop = stop or StopRequest()
        self.leaves: dict[str, nn.Parameter] = dict(bank[name].leaves() if leaves is None else leaves)
        self.ranks = here()
        self.ranks.same(self.leaves.values())
        self.start = {key: leaf.detach().clone() for key, leaf in self.leaves.items()}
        for key, value in (again or {}).items():
            self.start[key].copy_(value)
        self.ranks.same(self.start.values())
        self.penalties = {
            phase: {key: factors.to(self.leaves[key].device) for key, factors in own.items()}
            for phase, own in (penalties or {}).items()
        }
        self.ranks.same(factors for own in self.penalties.values() for factors in own.values())
        self.best: dict[str, Tensor] = {}
        self.position = Position()
        self._pace = Pace()
        self._dropouts: list[tuple[nn.Module, str, float]] = []
        self.optimiser = AdamW(self.leaves, self.recipe)

    # ---- phases ------------------------------------------------------------------------------------------------------

    def learn(self, resume: bool = False) -> Position:
        """Train to the end. Afterwards the leaves hold the adapter to keep.

        Raises:
            TrainingError: a loss or gradient that is not finite, or memory too small for one row; the leaves then hold
                the last good adapter.
            Interrupted: a signal came; the checkpoint is on disk.
        """
        course = self.course(resume)
        try:
            wish = next(course)
            while True:
                wish = course.send(self._grant(wish))
        except StopIteration:
            return self.position

    def course(self, resume: bool = False) -> Course:
        """The run from its start (or its checkpoint) to its end, for a driver that answers its wishes.

        Raises what `learn` raises, at the answer that shows it.
        """
        if resume:
            assert self.directory is not None
            directory = self.directory
            self.position, self.best = self.ranks.each(lambda: load_checkpoint(directory, self.leaves, self.optimiser))
            self._take_for_good()
            self.listener.resumed(self._steps_done())
        if self.position.phase == "select":
            yield from self._phase("select", self.recipe.epochs or 1)
            if self._refits:
                self.position.refit_epochs = self.position.epochs_kept(1)
                self._restore(self.start)
                self.optimiser = AdamW(self.leaves, self.recipe)
                self._begin("refit")
            else:
                if self.best:
                    self._restore(self.best)
                self._begin("done")
            self._save_if_due()
        if self.position.phase == "refit":
            yield from self._phase("refit", self.position.refit_epochs)
            self._begin("done")
            self._save_if_due()

    def _steps_done(self) -> int:
        """Optimiser steps of all finished epochs and of the one at hand."""
        per_epoch = {name: math.ceil(len(part.examples) / self.recipe.batch_size) for name, part in self.parts.items()}
        return sum(per_epoch[row["phase"]] for row in self.position.history) + self.position.step

    @property
    def _refits(self) -> bool:
        return self.recipe.selection == "dev" and self.recipe.refit and "dev" in self.parts

    def _begin(self, phase: str) -> None:
        self.position.phase, self.position.epoch, self.position.step = phase, 0, 0
        self.position.epoch_loss, self.position.epoch_rows = 0.0, 0

    def _phase(self, phase: str, epochs: int) -> Course:
        part, position = self.parts[phase], self.position
        lengths = self.aim.lengths(part)
        costs = part.costs(lengths)
        self.aim.fit(part)
        per_epoch = math.ceil(len(lengths) / self.recipe.batch_size)
        total = per_epoch * epochs
        if epochs:
            self.listener.stage(phase, total - position.epoch * per_epoch - position.step)
        penalties = {self.leaves[key]: factors for key, factors in self.penalties.get(phase, {}).items()}
        self._set_mode()
        if phase == "select" and self._may_stay and not (position.start or position.epoch or position.step):
            judged: Judgement = yield Judging(self.parts["dev"])
            position.start = dev_scores(judged)
            self._keep()
        while position.epoch < epochs and not (phase == "select" and out_of_patience(position, self.recipe)):
            order = [self.recipe.seed, PHASES[phase], position.epoch]
            grouped = self.recipe.group_by_length
            batches = epoch_batches(lengths, self.recipe.batch_size, order, group_by_length=grouped)
            for number in range(position.step, len(batches)):
                rows, step = batches[number], position.epoch * per_epoch + number
                value, seconds = yield Gradients(part, costs, rows, [self.recipe.seed, PHASES[phase], step])
                norm, more = yield Step(self.optimiser, value, self._rate(step, total), penalties)
                if not (math.isfinite(value) and math.isfinite(norm)):
                    where = f"step {step + 1} of {total} ({phase})"
                    raise self.ranks.known(self._failure(where, f"loss {value}, gradient norm {norm}"))
                position.train_seconds += seconds + more
                self._pace.work(seconds + more)
                position.trained_rows += len(rows)
                position.epoch_loss += value * len(rows)
                position.epoch_rows += len(rows)
                position.step = number + 1
                self.listener.step(value, len(rows))
                self._stop_if_asked()
            lr = self.recipe.lr * self._rate((position.epoch + 1) * per_epoch - 1, total)
            yield from self._end_epoch(phase, lr)
        self._unset_mode()

    @property
    def _may_stay(self) -> bool:
        """Whether dev rows may prefer the start to every epoch: a head that is held there began at what fits."""
        held = bool(self.penalties.get("select")) and self.recipe.head_start == "regression"
        return held and self.recipe.selection == "dev" and "dev" in self.parts

    def _keep(self) -> None:
        """Take the leaves as they are for the best so far."""
        self.position.best_epoch = self.position.epoch
        self.best = {key: leaf.detach().clone() for key, leaf in self.leaves.items()}

    def _set_mode(self) -> None:
        """Dropout as the recipe says: with none, eval mode is the same and skips its work.

        Layers run again during backward in train mode alone, which then has all its dropout at zero.
        """
        model, dropout = self.bank.model, self.recipe.dropout
        if dropout == 0 and not self.choices.gradient_checkpointing:
            model.eval()
            return
        model.train()
        if dropout != "model" and not self._dropouts:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    self._dropouts.append((module, "p", module.p))
                for name, value in vars(module).items():  # attentions often keep their rate as a number
                    rate = "dropout" in name or (dropout == 0 and name == "layerdrop")
                    if rate and isinstance(value, float):
                        self._dropouts.append((module, name, value))
            for module, name, _ in self._dropouts:
                setattr(module, name, float(dropout))

    def _unset_mode(self) -> None:
        """Eval mode, and the model's own dropout again."""
        self.bank.model.eval()
        for module, name, rate in self._dropouts:
            setattr(module, name, rate)
        self._dropouts = []

    # ---- one step ----------------------------------------------------------------------------------------------------

    def _grant(self, wish: Wish) -> Any:
        """Answer a wish with this run's forwards alone."""
        if isinstance(wish, Judging):
            return self._judge(wish.part)
        began = time.perf_counter()
        if isinstance(wish, Step):
            norm = take([wish])[0]
            return norm, time.perf_counter() - began
        longest = max(wish.lengths[row] for row in wish.rows)

        def own() -> list[float]:
            return [self._gradients(wish.part, wish.lengths, wish.rows, wish.seed)]

        fitting = partial(within_memory, own, self.choices, longest, self.listener)
        value = self.ranks.summed(fitting, 1, list(self.leaves.values()))[0]
        return value, time.perf_counter() - began

    def _failure(self, where: str, found: str) -> TrainingError:
        """The error of a loss that is not finite; the leaves are put back to the last good ones."""
        self._restore_last_good()
        return TrainingError(
            where,
            expected="a finite loss",
            found=found,
            remedy=f"lower --lr (it is {self.recipe.lr:g}) or use --dtype fp32; the last good adapter is kept",
        )

    def _gradients(self, part: Part, lengths: list[int], rows: list[int], seed: list[int]) -> float:
        """Leave the gradient of the batch's mean loss in the leaves; give that loss. Of several ranks, this one's part.

        Each rank has dropout of its own, for it has rows of its own.
        """
        self.optimiser.zero_grad()
        if self.bank.model.training:
            seed = seed if self.ranks.alone else [*seed, self.ranks.rank]
            torch.manual_seed(hash(tuple(seed)) & 0x7FFFFFFF)
        weight = self.aim.weight(part, rows)
        value = 0.0
        own = self.ranks.dealt(rows, lengths)
        for piece in micro_batches(own, lengths, **self.choices.cutting()):
            summed = self.aim.summed([Share(self.aim, part, piece)])[0] / weight
            summed.backward()
            value += float(summed.detach())
        return value

    def _rate(self, step: int, total: int) -> float:
        """Factor of the learning rate at a step counted from 0."""
        warm = round(self.recipe.warmup * total)
        if step < warm:
            return (step + 1) / warm
        if self.recipe.schedule == "linear":
            return (total - step) / max(1, total - warm)
        return 1.0

    # ---- epochs ------------------------------------------------------------------------------------------------------

    def _end_epoch(self, phase: str, lr: float) -> Course:
        position = self.position
        position.epoch, position.step = position.epoch + 1, 0
        row: dict[str, Any] = {
            "phase": phase,
            "epoch": position.epoch,
            "lr": lr,
            "train_loss": position.epoch_loss / max(1, position.epoch_rows),
        }
        position.epoch_loss, position.epoch_rows = 0.0, 0
        if phase == "select" and "dev" in self.parts:
            judged: Judgement = yield Judging(self.parts["dev"])
            self._pace.work(judged.seconds)
            found = dev_scores(judged)
            row.update(found)
            if not math.isfinite(row["dev_loss"]):
                where = f"epoch {position.epoch}, dev rows"
                raise self.ranks.known(self._failure(where, f"loss {row['dev_loss']}"))
            if is_kept(position, self.recipe, self.aim.metrics[0], len(self.parts["dev"].examples), found):
                self._keep()
        self._take_for_good()
        row["train_seconds"] = round(position.train_seconds, 3)
        position.history.append(row)
        self.listener.epoch(row)
        self._save_if_due()
        self._stop_if_asked()

    def _judge(self, part: Part) -> Judgement:
        self.bank.model.eval()
        began = time.perf_counter()
        judged = judged_together([Share.whole(self.aim, part)])[0]
        self._set_mode()
        return replace(judged, seconds=time.perf_counter() - began)

    # ---- state -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, if the run has a folder."""
        if self.directory is not None:
            self.ranks.first(self._write)

    def _save_if_due(self) -> None:
        """The same, unless so little was done since the last one that it can wait."""
        if self.directory is not None:
            self.ranks.first(lambda: self._write() if self._pace.due else None)

    def _write(self) -> None:
        assert self.directory is not None
        began = time.perf_counter()
        settings = {"recipe": self.recipe.to_dict(), "choices": self.choices.to_dict()}
        save_checkpoint(self.directory, self.position, self.leaves, self.optimiser, self.best, settings)
        self._pace.wrote(time.perf_counter() - began)

    def _restore(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for key, leaf in self.leaves.items():
                leaf.copy_(values[key])

    def _take_for_good(self) -> None:
        """The leaves as they are: what a failure leaves behind, where no epoch is chosen and none begins anew."""
        if not (self.best or self._refits):
            for key, leaf in self.leaves.items():
                self.start[key].copy_(leaf.detach())

    def _restore_last_good(self) -> None:
        self._restore(self.best or self.start)

    def _stop_if_asked(self) -> None:
        if self.ranks.hears(self.stop):
            self.save()
            where = f"stopped in epoch {self.position.epoch + 1} ({self.position.phase})"
            self.ranks.each(lambda: self.stop.check(where))
