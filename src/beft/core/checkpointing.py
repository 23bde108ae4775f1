"""Gradient checkpointing runs a layer again during backward, when the route's block may be over, or in another thread.

Every module with a transformers checkpointing function gets one that puts the forward's route back around the second run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from .route import AnyRoute


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
        self._current, self._using = current, using
        self._model = model
        self._wrapped: list[tuple[nn.Module, Any, Any]] = []
        self._wrap_all()
        self._enabler = getattr(model, "_set_gradient_checkpointing", None)
        if self._enabler is not None:
            model._set_gradient_checkpointing = self._enable  # type: ignore[assignment]

    def _enable(self, *args: Any, **kwargs: Any) -> Any:
        assert self._enabler is not None
        result = self._enabler(*args, **kwargs)
        self._wrapped.clear()
        self._wrap_all()
        return result

    def _wrap_all(self) -> None:
        for module in self._model.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if function is not None:
                wrapped = self._keeping_route(function)
                module._gradient_checkpointing_func = wrapped  # type: ignore[assignment]
                self._wrapped.append((module, function, wrapped))

    def _keeping_route(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            route = self._current()

            def again(*inner: Any, **inner_kwargs: Any) -> Any:
                with self._using(route):
                    return function(*inner, **inner_kwargs)

            return checkpoint(again, *args, **kwargs)

        return run

    def remove(self) -> None:
        """Leave the model as it was, checkpointing on if it is on."""
        for module, original, wrapped in self._wrapped:
            if module.__dict__.get("_gradient_checkpointing_func") is wrapped:
                module._gradient_checkpointing_func = original
        if self._enabler is not None:
            self._model.__dict__.pop("_set_gradient_checkpointing", None)
