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
    from ..methods.method import Method
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
    """A run before its first step, its method, the result to be completed, and what beft.json will say of it."""

    run: Run
    method: Method
    result: Result
    evaluation: dict[str, Part]
    description: dict[str, Any]
    model: str
