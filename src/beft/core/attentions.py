"""Finding the attentions of a model: which layer holds one, and where its projections are.

The paths come from `families.ATTENTIONS`; a model type that is not named there is taken to follow the same pattern if
it has the same paths, and must then show by a tiny forward that its first axis is the batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..errors import SiteError
from . import families
from .families import Attention
from .probe import batch_axis_is_first


@dataclass(frozen=True)
class Found:
    """One attention of one layer of the model at hand, its paths resolved."""

    line: Attention
    known: bool  # whether the line names this model type; if not, the layout of a fused projection is unknown
    prefix: str  # path of the layer
    layer: int
    stack: str
    query: str
    key: str
    value: str
    output: str
    config: Any


def output_features(module: nn.Module) -> int:
    """Width of a module's output: linear layers of any make, `Conv1D`, norms; 0 where there is none (`nn.Identity`)."""
    for name in ("out_features", "nf"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    shape = getattr(module, "normalized_shape", None)  # norms without parameters have nothing else (OLMo)
    if isinstance(shape, tuple) and len(shape) == 1:
        return int(shape[0])
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and not isinstance(module, nn.Embedding):
        return int(weight.shape[0])
    return 0


def stock_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The model's own modules by path, without those of an attached bank, however many adapters it holds."""
    modules, seen = {"": model}, {model}
    for name, child in model.named_children():
        if name != "beft":
            modules.update(child.named_modules(seen, name))
    return modules


def find_attentions(model: nn.Module) -> list[Found]:
    """Every attention of a model, in the order of its modules.

    Raises:
        SiteError: none is found, or its first axis is not the batch.
    """
    modules = stock_modules(model)
    found: list[Found] = []
    for prefix in _layer_prefixes(modules):
        config = _owning_config(modules, prefix)
        known = getattr(config, "model_type", None)
        lines = [line for line in families.attention_lines(known) if _resolve(modules, prefix, line.value)]
        own = [line for line in lines if known in line.types.split()]
        for line in own or lines:
            paths = [_resolve(modules, prefix, p) for p in (line.query, line.key, line.value, line.output)]
            if not all(paths):
                continue
            number = int([part for part in prefix.split(".") if part.isdigit()][-1])
            query, key, value, output = (str(path) for path in paths)
            found.append(
                Found(line, bool(own), prefix, number, _stack(config, prefix), query, key, value, output, config)
            )
    if not found:
        raise SiteError(
            f"{type(model).__name__} (model type {getattr(getattr(model, 'config', None), 'model_type', '?')!r})",
            expected="softmax attention with projections of a known pattern",
            found="candidate modules: " + (", ".join(candidate_modules(modules)) or "no linear layer at all"),
            remedy='name them by hand if this model has attention, sites={"value": "path.with.*.wildcards"}',
        )
    types = {getattr(each.config, "model_type", None) for each in found}
    if not types <= families.KNOWN_TYPES:
        batch_axis_is_first(model, sorted({each.value for each in found}))
    return _number_layers(found)


def _layer_prefixes(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    for path in modules:
        if path.rpartition(".")[2].isdigit():
            yield path


def _resolve(modules: Mapping[str, nn.Module], prefix: str, alternatives: str) -> str | None:
    for path in alternatives.split("|"):
        full = f"{prefix}.{path}" if prefix else path
        if full in modules and output_features(modules[full]):
            return full
    return None


def _owning_config(modules: Mapping[str, nn.Module], path: str) -> Any:
    while True:
        config = getattr(modules.get(path), "config", None)
        if getattr(config, "model_type", None):
            return config
        if not path:
            return None
        path = path.rpartition(".")[0]


def _stack(config: Any, prefix: str) -> str:
    if not getattr(config, "is_encoder_decoder", False):
        return ""
    parts = prefix.split(".")
    return "decoder" if "decoder" in parts else "encoder"


def _number_layers(found: list[Found]) -> list[Found]:
    """Layer numbers as in the paths, or counted through where several layers of a stack have one number (ALBERT)."""
    places = [(each.stack, each.line.kind, each.layer) for each in found]
    if len(set(places)) == len(places):
        return found
    counted: dict[tuple[str, str], int] = {}
    result = []
    for each in found:
        slot = (each.stack, each.line.kind)
        result.append(replace(each, layer=counted.get(slot, 0)))
        counted[slot] = counted.get(slot, 0) + 1
    return result


def candidate_modules(modules: Mapping[str, nn.Module], limit: int = 8) -> list[str]:
    """Linear-like modules of the first layer that holds any, to show in an error."""
    named = [path for path, module in modules.items() if path and output_features(module) and not _is_norm(module)]
    generic = dict.fromkeys(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", path) for path in named)
    return [path for path in generic if "*" in path][:limit] or named[:limit]


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
