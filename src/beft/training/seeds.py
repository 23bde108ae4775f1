"""Several seeds of the same settings: one alone, a soup of them, or an ensemble, whichever cross-validation says.

A soup is one adapter, the mean of the seeds' adapters, heads included ("Model soups", arXiv 2203.05482). An ensemble
sends every row through each of them, in one routed pass, and averages their scores. The folds are those of a search's
last round, where the first seed has run already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ..core.adapter import Adapter
from ..core.bank import Bank
from ..core.restore import load_adapter
from .aims import Share, judged_together
from .combination import ENSEMBLE, ONE, SOUP, Combination, keep
from .ensemble import combined, of_adapter
from .folds import Fold, paired
from .plan import HELD_OUT, Plan
from .progress import BankListener
from .ranks import here
from .search import Search, bank_of, finite
from .signals import StopRequest
from .space import Candidate


def compare_seeds(search: Search, winner: Candidate, ways: Sequence[str], seeds: int) -> Combination | None:
    """Train the winner's further seeds on folds of the last round, as many as the budget holds, and compare; None, and
    a notice, if it holds too few.

    Raises:
        What `train_many` raises.
    """
    more, folds = seeds - 1, search.folds
    left = search.journal.decide("runs for seeds", lambda: search.left([winner], seeds))
    repeats = 0 if search.cut_short else min(search.rounds[-1].repeats, left // (more * folds))
    dealt = dict.fromkeys(trial.fold.repeat for trial in search.last_trials())
    chosen = list(dealt)[:repeats]
    held = [t.fold for t in search.last_trials() if t.candidate is winner and t.fold.repeat in chosen]
    if not held:
        search.notices.append("the time did not suffice for further seeds: one is kept")
        return None
    search.listener.note(f"{more} more seed{'s' if more > 1 else ''} of the best candidate on {len(held)} folds")
    plans = {
        (fold, number): Plan(
            f"{fold.name}-seed{number}",
            winner.shortened(1.0, search.seed + fold.repeat + number),
            rows=fold.rows,
            judged=fold.judged,
        )
        for fold in held
        for number in range(1, seeds)
    }
    found = bank_of(
        search.model, search.task, list(plans.values()), search.journal, "seeds", search.listener, search.options,
        with_baselines=False,
    )  # fmt: skip
    directory, first = search.journal.directory, search.journal.directory / search.bank_name
    members = {
        fold: [
            first / f"{winner.name}-{fold.name}",
            *(directory / "seeds" / plans[fold, n].name for n in range(1, seeds)),
        ]
        for fold in held
        if all(plans[fold, number].name in found.results for number in range(1, seeds))
    }
    scores = _judge(search, winner, members, [ONE, *ways])
    if len(scores[ONE]) < 2:
        search.notices.append("seeds failed or have no score on nearly all folds: one is kept")
        return None
    gains = {way: paired([score - scores[ONE][name] for name, score in scores[way].items()], folds) for way in ways}
    kept = keep({way: list(own.values()) for way, own in scores.items()}, folds)
    return Combination(seeds, folds, scores, gains, kept, len(plans))


def _judge(
    search: Search, winner: Candidate, members: Mapping[Fold, Sequence[Path]], ways: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Scores of each way by fold; folds on which one has no score are left out."""
    scores: dict[str, dict[str, float]] = {way: {} for way in ways}
    if not members:
        return scores
    recipe = replace(winner.recipe, head_start="zero", head_penalty="none")  # of loaded adapters it does not matter
    metric = search.task.metrics[0]
    plans = [
        Plan(fold.name, recipe, rows=fold.rows, judged=fold.judged).resolve(search.task, search.model)
        for fold in members
    ]
    with StopRequest() as stop:
        ground = search.open_ground(plans[0])
        for plan, (fold, folders) in zip(plans, members.items(), strict=True):
            begun = ground.begin(plan, None, BankListener(), stop, with_baselines=False)
            part, aim = begun.evaluation[HELD_OUT], begun.run.aim
            names = [load_adapter(ground.bank, folder, f"seed{number}").name for number, folder in enumerate(folders)]
            soup = make_soup(ground.bank, names).name
            judged = judged_together([Share.whole(of_adapter(aim, name), part) for name in (*names, soup)])
            alone, of_soup = judged[:-1], judged[-1]
            found = {
                ONE: fmean(each.metrics[metric] for each in alone),
                SOUP: of_soup.metrics[metric],
            }
            if ENSEMBLE in ways:
                found[ENSEMBLE] = combined(aim, part, alone).metrics[metric]
            if all(finite(found[way]) is not None for way in ways):
                for way in ways:
                    scores[way][fold.name] = found[way]
            for name in (*names, soup, plan.name):
                ground.bank.remove(name)
            if here().hears(stop):
                here().each(lambda: stop.check("stopped while seeds were compared"))
        ground.bank.detach()
    return scores


def make_soup(bank: Bank, names: Sequence[str], name: str = SOUP) -> Adapter:
    """Add the mean of adapters, their heads included."""
    return bank.combine(name, dict.fromkeys(names, 1 / len(names)))
