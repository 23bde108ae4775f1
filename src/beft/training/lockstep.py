"""Forwards of a sharded model in step: its layers are gathered from all ranks, so all must run them at the same time.

Ranks have rows of their own and need not have equally many forwards; one may have none. So before a forward each says
what it wants, and learns what the others want. What is most wanted is run by all: with its own rows by a rank that
wants it, with a blank row by one that does not, or not yet. A rank that has nothing more to run follows the others
until all are done. A blank row's gradient is zero, and nobody reads its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..core.bank import Bank
from ..core.probe import tiny_inputs
from ..errors import RanksError, RecipeError
from .shard import layer_paths

DONE, GRADIENTS, PLAIN, FAILED = range(4)
"""What a rank wants: nothing more, a forward that is followed by its backward, one without, or the end. In this order
of precedence, so that ranks that want different forwards run first the one, then the other."""


class Lockstep:
    """Runs the forwards of a bank's sharded model in all ranks together; made by all of them."""

    def __init__(self, bank: Bank, announce: Callable[[int], int]) -> None:
        """`announce` tells all ranks a number, and gives the largest that one of them tells."""
        self.bank, self.announce = bank, announce
        self.model: Any = bank.model
        bank.one_forward = True
        self.body: Any = getattr(bank.model, "base_model", bank.model)
        self.parted = False
        """Whether another rank has failed, as all know."""
        self._broken = False
        """Whether a forward has failed."""
        self._depth = 0
        self._following = self._together = False
        self._output: Tensor | None = None
        """Of a forward whose backward has not begun."""
        self._in_backward = False
        from torch.distributed.fsdp import FSDPModule

        layers = set(layer_paths(self.model))
        parts = [(path, part) for path, part in self.model.named_modules() if isinstance(part, FSDPModule)]
        self._apart: list[Any] = [part for path, part in parts if path not in layers]
        """All but the layers: gathered before a forward, whichever of the model's forwards it is."""
        for entrance in dict.fromkeys((self.model, self.body)):
            entrance.register_forward_pre_hook(self._enter, prepend=True)
            entrance.register_forward_hook(self._leave, always_call=True)
        self.model.get_input_embeddings().register_forward_hook(self._lead_gradients)  # type: ignore[operator]
        with torch.no_grad():
            self.model(**self._blank())  # the whole model first: torch makes it the root of its parts
        self._rest()

    @property
    def within(self) -> bool:
        """Whether a forward or a backward has failed before its end: others wait there, and cannot be told."""
        return self._broken or self._in_backward

    def lost(self) -> RanksError:
        """The error of going on after such a failure."""
        return RanksError(
            "a sharded base",
            expected="a forward or backward in step with the other processes",
            found="one that failed before its end",
            remedy="if memory ran short, lower --token-budget or --micro-batch-size; start again, with --resume",
        )

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Inside, all ranks run the very same forwards, and what fails fails in all of them: none need be told."""
        self._together = True
        try:
            yield
        finally:
            self._together = False

    def finish(self, error: BaseException | None = None) -> None:
        """Follow the others until all are done; or tell them of an error, at which they stop too. Not `within`."""
        if self.parted:
            return
        if self._output is not None:  # the others are in their backward
            self._nothing(self._output)
        if error is None:
            self._meet(DONE)
        else:
            self.announce(FAILED)
            self.parted = True
        self._rest()

    # ---- a forward ---------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._depth += 1
        if self._depth > 1 or self._following:
            return
        if self._broken:
            raise self.lost()
        if self._output is not None or self._in_backward:
            raise RecipeError(
                "a sharded base",
                expected="forwards and backwards in turn",
                found="a second forward before the first one's backward",
                remedy="shorten the rows (--max-length), or leave --shard out",
            )
        if not self._together and not self._meet(GRADIENTS if torch.is_grad_enabled() else PLAIN):
            raise RanksError("this process", expected="all others beside it", found="one that has failed")
        self._gather_first()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1
        if output is None and self._together:
            self.model.reset_iter_state()
        elif output is None:
            self._broken = not self.parted
        elif self._depth == 0 and not self._following and torch.is_grad_enabled():
            self._output = _first(output)
            self._output.register_hook(self._begin_backward)

    def _lead_gradients(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Gradients go down to the embeddings in every rank, wherever its rows' adapters begin: all gather alike."""
        if torch.is_grad_enabled() and self._depth:
            output.requires_grad_(True)
            output.register_hook(self._end_backward)

    def _begin_backward(self, gradient: Tensor) -> None:
        self._output, self._in_backward = None, True

    def _end_backward(self, gradient: Tensor) -> None:
        self._in_backward = False

    # ---- with the others ---------------------------------------------------------------------------------------------

    def _meet(self, wish: int) -> bool:
        """Follow the others until it is this wish's turn; False if another rank has failed."""
        while not self.parted:
            chosen = self.announce(wish)
            if chosen == wish:
                return True
            self.parted = chosen == FAILED
            if not self.parted:
                self._follow(chosen)
        return False

    def _follow(self, kind: int) -> None:
        """A blank row through the plain model, in step with the others' rows."""
        self._following = True
        try:
            with self.bank.route(None), torch.set_grad_enabled(kind == GRADIENTS):
                self._gather_first()
                output = _first(self.body(**self._blank()))
                if kind == GRADIENTS:
                    self._nothing(output)
        finally:
            self._following = False

    def _nothing(self, output: Tensor) -> None:
        """A backward of zeros: it gathers what any backward gathers."""
        (output * 0).sum().backward()

    def _blank(self) -> dict[str, Any]:
        without = {"use_cache": False} if "use_cache" in signature(self.body.forward).parameters else {}
        return {**tiny_inputs(self.model, rows=1, length=2), **without}

    def _gather_first(self) -> None:
        for part in self._apart:
            part.unshard()

    def _rest(self) -> None:
        """All in pieces, in every rank alike: a blank row left the language-model head out, and torch waits for it."""
        self.model.reset_iter_state()


def _first(output: Any) -> Tensor:
    """The first tensor of a model's output that numbers can be added to: states, or logits."""
    values = output.values() if hasattr(output, "values") else output
    first: Tensor = next(each for each in values if isinstance(each, Tensor) and each.is_floating_point())
    return first
