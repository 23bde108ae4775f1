"""Loading adapter folders: ours, and those that stock PEFT saved. Every file, key, shape and value is checked.

The format is described in `store`. A folder may have been written on the headed or the bare class of a model: the
base's prefix is put before its paths or taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import StoreError
from ..files import read_json, sha256
from .adapter import Adapter, Head, LinearHead, ModelHead, Pooling, head_features, real_device
from .attentions import output_features, stock_modules
from .heads import state_width
from .sites import Site, find_sites, get_module
from .store import ENSEMBLE, FORMAT, HEAD, MANIFEST, PEFT_CONFIG, PREFIX, WEIGHTS
from .terms import TERMS, Term

if TYPE_CHECKING:
    from .bank import Bank

OTHER = Term("other", "b", r"\mathbf{b}", "a bias that stock PEFT trained at a module of no known term")

_CHANGED = "the file was changed; fetch the folder again"
_FIELDS: tuple[tuple[str, type | tuple[type, ...], str], ...] = (
    ("name", str, "text"),
    ("sites", list, "a list"),
    ("head", (dict, type(None)), "an object, or null"),
    ("base", dict, "an object"),
    ("sha256", dict, "an object"),
)
"""What `beft.json` always has."""


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


def base_name(directory: Path) -> str:
    """The base model that an adapter folder names: ours, or one that stock PEFT saved.

    Raises:
        StoreError: no adapter folder, or one that names no base.
    """
    if not directory.is_dir():
        raise StoreError(str(directory), expected="an adapter folder", found="no such folder")
    refuse_ensemble(directory)
    if (directory / MANIFEST).exists():
        name = (read_json(directory / MANIFEST).get("base") or {}).get("name")
    else:
        name = read_json(directory / PEFT_CONFIG).get("base_model_name_or_path")
    if not name:
        raise StoreError(str(directory), expected="the name of its base", found="none", remedy="give it with --model")
    return str(name)


def load_adapter(
    bank: Bank, directory: Path, name: str | None = None, *, check_base: bool = True, any_method: bool = False
) -> Adapter:
    """Add the adapter of a folder to a bank: ours, or one that stock PEFT saved.

    The folder's paths may have been made on the headed or the bare class of the model; the base's prefix is put before
    them or taken off. `check_base=False` loads onto other weights of the same shape. `any_method` takes the biases and
    the head of an adapter that is more than these; the caller adds the rest.

    Raises:
        StoreError: files missing or damaged, values not finite, or a folder made for another model; every key that does
            not fit is named.
    """
    if not directory.is_dir():
        raise StoreError(str(directory), expected="an adapter folder", found="no such folder")
    refuse_ensemble(directory)
    tensors = read_tensors(directory / WEIGHTS)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StoreError(str(directory / WEIGHTS), expected="finite values", found=f"NaN or infinity in {key}")
    if (directory / MANIFEST).exists():
        if not any_method:
            refuse_other_methods(directory)
        adapter = _load_ours(bank, directory, tensors, check_base)
    else:
        adapter = _load_peft(bank, directory, tensors)
    adapter.name = bank._new_name(name or adapter.name)
    return bank._install(adapter)


def refuse_ensemble(directory: Path) -> None:
    """Raises StoreError for a folder of several adapters that answer together."""
    if (directory / ENSEMBLE).exists():
        names = read_json(directory / ENSEMBLE).get("members") or [""]
        raise StoreError(
            str(directory),
            expected="one adapter",
            found=f"an ensemble of {len(names)}",
            remedy="`beft evaluate`, `beft predict` and beft.load take it whole; here name one of its members, such as "
            f"{directory / str(names[0])}, or tune with --combine soup",
        )


def refuse_other_methods(directory: Path) -> None:
    """Raises StoreError for a folder whose adapter is more than biases and a head."""
    method = read_json(directory / MANIFEST).get("method") or {}
    if not method.get("plain", True):
        raise StoreError(
            str(directory),
            expected="a bias adapter",
            found=f"one of the method {method.get('name')}",
            remedy="use beft.load, `beft evaluate` or `beft predict`",
        )


def _load_ours(bank: Bank, directory: Path, tensors: dict[str, Tensor], check_base: bool) -> Adapter:
    manifest = _read_manifest(directory / MANIFEST)
    for file, expected in manifest["sha256"].items():
        if sha256(directory / file) != expected:
            raise StoreError(
                str(directory / file),
                expected=f"the content that {MANIFEST} describes",
                found="another (its checksum differs)",
                remedy="the file was changed or only partly copied; fetch the folder again",
            )
    _check_base(bank, directory, manifest["base"], check_base)
    place = _Placer(bank.model, directory)
    try:
        sites = [_read_site(entry, place) for entry in manifest["sites"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            str(directory / MANIFEST),
            expected="sites with module, term, layer, rows and features",
            found=f"a fault at {error}",
            remedy=_CHANGED,
        ) from error
    adapter = Adapter(manifest["name"], _as_found(bank.model, sites), bank.model)
    stored: dict[str, Tensor] = {}
    for entry, site in zip(manifest["sites"], adapter.sites, strict=True):
        full = _vector(tensors, f"{PREFIX}{entry['module']}.beft_bias", bank.model, site, directory)
        with torch.no_grad():
            adapter.vector(site).copy_(site.narrow(full))
        stored[site.module] = full
    for path, full in stored.items():
        shift = adapter.shift(path)
        if shift is None or not torch.equal(shift.detach(), full):  # features of no site, or of two
            raise StoreError(
                str(directory / MANIFEST),
                expected=f"sites that hold each value of {path} once, as {WEIGHTS} has it",
                found="values of no site, or counted twice",
                remedy=_CHANGED,
            )
    head = manifest["head"]
    if head is not None:
        try:
            adapter.head = _load_head(bank.model, directory, head, tensors, place)
        except (KeyError, TypeError, IndexError) as error:
            raise StoreError(
                f"{directory / MANIFEST}, head",
                expected="its kind and outputs, and the modules of a model's own",
                found=f"a fault at {error}",
                remedy=_CHANGED,
            ) from error
    return adapter


def _read_manifest(path: Path) -> dict[str, Any]:
    """`beft.json`, of our format and with the fields that it always has."""
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise StoreError(
            str(path),
            expected=f"format {FORMAT}",
            found=str(manifest.get("format")),
            remedy="load it with the version of beft that wrote it",
        )
    for field, kind, word in _FIELDS:
        value = manifest.get(field)
        if field not in manifest or not isinstance(value, kind):
            found = type(value).__name__ if field in manifest else "none"
            raise StoreError(f"{path}, {field}", expected=word, found=found, remedy=_CHANGED)
    return manifest


def _read_site(entry: Mapping[str, Any], place: _Placer) -> Site:
    rows = tuple((int(start), int(stop)) for start, stop in entry["rows"])
    features = int(entry["features"])
    bounds = [0, *(bound for pair in rows for bound in pair), features]
    if not rows or bounds != sorted(bounds):
        raise ValueError(f"rows {entry['rows']} of {features} features")
    named = str(entry["term"])
    term = TERMS.get(named) or replace(OTHER, name=named, meaning="a bias of a term that is not known here")
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
        name = f"{stored['name']}, " if stored.get("name") else ""
        raise StoreError(
            str(directory),
            expected=f"the weights it was trained on ({name}fingerprint {known[:8]})",
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
    return full.to(real_device(model))


def _load_head(
    model: nn.Module, directory: Path, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], place: _Placer
) -> Head:
    labels = spec.get("labels")
    if spec["kind"] == "linear":
        pooling = spec.get("pooling", "mean")
        if pooling not in get_args(Pooling):
            raise StoreError(
                str(directory / MANIFEST),
                expected=f"a head's pooling, {', '.join(get_args(Pooling))}",
                found=repr(pooling),
                remedy=_CHANGED,
            )
        weights = read_tensors(directory / HEAD)
        width = state_width(model)
        if pooling == "pair" and width is not None and weights["weight"].shape[1] == 4 * width:
            weights["weight"] = nn.functional.pad(weights["weight"], (0, 1))  # written before heads read the cosine
        hidden = weights["weight"].shape[1]
        head = LinearHead(hidden, spec["outputs"], labels, pooling)
        size = hidden if width is None else head_features(width, pooling)
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
        _fill(model_head.module(path), tensors, f"{PREFIX}{stored}.", directory)
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
            path = place(key.removeprefix(PREFIX).removesuffix(".beft_bias"))
            features = output_features(get_module(model, path))
            here = by_module.get(path) or [Site(OTHER, 0, path, ((0, features),), features)]
            if sum(site.width for site in here) != features:
                here = [Site(OTHER, here[0].layer, path, ((0, features),), features)]
            for site in here:
                sites.append(site)
                stored[site.key] = key
        else:
            head_keys.setdefault(key.removeprefix(PREFIX), []).append(key)
    adapter = Adapter(_folder_name(directory), sites, model)
    with torch.no_grad():
        for site, vector in adapter.items():
            vector.copy_(site.narrow(_vector(tensors, stored[site.key], model, site, directory)))
    if head_keys:
        paths = _head_modules(place, list(head_keys), config.get("modules_to_save") or [])
        adapter.head = ModelHead(model, list(paths))
        for path, prefix in paths.items():
            _fill(adapter.head.module(path), tensors, PREFIX + prefix, directory)
    return adapter


def _folder_name(directory: Path) -> str:
    """A folder's name; of a Hub snapshot (models--user--repo/snapshots/commit), the repository's."""
    if directory.parent.name == "snapshots":
        return directory.parents[1].name.rpartition("--")[2]
    return directory.name


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
