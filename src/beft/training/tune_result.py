"""What tuning gives: its trials, and what was chosen of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..tasks.question import PromptTask
from ..tasks.task import Task
from .combination import ONE, Combination
from .folds import Fold, Paired
from .halving import Round
from .result import Result
from .space import Candidate


@dataclass(frozen=True)
class Trial:
    """One run: a candidate on a fold.

    `score` is None if it failed or is not a number; `baseline` is what the frozen model gives there.
    """

    round: int
    candidate: Candidate
    fold: Fold
    epochs: int
    score: float | None
    baseline: float | None
    metrics: dict[str, float]
    seconds: float
    error: str = ""


@dataclass
class TuneResult:
    """What tuning found.

    `winner` are the settings, `refitted` the run on all rows with them. `expected` is the mean and spread over folds of
    the score to expect: on each fold that of the finalist which the other folds would choose. `baseline` is the same of
    logistic regression on frozen states (ridge for numbers; of prompts: the plain model) on the same folds, and
    `difference` compares the two fold by fold; both None where there is none. `combination` says how several seeds did
    beside one, where that was asked; `kept` which of them the refit is. `trials` are all runs, `recommendation` one
    sentence.
    """

    task: Task | PromptTask
    winner: Candidate
    refitted: Result
    metric: str
    folds: int
    expected: dict[str, float]
    baseline: dict[str, float] | None
    difference: Paired | None
    combination: Combination | None
    recommendation: str
    trials: list[Trial]
    rounds: list[Round]
    seconds: float
    directory: Path | None = None
    notices: list[str] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """Of cross-validation, those that compare several seeds included."""
        return len(self.trials) + (0 if self.combination is None else self.combination.runs)

    @property
    def kept(self) -> str:
        """ "one" seed, the "soup" or the "ensemble" of several."""
        return ONE if self.combination is None else self.combination.kept
