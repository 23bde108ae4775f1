"""Proof of a model's sites by the identities that attention obeys.

Rows of softmax sum to one, hence `attention(V + 1 b_v^T) = attention(V) + 1 b_v^T`: a true value bias moves the input
of the output projection W_o by exactly `repeat_kv(b_v)`, at every query position that sees a key, and its output by
`W_o repeat_kv(b_v)`. A true query or key bias acts through the attention weights alone: with the same value at every
position it moves nothing. A key bias that moves nothing even so is inert: it shifts all scores of a query alike.

Each attention is run again on the inputs that one tiny forward gave it, with a random vector added at the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SiteError
from .attentions import find_attentions
from .probe import evaluating, run_base, tiny_inputs
from .quantized import is_quantized
from .sites import Layers, Site, find_sites, get_module
from .terms import parse_term

TOLERANCE = 1e-4  # of fp32, and of fp64 too: many families compute their softmax in fp32
HALF_TOLERANCE = {torch.bfloat16: 6e-2, torch.float16: 1e-2}
QUANTIZED_TOLERANCE = 1e-1
"""Of a quantised W_o's output, for it may round its input as well; its input is held to the identity as ever."""


@dataclass(frozen=True)
class Proof:
    """What was measured at one site.

    `error` is the largest deviation from the identity and `effect` the largest movement of W_o's input, both relative
    to the largest entry of W_o's input. `proven` says that the deviation is rounding; if not, `reason` says why.
    """

    site: Site
    proven: bool
    error: float
    effect: float
    reason: str = ""

    @property
    def inert(self) -> bool:
        """Whether the bias moves nothing beyond rounding (a key bias under positions that do not rotate)."""
        return self.effect <= INERT

    def __str__(self) -> str:
        state = "proven" if self.proven else f"NOT proven ({self.reason})"
        moves = "inert" if self.inert else f"effect {self.effect:.2g}"
        return f"{self.site.term.symbol} layer {self.site.layer} {self.site.module}: {state}, {moves}"


INERT = 1e-5


@dataclass(frozen=True)
class Verification:
    """All proofs of a model, and layers, or the stack ("encoder", "decoder"), that have no site to prove."""

    proofs: tuple[Proof, ...]
    without_attention: tuple[int, ...] = ()
    stacks_without: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every site is proven."""
        return all(proof.proven for proof in self.proofs)

    @property
    def failures(self) -> list[Proof]:
        """The sites where the identity does not hold."""
        return [proof for proof in self.proofs if not proof.proven]

    @property
    def inert_key_layers(self) -> list[int]:
        """Layers whose key bias moves nothing."""
        return [p.site.layer for p in self.proofs if p.site.term.name == "key" and p.inert]

    def raise_if_unproven(self) -> None:
        """Raises SiteError with the first failure."""
        if self.failures:
            first = self.failures[0]
            raise SiteError(
                first.site.module,
                expected=f"a place of {first.site.term.symbol}",
                found=f"{first.reason} ({len(self.failures)} of {len(self.proofs)} sites, error {first.error:.2g})",
            )


def verify_sites(
    model: nn.Module,
    terms: str | Iterable[str] = "query+key+value",
    layers: Layers = None,
    sites: Mapping[str, str] | None = None,
) -> Verification:
    """Check every query, key and value site of a model by measurement; the model is left as it was.

    Costs one forward of 2 x 6 tokens and a few runs of each attention alone. Meant for fp32; in half precision the
    identity holds up to rounding and `inert` cannot be told.

    Raises:
        TermError, SiteError: see `beft.find_sites`; also if an attention did not run on a tiny input.
    """
    found = [s for s in find_sites(model, terms, layers, sites) if s.term.name in ("query", "key", "value")]
    by_hand = {name: pattern for name, pattern in (sites or {}).items() if parse_term(name).name == "value"}
    values = {(s.stack, s.attention, s.layer): s for s in find_sites(model, "value", None, by_hand)}
    attentions = {site.output: _attention_path(model, site) for site in found}
    calls: dict[str, tuple[Any, Any]] = {}
    handles = [
        get_module(model, path).register_forward_pre_hook(_note_call(calls, path), with_kwargs=True)
        for path in set(attentions.values())
    ]
    try:
        with evaluating(model):
            try:
                run_base(model, tiny_inputs(model))
            finally:
                for handle in handles:
                    handle.remove()
            proofs = []
            for site in found:
                path = attentions[site.output]
                if path not in calls:
                    raise SiteError(
                        path, expected="an attention that runs on a tiny input", found="one that did not run"
                    )
                value = values.get((site.stack, site.attention, site.layer))
                proofs.append(_prove(model, site, value or site, path, calls[path]))
    finally:
        for handle in handles:
            handle.remove()
    return Verification(tuple(proofs), _layers_without(model, list(values.values())), _stacks_without(model, found))


def _attention_path(model: nn.Module, site: Site) -> str:
    """The smallest module that holds both the projection and W_o."""
    if not site.output:
        raise SiteError(site.module, expected="a known output projection", found="a site named by hand")
    common = []
    for a, b in zip(site.module.split("."), site.output.split("."), strict=False):
        if a != b:
            break
        common.append(a)
    return ".".join(common)


def _note_call(calls: dict[str, tuple[Any, Any]], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls[path] = (
            args,
            {k: v for k, v in kwargs.items() if k not in ("past_key_values", "past_key_value", "layer_past")},
        )

    return hook


def _prove(model: nn.Module, site: Site, value: Site, path: str, call: tuple[Any, Any]) -> Proof:
    attention, projection = get_module(model, path), get_module(model, site.output)

    def replay(*hooks: tuple[Site, Callable[[Tensor], Tensor]]) -> tuple[Tensor, Tensor]:
        """Input and output of W_o with these changes to the outputs of sites' modules."""
        seen: dict[str, Tensor] = {}

        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            seen["in"], seen["out"] = args[0], output

        with _changed(model, hooks):
            handle = projection.register_forward_hook(note)
            try:
                attention(*call[0], **call[1])
            finally:
                handle.remove()
        return seen["in"], seen["out"]

    before_in, before_out = replay()
    size = _largest(before_in)
    generator = torch.Generator().manual_seed(site.layer)
    vector = torch.randn(site.width, generator=generator).to(before_in) * size / 2

    def add(output: Tensor) -> Tensor:
        return output + site.widen(vector).to(output.dtype)

    after_in, after_out = replay((site, add))
    effect = _largest(after_in - before_in) / size
    tolerance = HALF_TOLERANCE.get(before_in.dtype, TOLERANCE)
    if site.term.name == "value":
        constant = repeat_heads(vector, site.head_width, before_in.shape[-1])
        error = _largest(after_in - before_in - constant) / size
        through = projection(constant[None]) - projection(torch.zeros_like(constant)[None])
        moved = after_out - before_out
        behind = _largest(moved - through) / max(_largest(before_out), _largest(through))
        if not is_quantized(projection) or behind > QUANTIZED_TOLERANCE:
            error = max(error, behind)
    else:

        def same_value_everywhere(output: Tensor) -> Tensor:
            first = value.widen(value.narrow(output)[..., :1, :])  # positions are the last axis but one
            mask = value.widen(output.new_ones(value.width))
            return torch.where(mask.bool(), first.expand_as(output), output)

        still_in, _ = replay((value, same_value_everywhere))
        moved_in, _ = replay((value, same_value_everywhere), (site, add))
        error = _largest(moved_in - still_in) / size
    proven = error <= tolerance
    return Proof(site, proven, error, effect, "" if proven else _reason(model, site, attention))


@contextmanager
def _changed(model: nn.Module, changes: Iterable[tuple[Site, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    def hook_of(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda module, args, output: change(output)

    handles = [
        get_module(model, site.module).register_forward_hook(hook_of(change), prepend=True) for site, change in changes
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def repeat_heads(vector: Tensor, head_width: int, width: int) -> Tensor:
    """`repeat_kv`: a vector over key/value heads laid out over all query heads, shape (width,)."""
    if vector.numel() == width:
        return vector
    return vector.view(-1, head_width).repeat_interleave(width // vector.numel(), 0).reshape(-1)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def _reason(model: nn.Module, site: Site, attention: nn.Module) -> str:
    config = getattr(model, "config", None)
    if any("sink" in name for name, _ in attention.named_parameters()):
        return "attention sinks: the weights of the keys do not sum to one"
    clip = getattr(config, "clip_qkv", None) or getattr(getattr(config, "attn_config", None), "clip_qkv", None)
    if clip:
        return f"projections are clipped at {clip} (clip_qkv), so that an addition may be cut off"
    if site.term.name == "query" and site.features > 1 and "gate" in _source_hint(attention):
        return "an output gate is computed beside the query"
    if "gate" in _source_hint(attention):
        return "attention's output is gated, so that an added value is scaled"
    return "attention's output does not move as softmax attention's would"


def _source_hint(attention: nn.Module) -> str:
    names = " ".join(type(attention).forward.__code__.co_names + type(attention).forward.__code__.co_varnames)
    return names.lower()


def _layers_without(model: nn.Module, found: list[Site]) -> tuple[int, ...]:
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if not isinstance(count, int) or any(site.shared > 1 or site.stack for site in found):
        return ()
    return tuple(sorted(set(range(count)) - {site.layer for site in found}))


def _stacks_without(model: nn.Module, found: list[Site]) -> tuple[str, ...]:
    """Stacks of an encoder-decoder whose attention follows no known pattern, beside one that does."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False) or not any(s.stack for s in found):
        return ()
    known = {each.stack for each in find_attentions(model)}
    return tuple(stack for stack in ("encoder", "decoder") if stack not in known)
