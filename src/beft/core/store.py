"""Adapter folders, in the file format of Hugging Face PEFT's BEFT tuner, plus `beft.json` with our own truth.

`adapter_model.safetensors` holds `base_model.model.<module>.beft_bias` of shape (1, features): scale folded in, zeros
outside the term's features where a projection is fused. The architecture's own head follows as PEFT's modules to save;
a linear head lies beside it in `head.safetensors`. Stock `PeftModel.from_pretrained` loads the folder wherever every
site is an `nn.Linear` (`peft_can_load` says); where it would refuse it, `beft.json` says why under "peft_refuses".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import StoreError
from ..files import Writer, sha256, to_json, write_all
from .adapter import Adapter, LinearHead, ModelHead
from .attentions import output_features, stock_modules
from .sharded import whole
from .sites import get_module

if TYPE_CHECKING:
    from .bank import Bank

WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
PEFT_CONFIG = "adapter_config.json"
MANIFEST = "beft.json"
ENSEMBLE = "ensemble.json"
"""In a folder that is no adapter itself: it names several in its folder `members` that answer together."""
MEMBERS = "members"
FORMAT = 1
PREFIX = "base_model.model."


def save_adapter(
    bank: Bank,
    name: str,
    directory: Path,
    extra: Mapping[str, Any] | None = None,
    *,
    method: Mapping[str, Any] | None = None,
    others: Mapping[str, Writer | str | None] | None = None,
    refusal: str | None = None,
) -> Path:
    """Write one adapter of a bank to a folder; existing files are replaced only when all new ones are complete.

    `extra` is kept in `beft.json` under "task": how texts become inputs, for `beft.load`. `method` is kept there too,
    for adapters that are more than biases; `others` are its further files, or in place of ours (None: leave ours out),
    and `refusal` says why stock PEFT will refuse them ("" where it will not).

    Raises:
        RouteError: no such adapter.
        StoreError: a vector that is not finite, or a folder that cannot be written.
    """
    adapter = bank[name]
    tensors = adapter_tensors(adapter, bank.model)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StoreError(f"adapter {name!r}", expected="finite values", found=f"NaN or infinity in {key}")
    if refusal is None:
        refusal = peft_refusal(adapter, bank.model)
    files: dict[str, Any] = {WEIGHTS: lambda path: save_file(tensors, path, metadata={"format": "pt"})}
    head = adapter.head
    if isinstance(head, LinearHead):
        own = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
        files[HEAD] = lambda path: save_file(own, path, metadata={"format": "pt"})
    hashes: dict[str, str] = {}

    def hashed(key: str, writer: Any) -> Any:
        def run(path: Path) -> None:
            writer(path)
            hashes[key] = sha256(path)

        return run

    files[PEFT_CONFIG] = to_json(_peft_config(adapter, bank.model))
    files = {key: content for key, content in {**files, **(others or {})}.items() if content is not None}
    files = {key: hashed(key, content) if callable(content) else content for key, content in files.items()}
    files[MANIFEST] = lambda path: path.write_text(
        to_json(_manifest(adapter, bank, hashes, extra, method, refusal)), encoding="utf-8"
    )
    write_all(directory, files)
    if not isinstance(head, LinearHead):
        (directory / HEAD).unlink(missing_ok=True)
    return directory


def adapter_tensors(adapter: Adapter, model: nn.Module) -> dict[str, Tensor]:
    """The contents of `adapter_model.safetensors`."""
    tensors: dict[str, Tensor] = {}
    for path in adapter.modules_with_vectors:
        shift = adapter.shift(path)
        assert shift is not None
        tensors[f"{PREFIX}{path}.beft_bias"] = shift.detach().float().cpu()[None].contiguous()
        norm = get_module(model, path)
        if _is_biased_norm(norm):  # PEFT has no BEFT norms: a whole module to save
            tensors[f"{PREFIX}{path}.weight"] = whole(norm.weight).detach().float().cpu().clone()
            tensors[f"{PREFIX}{path}.bias"] = (whole(norm.bias).detach().float() + shift.detach()).cpu()
    if not any(isinstance(get_module(model, path), nn.Linear) for path in adapter.modules_with_vectors):
        idle = _any_linear(model)  # PEFT refuses an adapter without a target
        if idle:
            tensors[f"{PREFIX}{idle}.beft_bias"] = torch.zeros(1, output_features(get_module(model, idle)))
    if isinstance(adapter.head, ModelHead):
        for path in adapter.head.paths:
            for key, value in adapter.head.module(path).state_dict().items():
                tensors[f"{PREFIX}{path}.{key}"] = value.detach().cpu().contiguous().clone()
    return tensors


def peft_can_load(adapter: Adapter, model: nn.Module) -> str:
    """Empty if stock PEFT can load this adapter with equal outputs; otherwise why not, in one clause."""
    refusal = peft_refusal(adapter, model)
    if not refusal and isinstance(adapter.head, LinearHead):
        return "its head is a linear layer of beft's on pooled states (the vectors themselves load)"
    return refusal


def peft_refusal(adapter: Adapter, model: nn.Module) -> str:
    """Empty unless stock PEFT raises at this adapter's folder; then why, in one clause."""
    for path in adapter.modules_with_vectors:
        module = get_module(model, path)
        if not isinstance(module, nn.Linear) and not _is_biased_norm(module):
            return f"{path} is a {type(module).__name__}, and PEFT's BEFT takes nn.Linear only"
    saved = adapter.head.paths if isinstance(adapter.head, ModelHead) else []
    for path in stock_modules(model):
        if path not in saved and path.endswith(tuple(saved)):
            return f"PEFT would take {path} for a module to save, because its name ends like one of {saved}"
    return ""


def _is_biased_norm(module: nn.Module) -> TypeGuard[nn.LayerNorm]:
    return isinstance(module, nn.LayerNorm) and module.bias is not None


def _any_linear(model: nn.Module) -> str | None:
    return next((path for path, module in stock_modules(model).items() if isinstance(module, nn.Linear)), None)


def _peft_config(adapter: Adapter, model: nn.Module) -> dict[str, Any]:
    paths = adapter.modules_with_vectors
    norms = [path for path in paths if _is_biased_norm(get_module(model, path))]
    targets = [path for path in paths if path not in norms]
    if not any(isinstance(get_module(model, path), nn.Linear) for path in targets):
        targets += [path for path in [_any_linear(model)] if path]
    heads = adapter.head.paths if isinstance(adapter.head, ModelHead) else []
    return {
        "peft_type": "BEFT",
        "task_type": "SEQ_CLS" if heads and "SequenceClassification" in type(model).__name__ else None,
        "base_model_name_or_path": str(getattr(model.config, "_name_or_path", "") or "") or None,
        "revision": None,
        "inference_mode": True,
        "target_modules": targets,
        "modules_to_save": [*heads, *norms] or None,
        "init_weights": True,
    }


def _manifest(
    adapter: Adapter,
    bank: Bank,
    hashes: Mapping[str, str],
    extra: Mapping[str, Any] | None,
    method: Mapping[str, Any] | None,
    refusal: str,
) -> dict[str, Any]:
    import transformers

    from .. import __version__

    head: dict[str, Any] | None = None
    if adapter.head is not None:
        head = {"kind": adapter.head.kind, "outputs": adapter.head.outputs, "labels": adapter.head.labels}
        if isinstance(adapter.head, LinearHead):
            head["pooling"] = adapter.head.pooling
        else:
            head["modules"] = adapter.head.paths
    return {
        "format": FORMAT,
        "name": adapter.name,
        "terms": adapter.terms,
        "layers": sorted({site.layer for site in adapter.sites if site.term.per_layer}),
        "sites": [
            {
                "term": site.term.name,
                "layer": site.layer,
                "module": site.module,
                "rows": [list(each) for each in site.rows],
                "features": site.features,
                "attention": site.attention,
                "stack": site.stack,
            }
            for site in adapter.sites
        ],
        "head": head,
        "task": dict(extra) if extra else None,
        **({"method": dict(method)} if method else {}),
        **({"peft_refuses": refusal} if refusal else {}),
        "base": bank.base_description(),
        "sha256": dict(hashes),
        "versions": {"beft": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
