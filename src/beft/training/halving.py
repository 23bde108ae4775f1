"""Successive halving: how many candidates meet on how many folds, within a number of runs.

The last two meet on all folds of fresh repeats; before them four on all folds, eight on three folds with half of the
epochs, and as many as the budget holds on two folds with a third of the epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RecipeError

EARLY = ((3, 1 / 2), (2, 1 / 3))
"""Folds and share of the epochs of the rounds before those on all folds, the latest first."""
FINALISTS = 2


@dataclass(frozen=True)
class Round:
    """So many candidates, each on the first `folds` folds of so many repeats, with a share of their epochs.

    Repeat 0 serves the rounds before the last; the last has repeats of its own unless there was no round before it.
    """

    candidates: int
    folds: int
    repeats: int
    share: float

    @property
    def runs(self) -> int:
        """Runs that it takes."""
        return self.candidates * self.folds * self.repeats


def plan_rounds(candidates: int, folds: int, repeats: int, runs: int) -> list[Round]:
    """The rounds of a search over so many candidates, of which only the first ones enter a short budget.

    Args:
        repeats: of the last round, fewer if the budget is short.

    Raises:
        RecipeError: a budget that does not hold one candidate on every fold.
    """
    if runs < folds:
        raise RecipeError(
            f"a budget of {runs} run{'s' if runs != 1 else ''}",
            expected=f"at least {folds}, one candidate on each of {folds} folds",
            found="less",
            remedy="raise --runs or --minutes, or lower --folds",
        )
    if candidates <= FINALISTS or runs < 3 * FINALISTS * folds:  # too little for four and then two on all folds
        entering = min(candidates, runs // folds)
        return [Round(entering, folds, max(1, min(repeats, runs // (entering * folds))), 1.0)]
    repeats = max(1, min(repeats, runs // (3 * FINALISTS * folds)))
    rounds = [Round(FINALISTS, folds, repeats, 1.0)]
    left, kept = runs - rounds[0].runs, FINALISTS
    levels = [(folds, 1.0), *((min(part, folds), share) for part, share in EARLY)]
    for place, (part, share) in enumerate(levels):
        most = min(candidates, left // part)
        if most <= kept:
            break
        after = left - 2 * kept * part
        deeper = place + 1 < len(levels) and candidates > 2 * kept and after // levels[place + 1][0] > 2 * kept
        entering = min(2 * kept, most) if deeper else most
        rounds.append(Round(entering, part, 1, share))
        left, kept = left - entering * part, entering
        if not deeper:
            break
    return rounds[::-1]
