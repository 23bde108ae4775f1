"""A company: runs of one bank that learn side by side. Rows of all of them go through the frozen model together.

A round asks every run what it wants next, computes all of that in shared forwards of rows of like length, and answers.
Each run steps, selects and stops as if it were alone, for rows of a batch do not see each other: a run does not know
who learns beside it, and one that fails or ends makes room for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ..errors import Interrupted, TrainingError
from .aims import Judgement, Share, judged_together
from .batches import micro_batches
from .loop import Course, Gradients, Judging, Run, Wish
from .machine import Choices
from .memory import within_memory
from .progress import Listener
from .ranks import here
from .signals import StopRequest
from .steps import Step, take


@dataclass
class Member:
    """A run with all that it wants, to its very end; `failed` takes the error that ends it early."""

    run: Run
    course: Course
    failed: Callable[[TrainingError], None]
    wish: Wish | None = field(default=None, init=False)


class Company:
    """Drives members of one bank, whose aims are of one kind."""

    def __init__(self, choices: Choices, listener: Listener, stop: StopRequest) -> None:
        self.choices, self.listener, self.stop = choices, listener, stop

    def learn(self, members: Iterator[Member], at_once: int) -> None:
        """Take members, at most `at_once` at a time, each when there is room, until all have ended.

        Raises:
            TrainingError: memory too small for one row of a run.
            Interrupted: a signal came; every run has its checkpoint on disk.
        """
        active: list[Member] = []
        try:
            while True:
                while len(active) < at_once and (member := next(members, None)) is not None:
                    if self._advance(member, None):  # one without a wish has ended at once
                        active.append(member)
                if not active:
                    return
                active = self._grant(active, Gradients, self._gradients)
                active = self._grant(active, Step, self._steps)
                active = self._grant(active, Judging, self._judge)  # what a run needs to go on is not broken off
                active = self._grant(active, Judging, self._judge, final=True)
                if here().hears(self.stop):
                    here().each(lambda: self.stop.check("stopped between two steps"))
        except Interrupted:
            self._save(active)
            raise

    def _save(self, members: Sequence[Member]) -> None:
        """Write the checkpoints of those between two steps or at the end: one that waits for its dev rows has not ended
        its epoch."""
        for member in members:
            if isinstance(member.wish, Gradients) or (isinstance(member.wish, Judging) and member.wish.final):
                member.run.save()

    def _advance(self, member: Member, answer: Any) -> bool:
        """Let a member go on to its next wish; whether it has one."""
        try:
            member.wish = member.course.send(answer)
        except (StopIteration, Interrupted):  # interrupted: it has written its checkpoint, and `stop` remembers
            return False
        except TrainingError as error:
            member.failed(error)
            return False
        return True

    def _grant(
        self,
        members: list[Member],
        kind: type,
        answers: Callable[[list[Member]], Sequence[Any]],
        final: bool = False,
    ) -> list[Member]:
        """Answer all wishes of a kind together, and let them go on; members without those that have ended."""
        wishing = [
            each for each in members if isinstance(each.wish, kind) and getattr(each.wish, "final", False) == final
        ]
        if not wishing:
            return members
        answered = zip(wishing, answers(wishing), strict=True)
        gone = {id(each) for each, answer in answered if not self._advance(each, answer)}
        return [each for each in members if id(each) not in gone]

    def _steps(self, members: Sequence[Member]) -> list[tuple[float, float]]:
        """Everyone's step; the norms of their gradients, and each one's share of the seconds."""
        began = time.perf_counter()
        norms = take([each.wish for each in members if isinstance(each.wish, Step)])
        seconds = (time.perf_counter() - began) / len(members)
        return [(norm, seconds) for norm in norms]

    def _judge(self, members: Sequence[Member]) -> list[Judgement]:
        wishes = [each.wish for each in members if isinstance(each.wish, Judging)]
        shares = [Share.whole(each.run.aim, wish.part) for each, wish in zip(members, wishes, strict=True)]
        watch = (lambda rows, left: self.stop.check("stopped in the evaluation")) if wishes[0].final else None
        began = time.perf_counter()
        judged = judged_together(shares, watch)
        a_row = (time.perf_counter() - began) / max(1, sum(len(share.rows) for share in shares))
        return [replace(each, seconds=a_row * len(share.rows)) for each, share in zip(judged, shares, strict=True)]

    def _gradients(self, members: Sequence[Member]) -> list[tuple[float, float]]:
        """Gradients in every member's leaves; each one's loss, and its share of the seconds by tokens."""
        wishes = [each.wish for each in members if isinstance(each.wish, Gradients)]
        lengths = [wish.lengths[row] for wish in wishes for row in wish.rows]
        began = time.perf_counter()
        leaves = [leaf for member in members for leaf in member.run.leaves.values()]
        own = partial(self._sum_up, members, wishes, lengths)
        fitting = partial(within_memory, own, self.choices, max(lengths), self.listener)
        values = here().summed(fitting, len(members), leaves)
        a_token = (time.perf_counter() - began) / sum(lengths)
        tokens = [sum(wish.lengths[row] for row in wish.rows) for wish in wishes]
        return [(value, count * a_token) for value, count in zip(values, tokens, strict=True)]

    def _sum_up(self, members: Sequence[Member], wishes: Sequence[Gradients], lengths: list[int]) -> list[float]:
        """One forward and backward a micro-batch, whichever runs its rows belong to; a rank takes its own rows."""
        for member in members:
            member.run.optimiser.zero_grad()
        owners = [(number, row) for number, wish in enumerate(wishes) for row in wish.rows]
        weights = [member.run.aim.weight(wish.part, wish.rows) for member, wish in zip(members, wishes, strict=True)]
        values = [0.0] * len(wishes)
        for piece in micro_batches(here().dealt(range(len(owners)), lengths), lengths, **self.choices.cutting()):
            rows: dict[int, list[int]] = {}
            for number, row in (owners[place] for place in sorted(piece)):
                rows.setdefault(number, []).append(row)
            shares = [Share(members[number].run.aim, wishes[number].part, own) for number, own in rows.items()]
            sums = members[0].run.aim.summed(shares)
            losses = torch.stack([loss / weights[number] for number, loss in zip(rows, sums, strict=True)])
            losses.sum().backward()
            for number, value in zip(rows, losses.detach().tolist(), strict=True):
                values[number] += value
        return values
