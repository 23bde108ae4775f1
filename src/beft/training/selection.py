"""Which epoch a run keeps: of dev rows' scores, or of the evaluation rows' as the paper has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tasks.metrics import standard_error
from .aims import Judgement
from .checkpoint import Position
from .recipe import Recipe

HELD_PATIENCE = 8
"""Epochs without a lower dev loss after which a held head stops, if the recipe says nothing: eight of eight draws of
100 rows of mrpc and rte kept the epoch that 32 epochs keep, and stopped after 18 on average."""


def dev_scores(judged: Judgement) -> dict[str, float]:
    """A judgement of dev rows, as a run's history has it."""
    return {"dev_loss": judged.loss, **{f"dev_{name}": each for name, each in judged.metrics.items()}}


def is_kept(position: Position, recipe: Recipe, metric: str, rows: int, found: dict[str, float]) -> bool:
    """Whether the epoch at hand, whose `dev_scores` on so many rows were found, is the one to keep so far.

    On dev rows: of those from the lowest dev loss on, the last epoch within one standard error of the best score.
    Dev rows are few: an epoch whose loss is still falling may score well by luck, and a learning rate that has come
    down makes the surer adapter. The paper's selection: the first epoch with the best score. A head that is held where
    it began: the epoch of the lowest dev loss, the start among them, for it has no way to come from there.
    """
    score, loss = found[f"dev_{metric}"], found["dev_loss"]
    before = [row["dev_loss"] for row in _select(position)]
    if position.start is not None:
        gained = loss < min([position.start["dev_loss"], *before])
        position.epochs_without_gain = 0 if gained else position.epochs_without_gain + 1
        return gained
    gained = position.best_score is None or score > position.best_score
    position.epochs_without_gain = 0 if gained else position.epochs_without_gain + 1
    fell = recipe.selection == "dev" and all(loss < each for each in before)
    if gained or fell or position.best_score is None:
        position.best_score = score
        return True
    if recipe.selection == "evaluation":
        return False
    return score >= position.best_score - standard_error(metric, position.best_score, rows)


def out_of_patience(position: Position, recipe: Recipe) -> bool:
    """Whether so many epochs were no better that the phase ends."""
    most = recipe.patience or (HELD_PATIENCE if position.start is not None else 0)
    return 0 < most <= position.epochs_without_gain


def kept_scores(position: Position, metrics: Sequence[str]) -> dict[str, float]:
    """Dev metrics of what is kept; empty without a choice."""
    row = _select(position)[position.best_epoch - 1] if position.best_epoch else position.start
    return {} if row is None else {name: row[f"dev_{name}"] for name in metrics}


def _select(position: Position) -> list[dict[str, Any]]:
    """What the epochs of the first phase were like."""
    return [row for row in position.history if row["phase"] == "select"]
