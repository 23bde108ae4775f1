"""An adapter as steering vectors: one constant a layer, added behind the attention's output projection.

Rows of softmax sum to one, so a value bias moves the output of W_o by `W_o repeat_kv(b_v)` at every position alike.
That vector, on the residual stream's own scale, needs no beft and no PEFT to apply: a forward hook on W_o does. It is
exact wherever `verify_sites` proves the identity, which is measured here before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import BankError
from ..files import write
from .adapter import Adapter, ModelHead
from .bank import attach
from .fingerprint import describe_base
from .merge import load_weighted, residual_constant
from .quantized import is_quantized
from .sites import Site, get_module
from .verify import Proof, verify_sites

METADATA = "steering"
"""The field of the safetensors header that holds `Steering.metadata` as JSON text."""
FORMAT = 1
USE = (
    "Add each vector to the output of the module at its key, a path below the model's `base_model` ('after' is the "
    "path in the class named under base), at every position. In eval mode this equals the adapter at every position "
    "that sees at least one key, except at keys that are not 'exact'."
)

Folders = str | Path | Mapping[str, float] | Mapping[Path, float]
AnyAdapter = Adapter | Folders


@dataclass(frozen=True)
class Steering:
    """The vectors of one adapter, fp32 (hidden,) by module path below `base_model`, and what is known of each.

    `metadata` is JSON: "vectors" says of every key after which module it belongs, its layer, and whether it is exact
    ("error" is the measured deviation from the identity, relative to the largest input of W_o); "base" names the model
    and its fingerprint; "head" names a head that the vectors do not contain.
    """

    vectors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]

    @property
    def inexact(self) -> dict[str, str]:
        """Keys whose vector is not exact, and why."""
        return {key: each["reason"] for key, each in self.metadata["vectors"].items() if not each["exact"]}

    def save(self, file: str | Path) -> Path:
        """Write vectors and metadata as one safetensors file. Raises StoreError if it cannot be written."""
        header = {"format": "pt", METADATA: json.dumps(self.metadata, ensure_ascii=False)}
        tensors = {key: vector.contiguous() for key, vector in self.vectors.items()}
        write(Path(file), lambda path: save_file(tensors, path, metadata=header))
        return Path(file)


def steering_vectors(model: nn.Module, adapter: AnyAdapter, *, approximate: bool = False) -> dict[str, Tensor]:
    """The vectors of `steering`: fp32 (hidden,), by the path below `model.base_model` of the module they come after.

    Raises as `steering` does.
    """
    return dict(steering(model, adapter, approximate=approximate).vectors)


def export_steering(model: nn.Module, adapter: AnyAdapter, file: str | Path, *, approximate: bool = False) -> Steering:
    """Write an adapter's steering vectors to a safetensors file that plain forward hooks can apply.

    Raises:
        BankError, SiteError: as `steering` does.
        StoreError: see `Bank.load`; or the file cannot be written.
    """
    result = steering(model, adapter, approximate=approximate)
    result.save(file)
    return result


def steering(model: nn.Module, adapter: AnyAdapter, *, approximate: bool = False) -> Steering:
    """An adapter of value vectors as one constant behind each attention's output projection.

    Args:
        model: the base, its weights in memory; it is left as it was.
        adapter: an adapter of a bank of this model, an adapter folder, or several folders with weights.
        approximate: give vectors for sites where the identity does not hold (attention sinks, gates, clipped values)
            too, marked as not exact; otherwise they are refused.

    Raises:
        BankError: other terms than value, a site without a known output projection, a projection whose weight cannot
            be read, a site where the identity does not hold, or no vector at all.
        StoreError: see `Bank.load`.
    """
    one = adapter if isinstance(adapter, Adapter) else _load(model, adapter)
    sites = _value_sites(one)
    proofs = {proof.site.key: proof for proof in verify_sites(model, "value").proofs}
    base = getattr(model, "base_model", model)
    prefix = next((f"{path}." for path, module in model.named_modules() if path and module is base), "")
    vectors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for site in sites:
        proof = proofs.get(site.key)
        if proof is None or not site.output:
            raise BankError(
                f"steering vector of {site.module}",
                expected="a site with a known output projection",
                found="one named by hand",
                remedy="use the adapter attached",
            )
        if not proof.proven and not approximate:
            raise BankError(
                f"steering vector of {site.module}",
                expected="an attention that adds a value bias unchanged to its output",
                found=f"{proof.reason} (error {proof.error:.2g})",
                remedy="use the adapter attached, or ask for approximate vectors",
            )
        key = site.output.removeprefix(prefix)
        constant = _constant(model, site, one.vector(site).detach().float() * one.scale)
        vectors[key] = vectors[key] + constant if key in vectors else constant
        about[key] = _about(site, proof)
    return Steering(vectors, _metadata(model, one, about))


def _load(model: nn.Module, adapter: Folders) -> Adapter:
    bank = attach(model, "none", names=[])  # refuses a model that has a bank
    try:
        return load_weighted(bank, adapter)
    finally:
        bank.detach()


def _value_sites(adapter: Adapter) -> list[Site]:
    """The sites that count: a vector of zeros of another term (as stock PEFT may store beside a value) is nothing."""
    other = [site for site, vector in adapter.items() if site.term.name != "value" and bool(vector.detach().any())]
    if other:
        terms = ", ".join(dict.fromkeys(f"{site.term.name} ({site.term.symbol})" for site in other))
        raise BankError(
            f"steering vectors of adapter {adapter.name!r}",
            expected="value vectors alone: only they move every position by the same constant",
            found=f"{terms} too" if len(other) < len(adapter.sites) else terms,
            remedy="beft merge ships adapters of any term",
        )
    sites = [site for site in adapter.sites if site.term.name == "value"]
    if not sites:
        raise BankError(f"steering vectors of adapter {adapter.name!r}", expected="value vectors", found="none")
    return sites


def _constant(model: nn.Module, site: Site, vector: Tensor) -> Tensor:
    projection = get_module(model, site.output)
    empty = any(parameter.is_meta for parameter in projection.parameters())
    if empty or is_quantized(projection):
        raise BankError(
            site.output,
            expected="a plain weight in memory",
            found="one on the meta device" if empty else f"a quantised {type(projection).__name__}",
            remedy="load the base in fp32 or bf16: the vectors are those of its plain weights",
        )
    return residual_constant(projection, site, vector).detach().cpu()


def _about(site: Site, proof: Proof) -> dict[str, Any]:
    return {
        "after": site.output,
        "layer": site.layer,
        "stack": site.stack,
        "attention": site.attention,
        "layers_sharing_it": site.shared,
        "exact": proof.proven,
        "error": proof.error,
        "reason": proof.reason,
    }


def _metadata(model: nn.Module, adapter: Adapter, about: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    import transformers

    from .. import __version__

    heads = tuple(adapter.head.paths) if isinstance(adapter.head, ModelHead) else ()
    return {
        "format": FORMAT,
        "adapter": adapter.name,
        "use": USE,
        "vectors": dict(about),
        "head": None if adapter.head is None else f"{adapter.head.kind}, {adapter.head.outputs} outputs: not in here",
        "base": describe_base(model, heads),
        "versions": {"beft": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
