"""Jobs handed to Ray's workers: each takes the next when it is free, and one that dies is replaced."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..errors import BeftError, Interrupted, WorkersError
from .cluster import Layout, arrange, connected
from .signals import StopRequest
from .worker import Outcome, Place, Setup, Worker

PATIENCE = 120.0
"""Seconds that workers may take to start, importing torch included."""
LOSSES = 3
"""Workers that may die on one run before it is given up."""
PULSE = 0.5
"""Seconds after which a signal is noticed at the latest."""
GRACE = 60.0
"""Seconds that workers may take to write their checkpoints when they are asked to stop."""
_staffed: dict[str, Pool] = {}


@dataclass(frozen=True)
class Job:
    """Something to do in a worker: `function(send, *args)`, a function of a module; `tag` is the caller's own."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    tag: Any = None


@dataclass(frozen=True)
class Event:
    """What a job sent."""

    job: Job
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Done:
    """A job that has ended, with its value."""

    job: Job
    value: Any


@dataclass(frozen=True)
class Lost:
    """A job whose worker died, and what Ray says of that."""

    job: Job
    reason: str


@dataclass
class _Hand:
    """A worker and what it is asked: where it is (until it says so), a job, what is new."""

    actor: Any
    place: Any
    at: str = "that starts"
    since: float = field(default_factory=time.monotonic)
    job: Job | None = None
    doing: Any = None
    hearing: Any = None

    @property
    def asked(self) -> list[Any]:
        """Answers that are awaited."""
        return [each for each in (self.place, self.doing, self.hearing) if each is not None]


class Pool:
    """Workers of one kind. `size` is how many are wanted; there are fewer while one starts."""

    def __init__(self, ray: Any, layout: Layout, where: str) -> None:
        self.ray, self.layout, self.where, self.size = ray, layout, where, layout.workers
        self._kind = ray.remote(concurrency_groups={"control": 2})(Worker).options(
            num_cpus=1 if layout.gpus else layout.threads, num_gpus=layout.gpus, max_restarts=0
        )
        self._setup = Setup.like_here(layout.threads, layout.sharers)
        self._hands: list[_Hand] = []
        self._again: deque[Job] = deque()
        self._failed_starts = 0
        self._free = self._resources()
        for _ in range(self.size):
            self._hire()

    def work(self, jobs: Iterable[Job], stop: StopRequest) -> Iterator[Event | Done | Lost]:
        """Do the jobs, as workers fall free, and tell what happens. A lost job is over, unless it is given to `again`.

        Raises:
            BeftError: what a job raised; the others are asked to stop first.
            Interrupted: a signal came; all jobs have stopped.
            WorkersError: no worker lives, and none can be started.
        """
        coming, error, told = iter(jobs), None, 0.0
        while True:
            stopping = error is not None or stop.received is not None
            if stopping and not told:
                told = time.monotonic()
                self._ask_to_stop(stop.received or signal.SIGTERM)
            more = not stopping and self._hand_out(coming)
            if not more and not any(hand.job for hand in self._hands):
                break
            if told and time.monotonic() - told > GRACE:
                break
            asked = {ref: hand for hand in self._hands for ref in hand.asked}
            for ref in self.ray.wait(list(asked), num_returns=1, timeout=PULSE)[0]:
                try:
                    yield from self._heard(asked[ref], ref)
                except Exception as raised:
                    error = error or (None if isinstance(raised, Interrupted) else raised)
        self._again.clear()
        if told:  # a worker that was asked to stop does not begin again
            self._dismiss()
        if error is not None:
            raise error
        stop.check("stopped between two steps")

    def again(self, job: Job) -> None:
        """Hand out a job before all others."""
        self._again.append(job)

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function(send, *args)` gives in some worker."""
        done = [each for each in self.work([Job(function, args)], StopRequest()) if not isinstance(each, Event)]
        if not isinstance(done[0], Done):
            raise WorkersError(f"a worker of Ray at {self.where}", expected="an answer", found=done[0].reason)
        return done[0].value

    def close(self) -> None:
        """End all workers, and wait a little until Ray has their resources back."""
        self._dismiss()
        until = time.monotonic() + 3
        while self._resources() < self._free and time.monotonic() < until:
            time.sleep(0.05)

    def _dismiss(self) -> None:
        for hand in self._hands:
            self.ray.kill(hand.actor)
        self._hands = []

    # ---- handing out -------------------------------------------------------------------------------------------------

    def _hand_out(self, coming: Iterator[Job]) -> bool:
        """Give every free worker a job, and start workers where jobs wait for one; whether jobs are left."""
        while (job := self._again.popleft() if self._again else next(coming, None)) is not None:
            free = next((hand for hand in self._hands if hand.place is None and hand.job is None), None)
            if free is None:
                self._again.appendleft(job)
                if len(self._hands) < self.size:
                    self._hire()
                self._check_starts()
                return True
            free.job = job
            free.doing = free.actor.do.remote(job.function, job.args)
            free.hearing = self._control(free, "hear")
        return False

    def _hire(self) -> None:
        actor = self._kind.remote(self._setup)
        self._hands.append(_Hand(actor, actor.place.remote()))

    def _check_starts(self) -> None:
        """Raise WorkersError if nobody works, and nobody has come for too long."""
        starting = [hand for hand in self._hands if hand.place is not None]
        if len(starting) == len(self._hands) and time.monotonic() - max(hand.since for hand in starting) > PATIENCE:
            raise WorkersError(
                f"Ray at {self.where}",
                expected=f"a worker (processors: {self.layout.threads}, GPUs: {self.layout.gpus})",
                found=f"none that started in {PATIENCE:.0f} s",
                remedy="see whether its resources are free (ray status); --resume goes on with what is not done",
            )

    def _ask_to_stop(self, number: int) -> None:
        for hand in self._hands:
            if hand.job is not None:
                self._control(hand, "stop", number)

    def _control(self, hand: _Hand, method: str, *args: Any) -> Any:
        """Ask a worker beside what it does."""
        return getattr(hand.actor, method).options(concurrency_group="control").remote(*args)

    def _resources(self) -> tuple[float, float]:
        free = self.ray.available_resources()
        return free.get("GPU", 0.0), free.get("CPU", 0.0)

    # ---- hearing -----------------------------------------------------------------------------------------------------

    def _heard(self, hand: _Hand, ref: Any) -> Iterator[Event | Done | Lost]:
        """What an answer of a worker says; raises what its job raised."""
        job, before = hand.job, []
        try:
            answer = self.ray.get(ref)
            if ref == hand.doing:
                before = self.ray.get(hand.hearing)
        except self.ray.exceptions.RayError as error:
            yield from self._dead(hand, error)
            return
        if ref == hand.place:
            self._welcome(hand, answer)
            return
        assert job is not None
        if ref == hand.hearing:
            hand.hearing = self._control(hand, "hear")
            yield from (Event(job, parts) for parts in answer)
            return
        hand.job = hand.doing = hand.hearing = None
        outcome: Outcome = answer
        yield from (Event(job, parts) for parts in (*before, *outcome.events))
        if outcome.error is None:
            yield Done(job, outcome.value)
            return
        if not isinstance(outcome.error, BeftError):
            outcome.error.add_note(f"in the worker {hand.at}:\n{outcome.trace}")
        raise outcome.error

    def _welcome(self, hand: _Hand, outcome: Outcome) -> None:
        """A worker has started, or failed to."""
        hand.place = None
        if outcome.error is not None:
            raise outcome.error
        place: Place = outcome.value
        hand.at = f"{place.pid} on {place.host}"
        if place.version != __version__:
            raise WorkersError(
                f"the worker {hand.at}",
                expected=f"beft {__version__}, as here",
                found=place.version,
                remedy="install the same version on all machines",
            )

    def _dead(self, hand: _Hand, error: Exception) -> Iterator[Lost]:
        """A worker is gone: sure that it is, tell of its job."""
        self._hands.remove(hand)
        self.ray.kill(hand.actor)
        if hand.job is not None:
            ran_out = isinstance(error, self.ray.exceptions.OutOfMemoryError) or "OOM" in type(error).__name__
            yield Lost(hand.job, f"the worker {hand.at} {'ran out of memory' if ran_out else 'died'}")
        elif hand.place is not None:
            self._failed_starts += 1
            if self._failed_starts >= self.size + LOSSES or not self._hands:
                raise WorkersError(
                    f"Ray at {self.where}",
                    expected="workers with beft installed",
                    found="one that ended as it started: " + _cause(error),
                    remedy="its log is in Ray's folder, /tmp/ray/session_latest/logs",
                )


def handed_on(reason: str, count: int, what: str) -> str:
    """A note on a lost job, so many runs (or cells) of which go to another worker."""
    if not count:
        return f"{reason}; no {what} of it goes to another"
    return f"{reason}; {count} {what}s of it go to another" if count > 1 else f"{reason}; its {what} goes to another"


def _cause(error: Exception) -> str:
    """The last line of an error's text, which is that of the exception behind it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200].rstrip(".") if lines else type(error).__name__


@contextmanager
def staff(address: str, jobs: int, device: str, model: str) -> Iterator[Pool]:
    """Workers for so many jobs on copies of a model, see `arrange`; ended with the block. Inside of itself: the same.

    Raises:
        WorkersError: Ray cannot be had, or has nothing free.
        RecipeError: an address that is none, or a device that is not at hand.
    """
    if address in _staffed:
        yield _staffed[address]
        return
    with connected(address) as ray:
        pool = Pool(ray, arrange(ray, address, jobs, device, model), address)
        _staffed[address] = pool
        try:
            yield pool
        finally:
            del _staffed[address]
            pool.close()
