"""The runs of a bank dealt to Ray's workers: each trains its own as a bank; what a dead one leaves goes to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BeftError, WorkersError
from ..files import write_all
from .banks import BankOptions, Ended, train_banks
from .cluster import described
from .ended import Finished, find_ended
from .machine import Choices, choose
from .many_folder import open_bank, take_bank
from .plan import Plan
from .progress import BankListener
from .ranks import own_threads
from .relay import RelayedBank, Retelling
from .result import Result
from .signals import StopRequest
from .work import deal, most_steps
from .worker import Marked, marked
from .workers import LOSSES, Event, Job, Lost, Pool, handed_on, staff

Machine = tuple[str, str, int, int | None]
"""What `choose` is asked: device, precision, longest row and token budget."""
ENDED, TOLD = "ended", "told"
"""Events: a run has ended (its name, what it gave, its files); or what a `RelayedBank` sends."""


def train_spread(
    address: str,
    model: str,
    plans: Sequence[Plan],
    directory: Path | None,
    machine: Machine,
    options: BankOptions,
    listener: BankListener,
    ended: Ended,
    *,
    overwrite: bool,
) -> dict[str, Finished]:
    """Train plans (resolved) in workers. Gives the runs that a resumed bank had already; `ended` takes the others.

    Raises:
        WorkersError: Ray cannot be had, or a run whose workers died again and again.
        Interrupted: a signal asked to stop; every run has its checkpoint.
        And what `train_banks` and `take_bank` raise.
    """
    if directory is not None:  # what is wrong with it is said before Ray starts
        open_bank(directory, model, plans, choose("cpu", "fp32"), resume=options.resume, overwrite=overwrite)
    device, dtype, longest, budget = machine
    with staff(address, len(plans), device, model) as pool, StopRequest(directory is not None) as stop:
        choices: Choices = pool.ask(_choose, (pool.layout.device, dtype, longest, budget))
        choices.threads = own_threads()  # what bank.json says is for a bank in one process
        done = take_bank(directory, model, plans, choices, options.resume, overwrite, listener)
        choices.threads = pool.layout.threads
        todo = [plan for plan in plans if plan.name not in done]
        listener.note(f"Ray at {address}: {described(pool.layout)}")
        listener.begin({plan.name: most_steps(plan) for plan in todo}, list(done))
        _Spread(pool, model, directory, choices, options, listener, ended).train(todo, stop)
    return done


class _Spread:
    """The driver's side: deals, listens, and deals again what was lost."""

    def __init__(
        self,
        pool: Pool,
        model: str,
        directory: Path | None,
        choices: Choices,
        options: BankOptions,
        listener: BankListener,
        ended: Ended,
    ) -> None:
        self.pool, self.model, self.directory, self.choices, self.options = pool, model, directory, choices, options
        self.place: Marked | None = None
        self.listener, self.retelling, self.ended = listener, Retelling(listener), ended
        self.left: dict[str, Plan] = {}
        self.losses: Counter[str] = Counter()

    def train(self, plans: Sequence[Plan], stop: StopRequest) -> None:
        """Train plans to their ends, in whichever workers.

        Raises:
            WorkersError: the runs that were given up, when all others have ended.
        """
        self.left = {plan.name: plan for plan in plans}
        reason = ""
        with nullcontext() if self.directory is None else marked(self.directory) as self.place:
            for each in self.pool.work([self._job(hand) for hand in deal(plans, self.pool.size)], stop):
                if isinstance(each, Event):
                    self._hear(*each.parts)
                elif isinstance(each, Lost):
                    reason = each.reason
                    self._lost(each.job.tag, reason)
        if self.left:
            raise WorkersError(
                f"run{'s' if len(self.left) > 1 else ''} {', '.join(map(repr, self.left))}",
                expected="a worker that lives to the end",
                found=f"{LOSSES} that did not; last, {reason}",
                remedy="give it more memory or fewer neighbours; --resume repeats no finished run",
            )

    def _job(self, plans: Sequence[Plan], again: bool = False) -> Job:
        options = replace(self.options, resume=True) if again else self.options
        arguments = (self.model, list(plans), self.place, self.choices, options)
        return Job(_train_bank, arguments, tag=[plan.name for plan in plans])

    def _hear(self, kind: str, *parts: Any) -> None:
        if kind == TOLD and parts[1] != "ended":
            self.retelling.tell(*parts)
        elif kind == ENDED:
            name, outcome, files = parts
            if files and self.directory is not None:
                write_all(self.directory / name, files)
            self._end(name, outcome)

    def _end(self, name: str, outcome: Result | BeftError) -> None:
        plan = self.left.pop(name)
        if isinstance(outcome, Result):
            outcome.task = plan.own_task()
            outcome.directory = None if self.directory is None else self.directory / name
            self.ended(name, outcome)
            self.listener.ended(name, outcome.evaluation, None)
        else:
            self.ended(name, outcome)
            self.listener.ended(name, None, outcome)

    def _lost(self, names: Sequence[str], reason: str) -> None:
        """Hand on what a dead worker has not done. Runs that ended without its telling so are in the folder."""
        for plan in [self.left[name] for name in names if name in self.left]:
            done = (
                None
                if self.directory is None
                else find_ended(self.directory / plan.name, self.model, plan, self.choices)
            )
            outcome = None if done is None else done.result or done.error
            if outcome is not None:
                self._end(plan.name, outcome)
        left = [self.left[name] for name in names if name in self.left]
        self.losses.update(plan.name for plan in left)
        again = [plan for plan in left if self.losses[plan.name] < LOSSES]
        self.listener.note(handed_on(reason, len(again), "run"))
        for plan in again:
            self.retelling.forget(plan.name)
            self.listener.restarted(plan.name)
        if again:
            self.pool.again(self._job(again, again=True))


# ---- in the worker ---------------------------------------------------------------------------------------------------


def _choose(send: Callable[..., None], machine: Machine) -> Choices:
    return choose(*machine)


def _train_bank(
    send: Callable[..., None],
    model: str,
    plans: Sequence[Plan],
    place: Marked | None,
    choices: Choices,
    options: BankOptions,
) -> None:
    """Train plans here; on a disk that is not the driver's, the files of an ended run are sent to it."""
    with nullcontext((None, True)) if place is None else place.here() as (directory, shared), StopRequest() as stop:

        def ended(name: str, outcome: Result | BeftError) -> None:
            files = {}
            if directory is not None and not shared:
                files = {path.name: path.read_bytes() for path in (directory / name).iterdir() if path.is_file()}
            if isinstance(outcome, Result):
                outcome = replace(outcome, task=None, directory=None)  # type: ignore[arg-type]
            send(ENDED, name, outcome, files)

        def tell(*event: Any) -> None:
            send(TOLD, *event)

        train_banks(model, plans, directory, choices, options, RelayedBank(tell), stop, ended)
