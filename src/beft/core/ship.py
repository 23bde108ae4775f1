"""Merging on disk: a checkpoint of any size in, a stock checkpoint out, one shard in memory at a time; and back.

Only the tensors that change are computed (`merge.fold` on a model without weights, which reads the few it needs); every
other tensor is copied and compared bit for bit. What the merge replaced is kept in the folder `beft` of the result, so
that `unmerge_checkpoint` restores the original exactly. Nothing is visible under the final name before all is verified.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import BankError, StoreError
from ..files import new_folder, part_folder, read_json, to_json
from .adapter import Adapter, LinearHead, ModelHead
from .bank import attach
from .compare import allowed, outputs, real_inputs, relative_difference
from .dense import FILES, write_sentence_transformer
from .fingerprint import base_parameters, digest
from .merge import AnyAdapter, fold, load_weighted, merged, refuse_difference, save_merged
from .probe import quiet_transformers
from .shards import Checkpoint, rewrite
from .shipped import KEPT, RECORD, VALUES, Shipped, card, copy_rest, keep, merged_config, write_record
from .store import MANIFEST, PEFT_CONFIG

Verify = Literal["logits", "tensors"]


def merge_checkpoint(
    base: str | Path,
    adapter: AnyAdapter,
    out: str | Path,
    *,
    verify: Verify = "logits",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Shipped:
    """Write the checkpoint in folder `base` with an adapter folded in to the new folder `out`.

    Args:
        adapter: an adapter folder, or several with weights.
        verify: "logits" also loads the attached and the written model and compares their outputs on real sentences;
            "tensors" compares every written tensor alone, in the memory of one shard.
        progress: called with the bytes done and the bytes in all.

    Raises:
        BankError: the architecture has no place for a vector, `base` is a merged checkpoint, or outputs differ.
        StoreError: files missing or damaged, an adapter of another base, or a folder that cannot be written.
    """
    base, target = Path(base), new_folder(out)
    if (base / KEPT / RECORD).exists():
        raise BankError(
            str(base),
            expected="a base checkpoint",
            found="one with an adapter merged in already",
            remedy="merge into the base (beft unmerge gives it back); several adapters merge at once with --weights",
        )
    if (base / "config.json").is_file() and read_json(base / "config.json").get("quantization_config"):
        raise BankError(
            str(base),
            expected="a checkpoint in plain weights",
            found="a quantised one",
            remedy="merge into the unquantised base, then quantise the merged model",
        )
    source = Checkpoint(base)
    folders = [Path(each) for each in ([adapter] if isinstance(adapter, (str, Path)) else adapter)]
    model = _skeleton(base, folders)
    prefix = getattr(model, "base_model_prefix", "")
    bank = attach(model, "none", names=[])
    try:
        one = load_weighted(bank, adapter)
    finally:
        bank.detach()
    if any(source.key_of(f"{path}.weight", prefix) is None for path in one.modules_with_vectors):
        return merge_as(base, adapter, out)  # transformers renames this architecture's weights when it reads them
    known = _check_fingerprint(source, model, prefix, folders)
    _lend_biases(model, source, prefix)
    result = fold(model, one, lambda path: source.read(_key(source, path, prefix)))
    changed, added, rename = _plan(result.model, source, prefix, isinstance(one.head, ModelHead))
    with part_folder(target) as part, quiet_transformers():
        rewrite(source, part, changed, rename=lambda key: rename.get(key, key), added=added, progress=progress)
        copy_rest(base, part)
        shipped = Shipped(target, type(model).__name__, result.ways, result.switched, head=one.head, fingerprint=known)
        (part / "config.json").write_text(to_json(merged_config(base, shipped)), encoding="utf-8")
        shipped = replace(
            shipped,
            error=_verified(base, folders, adapter, part, type(model)) if verify == "logits" else None,
            changed=[rename.get(key, key) for key in changed],
            added=list(added),
        )
        if isinstance(one.head, LinearHead):
            keep(base, part, FILES)
            write_sentence_transformer(part, one.head, _max_length(folders[0]))
        keep(base, part, ("README.md",))
        (part / "README.md").write_text(card(base, shipped, folders), encoding="utf-8")
        write_record(base, part, source, shipped, rename, folders)
    return shipped


def merge_as(
    base: str | Path,
    adapter: AnyAdapter,
    out: str | Path,
    architecture: str | None = None,
) -> Shipped:
    """The same in memory: for a sibling architecture, or a checkpoint of another form. It cannot be unmerged.

    Raises:
        BankError, StoreError: as `merge_checkpoint` does.
    """
    base, target = Path(base), new_folder(out)
    folders = [Path(each) for each in ([adapter] if isinstance(adapter, (str, Path)) else adapter)]
    kind: Any = type(_skeleton(base, folders))
    with quiet_transformers():
        model = kind.from_pretrained(base, dtype="auto", **_labels(folders)).eval()
        tokenizer = _tokenizer(base)
        result = merged(model, adapter, tokenizer, architecture)
        save_merged(result, tokenizer, target, _max_length(folders[0]))
    plain: Any = result.model
    return Shipped(target, type(plain).__name__, result.ways, result.switched, result.error, head=result.head)


def unmerge_checkpoint(
    directory: str | Path, out: str | Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write the base that a merged checkpoint was made of to the new folder `out`: every tensor as it was, bit for bit.

    Raises:
        StoreError: `directory` has no record of a merge, or files are damaged.
    """
    folder, target = Path(directory), new_folder(out)
    if not (folder / KEPT / RECORD).exists():
        raise StoreError(
            str(folder), expected=f"a folder that `beft merge` wrote ({KEPT}/{RECORD})", found="no record of a merge"
        )
    record = read_json(folder / KEPT / RECORD)
    source = Checkpoint(folder)
    values: dict[str, Tensor | None] = dict(load_file(folder / KEPT / VALUES)) if record["changed"] else {}
    lost = [key for key in (*record["changed"], *record["added"]) if key not in source]
    if lost:
        raise StoreError(str(folder), expected=f"the tensor {lost[0]}", found="none", remedy="the folder was changed")
    back = {new: old for old, new in record["renamed"].items()}
    changed = {key: values[back.get(key, key)] for key in record["changed"]} | dict.fromkeys(record["added"])
    with part_folder(target) as part:
        rewrite(source, part, changed, rename=lambda key: back.get(key, key), progress=progress)
        copy_rest(folder, part, but=("README.md", KEPT, *(FILES if record["head"] == "linear" else ())))
        for path in (folder / KEPT / "original").glob("*"):
            shutil.copy2(path, part / path.name)
    return target


# ---- the model without weights ---------------------------------------------------------------------------------------


def _skeleton(base: Path, adapters: list[Path]) -> nn.Module:
    """The model class that the adapters need, on the meta device: the headed one for a model head, else the base's."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(base, **_labels(adapters))
    with torch.device("meta"):
        if _labels(adapters):
            model: nn.Module = AutoModelForSequenceClassification.from_config(config)
        else:
            model = _own_class(config)(config) if _own_class(config) else AutoModel.from_config(config)
    return model.eval()


def _own_class(config: Any) -> Any:
    import transformers

    names = getattr(config, "architectures", None) or []
    return getattr(transformers, names[0], None) if names else None


def _labels(adapters: list[Path]) -> dict[str, int]:
    """Keywords for a config: the number of labels, if an adapter brings the architecture's own head."""
    found = [count for folder in adapters if (count := head_outputs(folder)) is not None]
    return {"num_labels": found[0]} if found else {}


def _max_length(adapter: Path) -> int | None:
    """Tokens of an example in training; None if the adapter does not say."""
    if not (adapter / MANIFEST).exists():
        return None
    return (read_json(adapter / MANIFEST).get("task") or {}).get("max_length")


def head_outputs(folder: Path) -> int | None:
    """Labels of an adapter's model head; None if it has another head or none."""
    if (folder / MANIFEST).exists():
        head = read_json(folder / MANIFEST).get("head") or {}
        return int(head["outputs"]) if head.get("kind") == "model" else None
    if read_json(folder / PEFT_CONFIG).get("task_type") != "SEQ_CLS":
        return None
    return 2  # the number is read from the file: `restore` resizes


def _key(source: Checkpoint, path: str, prefix: str) -> str:
    key = source.key_of(path, prefix)
    if key is None:
        raise StoreError(
            str(source.folder),
            expected=f"the tensor {path}",
            found="none of this name",
            remedy="the checkpoint lays its weights out in another way: merge it in memory with beft.merge",
        )
    return key


def _check_fingerprint(source: Checkpoint, model: nn.Module, prefix: str, adapters: list[Path]) -> str:
    """Raises StoreError if an adapter was trained on other weights. Gives what is known, for people."""
    stored = {
        folder: (read_json(folder / MANIFEST).get("base") or {}).get("fingerprint")
        for folder in adapters
        if (folder / MANIFEST).exists()
    }
    if not any(stored.values()):
        return "the adapter does not say which weights it was trained on"
    paths = base_parameters(model)
    keys = {name: source.key_of(path, prefix) for name, path in paths.items()}
    if not all(keys.values()):
        return "not compared: the checkpoint names its weights in another way"
    found = digest({name: str(key) for name, key in keys.items()}, lambda key: _widened(source.read(key)))
    if found is None:
        return "not compared: the weights are no floats"
    for folder, expected in stored.items():
        if expected and expected != found:
            raise StoreError(
                str(folder),
                expected=f"the weights it was trained on (fingerprint {expected[:8]})",
                found=f"other weights of the same shape in {source.folder} (fingerprint {found[:8]})",
                remedy="merge into the base model that the adapter names",
            )
    return f"the base is the adapter's own (fingerprint {found[:8]})"


def _widened(tensor: Tensor) -> Tensor:
    """fp16 as fp32, which is how an adapter's base was loaded if it has a fingerprint."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _lend_biases(model: nn.Module, source: Checkpoint, prefix: str) -> None:
    """Give the model its biases from the checkpoint: kilobytes, and all of its weights that a merge may change."""
    for path, _ in list(model.named_parameters()):
        key = source.key_of(path, prefix) if path.endswith(".bias") else None
        if key is not None:
            owner = model.get_submodule(path.rpartition(".")[0])
            owner.bias = nn.Parameter(source.read(key), requires_grad=False)


def _plan(
    plain: nn.Module, source: Checkpoint, prefix: str, headed: bool
) -> tuple[dict[str, Tensor | None], dict[str, tuple[str, Tensor]], dict[str, str]]:
    """What changes: tensors by source key, new tensors by name with the key they go beside, and keys renamed.

    A model head on a checkpoint of the bare model renames its keys to the headed class's.
    """
    changed: dict[str, Tensor | None] = {}
    added: dict[str, tuple[str, Tensor]] = {}
    rename: dict[str, str] = {}
    if headed:
        found = {path: source.key_of(path, prefix) for path in plain.state_dict()}
        rename = {key: path for path, key in found.items() if key is not None and key != path}
    last = list(source.home)[-1]
    for path, parameter in plain.named_parameters():
        if parameter.is_meta:
            continue
        value = parameter.detach()
        key = source.key_of(path, prefix)
        if key is not None:
            old = source.read(key)
            if value.shape != old.shape or not torch.equal(value.to(old.dtype), old):
                changed[key] = value.to(old.dtype)
            continue
        near = source.key_of(path.removesuffix("bias") + "weight", prefix) if path.endswith(".bias") else None
        name = path if near is None else rename.get(near, near).removesuffix("weight") + "bias"
        beside = last if near is None else near
        added[name] = (beside, value.to(source.dtype(beside)))
    return changed, added, rename


# ---- proof -----------------------------------------------------------------------------------------------------------


def _verified(
    base: Path,
    folders: list[Path],
    adapter: AnyAdapter,
    part: Path,
    kind: type[nn.Module],
) -> float:
    """Load the attached and the written model and compare their outputs. Gives the relative difference."""
    source = Checkpoint(base)
    stored = source.dtype(next(iter(source.home)))
    error = float("nan")
    for dtype in (torch.float32, torch.float64):  # in fp64 if fp32's own rounding, over many layers, is above the bound
        error = _difference(base, folders, adapter, part, kind, dtype)
        if error <= allowed(stored):
            return error
    refuse_difference(kind.__name__, error, stored)
    return error


def _difference(
    base: Path, folders: list[Path], adapter: AnyAdapter, part: Path, loader: Any, dtype: torch.dtype
) -> float:
    attached, before = loader.from_pretrained(base, dtype=dtype, output_loading_info=True, **_labels(folders))
    inputs = real_inputs(attached.eval(), _tokenizer(base))
    bank = attach(attached, "none", names=[])
    one: Adapter = load_weighted(bank, adapter)
    bank.active = one.name
    expected = outputs(attached, inputs)
    bank.detach()
    del attached
    plain, after = loader.from_pretrained(part, dtype=dtype, output_loading_info=True)
    for fault in ("missing_keys", "unexpected_keys"):
        new = sorted(set(after[fault]) - set(before[fault]))
        if new:
            raise StoreError(str(part), expected="tensors that stock transformers loads", found=f"{fault}: {new[0]}")
    return relative_difference(outputs(plain.eval(), inputs), expected)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        return None
    return AutoTokenizer.from_pretrained(folder)
