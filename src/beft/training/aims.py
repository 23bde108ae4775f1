"""What a run aims at: the loss of its rows, their cost, and how it is judged. The loop knows no more of a task."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.adapter import LinearHead
from ..core.bank import Bank
from ..objectives.classify import ClassifyLoss, read_logits, scores
from ..objectives.encode import Encoded, join
from ..tasks.task import Example, Task
from .infer import Watch, route, routed_logits
from .machine import Choices
from .ranks import here


@dataclass
class Part:
    """Examples (or questions) with their tokens.

    `learned` are tokens to learn from, where others are judged. `states` (rows, hidden) are what a linear head reads,
    where nothing below the head is trained: then no row goes through the model again.
    """

    examples: list[Any]
    encoded: Any
    learned: Any = None
    states: Tensor | None = None

    def take(self, rows: Sequence[int]) -> Part:
        """The same for some of the rows."""
        learned = None if self.learned is None else self.learned.take(rows)
        states = None if self.states is None else self.states[list(rows)]
        return Part([self.examples[row] for row in rows], self.encoded.take(rows), learned, states)

    def costs(self, lengths: list[int]) -> list[int]:
        """Tokens that each row puts through the model, whose lengths are given; 1 where its states are known."""
        return lengths if self.states is None else [1] * len(lengths)


@dataclass
class Judgement:
    """How rows were answered: mean loss, metrics by name, and for each row its prediction and scores."""

    loss: float
    metrics: dict[str, float]
    predictions: list[Any] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    weight: float = 1.0
    """What the rows' summed loss was divided by."""
    seconds: float = 0.0
    """This adapter's share of the time that it took."""


@dataclass(frozen=True)
class Share:
    """What one adapter has of a forward that it shares with others of its bank: some rows of a part of its own."""

    aim: Any
    part: Part
    rows: Sequence[int]

    @classmethod
    def whole(cls, aim: Any, part: Part) -> Share:
        """All rows of a part."""
        return cls(aim, part, range(len(part.examples)))


class Aim(Protocol):
    """A task posed to a bank's adapter. Rows are numbers of a part's examples."""

    name: str | None
    """The adapter; None for the plain model."""

    task: Any
    """What is learned: a `Task` or a `PromptTask`."""

    metrics: tuple[str, ...]
    """Names of the metrics; the first one selects."""

    def fit(self, part: Part) -> None:
        """Learn what the loss needs of a phase's rows (class weights, the spread of numbers)."""

    def lengths(self, part: Part) -> list[int]:
        """Tokens that each row costs."""

    def weight(self, part: Part, rows: Sequence[int]) -> float:
        """What the summed loss of a batch of these rows is divided by."""

    def judge(self, part: Part, watch: Watch | None = None) -> Judgement:
        """Answer all rows without gradients. Metrics are empty where the truth is unknown, and then so is the loss."""

    def measure(self, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Metrics of predictions for rows whose truth is known."""

    @staticmethod
    def summed(shares: Sequence[Share]) -> list[Tensor]:
        """Sum of each share's losses, scalars with gradients, in one forward; all aims of this kind and one bank."""

    @staticmethod
    def judged(shares: Sequence[Share], watch: Watch | None = None) -> list[Judgement]:
        """What `judge` gives for each share, in shared forwards."""


class ClassifyAim:
    """A head on the model: one logit a class, or a number."""

    def __init__(self, bank: Bank, name: str, task: Task, choices: Choices, balanced: bool = False) -> None:
        self.bank, self.task, self.choices, self.balanced = bank, task, choices, balanced
        self.name: str | None = name
        self.metrics = task.metrics
        self.loss: ClassifyLoss | None = None

    def fit(self, part: Part) -> None:
        """See `Aim.fit`."""
        self.loss = ClassifyLoss(self.task, part.examples, balanced=self.balanced)

    def lengths(self, part: Part) -> list[int]:
        """See `Aim.lengths`."""
        encoded: Encoded = part.encoded
        return encoded.lengths()

    def weight(self, part: Part, rows: Sequence[int]) -> float:
        """See `Aim.weight`."""
        assert self.loss is not None
        return self.loss.total_weight(self._targets(part, rows))

    def _targets(self, part: Part, rows: Sequence[int]) -> Tensor:
        assert self.loss is not None
        return self.loss.targets([part.examples[row] for row in rows], self.choices.device)

    def judge(self, part: Part, watch: Watch | None = None) -> Judgement:
        """See `Aim.judge`."""
        return self.judged([Share.whole(self, part)], watch)[0]

    @staticmethod
    def summed(shares: Sequence[Share]) -> list[Tensor]:
        """See `Aim.summed`."""
        first: ClassifyAim = shares[0].aim
        through = [share for share in shares if share.part.states is None]
        forward: Iterator[Tensor] = iter(())
        if through:
            choices, encoded, names = first.choices, *_joined(through)
            with route(first.bank, names, range(len(names))):
                logits = first.bank.logits(**encoded.batch(range(len(names)), choices.device, choices.pad_multiple))
            forward = iter(logits.split([len(share.rows) for share in through]))
        sums = []
        for share in shares:
            own = next(forward) if share.part.states is None else share.aim._head(share)
            assert share.aim.loss is not None
            targets = share.aim._targets(share.part, share.rows)
            sums.append(share.aim.loss.summed(own[:, : share.aim.task.outputs], targets))
        return sums

    def _head(self, share: Share) -> Tensor:
        """Logits of rows whose states are known."""
        assert self.name is not None
        assert share.part.states is not None
        head = self.bank[self.name].head
        assert isinstance(head, LinearHead)
        return head(share.part.states[list(share.rows)].to(head.weight.device))

    @staticmethod
    def judged(shares: Sequence[Share], watch: Watch | None = None) -> list[Judgement]:
        """See `Aim.judged`."""
        first: ClassifyAim = shares[0].aim
        through = [share for share in shares if share.part.states is None]
        rows: Iterator[Tensor] = iter(())
        if through:
            encoded, names = _joined(through)
            rows = iter(routed_logits(first.bank, names, encoded, first.choices, watch))
        found = []
        for share in shares:
            if share.part.states is None:
                logits = torch.stack([row[: share.aim.task.outputs] for row in itertools.islice(rows, len(share.rows))])
            else:
                logits = share.aim._head(share).detach().cpu()
                if watch is not None:
                    watch(len(share.rows), 0)
            found.append(share.aim._read([share.part.examples[row] for row in share.rows], logits))
        return found

    def _read(self, examples: list[Example], logits: Tensor) -> Judgement:
        predictions, rows = read_logits(logits, self.task.labels)
        if any(example.label is None for example in examples):
            return Judgement(float("nan"), {}, predictions, rows)
        loss = self.loss or ClassifyLoss(self.task, examples)
        targets = loss.targets(examples, "cpu")
        weight = loss.total_weight(targets)
        value = float(loss.summed(logits, targets)) / weight if weight else 0.0  # of classes that no training row has
        return Judgement(value, self.measure(examples, predictions), predictions, rows, weight)

    def measure(self, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """See `Aim.measure`."""
        return scores(self.metrics, examples, predictions)


def best(row: Sequence[float]) -> int:
    """The place of the highest score, the first of equals."""
    return max(range(len(row)), key=row.__getitem__)


def judged_together(shares: Sequence[Share], watch: Watch | None = None) -> list[Judgement]:
    """What `Aim.judged` gives, each rank having answered its stretch of every share's rows.

    Raises:
        BeftError: see `Ranks.gather`.
    """
    ranks, kind = here(), shares[0].aim
    if ranks.alone:
        return kind.judged(shares, watch)
    own = [Share(share.aim, share.part, ranks.stretch(share.rows)) for share in shares]
    held = [number for number, share in enumerate(own) if share.rows]
    found: list[list[Judgement]] = [[] for _ in shares]
    for some in ranks.gather(lambda: dict(zip(held, _answers(kind, [own[n] for n in held], watch), strict=True))):
        for number, judged in some.items():
            found[number].append(judged)
    return [_whole(share, pieces) for share, pieces in zip(shares, found, strict=True)]


def _answers(kind: Aim, shares: Sequence[Share], watch: Watch | None) -> list[Judgement]:
    return kind.judged(shares, watch) if shares else []


def _whole(share: Share, pieces: Sequence[Judgement]) -> Judgement:
    """The judgement of a share's rows from those of its stretches."""
    if len(pieces) == 1:
        return pieces[0]
    predictions = [each for piece in pieces for each in piece.predictions]
    rows = [each for piece in pieces for each in piece.scores]
    if not all(piece.metrics for piece in pieces):
        return Judgement(float("nan"), {}, predictions, rows)
    weight = sum(piece.weight for piece in pieces)
    loss = sum(piece.loss * piece.weight for piece in pieces) / weight if weight else 0.0
    examples = [share.part.examples[row] for row in share.rows]
    return Judgement(loss, share.aim.measure(examples, predictions), predictions, rows, weight)


def _joined(shares: Sequence[Share]) -> tuple[Encoded, list[str | None]]:
    """The rows of all shares, one after the other, and the adapter of each."""
    encoded = join([(share.part.encoded, share.rows) for share in shares])
    return encoded, [share.aim.name for share in shares for _ in share.rows]
