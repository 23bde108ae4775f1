"""What lies beside the weights of a merged checkpoint: config, card, tokenizer files, and the record of the merge."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..files import read_json, to_json
from .adapter import LinearHead, ModelHead
from .shards import Checkpoint

KEPT = "beft"
RECORD, VALUES = "merge.json", "base_values.safetensors"
HEAVY = ("*.safetensors", "*.bin", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.gguf", "*.index.json", "onnx", "openvino")
"""Weights in other formats: they hold the base, not the merged model, and stay behind."""


@dataclass(frozen=True)
class Shipped:
    """What `merge_checkpoint` wrote: the way of each module, what was switched on, and the error if it was measured.

    `error` is the largest difference of outputs over the largest output, in fp32 arithmetic, on real sentences.
    """

    folder: Path
    architecture: str
    ways: Mapping[str, str]
    switched: str = ""
    error: float | None = None
    changed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    head: LinearHead | ModelHead | None = None
    fingerprint: str = ""


def copy_rest(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    """Everything that is not weights: tokenizer, generation settings, pooling of sentence-transformers."""
    ignore = shutil.ignore_patterns(*HEAVY, ".*", *but)
    shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)


def keep(base: Path, part: Path, names: tuple[str, ...]) -> None:
    """Put aside files of the base that the result replaces."""
    for name in names:
        if (base / name).exists():
            (part / KEPT / "original").mkdir(parents=True, exist_ok=True)
            shutil.copy2(base / name, part / KEPT / "original" / name)


def merged_config(base: Path, shipped: Shipped) -> dict[str, Any]:
    """The base's config.json with the biases switched on and the head's labels; everything else as it was."""
    config = read_json(base / "config.json")
    inner, switched, head = config.get("text_config"), shipped.switched, shipped.head
    if switched:
        (inner if isinstance(inner, dict) and switched in inner else config)[switched] = True
    if isinstance(head, ModelHead):
        config["architectures"] = [shipped.architecture]
        labels = head.labels or [f"LABEL_{number}" for number in range(head.outputs)]
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
        if head.labels is None and head.outputs == 1:
            config["problem_type"] = "regression"
    return config


def card(base: Path, shipped: Shipped, adapters: list[Path]) -> str:
    """A README for the Hub: what this checkpoint is, and how it loads."""
    error = "not measured" if shipped.error is None else f"{shipped.error:.1e}"
    lines = [
        "---",
        "library_name: transformers",
        "tags: [beft]",
        "---",
        "",
        f"# {shipped.folder.name}",
        "",
        f"`{read_json(base / 'config.json').get('_name_or_path') or base.name}` with the bias adapter "
        f"{', '.join(each.name for each in adapters)} folded in ({'; '.join(dict.fromkeys(shipped.ways.values()))}).",
        f"Largest difference from the attached adapter's outputs, relative to the largest output: {error}.",
        "",
        "```python",
        f"from transformers import {shipped.architecture}",
        "",
        f'model = {shipped.architecture}.from_pretrained("{shipped.folder.name}")',
        "```",
    ]
    if isinstance(shipped.head, LinearHead):
        lines += [
            "",
            "The task's head is a dense layer on pooled states; sentence-transformers gives its logits:",
            "",
            "```python",
            "from sentence_transformers import SentenceTransformer",
            "",
            f'SentenceTransformer("{shipped.folder.name}").encode(["a text"])'
            + (f"  # {', '.join(shipped.head.labels)}" if shipped.head.labels else ""),
            "```",
        ]
    lines += ["", f"`beft unmerge {shipped.folder.name} --out base` gives the base back, bit for bit."]
    return "\n".join(lines) + "\n"


def write_record(
    base: Path, part: Path, source: Checkpoint, shipped: Shipped, rename: Mapping[str, str], adapters: list[Path]
) -> None:
    """What was done, and the values it replaced: all that the way back needs."""
    import transformers

    from .. import __version__

    back = {new: old for old, new in rename.items()}
    kept = {back.get(key, key): source.read(back.get(key, key)).contiguous() for key in shipped.changed}
    keep(base, part, ("config.json",))
    if kept:
        save_file(kept, part / KEPT / VALUES, metadata={"format": "pt"})
    record = {
        "adapters": [folder.name for folder in adapters],
        "architecture": shipped.architecture,
        "ways": shipped.ways,
        "switched": shipped.switched,
        "head": None if shipped.head is None else shipped.head.kind,
        "changed": shipped.changed,
        "added": shipped.added,
        "renamed": dict(rename),
        "error": shipped.error,
        "versions": {"beft": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    (part / KEPT / RECORD).write_text(to_json(record), encoding="utf-8")
