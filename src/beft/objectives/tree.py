"""A prompt and its candidates as one row: a tree whose branches see the prompt and themselves, not one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """One row of inputs.

    Attributes:
        tokens: the prompt, then the branches' tokens. A candidate's last token is only predicted, never an input, and
            candidates that begin alike share what they begin with.
        prompt: how many tokens the prompt has.
        parents: of each branch token, the position of the token before it.
        reads: of each candidate, the positions whose states predict its tokens, one a token.
        candidates: the tokens to predict.
    """

    tokens: list[int]
    prompt: int
    parents: list[int]
    reads: list[list[int]]
    candidates: list[list[int]]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def chain(self) -> bool:
        """Whether every token follows the one before it: then the row is plain causal text."""
        return all(parent == self.prompt + number - 1 for number, parent in enumerate(self.parents))

    @property
    def scored(self) -> int:
        """Number of positions whose states are read."""
        return len({position for read in self.reads for position in read})

    def depths(self) -> list[int]:
        """Position of each token along its own path, from 0."""
        depths = list(range(self.prompt))
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return depths


def plant(prompt: list[int], candidates: list[list[int]], leads: Sequence[list[int]] | None = None) -> Tree:
    """The tree of a prompt (at least one token) and its candidates (at least one token each).

    `leads` are tokens between the prompt and each candidate, where prompts that go on differently share a row.
    """
    tokens, parents = list(prompt), list[int]()
    children: dict[tuple[int, int], int] = {}

    def step(position: int, token: int) -> int:
        child = children.get((position, token))
        if child is None:
            child = children[position, token] = len(tokens)
            tokens.append(token)
            parents.append(position)
        return child

    reads = []
    for lead, candidate in zip(leads or [[]] * len(candidates), candidates, strict=True):
        position, read = len(prompt) - 1, []
        for token in lead:
            position = step(position, token)
        for token in candidate[:-1]:
            read.append(position)
            position = step(position, token)
        reads.append([*read, position])
    return Tree(tokens, len(prompt), parents, reads, candidates)


@dataclass(frozen=True)
class Reading:
    """What to read off a batch's states.

    Attributes:
        states: places, among rows x length, of the states to put through the output embedding: (states,).
        where: of each predicted token, the number of its state: (tokens,).
        tokens: the predicted tokens: (tokens,).
        parts: numbers of each candidate's predicted tokens, filled up with -1: (candidates, most tokens).
        counts: number of tokens of each candidate: (candidates,).
    """

    states: Tensor
    where: Tensor
    tokens: Tensor
    parts: Tensor
    counts: Tensor

    def sums(self, logits: Tensor) -> Tensor:
        """Sum of log-probabilities of each candidate (candidates,) from logits (states, vocabulary), in fp32."""
        chosen = logits.reshape(-1).index_select(0, self.where * logits.shape[-1] + self.tokens).float()
        values = chosen - normalisers(logits).index_select(0, self.where)
        values = torch.cat([values, values.new_zeros(1)])  # -1 is the zero at the end
        parts = self.parts % len(values)
        return values.index_select(0, parts.reshape(-1)).view(parts.shape).sum(1)


def normalisers(logits: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials of logits (states, vocabulary) in fp32; piecewise where no graph is kept."""
    if torch.is_grad_enabled():
        return logits.float().logsumexp(-1)
    return torch.cat([piece.float().logsumexp(-1) for piece in logits.split(256)])


def read(trees: Sequence[Tree], length: int, device: torch.device | str) -> Reading:
    """The reading of trees that are the rows of a batch padded on the right to `length`."""
    numbers: dict[int, int] = {}
    where, tokens, parts = list[int](), list[int](), []
    for row, tree in enumerate(trees):
        for positions, candidate in zip(tree.reads, tree.candidates, strict=True):
            parts.append(list(range(len(where), len(where) + len(candidate))))
            for position, token in zip(positions, candidate, strict=True):
                where.append(numbers.setdefault(row * length + position, len(numbers)))
                tokens.append(token)
    most = max(map(len, parts))
    filled = [part + [-1] * (most - len(part)) for part in parts]
    as_tensor = torch.tensor
    return Reading(
        as_tensor(list(numbers), device=device),
        as_tensor(where, device=device),
        as_tensor(tokens, device=device),
        as_tensor(filled, device=device),
        as_tensor([len(part) for part in parts], device=device),
    )


def collate(trees: Sequence[Tree], pad_id: int, config: Any, dtype: torch.dtype, device: Any) -> dict[str, Tensor]:
    """Model inputs (rows, longest), padded on the right.

    Chains need nothing but their tokens: what is on their right does not reach them. Trees need each token's position
    along its path, and an additive mask (rows, 1, longest, longest) of who sees whom.
    """
    length = max(map(len, trees))
    ids = torch.tensor([tree.tokens + [pad_id] * (length - len(tree)) for tree in trees], device=device)
    if all(tree.chain for tree in trees):
        return {"input_ids": ids}
    depths = np.zeros((len(trees), length), dtype=np.int64)
    sees = np.zeros((len(trees), length, length), dtype=bool)
    sees[:, np.arange(length), np.arange(length)] = True  # padding sees itself: no row of a softmax is empty
    for row, tree in enumerate(trees):
        depths[row, : len(tree)] = tree.depths()
        sees[row, : tree.prompt, : tree.prompt] = np.tri(tree.prompt, dtype=bool)
        for position, parent in enumerate(tree.parents, tree.prompt):
            sees[row, position] |= sees[row, parent]
    mask = _masks(torch.from_numpy(sees).to(device), torch.from_numpy(depths).to(device), config, dtype)
    return {"input_ids": ids, "position_ids": torch.from_numpy(depths).to(device), "attention_mask": mask}


def _masks(sees: Tensor, depths: Tensor, config: Any, dtype: torch.dtype) -> Any:
    """One additive mask, or one a kind of layer where a model has layers with and without a sliding window."""

    def additive(allowed: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=dtype, device=allowed.device)
        return torch.where(allowed, zero, torch.finfo(dtype).min)[:, None]

    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ())
    near = sees
    if isinstance(window, int):
        near = sees & (depths[:, :, None] - depths[:, None, :] < window)
    if len(kinds) > 1:
        return {kind: additive(near if kind == "sliding_attention" else sees) for kind in kinds}
    return additive(near if not kinds or "sliding_attention" in kinds else sees)
