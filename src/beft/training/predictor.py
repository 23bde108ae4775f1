"""`beft.load`: a base model and an adapter folder together, ready to predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.adapter import compares
from ..core.bank import attach
from ..core.store import MANIFEST
from ..errors import DataError, StoreError
from ..files import read_json
from ..objectives.classify import read_logits
from ..objectives.encode import encode, join
from ..tasks.task import Example
from .aims import best
from .base import load_base, token_limit
from .ensemble import load_members, mean_scores, member_folders
from .infer import routed_logits
from .machine import choose
from .prompt_predictor import PromptPredictor
from .quantize import DeviceMap, chosen

Text = str | Sequence[str]
CHUNK = 2048
"""Rows that are tokenised, sorted by length and predicted together when a stream is predicted."""


class Predictor:
    """A trained adapter on its base, or an ensemble of several. Made by `beft.load`."""

    def __init__(
        self,
        directory: str | Path,
        *,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        quantize: str | None = None,
        device_map: DeviceMap | None = None,
    ) -> None:
        from ..core.hub import adapter_folder

        self.directory = adapter_folder(directory, revision)
        folders = member_folders(self.directory)
        if not (folders[0] / MANIFEST).exists():
            half = (self.directory / "run.json").exists()
            raise StoreError(
                str(directory),
                expected="a folder that beft trained",
                found="an unfinished run" if half else f"no {MANIFEST}",
                remedy="finish it with --resume" if half else "an adapter made by stock PEFT loads with bank.load",
            )
        manifest = read_json(folders[0] / MANIFEST)
        self.task: dict[str, Any] = manifest.get("task") or {}
        if not isinstance(manifest.get("base"), dict):
            raise StoreError(str(folders[0] / MANIFEST), expected="a base model", found=repr(manifest.get("base")))
        if not self.task or not manifest.get("head"):
            raise StoreError(str(directory), expected="an adapter with a task and a head", found="vectors only")
        self.model_name = model or manifest["base"]["name"]
        self.labels: tuple[str, ...] | None = None if self.task["labels"] is None else tuple(self.task["labels"])
        if dtype == "auto" and self.task.get("dtype") == "fp32":
            dtype = "fp32"  # trained so: scores come out as they were
        self.choices = choose(device, dtype, self.task["max_length"], token_budget)
        self.choices.quantize = chosen(quantize, self.task.get("quantize"))
        base = load_base(
            self.model_name,
            self.choices,
            head=self.task["head"],
            outputs=manifest["head"]["outputs"],
            labels=self.labels,
            trust_remote_code=trust_remote_code,
            quantize=self.choices.quantize,
            device_map=device_map,
        )
        self.tokenizer = base.tokenizer
        self.bank = attach(base.model, "none", names=[])
        self.names, method = load_members(self.bank, folders)
        self.bank.active = self.name = self.names[0]
        self.max_length = token_limit(base, self.task["max_length"], method.reserved)
        self.cut = 0

    @property
    def notices(self) -> list[str]:
        """What is to be said of the texts read so far."""
        return [f"{self.cut} texts were cut to {self.max_length} tokens"] if self.cut else []

    def predict(self, texts: Sequence[Text]) -> list[Any]:
        """The label of each text (a pair where the task has two), or the number for regression.

        Raises:
            DataError: something that is no text, or a text where a pair is needed.
        """
        predictions, _ = self._logits(texts)
        return predictions if self.labels is None else [self.labels[int(p)] for p in predictions]

    def predict_proba(self, texts: Sequence[Text]) -> NDArray[np.float64]:
        """Probabilities (texts, labels), in the order of `labels`; for regression the numbers, shape (texts, 1)."""
        return np.asarray(self._logits(texts)[1]).reshape(len(texts), 1 if self.labels is None else len(self.labels))

    def stream(self, examples: Iterable[Example]) -> Iterator[tuple[Example, float, list[float]]]:
        """Each example with its prediction and scores, in order, holding one chunk in memory at a time."""
        iterator = iter(examples)
        while chunk := list(islice(iterator, CHUNK)):
            predictions, scores = self._predict(chunk)
            yield from zip(chunk, predictions, scores, strict=True)

    def _logits(self, texts: Sequence[Text]) -> tuple[list[float], list[list[float]]]:
        if isinstance(texts, str):
            raise DataError("texts", expected="a list of texts", found="one text", remedy="put it in a list")
        wanted = len(self.task["fields"])
        examples = []
        for number, text in enumerate(texts):
            parts = (text,) if isinstance(text, str) else tuple(text) if isinstance(text, (list, tuple)) else (text,)
            if len(parts) != wanted or not all(isinstance(part, str) for part in parts):
                raise DataError(
                    f"text {number}", expected="a text" if wanted == 1 else f"{wanted} texts", found=repr(text)[:60]
                )
            examples.append(Example(number, parts))
        return self._predict(examples) if examples else ([], [])

    def _predict(self, examples: Sequence[Example]) -> tuple[list[float], list[list[float]]]:
        apart = compares(self.bank[self.names[0]].head)
        encoded = encode(self.tokenizer, examples, self.max_length, apart=apart)
        self.cut += encoded.cut
        rows = range(len(examples))
        everyone = join([(encoded, rows)] * len(self.names))  # each row once a member, in one routed pass
        logits = routed_logits(self.bank, [name for name in self.names for _ in rows], everyone, self.choices)
        found = [
            read_logits(torch.stack(logits[start : start + len(rows)]), self.labels)
            for start in range(0, len(logits), len(rows))
        ]
        if len(found) == 1:
            return found[0]
        scores = mean_scores([own for _, own in found])
        return [row[0] if self.labels is None else best(row) for row in scores], scores


def load(directory: str | Path, **options: Any) -> Predictor | PromptPredictor:
    """Base and adapter of a folder that `beft train` wrote, or of a Hub repository "user/repo", ready to use.

    Options: `model` (another place of the same base), `device`, `dtype`, `token_budget`, `trust_remote_code`,
    `revision` (of the repository), `quantize` ("8bit", "4bit" or "none"; else as trained), `device_map`. An adapter
    that answers prompts gives a `PromptPredictor`.

    Raises:
        StoreError: no adapter there, damaged files, or another base model.
    """
    from ..core.hub import adapter_folder

    folder = adapter_folder(directory, options.pop("revision", None))
    if asks(folder):
        return PromptPredictor(folder, **options)
    return Predictor(folder, **options)


def asks(directory: Path) -> bool:
    """Whether a folder's adapter answers prompts; False where there is none."""
    first = member_folders(directory)[0] / MANIFEST
    if not first.exists():
        return False
    task = read_json(first).get("task")
    return isinstance(task, dict) and task.get("objective") in ("choose", "generate")
