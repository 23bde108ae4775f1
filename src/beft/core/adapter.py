"""An adapter: the vectors of one name, one a site, plus its task head if it has one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import BankError
from .sharded import make_whole
from .sites import Site, get_module

Pooling = Literal["mean", "last", "pair"]
"""What a linear head reads: the mean state, the last token's, or two texts' mean states compared."""
COSINE_WEIGHT = 20.0
"""The cosine of two texts' states is read so many times: what sentence encoders were trained to tell pairs apart by."""


class LinearHead(nn.Module):
    """One linear layer on pooled states: weight (labels, hidden) and bias (labels,), both fp32, starting at zero.

    `hidden` is the width of what it reads: the model's, or with `pooling` "pair" four times that and one (two states,
    their difference, their product and their cosine).
    `labels` are the class names, or None for one number (regression), which is `offset + spread * logit`: two buffers
    that put the layer to work in units of the labels' own spread.
    """

    kind = "linear"

    def __init__(
        self, hidden: int, outputs: int, labels: Sequence[str] | None = None, pooling: Pooling = "mean"
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, hidden))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.offset: Tensor
        self.spread: Tensor
        self.register_buffer("offset", torch.zeros(1))
        self.register_buffer("spread", torch.ones(1))
        self.labels = None if labels is None else tuple(labels)
        self.pooling: Pooling = pooling

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return int(self.weight.shape[0])

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (rows, labels) in fp32 from pooled states (rows, hidden)."""
        logits = nn.functional.linear(pooled.float(), self.weight, self.bias)
        return logits if self.labels is not None else self.offset + self.spread * logits


class ModelHead(nn.Module):
    """An adapter's own copy of the architecture's head modules (`classifier`, `score`, ...), in fp32.

    `copies` maps module paths, dots written as slashes, to the copies. They run in place of the originals.
    """

    kind = "model"

    def __init__(self, model: nn.Module, paths: Sequence[str], labels: Sequence[str] | None = None) -> None:
        super().__init__()
        self.copies = nn.ModuleDict()
        for path in paths:
            original = get_module(model, path)
            own = copy.deepcopy(original).float()
            if next(own.parameters()).is_meta:  # a model without weights: what is loaded fills it
                own.to_empty(device="cpu")
            make_whole(own)
            for module in own.modules():  # a bank's hooks add to the original alone
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
                module._forward_hooks_with_kwargs.clear()
                if "_hf_hook" in module.__dict__:  # accelerate's, which would bring the original's weights
                    for attribute in ("_hf_hook", "_old_forward", "forward"):
                        module.__dict__.pop(attribute, None)
            self.copies[path.replace(".", "/")] = own.requires_grad_(True)
        self.labels = None if labels is None else tuple(labels)

    @property
    def paths(self) -> list[str]:
        """Paths of the model's modules that this head stands in for."""
        return [key.replace("/", ".") for key in self.copies]

    @property
    def outputs(self) -> int:
        """Number of logits: the rows of the last linear weight."""
        weights = [p for p in self.parameters() if p.ndim == 2]
        return int(weights[-1].shape[0])

    def module(self, path: str) -> nn.Module:
        """The copy that stands in for the module at `path`."""
        return self.copies[path.replace(".", "/")]


Head = LinearHead | ModelHead


def head_features(width: int, pooling: Pooling) -> int:
    """Features that a linear head reads, of states of so many."""
    return 4 * width + 1 if pooling == "pair" else width


def compares(head: Head | None) -> bool:
    """Whether a head reads two inputs a row, and compares them."""
    return isinstance(head, LinearHead) and head.pooling == "pair"


def pool(hidden: Tensor, attention_mask: Tensor | None, pooling: Literal["mean", "last"]) -> Tensor:
    """States (rows, length, hidden) to (rows, hidden) in fp32: the mean over the mask's tokens, or its last token."""
    if hidden.ndim == 2:
        return hidden.float()
    if attention_mask is None:
        return hidden.float().mean(1) if pooling == "mean" else hidden[:, -1].float()
    if pooling == "mean":
        mask = attention_mask.to(device=hidden.device, dtype=hidden.dtype)[:, :, None]
        return (hidden * mask).sum(1, dtype=torch.float32) / mask.sum(1, dtype=torch.float32).clamp(min=1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask.to(hidden.device) * positions).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last].float()


def read(pooling: Pooling, *inputs: tuple[Tensor, Tensor | None]) -> Tensor:
    """What a linear head reads, of states and attention mask of a row's one input, or of both of a pair's."""
    if pooling == "pair":
        return compare(*(pool(hidden, mask, "mean") for hidden, mask in inputs))
    ((hidden, mask),) = inputs
    return pool(hidden, mask, pooling)


def compare(a: Tensor, b: Tensor) -> Tensor:
    """Two states a row, each (rows, hidden), to what a linear head needs to compare them, (rows, 4 x hidden + 1).

    a, b, |a - b| and a * b over the root of both's spread, so that all are of the states' own scale; and their cosine
    `COSINE_WEIGHT` times, so that a head need not find it among the products (docs/results/pairs.md).
    """
    spread = (a.square().mean(1, keepdim=True) * b.square().mean(1, keepdim=True)).clamp(min=1e-12) ** 0.25
    cosine = nn.functional.cosine_similarity(a, b)[:, None]
    return torch.cat([a, b, (a - b).abs(), a * b / spread, COSINE_WEIGHT * cosine], 1)


class Adapter(nn.Module):
    """The vectors of one name. `vectors[key]` is an fp32 parameter of shape (site.width,), zero at first.

    `scale` multiplies the vectors when they are added, and is folded into them in files.
    """

    def __init__(
        self, name: str, sites: Sequence[Site], model: nn.Module, scale: float = 1.0, head: Head | None = None
    ) -> None:
        super().__init__()
        self.name, self.sites, self.scale = name, tuple(sites), float(scale)
        self.vectors = nn.ParameterDict()
        self._by_module: dict[str, list[tuple[str, Site]]] = {}
        for site in self.sites:
            device = real_device(get_module(model, site.module))
            self.vectors[_key(site)] = nn.Parameter(torch.zeros(site.width, device=device))
            self._by_module.setdefault(site.module, []).append((_key(site), site))
        self.head = head

    @property
    def modules_with_vectors(self) -> list[str]:
        """Paths of the modules this adapter adds to."""
        return list(self._by_module)

    @property
    def terms(self) -> list[str]:
        """Names of its terms, in vocabulary order of its sites."""
        return list(dict.fromkeys(site.term.name for site in self.sites))

    def vector(self, site: Site) -> nn.Parameter:
        """The leaf of one site."""
        return self.vectors[_key(site)]

    def items(self) -> Iterator[tuple[Site, nn.Parameter]]:
        """Sites with their leaves, in layer order."""
        for site in self.sites:
            yield site, self.vector(site)

    def shift(self, path: str) -> Tensor | None:
        """What is added to the output of the module at `path`: (features,), zero outside the terms' rows; or None."""
        entries = self._by_module.get(path)
        if entries is None:
            return None
        total: Tensor | None = None
        for key, site in entries:
            wide = site.widen(self.vectors[key])
            total = wide if total is None else total + wide
        assert total is not None
        return total if self.scale == 1.0 else total * self.scale

    def leaves(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters: `<module path>` (or `<module path>:<term>`) for vectors, `head.<...>` for the head."""
        for site in self.sites:
            yield _key(site).replace("/", "."), self.vector(site)
        if self.head is not None:
            for name, parameter in self.head.named_parameters():
                yield "head." + name.removeprefix("copies.").replace("/", "."), parameter


def real_device(module: nn.Module) -> torch.device:
    """Where a module's weights are (quantised ones may be buffers); the CPU if none are, or all on the meta device."""
    everything = itertools.chain(module.parameters(), module.buffers())  # lazily: this is asked once a batch
    tensors = (tensor for tensor in everything if not tensor.is_meta)
    first = next(tensors, None)
    return torch.device("cpu") if first is None else first.device


def module_name(name: str) -> str:
    """A module's name for an adapter's: no dots, and none of a `ModuleDict`'s own attributes (`half`, `keys`)."""
    escaped = name.replace("%", "%25").replace(".", "%2E")
    return "%" + escaped if hasattr(_EMPTY, escaped) else escaped


_EMPTY = nn.ModuleDict()


def _key(site: Site) -> str:
    path = site.module.replace(".", "/")
    return path if site.whole else f"{path}:{site.term.name}"


def combine_adapters(
    name: str, parts: Mapping[str, float], adapters: Mapping[str, Adapter], model: nn.Module
) -> Adapter:
    """A new adapter whose vectors (and head, if all heads agree in shape and labels) are a weighted sum.

    Sites are the union; an adapter without a site counts as zero there. If only one adapter has a head, it is copied.

    Raises:
        BankError: heads that cannot be averaged, or one term of one module on different features.
    """
    chosen = {each: adapters[each] for each in parts}
    sites: dict[tuple[str, str], Site] = {}
    for each, adapter in chosen.items():
        for site in adapter.sites:
            other = sites.setdefault(site.key, site)
            if other.rows != site.rows:
                raise BankError(
                    f"combine({name!r})",
                    expected=f"the features {list(other.rows)} of {site.module}",
                    found=f"{list(site.rows)} in {each!r}",
                    remedy="combine adapters of the same features",
                )
    heads = {each: adapter.head for each, adapter in chosen.items() if adapter.head is not None}
    head = None
    if heads:
        first = next(iter(heads.values()))
        signature = {_head_signature(each) for each in heads.values()}
        if len(signature) > 1 or (1 < len(heads) < len(chosen)):
            raise BankError(
                f"combine({name!r})",
                expected="heads of one shape and one label set, or a single head",
                found=f"the heads of {', '.join(heads)}",
                remedy="combine adapters of one task, or detach the other heads first",
            )
        head = copy.deepcopy(first)
    result = Adapter(name, list(sites.values()), model, head=head)
    with torch.no_grad():
        for site, vector in result.items():
            for each, weight in parts.items():
                adapter = chosen[each]
                if any(site.key == own.key for own in adapter.sites):
                    vector.add_(adapter.vector(site), alpha=weight * adapter.scale)
        if head is not None and len(heads) > 1:
            states = {each: plain_state(own) for each, own in heads.items()}
            head.load_state_dict(
                {
                    key: torch.stack([parts[each] * state[key] for each, state in states.items()]).sum(0)
                    for key in head.state_dict()
                }
            )
            if isinstance(head, LinearHead):
                head.offset.zero_()
                head.spread.fill_(1.0)
    return result


def plain_state(head: Head) -> dict[str, Tensor]:
    """A head's tensors, a regression's units folded into weight and bias: so a sum of heads is a sum of tensors."""
    state = head.state_dict()
    if isinstance(head, LinearHead):
        weight, bias = state["weight"] * head.spread, state["bias"] * head.spread + head.offset
        state = {**state, "weight": weight, "bias": bias}
    return state


def _head_signature(head: Head) -> tuple[object, ...]:
    shapes = tuple((key, tuple(p.shape)) for key, p in head.named_parameters())
    return (head.kind, head.labels, getattr(head, "pooling", None), shapes)
