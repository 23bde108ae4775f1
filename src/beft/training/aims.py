"""What a run aims at: the loss of its rows, their cost, and how it is judged. The loop knows no more of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..core.bank import Bank
from ..objectives.classify import ClassifyLoss, read_logits, scores
from ..objectives.encode import Encoded
from ..tasks.task import Task
from .infer import Watch, predict_logits
from .machine import Choices


@dataclass
class Part:
    """Examples (or questions) with their tokens; `learned` are tokens to learn from, where others are judged."""

    examples: list[Any]
    encoded: Any
    learned: Any = None

    def take(self, rows: Sequence[int]) -> Part:
        """The same for some of the rows."""
        learned = None if self.learned is None else self.learned.take(rows)
        return Part([self.examples[row] for row in rows], self.encoded.take(rows), learned)


@dataclass
class Judgement:
    """How rows were answered: mean loss, metrics by name, and for each row its prediction and scores."""

    loss: float
    metrics: dict[str, float]
    predictions: list[Any] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)


class Aim(Protocol):
    """A task posed to a bank's adapter. Rows are numbers of a part's examples."""

    metrics: tuple[str, ...]
    """Names of the metrics; the first one selects."""

    def fit(self, part: Part) -> None:
        """Learn what the loss needs of a phase's rows (class weights, the spread of numbers)."""

    def lengths(self, part: Part) -> list[int]:
        """Tokens that each row costs."""

    def weight(self, part: Part, rows: Sequence[int]) -> float:
        """What the summed loss of a batch of these rows is divided by."""

    def summed(self, part: Part, rows: Sequence[int]) -> Tensor:
        """Sum of these rows' losses under the current route, a scalar with gradients."""

    def judge(self, part: Part, watch: Watch | None = None) -> Judgement:
        """Answer all rows without gradients. Metrics are empty where the truth is unknown, and then so is the loss."""


class ClassifyAim:
    """A head on the model: one logit a class, or a number."""

    def __init__(self, bank: Bank, name: str, task: Task, choices: Choices, balanced: bool = False) -> None:
        self.bank, self.name, self.task, self.choices, self.balanced = bank, name, task, choices, balanced
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

    def summed(self, part: Part, rows: Sequence[int]) -> Tensor:
        """See `Aim.summed`."""
        assert self.loss is not None
        batch = part.encoded.batch(rows, self.choices.device, self.choices.pad_multiple)
        return self.loss.summed(self.bank.logits(**batch), self._targets(part, rows))

    def _targets(self, part: Part, rows: Sequence[int]) -> Tensor:
        assert self.loss is not None
        return self.loss.targets([part.examples[row] for row in rows], self.choices.device)

    def judge(self, part: Part, watch: Watch | None = None) -> Judgement:
        """See `Aim.judge`."""
        logits = predict_logits(self.bank, self.name, part.encoded, self.choices, watch)
        predictions, rows = read_logits(logits, self.task.labels)
        if any(example.label is None for example in part.examples):
            return Judgement(float("nan"), {}, predictions, rows)
        loss = self.loss or ClassifyLoss(self.task, part.examples)
        targets = loss.targets(part.examples, "cpu")
        value = float(loss.summed(logits, targets)) / loss.total_weight(targets)
        return Judgement(value, scores(self.metrics, part.examples, predictions), predictions, rows)
