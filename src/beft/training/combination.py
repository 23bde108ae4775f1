"""What several seeds of the same settings did beside one alone, and the rule by which one of the ways is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import RecipeError
from ..tasks.question import PromptTask
from ..tasks.task import Task
from .folds import Paired, paired

Combine = Literal["none", "soup", "ensemble", "auto"]
ONE, SOUP, ENSEMBLE = "one", "soup", "ensemble"
RULE = "soup, then ensemble: kept if its mean gain over folds on what is kept so far is above one standard error"


@dataclass(frozen=True)
class Combination:
    """How the winner's seeds did on the last round's folds.

    `scores` holds for each way ("one", then "soup" and "ensemble" where they were compared) the score on each fold by
    its name; of "one" the mean over the seeds, each alone. `gains` compare the other ways with it, fold by fold.
    `kept` is the way of the refit, `runs` how many were trained for this.
    """

    seeds: int
    folds: int
    scores: dict[str, dict[str, float]]
    gains: dict[str, Paired]
    kept: str
    runs: int

    def expected(self, fold: str) -> float | None:
        """The score on a fold of the way that the other folds would keep; None on a fold without seeds."""
        if fold not in self.scores[ONE]:
            return None
        others = {way: [score for name, score in own.items() if name != fold] for way, own in self.scores.items()}
        return self.scores[keep(others, self.folds)][fold]


def keep(scores: Mapping[str, Sequence[float]], folds: int) -> str:
    """The way to keep, of scores on the same folds, the simplest first: another takes its place only if it gains more
    than one standard error (see `paired`) on it."""
    kept = ONE
    for way in (SOUP, ENSEMBLE):
        if way in scores and len(scores[way]) > 1:
            gain = paired([a - b for a, b in zip(scores[way], scores[kept], strict=True)], folds)
            kept = way if gain.mean > gain.error else kept
    return kept


def check_combine(combine: str, seeds: int, task: Task | PromptTask) -> list[str]:
    """The ways to compare with one seed alone.

    Raises:
        RecipeError: an unknown way, fewer than two seeds, or an ensemble of adapters that write texts.
    """
    if combine not in ("none", SOUP, ENSEMBLE, "auto"):
        raise RecipeError(f"combine {combine!r}", expected="none, soup, ensemble or auto")
    if combine != "none" and seeds < 2:
        raise RecipeError(f"seeds {seeds}", expected="at least 2 to combine", remedy="leave combine out for one")
    writes = isinstance(task, PromptTask) and task.generates
    if combine == ENSEMBLE and writes:
        raise RecipeError(
            f"combine {combine!r}",
            expected="a task with scores to average",
            found=f"{task.name}, which is answered by texts",
            remedy="use soup",
        )
    ways = {"none": [], SOUP: [SOUP], ENSEMBLE: [ENSEMBLE], "auto": [SOUP] if writes else [SOUP, ENSEMBLE]}
    return ways[combine]
