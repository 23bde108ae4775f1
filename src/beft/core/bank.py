"""The bank: adapters attached to one frozen model, every row of a batch naming its adapter.

Each site's module gets one forward hook that returns `output + vector`. Nothing in the model is replaced: names, classes
and stock `state_dict` keys stay, and `detach` leaves the model bit-identical. The adapters' parameters hang in the model
as its submodule `beft`, so that `parameters()`, `.to(device)` and data parallel see them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BankError, RouteError, nearest
from .adapter import Adapter, Head, LinearHead, ModelHead, combine_adapters, pool
from .checkpointing import RouteKeeper
from .route import AnyRoute, Route, SingleRoute
from .sites import Layers, find_sites, get_module

_ROUTES: ContextVar[Mapping[int, AnyRoute]] = ContextVar("beft_routes", default={})  # noqa: B039


class _Compiled(threading.local):
    """The route as compiled graphs see it: torch.compile traces thread-locals, not context variables."""

    route: AnyRoute | None = None


def attach(
    model: nn.Module,
    terms: str | Iterable[str] = "value",
    names: Sequence[str] = ("default",),
    layers: Layers = None,
    sites: Mapping[str, str] | None = None,
) -> Bank:
    """Freeze a model and attach adapters of zero vectors to it; with a single name that adapter is active.

    Args:
        model: a transformers model. Its own parameters stop requiring gradients until `detach`.
        terms, layers, sites: where to add, see `beft.find_sites`.
        names: the adapters to make; may be empty.

    Raises:
        BankError: the model is compiled (hooks would be ignored) or has a bank already.
        TermError, SiteError: see `beft.find_sites`.
    """
    return Bank(model, terms=terms, names=names, layers=layers, sites=sites)


class Bank:
    """Adapters on one frozen model. Made by `beft.attach`.

    Outside a `route` block the model uses `active`: a name, or None for the plain model.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: str | Iterable[str] = "value",
        names: Sequence[str] = ("default",),
        layers: Layers = None,
        sites: Mapping[str, str] | None = None,
    ) -> None:
        _refuse_unfit(model)
        self.model = model
        self._defaults: dict[str, Any] = {"terms": terms, "layers": layers, "sites": sites}
        self._adapters: dict[str, Adapter] = {}
        self._handles: dict[str, Any] = {}
        self._head_handles: dict[str, Any] = {}
        self._compiled = _Compiled()
        self._active_route: AnyRoute = SingleRoute(None)
        self._active: str | None = None
        self._detached = False
        self._required_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
        self._ignored_keys = getattr(model, "_keys_to_ignore_on_save", None)
        self._originals: dict[str, Any] = {}
        found = find_sites(model, terms, layers, sites)  # before anything changes: a failing attach leaves no trace
        for parameter in self._required_grad:
            parameter.requires_grad_(False)
        model.beft = nn.ModuleDict()
        self._keeper = RouteKeeper(model, self.current_route, self._using)
        self._label_guard = model.register_forward_pre_hook(self._refuse_labels, with_kwargs=True)
        self._wrap_generation()
        for name in names:
            self._install(Adapter(self._new_name(name), found, model))
        if len(names) == 1:
            self.active = names[0]

    # ---- what is there -----------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The adapters, in the order they came."""
        return list(self._adapters)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def __len__(self) -> int:
        return len(self._adapters)

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of a name.

        Raises:
            RouteError: no such adapter.
        """
        try:
            return self._adapters[name]
        except KeyError:
            raise RouteError(
                f"adapter {name!r}",
                expected="a name in the bank",
                found=f"{self.names}",
                remedy=nearest(str(name), self.names) if self._adapters else "add or load one first",
            ) from None

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The leaves of one adapter, vectors then head, for an optimiser."""
        return [parameter for _, parameter in self[name].leaves()]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`<adapter>.<module path>` or `<adapter>.head...`, and the leaf, of every adapter."""
        for name, adapter in self._adapters.items():
            for leaf, parameter in adapter.leaves():
                yield f"{name}.{leaf}", parameter

    # ---- changing it -------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        terms: str | Iterable[str] | None = None,
        layers: Layers = None,
        scale: float = 1.0,
        sites: Mapping[str, str] | None = None,
        head: Head | None = None,
    ) -> Adapter:
        """Add an adapter of zero vectors: no outputs change. Without `terms`, where the bank was attached.

        Raises:
            BankError: the name is taken or not usable as a name.
            TermError, SiteError: see `beft.find_sites`.
        """
        chosen = dict(self._defaults) if terms is None else {"terms": terms, "layers": None, "sites": None}
        chosen.update({k: v for k, v in {"layers": layers, "sites": sites}.items() if v is not None})
        found = find_sites(self.model, **chosen)
        return self._install(Adapter(self._new_name(name), found, self.model, scale=scale, head=head))

    def remove(self, name: str) -> None:
        """Take an adapter out; if it was active, the plain model is."""
        removed = self[name]
        del self._adapters[name]
        del self.model.beft[_escape(name)]
        if self._active == name:
            self.active = None
        used = {path for adapter in self._adapters.values() for path in adapter.modules_with_vectors}
        for path in removed.modules_with_vectors:
            if path not in used and path in self._handles:
                self._handles.pop(path).remove()
        heads = {path for adapter in self._adapters.values() for path in _head_paths(adapter)}
        for path in set(_head_paths(removed)) - heads:
            self._head_handles.pop(path).remove()
        self._update_ignored_keys()

    def combine(self, name: str, parts: Mapping[str, float]) -> Adapter:
        """Add an adapter that is the weighted sum of others: `bank.combine("ab", {"a": 0.5, "b": 0.5})`.

        Raises:
            RouteError: a part that is not in the bank.
            BankError: no parts, the name is taken, or heads that cannot be averaged.
        """
        if not parts:
            raise BankError(f"combine({name!r})", expected="at least one part", found="none")
        chosen = {each: self[each] for each in parts}
        return self._install(combine_adapters(self._new_name(name), parts, chosen, self.model))

    def set_head(self, name: str, head: Head | None) -> None:
        """Give an adapter a head, in place of the one it had."""
        adapter = self[name]
        for path in set(_head_paths(adapter)):
            if sum(path in _head_paths(each) for each in self._adapters.values()) == 1:
                self._head_handles.pop(path).remove()
        adapter.head = head
        self._adopt(adapter)

    def detach(self) -> None:
        """Take the hooks and the parameters out; the model is as before `attach`. A second call does nothing."""
        if self._detached:
            return
        for handle in (*self._handles.values(), *self._head_handles.values(), self._label_guard):
            handle.remove()
        self._handles.clear()
        self._head_handles.clear()
        self._keeper.remove()
        for attribute in self._originals:
            self.model.__dict__.pop(attribute, None)
        del self.model.beft
        if self._ignored_keys is not None:
            self.model._keys_to_ignore_on_save = self._ignored_keys
        for parameter, required in self._required_grad.items():
            parameter.requires_grad_(required)
        self._detached = True

    # ---- routes ------------------------------------------------------------------------------------------------------

    @property
    def active(self) -> str | None:
        """The adapter in use outside `route`, or None."""
        return self._active

    @active.setter
    def active(self, name: str | None) -> None:
        self._active_route = SingleRoute(None if name is None else self[name])
        self._active = name

    @contextmanager
    def route(self, names: str | None | Sequence[str | None]) -> Iterator[None]:
        """Inside the block, use one adapter for all rows, or one a row; None is the plain model.

        The route belongs to the current thread (and asynchronous task), and a layer that checkpointing recomputes keeps
        the one its forward ran under.

        Raises:
            RouteError: a name that the bank does not hold; inside, a batch with another number of rows.
        """
        with self._using(self.make_route(names)):
            yield

    def make_route(self, names: str | None | Sequence[str | None]) -> AnyRoute:
        """The route of `names`, for `use`: made once, used for many batches of as many rows."""
        if self._detached:
            raise BankError("route", expected="an attached bank", found="a detached one", remedy="attach again")
        if names is None or isinstance(names, str):
            return SingleRoute(None if names is None else self[names])
        rows = [None if name is None else self[name] for name in names]
        if not rows:
            raise RouteError("route []", expected="a name, None, or one name a row", found="an empty list")
        device = next(self.model.parameters()).device
        return Route(rows, list(self._adapters.values()), device)

    @contextmanager
    def _using(self, route: AnyRoute) -> Iterator[None]:
        token = _ROUTES.set({**_ROUTES.get(), id(self): route})
        before, self._compiled.route = self._compiled.route, route
        try:
            yield
        finally:
            self._compiled.route = before
            _ROUTES.reset(token)

    def current_route(self) -> AnyRoute:
        """The route in force here and now."""
        if torch.compiler.is_compiling():
            route = self._compiled.route
        else:
            route = _ROUTES.get().get(id(self))
        return self._active_route if route is None else route

    # ---- heads -------------------------------------------------------------------------------------------------------

    def logits(self, **batch: Any) -> Tensor:
        """Run the model under the current route and give fp32 logits (rows, labels) from the adapters' own heads.

        Linear heads read the base model's last states; rows of adapters with fewer labels than others are padded with
        -inf. Model heads give what the model returns as `logits`.

        Raises:
            BankError: an adapter of the route has no head.
        """
        route = self.current_route()
        headless = [adapter.name for adapter in route.adapters if adapter.head is None]
        if headless or not route.adapters or (isinstance(route, Route) and bool((route.index == len(route.adapters)).any())):
            raise BankError("logits", expected="adapters with heads", found=f"none on {headless or 'the plain model'}")
        if all(isinstance(adapter.head, ModelHead) for adapter in route.adapters):
            return self.model(**batch).logits.float()
        base = getattr(self.model, "base_model", self.model)
        output = self.model(**batch) if base is self.model else base(**batch)
        hidden = output.last_hidden_state
        mask = batch.get("attention_mask")

        def apply(adapter: Adapter, rows: Tensor | None) -> Tensor:
            head = adapter.head
            if not isinstance(head, LinearHead):
                raise BankError(f"head of {adapter.name!r}", expected="a linear head", found="a model head beside one")
            states, masked = (hidden, mask) if rows is None else (hidden[rows], None if mask is None else mask[rows])
            return head(pool(states, masked, head.pooling))

        return _by_adapter(route, hidden, apply)

    def _replace_head(self, path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            route = self.current_route()
            if not any(path in _head_paths(adapter) for adapter in route.adapters):
                return None

            def apply(adapter: Adapter, rows: Tensor | None) -> Tensor:
                if path not in _head_paths(adapter):
                    return output if rows is None else output[rows]
                assert isinstance(adapter.head, ModelHead)
                chosen = _take(args, kwargs, rows, len(output), dtype=torch.float32)
                return adapter.head.module(path)(*chosen[0], **chosen[1])

            return _by_adapter(route, output, apply, rest=output)

        return hook

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _new_name(self, name: str) -> str:
        if not isinstance(name, str) or not name:
            raise BankError(f"adapter name {name!r}", expected="text", found=type(name).__name__)
        if name in self._adapters:
            raise BankError(f"adapter {name!r}", expected="a new name", found="one in the bank", remedy="remove it first")
        return name

    def _install(self, adapter: Adapter) -> Adapter:
        self._adapters[adapter.name] = adapter
        self.model.beft[_escape(adapter.name)] = adapter
        for path in adapter.modules_with_vectors:
            if path not in self._handles:
                self._handles[path] = get_module(self.model, path).register_forward_hook(self._add_bias(path))
        self._adopt(adapter)
        return adapter

    def _adopt(self, adapter: Adapter) -> None:
        """Hook in the modules of an adapter's model head, and keep all of its keys out of `save_pretrained`."""
        for path in _head_paths(adapter):
            if path not in self._head_handles:
                module = get_module(self.model, path)
                self._head_handles[path] = module.register_forward_hook(self._replace_head(path), with_kwargs=True)
        if adapter.head is not None:
            adapter.head.to(next(self.model.parameters()).device)
        self._update_ignored_keys()

    def _update_ignored_keys(self) -> None:
        if hasattr(self.model, "_keys_to_ignore_on_save"):
            own = {f"beft.{key}" for key in self.model.beft.state_dict()}
            self.model._keys_to_ignore_on_save = set(self._ignored_keys or ()) | own  # type: ignore[assignment]

    def _add_bias(self, path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            shift = self.current_route().shift(path, output)
            return None if shift is None else output + shift

        return hook

    def _refuse_labels(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is None:
            return
        sizes = {a.head.outputs for a in self.current_route().adapters if isinstance(a.head, ModelHead)}
        if len(sizes) > 1:
            raise RouteError(
                "labels=",
                expected="one number of labels in a batch",
                found=f"heads of {sorted(sizes)} labels",
                remedy="leave labels out and compute each row's loss from its own logits",
            )

    def _wrap_generation(self) -> None:
        """Let `generate` say how often it repeats each row, for as long as it runs."""
        model = self.model
        if not hasattr(model, "_expand_inputs_for_generation") or not hasattr(model, "generate"):
            return
        expand, generate = model._expand_inputs_for_generation, model.generate
        bank = self

        def expanding(expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
            bank.current_route().expand = expand_size  # type: ignore[misc]
            return expand(expand_size, *args, **kwargs)

        def generating(*args: Any, **kwargs: Any) -> Any:
            route = bank.current_route()
            try:
                return generate(*args, **kwargs)
            finally:
                route.expand = 1  # type: ignore[misc]

        self._originals = {"_expand_inputs_for_generation": expand, "generate": generating}
        model._expand_inputs_for_generation = expanding  # type: ignore[assignment]
        model.generate = generating  # type: ignore[assignment]

    # ---- files -------------------------------------------------------------------------------------------------------

    def save(self, name: str, directory: str | Path) -> Path:
        """Write an adapter folder that stock PEFT reads too; see `beft.core.store`."""
        from .store import save_adapter

        return save_adapter(self, name, Path(directory))

    def load(self, directory: str | Path, name: str | None = None) -> Adapter:
        """Add the adapter of a folder, with its own terms, layers and head; see `beft.core.store`."""
        from .store import load_adapter

        return load_adapter(self, Path(directory), name)


def _head_paths(adapter: Adapter) -> list[str]:
    return adapter.head.paths if isinstance(adapter.head, ModelHead) else []


def _by_adapter(
    route: AnyRoute,
    like: Tensor,
    apply: Callable[[Adapter, Tensor | None], Tensor],
    rest: Tensor | None = None,
) -> Tensor:
    """Run each adapter's part on its own rows; widths may differ, the narrower are padded with -inf on the right.

    `rest` gives the rows of the plain model.
    """
    if isinstance(route, SingleRoute):
        assert route.adapter is not None
        return apply(route.adapter, None)
    index = route.match(route.index, like, "the head").to(like.device)
    parts = []
    for number, adapter in enumerate(route.adapters):
        rows = (index == number).nonzero()[:, 0]
        parts.append((rows, apply(adapter, rows)))
    if rest is not None:
        rows = (index == len(route.adapters)).nonzero()[:, 0]
        parts.append((rows, rest[rows]))
    width = max(part.shape[-1] for _, part in parts)
    order = torch.cat([rows for rows, _ in parts]).argsort()
    padded = [nn.functional.pad(part, (0, width - part.shape[-1]), value=-torch.inf) for _, part in parts]
    return torch.cat(padded).index_select(0, order)


def _take(args: Any, kwargs: Any, rows: Tensor | None, count: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The given rows of every tensor argument that has `count` of them, floats in `dtype`."""

    def pick(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(dtype) if value.is_floating_point() else value
        return value[rows] if rows is not None and value.ndim and value.shape[0] == count else value

    return tuple(pick(value) for value in args), {key: pick(value) for key, value in kwargs.items()}


def _escape(name: str) -> str:
    """A module name for an adapter name: module names must not hold dots."""
    return name.replace("%", "%25").replace(".", "%2E")


def _refuse_unfit(model: nn.Module) -> None:
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
