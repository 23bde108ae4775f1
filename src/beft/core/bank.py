"""The bank: adapters attached to one frozen model, every row of a batch naming its adapter.

Each site's module gets one forward hook that returns `output + vector`. Nothing in the model is replaced: names,
classes and stock `state_dict` keys stay, and `detach` leaves the model bit-identical. The adapters' parameters hang in
the model as its submodule `beft`, so that `parameters()`, `.to(device)` and data parallel see them.
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

from ..errors import BankError, RouteError, StoreError, nearest
from .adapter import Adapter, Head, ModelHead, combine_adapters, module_name, real_device
from .checkpointing import RouteKeeper
from .fingerprint import describe_base
from .guards import refuse_idle, refuse_lacking, refuse_names, refuse_numbers, refuse_unfit, warn_on_save
from .heads import (
    head_paths,
    in_own_dtype,
    linear_logits,
    refuse_headless,
    refuse_mixed_sizes,
    refuse_unpaired,
    replaced,
)
from .patches import Patches
from .quantized import keep_gradients
from .route import AnyRoute, Route, SingleRoute
from .rows import count_repeats, interleaved, rows_checked, twice
from .sites import Layers, find_sites, get_module

_ROUTES: ContextVar[Mapping[int, AnyRoute]] = ContextVar("beft_routes", default={})  # noqa: B039


class _Compiled(threading.local):
    """The route as compiled graphs see it: torch.compile traces thread-locals, not context variables."""

    def __init__(self) -> None:
        self.routes: list[AnyRoute] = []


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
        refuse_unfit(model)
        self.model = model
        self._terms, self._layers, self._sites = terms, layers, sites  # of adapters added without saying where
        self._adapters: dict[str, Adapter] = {}
        self._handles: dict[str, Any] = {}
        self._head_handles: dict[str, list[Any]] = {}
        self._compiled = _Compiled()
        self._active_route: AnyRoute = SingleRoute(None)
        self.one_forward = False
        """Whether `logits` of two inputs a row must be one forward of the model, as where ranks run it in step."""
        self._active: str | None = None
        self._detached = False
        self._base: dict[str, Any] | None = None
        self._required_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
        self._ignored_keys = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        self._own_keys: dict[str, set[str]] = {}
        self._patches = Patches()
        found = find_sites(model, terms, layers, sites)  # before anything changes: a failing attach leaves no trace
        refuse_names(names)
        for parameter in self._required_grad:
            parameter.requires_grad_(False)
        self._holder = model.beft = nn.ModuleDict()
        keep_gradients(model, self._patches)
        self._keeper = RouteKeeper(model, self.current_route, self._using)
        base = getattr(model, "base_model", model)
        self._guards = [
            model.register_forward_pre_hook(self._check_labels, with_kwargs=True),
            base.register_forward_pre_hook(rows_checked(self.current_route), with_kwargs=True),
            model.register_load_state_dict_post_hook(self._check_loaded),
        ]
        if hasattr(model, "save_pretrained"):
            self._patches.set(model, "save_pretrained", warn_on_save(self, model.save_pretrained))
        self._patches.set(model, "_keys_to_ignore_on_save", self._ignored_keys)
        count_repeats(model, self._patches, self.current_route, self._using)
        for name in names:
            self._install(Adapter(name, found, model))
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
        except (KeyError, TypeError):  # no such name, or what can be none, such as a list
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
            BankError: the name is taken or not usable as a name, or the scale is no finite number.
            TermError, SiteError: see `beft.find_sites`.
        """
        if terms is None:
            terms, layers, sites = self._terms, self._layers if layers is None else layers, sites or self._sites
        self._new_name(name)
        refuse_numbers(f"scale of {name!r}", [scale])
        found = find_sites(self.model, terms, layers, sites)
        return self._install(Adapter(name, found, self.model, scale=scale, head=head))

    def remove(self, name: str) -> None:
        """Take an adapter out; if it was active, the plain model is.

        Raises:
            RouteError: no such adapter.
            BankError: inside a route that uses it.
        """
        self._require_attached(f"remove({name!r})")
        removed = self[name]
        route = self.current_route()
        if route is not self._active_route and removed in route.adapters:
            raise BankError(
                f"remove({name!r})", expected="no route in force that uses it", found="one", remedy="leave it first"
            )
        del self._adapters[name]
        del self._holder[module_name(name)]
        if self._active == name:
            self.active = None
        used = {path for adapter in self._adapters.values() for path in adapter.modules_with_vectors}
        for path in removed.modules_with_vectors:
            if path not in used and path in self._handles:
                self._handles.pop(path).remove()
        heads = {path for adapter in self._adapters.values() for path in head_paths(adapter)}
        for path in set(head_paths(removed)) - heads:
            self._unhook_head(path)
        self._ignored_keys -= self._own_keys.pop(name)

    def combine(self, name: str, parts: Mapping[str, float]) -> Adapter:
        """Add an adapter that is the weighted sum of others: `bank.combine("ab", {"a": 0.5, "b": 0.5})`.

        Raises:
            RouteError: a part that is not in the bank.
            BankError: no parts, a weight that is no finite number, the name is taken, or sites or heads that cannot be
                averaged.
        """
        if not parts:
            raise BankError(f"combine({name!r})", expected="at least one part", found="none")
        if not isinstance(parts, Mapping):
            raise BankError(f"combine({name!r})", expected="a weight for each name", found=repr(parts))
        refuse_numbers(f"combine({name!r})", parts.values())
        self._new_name(name)
        chosen = {each: self[each] for each in parts}
        return self._install(combine_adapters(name, parts, chosen, self.model))

    def _unhook_head(self, path: str) -> None:
        for handle in self._head_handles.pop(path):
            handle.remove()

    def set_head(self, name: str, head: Head | None) -> None:
        """Give an adapter a head, in place of the one it had."""
        self._require_attached(f"set_head({name!r})")
        adapter = self[name]
        for path in set(head_paths(adapter)):
            if sum(path in head_paths(each) for each in self._adapters.values()) == 1:
                self._unhook_head(path)
        adapter.head = head
        self._adopt(adapter)

    def detach(self) -> None:
        """Take the hooks and the parameters out; the model is as before `attach`. A second call does nothing."""
        if self._detached:
            return
        heads = [handle for handles in self._head_handles.values() for handle in handles]
        for handle in (*self._handles.values(), *heads, *self._guards):
            handle.remove()
        self._handles.clear()
        self._head_handles.clear()
        self._keeper.remove()
        self._patches.undo()
        del self.model.beft
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
        self._require_attached("active")
        self._active_route = SingleRoute(None if name is None else self[name])
        self._active = name

    @contextmanager
    def route(self, names: str | Sequence[str | None] | None) -> Iterator[None]:
        """Inside the block, use one adapter for all rows, or one a row; None is the plain model.

        The route belongs to the current thread (and asynchronous task), and a layer that checkpointing recomputes keeps
        the one its forward ran under.

        Raises:
            RouteError: a name that the bank does not hold; inside, a batch with another number of rows.
        """
        with self._using(self.make_route(names)):
            yield

    def make_route(self, names: str | Sequence[str | None] | None) -> AnyRoute:
        """The route of `names`, for `use`: made once, used for many batches of as many rows."""
        self._require_attached("route")
        if names is None or isinstance(names, str):
            return SingleRoute(None if names is None else self[names])
        if not isinstance(names, Iterable):
            raise RouteError(f"route {names!r}", expected="a name, None, or one name a row", found=type(names).__name__)
        rows = [None if name is None else self[name] for name in names]
        if not rows:
            raise RouteError("route []", expected="a name, None, or one name a row", found="an empty list")
        return Route(rows, list(self._adapters.values()), real_device(self.model))

    @contextmanager
    def _using(self, route: AnyRoute) -> Iterator[None]:
        token = _ROUTES.set({**_ROUTES.get(), id(self): route})
        self._compiled.routes.append(route)
        try:
            yield
        finally:
            self._compiled.routes.pop()
            _ROUTES.reset(token)

    def current_route(self) -> AnyRoute:
        """The route in force here and now."""
        if torch.compiler.is_compiling():
            routes = self._compiled.routes
            return routes[-1] if routes else self._active_route
        return _ROUTES.get().get(id(self)) or self._active_route

    # ---- heads -------------------------------------------------------------------------------------------------------

    def logits(self, *, second: Mapping[str, Any] | None = None, **batch: Any) -> Tensor:
        """Run the model under the current route and give fp32 logits (rows, labels) from the adapters' own heads.

        Linear heads read the base model's last states; rows of adapters with fewer labels than others are padded with
        -inf. Model heads give what the model returns as `logits`. Heads of the pooling "pair" compare two texts a
        row: `batch` are the first texts, `second` is a batch of the second ones.

        Raises:
            BankError: an adapter of the route has no head or reads another number of inputs a row, or `second` has
                another number of rows.
        """
        route = self.current_route()
        refuse_headless(route)
        refuse_unpaired(route, batch, second)
        batches = [batch] if second is None else [batch, second]
        if all(isinstance(adapter.head, ModelHead) for adapter in route.adapters):
            return self.model(**batch).logits.float()
        base = getattr(self.model, "base_model", self.model)
        if len(batches) > 1 and self.one_forward:
            with self._using(twice(route)):
                hidden = base(**interleaved(*batches)).last_hidden_state
            states = [hidden[place::2, : batch["input_ids"].shape[1]] for place, batch in enumerate(batches)]
        else:
            states = [base(**batch).last_hidden_state for batch in batches]
        masks = [batch.get("attention_mask") for batch in batches]
        return linear_logits(route, *zip(states, masks, strict=True)).float()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _require_attached(self, what: str) -> None:
        if self._detached:
            raise BankError(what, expected="an attached bank", found="a detached one", remedy="attach again")

    def _new_name(self, name: str) -> str:
        self._require_attached(f"adapter {name!r}")
        refuse_names([name])
        if name in self._adapters:
            raise BankError(
                f"adapter {name!r}", expected="a new name", found="one in the bank", remedy="remove it first"
            )
        return name

    def _install(self, adapter: Adapter) -> Adapter:
        self._adapters[adapter.name] = adapter
        self._holder[module_name(adapter.name)] = adapter
        for path in adapter.modules_with_vectors:
            if path not in self._handles:
                self._handles[path] = get_module(self.model, path).register_forward_hook(self._add_bias(path))
        self._adopt(adapter)
        return adapter

    def _adopt(self, adapter: Adapter) -> None:
        """Hook in the modules of an adapter's model head, and keep all of its keys out of `save_pretrained`."""
        for path in head_paths(adapter):
            if path not in self._head_handles:
                module = get_module(self.model, path)
                self._head_handles[path] = [
                    module.register_forward_pre_hook(in_own_dtype, with_kwargs=True),
                    module.register_forward_hook(self._replace_head(path), with_kwargs=True),
                ]
        if adapter.head is not None:
            adapter.head.to(real_device(self.model))
        own = {f"beft.{module_name(adapter.name)}.{key}" for key in adapter.state_dict()}
        self._ignored_keys -= self._own_keys.get(adapter.name, set())
        self._ignored_keys |= own
        self._own_keys[adapter.name] = own

    def _add_bias(self, path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            shift = self.current_route().shift(path, output)
            return None if shift is None else output + shift

        return hook

    def _replace_head(self, path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            return replaced(self.current_route(), path, args, kwargs, output)

        return hook

    def _check_labels(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None:
            refuse_mixed_sizes(self.current_route())
            refuse_idle(self.current_route(), module, self._required_grad)

    def _check_loaded(self, module: nn.Module, incompatible: Any) -> None:
        refuse_lacking({f"beft.{key}" for key in self._holder.state_dict()}, incompatible.missing_keys)

    def base_description(self) -> dict[str, Any]:
        """Name, type, sizes and fingerprint of the frozen base, computed once."""
        if self._base is None:
            heads = {path for adapter in self._adapters.values() for path in head_paths(adapter)}
            self._base = describe_base(self.model, tuple(heads))
        return self._base

    # ---- files -------------------------------------------------------------------------------------------------------

    def save(self, name: str, directory: str | Path) -> Path:
        """Write an adapter folder that stock PEFT reads too, or whose beft.json says why not; see `beft.core.store`."""
        from .store import save_adapter

        if not str(directory):
            raise StoreError(f"save({name!r})", expected="a folder", found="an empty text")
        return save_adapter(self, name, Path(directory))

    def load(
        self, directory: str | Path, name: str | None = None, *, check_base: bool = True, revision: str | None = None
    ) -> Adapter:
        """Add the adapter of a folder or of a Hub repository "user/repo", with its own terms, layers and head.

        See `beft.core.restore`; `revision` is a branch, tag or commit of the repository.
        """
        from .hub import adapter_folder
        from .restore import load_adapter

        return load_adapter(self, adapter_folder(directory, revision), name, check_base=check_base)

    def push_to_hub(self, repository: str, name: str = "default", **options: Any) -> str:
        """Put an adapter into a Hub repository "user/repo"; see `beft.core.hub.push_to_hub` for the options."""
        from .hub import push_to_hub

        return push_to_hub(self, repository, name, **options)
