"""What a run gives, from its beginning to its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tasks.question import PromptTask
from ..tasks.task import Task
from .aims import Part
from .machine import Choices
from .recipe import Recipe

if TYPE_CHECKING:
    from .loop import Run


@dataclass
class Result:
    """What a run gave: `metrics` as in metrics.json, predictions of each evaluation split, and where files lie."""

    metrics: dict[str, Any]
    directory: Path | None
    task: Task | PromptTask
    recipe: Recipe
    choices: Choices
    history: list[dict[str, Any]]
    predictions: dict[str, list[float]] = field(default_factory=dict)
    probabilities: dict[str, list[list[float]]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def evaluation(self) -> dict[str, float]:
        """Metrics on the (first) evaluation split."""
        return dict(self.metrics.get("evaluation") or {})


@dataclass
class Begun:
    """A run before its first step: the result to be completed, the evaluation's tokens, and what beft.json will say."""

    run: Run
    result: Result
    evaluation: dict[str, Part]
    description: dict[str, Any]
    model: str
