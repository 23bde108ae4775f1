"""Texts to token ids, once; token ids to padded tensors, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..tasks.task import Example

SHORT = 32
"""Tokens below which a padded one is dearer than the kernels of one more shape."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of many examples, and segment ids where the model reads them; `cut` counts those over `limit`.

    With `second`, an example is two inputs that the model reads apart: `ids` are of the first texts, `second` of the
    others.
    """

    ids: list[list[int]]
    segments: list[list[int]] | None
    cut: int
    pad_id: int
    limit: int
    second: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> list[int]:
        """Tokens of each example, of both inputs where it is two."""
        if self.second is not None:
            return [len(a) + len(b) for a, b in zip(self.ids, self.second, strict=True)]
        return [len(ids) for ids in self.ids]

    @property
    def inputs(self) -> int:
        """How many inputs the examples are, of which `cut` were cut."""
        return len(self.ids) + len(self.second or ())

    def take(self, rows: Sequence[int]) -> Encoded:
        """Some of the examples; `cut` still counts all."""
        segments = None if self.segments is None else [self.segments[row] for row in rows]
        second = None if self.second is None else [self.second[row] for row in rows]
        return Encoded([self.ids[row] for row in rows], segments, self.cut, self.pad_id, self.limit, second)

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu", multiple: int = 1) -> dict[str, Any]:
        """Padded tensors (rows, longest) of these examples; the attention mask is left out where nothing is padded.

        Under `second` are those of the second inputs, where an example is two. The longest is rounded up to a multiple
        of `multiple`, not beyond the limit; see `rounded`.
        """
        tensors: dict[str, Any] = self._padded([self.ids[row] for row in rows], multiple)
        if self.segments is not None:
            longest = tensors["input_ids"].shape[1]
            tensors["token_type_ids"] = _pad([self.segments[row] for row in rows], longest, 0)
        if self.second is not None:
            tensors["second"] = self._padded([self.second[row] for row in rows], multiple)
        return tensors if torch.device(device).type == "cpu" else _moved(tensors, device)

    def _padded(self, chosen: list[list[int]], multiple: int) -> dict[str, Tensor]:
        longest = max(map(len, chosen))
        longest = max(longest, min(rounded(longest, multiple), self.limit))
        padded = any(len(ids) != longest for ids in chosen)
        tensors = {"input_ids": _pad(chosen, longest, self.pad_id)}
        if padded:
            tensors["attention_mask"] = _pad([[1] * len(ids) for ids in chosen], longest, 0)
        return tensors


def rounded(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple; below `SHORT` tokens of a quarter of it, for there padding costs more."""
    step = max(1, multiple // 4) if length < SHORT else multiple
    return -(-length // step) * step


def join(parts: Sequence[tuple[Encoded, Sequence[int]]]) -> Encoded:
    """Examples of several encodings by one tokenizer, one after the other: (encoding, row numbers), at least one.

    Where some have segment ids, the others' are 0, as a model takes them to be.
    """
    ids = [encoded.ids[row] for encoded, rows in parts for row in rows]
    second: list[list[int]] | None = None
    if any(encoded.second is not None for encoded, _ in parts):  # then all are: see `training.banks`
        second = [encoded.second[row] for encoded, rows in parts if encoded.second is not None for row in rows]
    segments: list[list[int]] | None = None
    if any(encoded.segments is not None for encoded, _ in parts):
        segments = []
        for encoded, rows in parts:
            own = encoded.segments
            segments += [[0] * len(encoded.ids[row]) if own is None else own[row] for row in rows]
    first = parts[0][0]
    return Encoded(ids, segments, sum(e.cut for e, _ in parts), first.pad_id, max(e.limit for e, _ in parts), second)


def _moved(tensors: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {
        name: _moved(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for name, value in tensors.items()
    }


def _pad(rows: list[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def encode(tokenizer: Any, examples: Sequence[Example], max_length: int, *, apart: bool = False) -> Encoded:
    """Tokenise one or two texts an example; the longer text is cut first. No text gives no tokens but special ones.

    `apart`: two texts an example are two inputs, of `max_length` tokens each.

    Raises:
        DataError: an example that becomes no token at all.
    """
    if not examples:
        return Encoded([], None, 0, 0, max_length)
    if apart:
        return _apart(tokenizer, examples, max_length)
    limit = min(max_length, usable_length(tokenizer))
    first = [example.texts[0] for example in examples]
    joined = len(examples[0].texts) > 1
    second = ["\n".join(example.texts[1:]) for example in examples] if joined else None
    special = tokenizer.num_special_tokens_to_add(pair=joined) if hasattr(tokenizer, "num_special_tokens_to_add") else 0
    if joined and not special:  # a causal model's tokenizer would run the two texts into one another
        first = [a + "\n" + b for a, b in zip(first, second or [], strict=True)]
        second = None
    whole = tokenizer(first, second, add_special_tokens=True, truncation=False, verbose=False)
    cut_rows = [row for row, ids in enumerate(whole["input_ids"]) if len(ids) > limit]
    ids = whole["input_ids"]
    segments = whole.get("token_type_ids") if joined else None
    if cut_rows:
        again = tokenizer(
            [first[row] for row in cut_rows],
            None if second is None else [second[row] for row in cut_rows],
            truncation="longest_first",
            max_length=limit,
        )
        for place, row in enumerate(cut_rows):
            ids[row] = again["input_ids"][place]
            if segments is not None:
                segments[row] = again["token_type_ids"][place]
    for row, each in enumerate(ids):
        if not each:
            raise DataError(f"row {examples[row].id}", expected="a text of at least one token", found="an empty one")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return Encoded(ids, segments, len(cut_rows), int(pad), limit)


def _apart(tokenizer: Any, examples: Sequence[Example], max_length: int) -> Encoded:
    firsts = [Example(example.id, example.texts[:1]) for example in examples]
    others = [Example(example.id, ("\n".join(example.texts[1:]),)) for example in examples]
    first, second = (encode(tokenizer, each, max_length) for each in (firsts, others))
    return replace(first, cut=first.cut + second.cut, second=second.ids)


def usable_length(tokenizer: Any) -> int:
    """The model's limit on tokens as its tokenizer knows it; a very large number where it does not."""
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit and limit < 1_000_000 else 1_000_000
