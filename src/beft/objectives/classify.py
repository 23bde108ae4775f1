"""The classify objective: logits from a head, cross-entropy (or squared error for a number to predict)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tasks.metrics import measure
from ..tasks.task import Example, Task


class ClassifyLoss:
    """Loss of a batch's rows, to be summed over micro-batches and divided by `total_weight` of the whole batch."""

    def __init__(self, task: Task, rows: Sequence[Example], balanced: bool = False) -> None:
        self.regression = task.regression
        self.weights: Tensor | None = None
        gold = [float(row.label) for row in rows if row.label is not None]
        self.spread = 1.0
        if self.regression:
            self.spread = float(np.std(gold)) or 1.0
        elif balanced:
            counts = np.bincount(np.asarray(gold, dtype=int), minlength=task.outputs)
            present = counts > 0
            weights = np.where(present, len(gold) / (present.sum() * np.maximum(counts, 1)), 0.0)
            self.weights = torch.tensor(weights, dtype=torch.float32)

    def targets(self, rows: Sequence[Example], device: torch.device | str) -> Tensor:
        """Labels of rows as a tensor."""
        dtype = torch.float32 if self.regression else torch.int64
        return torch.tensor([row.label for row in rows], dtype=dtype, device=device)

    def total_weight(self, targets: Tensor) -> float:
        """What the summed loss of a batch is divided by."""
        if self.weights is None:
            return float(len(targets))
        return float(self.weights.to(targets.device)[targets].sum())

    def summed(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum of the rows' losses, a scalar. Squared errors are in units of the training labels' variance."""
        if self.regression:
            return ((logits[:, 0] - targets) / self.spread).square().sum()
        weights = None if self.weights is None else self.weights.to(logits.device)
        return torch.nn.functional.cross_entropy(logits, targets, weight=weights, reduction="sum")


def read_logits(logits: Tensor, task_labels: Sequence[str] | None) -> tuple[list[float], list[list[float]]]:
    """Predictions (class numbers, or numbers) and scores (probabilities, or the number itself) of rows."""
    if task_labels is None:
        values = logits[:, 0].double().tolist()
        return values, [[value] for value in values]
    probabilities = logits.double().softmax(-1)
    return probabilities.argmax(-1).tolist(), probabilities.tolist()


def scores(metrics: Sequence[str], examples: Sequence[Example], predictions: Sequence[float]) -> dict[str, float]:
    """Metrics of predictions against the examples' labels."""
    gold = [float(example.label) for example in examples if example.label is not None]
    return measure(metrics, gold, predictions)
