"""A safetensors checkpoint on disk, whole or in shards, read one tensor and written one shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import StoreError
from ..files import read_json, to_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


class Checkpoint:
    """The tensors of a model folder by key. `shards` maps each file to its keys, in the order of the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sharded = (folder / INDEX).exists()
        weight_map: Any = {}
        if self.sharded:
            weight_map = read_json(folder / INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise StoreError(str(folder / INDEX), expected="a weight_map", found="none")
            missing = sorted({file for file in weight_map.values() if not (folder / file).is_file()})
            if missing:
                raise StoreError(
                    str(folder),
                    expected=f"the {len(set(weight_map.values()))} shards that {INDEX} names",
                    found=f"{len(missing)} missing: {', '.join(missing[:4])}",
                    remedy="fetch the checkpoint again",
                )
            files = sorted(set(weight_map.values()))
        elif (folder / SINGLE).exists():
            files = [SINGLE]
        else:
            raise StoreError(str(folder), expected=f"{SINGLE} or {INDEX}", found="neither")
        self.shards: dict[str, list[str]] = {}
        for file in files:
            with self._open(file) as handle:
                self.shards[file] = list(handle.keys())
        self.home = {key: file for file, keys in self.shards.items() for key in keys}
        lost = sorted(set(weight_map) - set(self.home)) if self.sharded else []
        if lost:
            raise StoreError(str(folder), expected=f"the tensors that {INDEX} names", found=f"no {lost[0]}")

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        try:
            with safetensors.safe_open(self.folder / file, framework="pt") as handle:
                yield handle
        except (safetensors.SafetensorError, OSError) as error:
            raise StoreError(
                str(self.folder / file),
                expected="a whole safetensors file",
                found=f"one that cannot be read ({error})",
                remedy="fetch the checkpoint again",
            ) from error

    def __contains__(self, key: str) -> bool:
        return key in self.home

    def read(self, key: str) -> Tensor:
        """One tensor. Raises StoreError if its file is damaged."""
        with self._open(self.home[key]) as handle:
            tensor: Tensor = handle.get_tensor(key)
            return tensor

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of one tensor, without reading it."""
        with self._open(self.home[key]) as handle:
            return DTYPES.get(handle.get_slice(key).get_dtype(), torch.float32)

    def key_of(self, path: str, prefix: str) -> str | None:
        """The key of a parameter path, with or without the base model's prefix; None if the checkpoint has none."""
        candidates = (path, f"{prefix}.{path}", path.removeprefix(f"{prefix}."))
        return next((key for key in candidates if key in self.home), None)

    @property
    def total_bytes(self) -> int:
        """Size of all shards."""
        return sum((self.folder / file).stat().st_size for file in self.shards)


def rewrite(
    source: Checkpoint,
    target: Path,
    changed: Mapping[str, Tensor | None],
    *,
    rename: Callable[[str], str] = lambda key: key,
    added: Mapping[str, tuple[str, Tensor]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the shards of `source` to `target` with some tensors changed, one shard in memory at a time.

    Each written tensor is read back and compared bit for bit. `changed` maps keys of the source to new values, None
    leaves the tensor out; `added` maps a new key to (a source key in whose shard it goes, value). `progress` gets the
    bytes done and the bytes in all after each shard.

    Raises:
        StoreError: a shard cannot be read or written, or came back other than it was written.
    """
    index: dict[str, str] = {}
    size = done = 0
    for file, keys in source.shards.items():
        tensors: dict[str, Tensor] = {}
        with source._open(file) as handle:
            metadata = handle.metadata() or {"format": "pt"}
            for key in keys:
                value = changed[key] if key in changed else handle.get_tensor(key)
                if value is not None:
                    tensors[rename(key)] = value.contiguous()
        tensors.update({key: value.contiguous() for key, (near, value) in (added or {}).items() if near in keys})
        if not tensors:
            continue
        try:
            save_file(tensors, target / file, metadata=metadata)
        except (OSError, safetensors.SafetensorError) as error:
            raise StoreError(
                str(target / file), expected="a file that can be written", found=str(error), remedy="free some space"
            ) from error
        _compare(target / file, tensors)
        index.update(dict.fromkeys(tensors, file))
        size += sum(value.numel() * value.element_size() for value in tensors.values())
        done += (source.folder / file).stat().st_size
        progress(done, source.total_bytes)
    if source.sharded:
        old = read_json(source.folder / INDEX).get("metadata", {})
        (target / INDEX).write_text(
            to_json({"metadata": {**old, "total_size": size}, "weight_map": dict(sorted(index.items()))}),
            encoding="utf-8",
        )


def _compare(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with safetensors.safe_open(path, framework="pt") as handle:
        same = set(handle.keys()) == set(tensors)
        for key, value in tensors.items():
            same = same and same_bits(handle.get_tensor(key), value)
    if not same:
        raise StoreError(str(path), expected="the tensors that were written", found="others", remedy="check the disk")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit (NaN included)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
