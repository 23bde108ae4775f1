"""Adapter folders, in the file format of Hugging Face PEFT's BEFT tuner, plus `beft.json` with our own truth.

`adapter_model.safetensors` holds `base_model.model.<module>.beft_bias` of shape (1, features): scale folded in, zeros
outside the term's features where a projection is fused. The architecture's own head follows as PEFT's modules to save;
a linear head lies beside it in `head.safetensors`. Stock `PeftModel.from_pretrained` loads the folder wherever every
site is an `nn.Linear` (`peft_can_load` says).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import StoreError
from ..files import read_json, sha256, to_json, write_all
from .adapter import Adapter, Head, LinearHead, ModelHead
from .attentions import output_features, stock_modules
from .sites import Site, find_sites, get_module
from .terms import TERMS, Term

if TYPE_CHECKING:
    from .bank import Bank

WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
PEFT_CONFIG = "adapter_config.json"
MANIFEST = "beft.json"
FORMAT = 1
_PREFIX = "base_model.model."
_OTHER = Term("other", "b", r"\mathbf{b}", "a bias that stock PEFT trained at a module of no known term")


# ---- saving ----------------------------------------------------------------------------------------------------------


def save_adapter(bank: Bank, name: str, directory: Path, extra: Mapping[str, Any] | None = None) -> Path:
    """Write one adapter of a bank to a folder; existing files are replaced only when all new ones are complete.

    `extra` is kept in `beft.json` under "task": how texts become inputs, for `beft.load`.

    Raises:
        RouteError: no such adapter.
        StoreError: a vector that is not finite, or a folder that cannot be written.
    """
    adapter = bank[name]
    tensors = adapter_tensors(adapter, bank.model)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StoreError(f"adapter {name!r}", expected="finite values", found=f"NaN or infinity in {key}")
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

    files = {key: hashed(key, writer) for key, writer in files.items()}
    files[PEFT_CONFIG] = to_json(_peft_config(adapter, bank.model))
    files[MANIFEST] = lambda path: path.write_text(to_json(_manifest(adapter, bank, hashes, extra)), encoding="utf-8")
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
        tensors[f"{_PREFIX}{path}.beft_bias"] = shift.detach().float().cpu()[None].contiguous()
        norm = get_module(model, path)
        if _is_biased_norm(norm):  # PEFT has no BEFT norms: a whole module to save
            tensors[f"{_PREFIX}{path}.weight"] = norm.weight.detach().float().cpu().clone()
            tensors[f"{_PREFIX}{path}.bias"] = (norm.bias.detach().float() + shift.detach()).cpu()
    if not any(isinstance(get_module(model, path), nn.Linear) for path in adapter.modules_with_vectors):
        idle = _any_linear(model)  # PEFT refuses an adapter without a target
        if idle:
            tensors[f"{_PREFIX}{idle}.beft_bias"] = torch.zeros(1, output_features(get_module(model, idle)))
    if isinstance(adapter.head, ModelHead):
        for path in adapter.head.paths:
            for key, value in adapter.head.module(path).state_dict().items():
                tensors[f"{_PREFIX}{path}.{key}"] = value.detach().cpu().contiguous().clone()
    return tensors


def peft_can_load(adapter: Adapter, model: nn.Module) -> str:
    """Empty if stock PEFT can load this adapter with equal outputs; otherwise why not, in one clause."""
    for path in adapter.modules_with_vectors:
        module = get_module(model, path)
        if not isinstance(module, nn.Linear) and not _is_biased_norm(module):
            return f"{path} is a {type(module).__name__}, and PEFT's BEFT takes nn.Linear only"
    saved = adapter.head.paths if isinstance(adapter.head, ModelHead) else []
    for path in stock_modules(model):
        if path not in saved and path.endswith(tuple(saved)):
            return f"PEFT would take {path} for a module to save, because its name ends like one of {saved}"
    if isinstance(adapter.head, LinearHead):
        return "its head is a linear layer of beft's on pooled states (the vectors themselves load)"
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
    adapter: Adapter, bank: Bank, hashes: Mapping[str, str], extra: Mapping[str, Any] | None
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
        "base": bank.base_description(),
        "sha256": dict(hashes),
        "versions": {"beft": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


# ---- loading ---------------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        StoreError: missing, cut short, or not safetensors.
    """
    try:
        return load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise StoreError(
            str(path),
            expected="a whole safetensors file",
            found=f"one that cannot be read ({error})",
            remedy="copy it again; it was cut short or is another kind of file",
        ) from error
    except OSError as error:
        raise StoreError(str(path), expected="a file", found=error.strerror or str(error)) from error


def load_adapter(bank: Bank, directory: Path, name: str | None = None, *, check_base: bool = True) -> Adapter:
    """Add the adapter of a folder to a bank: ours, or one that stock PEFT saved.

    The folder's paths may have been made on the headed or the bare class of the model; the base's prefix is put before
    them or taken off. `check_base=False` loads onto other weights of the same shape.

    Raises:
        StoreError: files missing or damaged, values not finite, or a folder made for another model; every key that does
            not fit is named.
    """
    if not directory.is_dir():
        raise StoreError(str(directory), expected="an adapter folder", found="no such folder")
    tensors = read_tensors(directory / WEIGHTS)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StoreError(str(directory / WEIGHTS), expected="finite values", found=f"NaN or infinity in {key}")
    if (directory / MANIFEST).exists():
        adapter = _load_ours(bank, directory, tensors, check_base)
    else:
        adapter = _load_peft(bank, directory, tensors)
    adapter.name = bank._new_name(name or adapter.name)
    return bank._install(adapter)


def _load_ours(bank: Bank, directory: Path, tensors: dict[str, Tensor], check_base: bool) -> Adapter:
    manifest = read_json(directory / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise StoreError(
            str(directory / MANIFEST),
            expected=f"format {FORMAT}",
            found=str(manifest.get("format")),
            remedy="load it with the version of beft that wrote it",
        )
    for file, expected in manifest.get("sha256", {}).items():
        if sha256(directory / file) != expected:
            raise StoreError(
                str(directory / file),
                expected=f"the content that {MANIFEST} describes",
                found="another (its checksum differs)",
                remedy="the file was changed or only partly copied; fetch the folder again",
            )
    _check_base(bank, directory, manifest.get("base", {}), check_base)
    place = _Placer(bank.model, directory)
    try:
        sites = [_read_site(entry, place) for entry in manifest["sites"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            str(directory / MANIFEST),
            expected="sites with module, term, layer, rows and features",
            found=f"a fault at {error}",
            remedy="the file was changed; fetch the folder again",
        ) from error
    adapter = Adapter(manifest["name"], _as_found(bank.model, sites), bank.model)
    for entry, site in zip(manifest["sites"], adapter.sites, strict=True):
        full = _vector(tensors, f"{_PREFIX}{entry['module']}.beft_bias", bank.model, site, directory)
        with torch.no_grad():
            adapter.vector(site).copy_(site.narrow(full))
    head = manifest.get("head")
    if head:
        adapter.head = _load_head(bank.model, directory, head, tensors, place)
    return adapter


def _read_site(entry: Mapping[str, Any], place: _Placer) -> Site:
    rows = tuple((int(start), int(stop)) for start, stop in entry["rows"])
    features = int(entry["features"])
    bounds = [0, *(bound for pair in rows for bound in pair), features]
    if not rows or bounds != sorted(bounds):
        raise ValueError(f"rows {entry['rows']} of {features} features")
    term = TERMS.get(entry["term"], _OTHER)
    return Site(term, entry["layer"], place(entry["module"]), rows, features, entry["attention"], entry["stack"])


def _as_found(model: nn.Module, sites: list[Site]) -> list[Site]:
    """The same sites with what `find_sites` knows of them (W_o, heads), where it knows them."""
    known: dict[tuple[str, str], Site] = {}
    for term in dict.fromkeys(site.term.name for site in sites if site.term.name in TERMS):
        try:
            known.update({site.key: site for site in find_sites(model, term)})
        except Exception:
            continue
    return [known.get(site.key, site) if known.get(site.key, site).rows == site.rows else site for site in sites]


def _check_base(bank: Bank, directory: Path, stored: Mapping[str, Any], strict: bool) -> None:
    here = bank.base_description()
    for field in ("model_type", "hidden_size", "layers"):
        if stored.get(field) is not None and stored[field] != here[field]:
            raise StoreError(
                str(directory),
                expected=f"a base with {field} {stored[field]!r} (it was trained on {stored.get('name') or 'one'})",
                found=f"{here[field]!r}",
                remedy="load the base model that the adapter names",
            )
    known, found = stored.get("fingerprint"), here["fingerprint"]
    if strict and known and found and known != found:
        raise StoreError(
            str(directory),
            expected=f"the weights it was trained on ({stored.get('name')}, fingerprint {known[:8]})",
            found=f"other weights of the same shape (fingerprint {found[:8]})",
            remedy="load the base model that the adapter names, or pass check_base=False",
        )


class _Placer:
    """Finds a stored module path in the model at hand, with or without the base model's prefix."""

    def __init__(self, model: nn.Module, directory: Path) -> None:
        self.modules = stock_modules(model)
        self.prefix = getattr(model, "base_model_prefix", "") + "."
        self.directory, self.model = directory, model

    def find(self, path: str) -> str | None:
        """The path here, or None."""
        candidates = [path, self.prefix + path, path.removeprefix(self.prefix), path.partition(".")[2]]
        return next((each for each in candidates if each and each in self.modules), None)

    def __call__(self, path: str) -> str:
        found = self.find(path)
        if found is not None:
            return found
        raise StoreError(
            str(self.directory),
            expected=f"a model with a module {path!r}",
            found=type(self.model).__name__,
            remedy="load the base model that the adapter names",
        )


def _vector(tensors: Mapping[str, Tensor], key: str, model: nn.Module, site: Site, directory: Path) -> Tensor:
    if key not in tensors:
        raise StoreError(str(directory / WEIGHTS), expected=f"the key {key}", found="none of this name")
    features = output_features(get_module(model, site.module))
    full = tensors[key].float().flatten()
    if full.numel() != features or site.features != features:
        raise StoreError(
            str(directory / WEIGHTS), expected=f"{features} values for {site.module}", found=f"{full.numel()} in {key}"
        )
    return full.to(next(model.parameters()).device)


def _load_head(
    model: nn.Module, directory: Path, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], place: _Placer
) -> Head:
    labels = spec.get("labels")
    if spec["kind"] == "linear":
        weights = read_tensors(directory / HEAD)
        hidden = weights["weight"].shape[1]
        head = LinearHead(hidden, spec["outputs"], labels, spec.get("pooling", "mean"))
        size = getattr(model.config, "hidden_size", hidden)
        if size != hidden:
            raise StoreError(str(directory / HEAD), expected=f"a head on {size} features", found=f"one on {hidden}")
        try:
            head.load_state_dict(weights)
        except RuntimeError as error:
            raise StoreError(
                str(directory / HEAD), expected=f"a head of {spec['outputs']} outputs", found=str(error)
            ) from error
        return head
    copies = {}
    for path in spec["modules"]:
        try:
            copies[path] = place(path)
        except StoreError as error:
            raise StoreError(
                str(directory),
                expected=f"a model class with the head module {path!r}",
                found=type(model).__name__,
                remedy="load the base with AutoModelForSequenceClassification",
            ) from error
    model_head = ModelHead(model, list(copies.values()), labels)
    for stored, path in copies.items():
        _fill(model_head.module(path), tensors, f"{_PREFIX}{stored}.", directory)
    return model_head


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, directory: Path) -> None:
    """Copy `<prefix><name>` into a module's state, resizing what has another shape (another number of labels)."""
    for key, old in module.state_dict().items():
        if prefix + key not in tensors:
            raise StoreError(str(directory / WEIGHTS), expected=f"the key {prefix + key}", found="none of this name")
        value = tensors[prefix + key].to(old)
        if value.shape != old.shape:
            owner_path, _, leaf = key.rpartition(".")
            owner = module.get_submodule(owner_path) if owner_path else module
            if value.shape[1:] != old.shape[1:]:
                raise StoreError(
                    str(directory / WEIGHTS),
                    expected=f"{prefix + key} of shape {tuple(old.shape)} or with other rows",
                    found=str(tuple(value.shape)),
                )
            setattr(owner, leaf, nn.Parameter(value.clone()))
            if isinstance(owner, nn.Linear):
                owner.out_features = len(value)
        else:
            old.copy_(value)


def _load_peft(bank: Bank, directory: Path, tensors: dict[str, Tensor]) -> Adapter:
    """An adapter that stock PEFT saved: sites from its keys, modules to save as a model head."""
    config = read_json(directory / PEFT_CONFIG)
    if config.get("peft_type") != "BEFT":
        raise StoreError(str(directory / PEFT_CONFIG), expected="peft_type 'BEFT'", found=repr(config.get("peft_type")))
    model = bank.model
    place = _Placer(model, directory)
    by_module: dict[str, list[Site]] = {}
    for term in TERMS:
        try:
            found = find_sites(model, term)
        except Exception:
            continue
        for site in found:
            by_module.setdefault(site.module, []).append(site)
    sites: list[Site] = []
    stored: dict[tuple[str, str], str] = {}
    head_keys: dict[str, list[str]] = {}
    for key in tensors:
        if key.endswith(".beft_bias"):
            path = place(key.removeprefix(_PREFIX).removesuffix(".beft_bias"))
            features = output_features(get_module(model, path))
            here = by_module.get(path) or [Site(_OTHER, 0, path, ((0, features),), features)]
            if sum(site.width for site in here) != features:
                here = [Site(_OTHER, here[0].layer, path, ((0, features),), features)]
            for site in here:
                sites.append(site)
                stored[site.key] = key
        else:
            head_keys.setdefault(key.removeprefix(_PREFIX), []).append(key)
    adapter = Adapter(str((config.get("base_model_name_or_path") and directory.name) or directory.name), sites, model)
    with torch.no_grad():
        for site, vector in adapter.items():
            vector.copy_(site.narrow(_vector(tensors, stored[site.key], model, site, directory)))
    if head_keys:
        paths = _head_modules(place, list(head_keys), config.get("modules_to_save") or [])
        adapter.head = ModelHead(model, list(paths))
        for path, prefix in paths.items():
            _fill(adapter.head.module(path), tensors, _PREFIX + prefix, directory)
    return adapter


def _head_modules(place: _Placer, keys: list[str], names: list[str]) -> dict[str, str]:
    """Modules to save that the keys belong to: path in the model to prefix in the file."""
    result: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        fitting = [path for n in range(1, len(parts)) if place.find(path := ".".join(parts[:n]))]
        named = [path for path in fitting if path in names or path.rpartition(".")[2] in names] or fitting[-1:]
        if not named:
            raise StoreError(
                str(place.directory / WEIGHTS),
                expected="modules of this model",
                found=f"the key {key}, which belongs to none of {type(place.model).__name__}",
                remedy="load the base with the class the adapter was trained on",
            )
        result[place(named[0])] = named[0] + "."
    return result
