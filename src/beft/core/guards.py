"""What a bank refuses, and what a training loop that knows nothing of adapters would lose without a word."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import BankError, RouteError
from .adapter import LinearHead
from .route import AnyRoute

if TYPE_CHECKING:
    from .bank import Bank


def refuse_names(names: Sequence[str]) -> None:
    """Raises BankError for names that are not a list of different texts."""
    if isinstance(names, str):
        raise BankError(f"names={names!r}", expected="a list of names", found="text", remedy=f"write names=[{names!r}]")
    for name in names:
        if not isinstance(name, str) or not name:
            found = "nothing" if name == "" else type(name).__name__
            raise BankError(f"adapter name {name!r}", expected="text", found=found)
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise BankError(f"names={list(names)}", expected="every name once", found=f"{twice[0]!r} twice")


def refuse_numbers(what: str, numbers: Iterable[Any]) -> None:
    """Raises BankError for scales or weights that are not finite numbers."""
    for number in numbers:
        try:
            fine = not isinstance(number, str) and math.isfinite(number)
        except TypeError:
            fine = False
        if not fine:
            raise BankError(what, expected="a finite number", found=repr(number))


def refuse_unfit(model: nn.Module) -> None:
    """Raises BankError for what is no model, a model that is compiled, or one that has a bank."""
    if not isinstance(model, nn.Module):
        raise BankError(
            f"attach({model!r})",
            expected="a transformers model",
            found=f"a value of type {type(model).__name__}",
            remedy="load the model first, such as with AutoModel.from_pretrained",
        )
    if hasattr(model, "_orig_mod") or any(m._compiled_call_impl is not None for m in model.modules()):
        raise BankError(
            type(model).__name__,
            expected="a model that is not compiled yet",
            found="a compiled one, which ignores new hooks",
            remedy="attach first, then compile",
        )
    if isinstance(getattr(model, "beft", None), nn.ModuleDict):
        raise BankError(
            type(model).__name__,
            expected="a model without a bank",
            found="one that has a bank",
            remedy="use bank.add for another adapter, or bank.detach first",
        )


def refuse_idle(route: AnyRoute, model: nn.Module, base: Iterable[nn.Parameter]) -> None:
    """Raises RouteError if a loss from `labels=` would train nothing, or leave the head in training out.

    Under gradient checkpointing torch itself would not complain: the embeddings' output requires gradients there.
    """
    linear = [adapter.name for adapter in route.adapters if isinstance(adapter.head, LinearHead)]
    if linear:
        raise RouteError(
            "labels=",
            expected="adapters whose head is part of the model",
            found=f"a linear head, which the model's own loss leaves out, on {', '.join(linear)}",
            remedy="compute the loss from bank.logits, or train with beft.interop.trainer.BeftTrainer",
        )
    idle = model.training and torch.is_grad_enabled() and not route.adapters
    if idle and not any(parameter.requires_grad for parameter in base):
        raise RouteError(
            "labels= in training",
            expected="an adapter that learns",
            found="the plain model, which is frozen",
            remedy="set bank.active to a name, or train inside bank.route",
        )


def warn_on_save(bank: Bank, save: Any) -> Callable[..., Any]:
    """`save_pretrained` of a model with a bank: it writes the base alone, and says so if there are adapters."""

    @functools.wraps(save)
    def saving(*args: Any, **kwargs: Any) -> Any:
        if len(bank):
            warnings.warn(
                f"save_pretrained writes the base without the adapters {', '.join(bank.names)}: "
                "write each with bank.save, or train with beft.interop.trainer.BeftTrainer",
                stacklevel=2,
            )
        return save(*args, **kwargs)

    return saving


def refuse_lacking(own: set[str], missing: Iterable[str]) -> None:
    """Raises BankError if weights that were loaded lack the keys `own` of a bank: the adapters would start anew.

    The keys that are missing may have a prefix, where the model is part of another.
    """
    ends = tuple(own)
    if own and sum(key.endswith(ends) for key in missing) >= len(own):
        raise BankError(
            "load_state_dict",
            expected="weights with the adapters of the bank",
            found="no adapters (save_pretrained, and so the stock Trainer's checkpoints, leave them out)",
            remedy="load adapters with bank.load, or train with beft.interop.trainer.BeftTrainer, whose checkpoints "
            "hold them; bank.save writes those in memory",
        )
