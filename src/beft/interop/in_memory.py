"""Adapters as the bytes of their files: trained, read and applied without a folder, on bases that are shared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from ..core.adapter import compares
from ..core.bank import Bank
from ..core.store import MANIFEST, PEFT_CONFIG, save_adapter
from ..errors import RecipeError, StoreError
from ..files import read_json, write_all
from ..objectives.encode import encode
from ..tasks.task import Example, Task
from ..training.base import token_limit
from ..training.grounds import LabelGround
from ..training.infer import predict_logits
from ..training.machine import Choices, choose
from ..training.plan import Plan
from ..training.progress import Listener
from ..training.recipe import Recipe
from ..training.signals import StopRequest
from ..training.train import ADAPTER
from .shared_base import shared_base

Files = dict[str, bytes]
"""An adapter folder: file names and contents."""


@dataclass(frozen=True)
class Trained:
    """A trained adapter, what was measured after each epoch, the epoch that was kept, and how many inputs were cut of
    how many: of rows of one or two texts, or of texts that are read apart."""

    files: Files
    history: list[dict[str, Any]]
    best_epoch: int
    cut: int
    inputs: int


def train_to_bytes(
    model: str,
    task: Task,
    recipe: Recipe,
    choices: Choices,
    *,
    extra: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Trained:
    """Train one adapter on a task's training rows. Its vectors and head are those that `beft.train` makes.

    `extra` is kept in the adapter's manifest beside the description of the task, as is the recipe.
    Raises:
        StoreError: see `load_base`.
        RecipeError: a linear head on an encoder-decoder.
        TrainingError: a loss that is not finite; nothing is kept.
    """
    plan = Plan(ADAPTER, recipe, task).resolve(task, model)
    assert plan.recipe is not None
    recipe = plan.recipe
    with shared_base(
        model,
        choices,
        head=recipe.head,
        outputs=task.outputs,
        labels=task.labels,
        dropout=recipe.dropout,
        trust_remote_code=trust_remote_code,
    ) as (base, bank):
        if recipe.head == "linear" and getattr(base.model.config, "is_encoder_decoder", False):
            raise RecipeError("head 'linear'", expected="an encoder or a causal model", found="an encoder-decoder")
        ground = LabelGround(model, base, bank, choices)
        begun = ground.begin(plan, None, Listener(), StopRequest(), with_baselines=False)
        position = begun.run.learn()
        files = _to_bytes(bank, {**begun.description, "recipe": recipe.to_dict(), **(extra or {})})
        encoded = begun.run.parts["refit"].encoded
    best = position.epochs_kept(recipe.epochs or 1)
    return Trained(files, position.history, best, encoded.cut, encoded.inputs)


def logits(
    files: Mapping[str, bytes],
    model: str,
    texts: Sequence[tuple[str, ...]],
    *,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    trust_remote_code: bool = False,
) -> Tensor:
    """Logits (texts, labels) in fp32 on the CPU, in the order of the texts.

    Raises:
        StoreError: damaged files, a model that cannot be loaded, or another than the adapter was trained on.
        DataError: a text that becomes no token at all.
    """
    about, head = manifest(files)["task"], manifest(files)["head"]
    if dtype == "auto" and about.get("dtype") == "fp32":
        dtype = "fp32"  # trained so: scores come out as they were
    choices = choose(device, dtype, about["max_length"], token_budget)
    with shared_base(
        model,
        choices,
        head=about["head"],
        outputs=head["outputs"],
        labels=about["labels"],
        trust_remote_code=trust_remote_code,
    ) as (base, bank):
        name = _from_bytes(bank, files)
        examples = [Example(number, each) for number, each in enumerate(texts)]
        limit = token_limit(base, about["max_length"])
        encoded = encode(base.tokenizer, examples, limit, apart=compares(bank[name].head))
        return predict_logits(bank, name, encoded, choices)


def manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the adapter's own manifest, beft.json, says."""
    return json.loads(files[MANIFEST])


def read_folder(directory: str | Path) -> Files:
    """The adapter of a folder, without the other files of a run.

    Raises:
        StoreError: no such folder, no adapter with a task and a head in it, or a file that cannot be read.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise StoreError(str(directory), expected="an adapter folder", found="no such folder")
    about = read_json(folder / MANIFEST)
    if not all(isinstance(about.get(key), dict) for key in ("task", "head", "base", "sha256")):
        raise StoreError(str(directory), expected="an adapter with a base, a task and a head", found="vectors only")
    files = {}
    for name in (MANIFEST, PEFT_CONFIG, *about["sha256"]):
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise StoreError(str(folder / name), expected="a file", found=error.strerror or str(error)) from error
    return files


def _to_bytes(bank: Bank, about: Mapping[str, Any]) -> Files:
    with TemporaryDirectory(prefix="beft-") as folder:
        written = save_adapter(bank, ADAPTER, Path(folder), about)
        return {path.name: path.read_bytes() for path in sorted(written.iterdir())}


def _from_bytes(bank: Bank, files: Mapping[str, bytes]) -> str:
    with TemporaryDirectory(prefix="beft-") as folder:
        write_all(Path(folder), files)
        return bank.load(folder).name
