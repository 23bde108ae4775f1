"""Gradient checkpointing runs a layer again during backward, when the route's block may be over, or in another thread.

Every module with a transformers checkpointing function gets one that puts the forward's route back around the second
run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from ..errors import RecipeError
from .patches import Patches
from .route import AnyRoute

_FUNCTION = "_gradient_checkpointing_func"
_ENABLE = "_set_gradient_checkpointing"


def recompute_layers(model: Any) -> None:
    """Switch gradient checkpointing on: in train mode, layers keep their inputs alone and run again during backward.

    The non-reentrant kind, which needs no input that requires gradients. A decoder's cache is off in its configuration:
    it would hold what is not to be held.

    Raises:
        RecipeError: a family whose layers cannot be run again.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise RecipeError(
            "gradient checkpointing",
            expected="a model whose layers can run again during backward",
            found=f"{type(model).__name__}, which does not support it",
            remedy="leave --gradient-checkpointing out; a lower --token-budget saves memory too",
        )
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False


class RouteKeeper:
    """Wraps the checkpointing functions of a model, now and whenever checkpointing is switched on later.

    `current()` gives the route in force, `using(route)` is a context manager that puts it in force.
    """

    def __init__(
        self,
        model: nn.Module,
        current: Callable[[], AnyRoute],
        using: Callable[[AnyRoute], AbstractContextManager[None]],
    ) -> None:
        self._model, self._current, self._using = model, current, using
        self._patches = Patches()
        for module in model.modules():  # the base inside a headed model can be switched on alone
            if hasattr(module, _ENABLE):
                self._patches.set(module, _ENABLE, self._then_wrap(getattr(module, _ENABLE)))
        self._wrap_all()

    def _then_wrap(self, enable: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(enable)  # transformers looks at the signature
        def run(*args: Any, **kwargs: Any) -> Any:
            result = enable(*args, **kwargs)
            self._wrap_all()
            return result

        return run

    def _wrap_all(self) -> None:
        for module in self._model.modules():
            function = module.__dict__.get(_FUNCTION)
            if function is not None and not isinstance(function, _KeepingRoute):
                module.__dict__[_FUNCTION] = _KeepingRoute(function, self._current, self._using)

    def remove(self) -> None:
        """Leave the model as it was, checkpointing on if it is on."""
        self._patches.undo()
        for module in self._model.modules():
            function = module.__dict__.get(_FUNCTION)
            if isinstance(function, _KeepingRoute):
                module.__dict__[_FUNCTION] = function.original


class _KeepingRoute:
    """A checkpointing function whose second run of a layer is under the route of the first."""

    def __init__(
        self,
        original: Callable[..., Any],
        current: Callable[[], AnyRoute],
        using: Callable[[AnyRoute], AbstractContextManager[None]],
    ) -> None:
        self.original, self._current, self._using = original, current, using

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        route = self._current()

        def again(*inner: Any, **inner_kwargs: Any) -> Any:
            with self._using(route):
                return function(*inner, **inner_kwargs)

        return self.original(again, *args, **kwargs)
