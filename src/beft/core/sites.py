"""Finding the sites of a model: which module, which of its output features, for which term of which layer."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import SiteError, TermError
from . import families
from .attentions import Found, candidate_modules, find_attentions, output_features, stock_modules
from .families import Heads
from .probe import batch_axis_is_first
from .terms import TERMS, Selection, Term, parse_term, parse_terms

Layers = str | int | Iterable[int] | None


@dataclass(frozen=True)
class Site:
    """One place where a term is added: output features `rows` of the module at path `module`.

    `rows` are half-open ranges of the module's output features in ascending order; their total is `width`, the length
    of an adapter's vector here. `features` is the module's whole output width. `output` is the path of the attention's
    output projection W_o, and `head_width` the features of one head (0 where the term is not of an attention).
    `shared` counts the layers that share this module (1 unless weights are shared, as in ALBERT).
    """

    term: Term
    layer: int
    module: str
    rows: tuple[tuple[int, int], ...]
    features: int
    attention: str = "self"
    stack: str = ""
    shared: int = 1
    output: str = ""
    head_width: int = 0

    @property
    def width(self) -> int:
        """Length of the vector added here."""
        return sum(stop - start for start, stop in self.rows)

    @property
    def whole(self) -> bool:
        """Whether the term owns every output feature of the module."""
        return self.width == self.features

    @property
    def key(self) -> tuple[str, str]:
        """Module path and term, which tell this site from the others of its model."""
        return self.module, self.term.name

    def index(self, device: torch.device | str = "cpu") -> Tensor:
        """The features as a LongTensor of shape (width,)."""
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in self.rows])

    def widen(self, vector: Tensor) -> Tensor:
        """A vector (..., width) laid out over all features (..., features), zeros outside the term's own."""
        if self.whole:
            return vector
        full = vector.new_zeros(*vector.shape[:-1], self.features)
        return full.index_copy(-1, self.index(vector.device), vector)

    def narrow(self, full: Tensor) -> Tensor:
        """The term's own features (..., width) of a tensor (..., features)."""
        return full if self.whole else full.index_select(-1, self.index(full.device))


def find_sites(
    model: nn.Module,
    terms: str | Iterable[str] = "value",
    layers: Layers = None,
    sites: Mapping[str, str] | None = None,
) -> list[Site]:
    """All sites of `terms` in a transformers model, in layer order (encoder before decoder, self before cross).

    Args:
        terms: "value", "query+key", "all", "value@cross" ..., see `beft.core.terms`.
        layers: None for all; an int, a list of ints (negative from the end), or text such as "0-3,8", "last:2". Applies
            to each stack of an encoder-decoder model.
        sites: modules named by hand, term to glob pattern over module paths, for models that follow no known pattern;
            `"blocks.*.qkv[512:768]"` picks output features. Nothing is looked up for these terms.

    Raises:
        TermError: the model has no such term (or not in the stack or attention asked for).
        SiteError: the model follows no known pattern, its first axis is not the batch, or `layers` names none.
    """
    selections = parse_terms(terms)
    by_hand = {parse_term(name).name: pattern for name, pattern in (sites or {}).items()}
    idle = set(by_hand) - {selection.term.name for selection in selections}
    if idle:
        raise TermError(f"sites={sites!r}", expected=f"terms of {terms!r}", found=", ".join(sorted(idle)))
    attentions: list[Found] | None = None
    found: list[Site] = []
    for selection in selections:
        name = selection.term.name
        if name in by_hand:
            found += _named_by_hand(model, selection.term, by_hand[name])
            continue
        if attentions is None:
            attentions = find_attentions(model)
        candidates = [site for site in _sites_of_term(model, selection.term, attentions) if _admitted(selection, site)]
        if not candidates:
            raise TermError(
                f"terms={selection}",
                expected=f"a {type(model).__name__} with {selection.term.symbol}",
                found=_why_missing(model, selection, attentions),
                remedy="`beft inspect` lists the terms that this model has",
            )
        found += candidates
    if layers is not None:
        found = _choose_layers(found, layers, attentions or [])
    order = {"": 0, "encoder": 0, "decoder": 1}
    term_order = list(TERMS)
    return sorted(
        dict.fromkeys(found),
        key=lambda s: (
            order[s.stack],
            s.layer if s.term.per_layer else -1,
            s.attention == "cross",
            term_order.index(s.term.name),
        ),
    )


def available_terms(model: nn.Module) -> list[Term]:
    """The terms that this model has at least one site for.

    Raises:
        SiteError: no attention is found in it, or its first axis is not the batch.
    """
    attentions = find_attentions(model)
    return [term for term in TERMS.values() if _sites_of_term(model, term, attentions)]


def get_module(model: nn.Module, path: str) -> nn.Module:
    """`model.get_submodule` whose failure names the path."""
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise SiteError(path, expected=f"a module of {type(model).__name__}", found="none of this path") from error


# ---- sites -----------------------------------------------------------------------------------------------------------


def _sites_of_term(model: nn.Module, term: Term, attentions: list[Found]) -> list[Site]:
    modules = stock_modules(model)
    if not term.per_layer:
        return _model_site(modules, term, attentions)
    result = []
    for each in attentions:
        if term.name in ("query", "key", "value"):
            result.append(_projection_site(modules, term, each))
        elif term.name == "attention_output":
            result.append(_plain_site(modules, term, each, each.output))
        elif each.line.kind == "self":
            path = _block_path(modules, term, each)
            if path:
                result.append(_plain_site(modules, term, each, path))
        elif term.name == "attention_norm":
            for norm in families.CROSS_NORMS:
                if f"{each.prefix}.{norm}" in modules:
                    result.append(_plain_site(modules, term, each, f"{each.prefix}.{norm}"))
    return result


def _projection_site(modules: Mapping[str, nn.Module], term: Term, each: Found) -> Site:
    path = getattr(each, term.name)
    features = output_features(modules[path])
    owner = modules[path.rpartition(".")[0]]
    heads = families.head_shape(each.config, owner)
    layout = each.line.layout
    if layout != "separate" and not each.known:
        raise SiteError(
            f"{path} (model type {getattr(each.config, 'model_type', '?')!r})",
            expected="a known layout of the fused projection",
            found="a split into query, key and value that is not known for this type",
            remedy=f'name the features by hand, sites={{"{term.name}": "*.{each.line.value}[start:stop]"}}',
        )
    layout = families.LAYOUT_BY_CONFIG[layout](each.config) if layout in families.LAYOUT_BY_CONFIG else layout
    if layout == "separate" or path != each.value:
        rows: tuple[tuple[int, int], ...] = ((0, features),)
    else:
        rows = _fused_rows(layout, heads, term.name, features, path)
    site = _plain_site(modules, term, each, path)
    return replace(site, rows=rows, head_width=heads.value if term.name == "value" else heads.width)


def _fused_rows(layout: str, heads: Heads, part: str, features: int, path: str) -> tuple[tuple[int, int], ...]:
    repeats, parts = families.LAYOUTS[layout](heads)
    period = sum(size for _, size in parts)
    if repeats * period != features:
        raise SiteError(
            path,
            expected=f"{repeats * period} output features for the layout {layout!r} with {heads.query} heads",
            found=str(features),
            remedy="name the features by hand with sites=",
        )
    rows: list[tuple[int, int]] = []
    for repeat in range(repeats):
        start = repeat * period
        for name, size in parts:
            if name == part:
                if rows and rows[-1][1] == start:
                    rows[-1] = (rows[-1][0], start + size)
                else:
                    rows.append((start, start + size))
            start += size
    return tuple(rows)


def _plain_site(modules: Mapping[str, nn.Module], term: Term, each: Found, path: str) -> Site:
    features = output_features(modules[path])
    rows = ((0, features),)
    if term.name == "intermediate" and any(path.endswith("." + fused) for fused in families.SECOND_HALF):
        rows = ((features // 2, features),)
    shared = families.SHARED_LAYERS.get(getattr(each.config, "model_type", ""), lambda config: 1)(each.config)
    return Site(term, each.layer, path, rows, features, each.line.kind, each.stack, shared, each.output)


def _block_path(modules: Mapping[str, nn.Module], term: Term, each: Found) -> str | None:
    prefix = each.prefix
    taken = _block_path(modules, TERMS["attention_norm"], each) if term.name == "output_norm" else None
    for path in families.term_paths(term, getattr(each.config, "model_type", None)):
        if ".-1." in path:
            holder, rest = path.split(".-1.")
            count = sum(1 for name in modules if re.fullmatch(re.escape(f"{prefix}.{holder}.") + r"\d+", name))
            path = f"{holder}.{count - 1}.{rest}"
        full = f"{prefix}.{path}"
        if full != taken and full in modules and output_features(modules[full]):
            return full
    return None


def _model_site(modules: Mapping[str, nn.Module], term: Term, attentions: list[Found]) -> list[Site]:
    for suffix in families.term_paths(term, getattr(attentions[0].config, "model_type", None)):
        for path, module in modules.items():
            if (path == suffix or path.endswith("." + suffix)) and output_features(module):
                features = output_features(module)
                return [Site(term, -1, path, ((0, features),), features, "self", attentions[0].stack)]
    return []


def _admitted(selection: Selection, site: Site) -> bool:
    return selection.admits(site.attention, site.stack)


def _why_missing(model: nn.Module, selection: Selection, attentions: list[Found]) -> str:
    if selection.qualifiers:
        return f"only {sorted({a.line.kind for a in attentions} | {a.stack for a in attentions if a.stack})}"
    if selection.term.name == "output_norm":
        return "one norm a layer, in front of both parts (it is attention_norm)"
    return "no such module in its layers"


def _choose_layers(found: list[Site], layers: Layers, attentions: list[Found]) -> list[Site]:
    counts: dict[str, int] = {}
    # Layers without a site of the term count too: -1 is the model's last layer.
    for stack, layer in [*((s.stack, s.layer) for s in found), *((a.stack, a.layer) for a in attentions)]:
        counts[stack] = max(counts.get(stack, 0), layer + 1)
    chosen = {stack: parse_layers(layers, count) for stack, count in counts.items()}
    kept = [site for site in found if not site.term.per_layer or site.layer in chosen[site.stack]]
    if not kept:
        raise SiteError(f"layers={layers!r}", expected="at least one layer with a site", found="none")
    return kept


def parse_layers(layers: Layers, count: int) -> list[int]:
    """Layer numbers 0..count-1 from an int, a list, or text such as "0-3,8", "-1", "last:2", "first:4", "all".

    Raises:
        SiteError: text that cannot be read, or a layer the model does not have.
    """
    numbers: list[int] = []
    if layers is None:
        return list(range(count))
    if not isinstance(layers, Iterable | int):
        raise SiteError(f"layers={layers!r}", expected="whole numbers, or text", found=type(layers).__name__)
    for part in layers.split(",") if isinstance(layers, str) else [layers] if isinstance(layers, int) else layers:
        text = str(part).strip().lower()
        if text == "all":
            numbers += range(count)
        elif match := re.fullmatch(r"(first|last):(\d+)", text):
            size = min(int(match[2]), count)
            numbers += range(size) if match[1] == "first" else range(count - size, count)
        elif match := re.fullmatch(r"(\d+)-(\d+)", text):
            numbers += range(int(match[1]), int(match[2]) + 1)
        elif re.fullmatch(r"-?\d+", text):
            numbers.append(int(text))
        else:
            raise SiteError(f"layers={layers!r}", expected="such as '0-3,8', '-1', 'last:2' or 'all'", found=repr(text))
    wrong = [number for number in numbers if not -count <= number < count]
    if wrong:
        raise SiteError(f"layers={layers!r}", expected=f"layers 0 to {count - 1}", found=str(wrong[0]))
    return sorted({number % count for number in numbers})


def _named_by_hand(model: nn.Module, term: Term, pattern: str) -> list[Site]:
    match = re.fullmatch(r"(.*?)(?:\[(\d+):(\d+)\])?", pattern)
    assert match is not None
    glob, start, stop = match.groups()
    modules = stock_modules(model)
    try:
        attentions = find_attentions(model)
    except SiteError:  # then nothing is known of the modules but what the pattern says
        attentions = []
    result: list[Site] = []
    for count, path in enumerate(fnmatch.filter(modules, glob)):
        features = output_features(modules[path])
        rows = ((int(start or 0), int(stop or features)),)
        if not features or isinstance(modules[path], nn.Identity) or rows[0][1] > features or rows[0][0] >= rows[0][1]:
            raise SiteError(
                f"sites={{{term.name!r}: {pattern!r}}}",
                expected="modules with output features in that range",
                found=f"{path} ({type(modules[path]).__name__}, {features} features)",
            )
        numbers = [int(part) for part in path.split(".") if part.isdigit()]
        site = Site(term, numbers[0] if numbers else count, path, rows, features)
        for each in attentions:
            if path in (each.query, each.key, each.value):
                heads = families.head_shape(each.config, modules[path.rpartition(".")[0]])
                site = replace(
                    _plain_site(modules, term, each, path),
                    rows=rows,
                    head_width=heads.value if term.name == "value" else heads.width,
                )
        result.append(site)
    if not result:
        raise SiteError(
            f"sites={{{term.name!r}: {pattern!r}}}",
            expected="a glob pattern over module paths",
            found="no module that matches",
            remedy="candidates: " + ", ".join(candidate_modules(modules)),
        )
    batch_axis_is_first(model, [site.module for site in result])
    return result
