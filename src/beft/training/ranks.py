"""Ranks: the processes that a launcher started for one run, and what they share.

Every rank holds the frozen model, takes its own part of each step's rows, and steps with the gradients of all: a few
kilobytes to sum. Whatever else must be alike in all of them (an error, a signal, answers, a choice) goes through one
kind of exchange, so that a rank that fails meets the others wherever they ask each other next. The first rank speaks
and writes for all. A process that nobody launched beside others is alone: then each function here is its plain case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import BeftError, RanksError, RecipeError
from ..launcher import check_meeting, place

if TYPE_CHECKING:
    from .lockstep import Lockstep
    from .signals import StopRequest

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others: longer than the first one takes to write and draw the files of a run."""


class Ranks:
    """This process among those of its run: number `rank` of `size`, counted from 0."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group
        self.agreed: BaseException | None = None
        """The error that all ranks know of."""
        self.stepping = False
        """Whether sums have begun: from then on others may be waiting for numbers, not for an exchange."""
        self.lockstep: Lockstep | None = None
        """What keeps forwards together, where the base is sharded over the ranks."""

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this one speaks and writes."""
        return self.rank == 0

    # ---- rows --------------------------------------------------------------------------------------------------------

    def dealt(self, rows: Sequence[int], lengths: Sequence[int]) -> Sequence[int]:
        """This rank's rows of a step, dealt out longest first so that all have as many tokens, or nearly; may be none.

        Args:
            rows: numbers of rows.
            lengths: tokens of every row, by number.
        """
        return rows if self.alone else sorted(rows, key=lambda row: -lengths[row])[self.rank :: self.size]

    def stretch(self, rows: Sequence[T]) -> Sequence[T]:
        """This rank's stretch of rows in their order; may be none. Neighbours stay together: they may begin alike."""
        ends = [len(rows) * number // self.size for number in (self.rank, self.rank + 1)]
        return rows if self.alone else rows[ends[0] : ends[1]]

    # ---- exchanges ---------------------------------------------------------------------------------------------------

    def gather(self, compute: Callable[[], T]) -> list[T]:
        """What each rank computes, in their order.

        Raises:
            BeftError: that of the first rank which failed, in all of them.
            RanksError: another rank is gone, or failed with an error of no such kind.
        """
        if self.alone:
            return [compute()]
        try:
            value = compute()
        except Exception as error:
            if error is not self.agreed:
                self._finish(error)
                self._exchange(None, error)
            raise
        self._finish(None)
        return self._exchange(value, None)

    def each(self, compute: Callable[[], T]) -> T:
        """What this rank computes, once all have done so. Raises what `gather` raises."""
        if self.alone:
            return compute()
        value: list[T] = []
        self.gather(lambda: value.append(compute()))
        return value[0]

    def first(self, compute: Callable[[], T]) -> T:
        """What the first rank alone computes. Raises what `gather` raises."""
        return self.gather(lambda: compute() if self.leads else None)[0]  # type: ignore[return-value]

    def hears(self, stop: StopRequest) -> bool:
        """Whether a signal has come to any rank; then each takes it for its own, all of them at once."""
        received = stop.received if self.alone else self.largest(stop.received or 0)
        if not received:  # one that comes just now is heard next time, by all
            return False
        stop.received = received
        return True

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        told = torch.tensor([number])
        self._collect(lambda: dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group))
        return int(told)

    def known(self, error: E) -> E:
        """An error that all ranks raise, of numbers that are the same in each: none needs to tell the others."""
        if not self.alone:
            self.agreed = error
        return error

    def _finish(self, error: Exception | None) -> None:
        """Run along with the others' forwards until all are done, or tell them of an error, if the base is sharded.

        Raises:
            RanksError: another rank is gone.
            Exception: the error itself, if the others cannot hear of it.
        """
        if self.lockstep is None:
            return
        if error is not None and _is_of_the_network(error):
            raise self._gone(error) from error
        if self.lockstep.within:
            raise self.lockstep.lost() if error is None else error
        self.lockstep.finish(error)

    def _exchange(self, value: T | None, error: Exception | None) -> list[T]:
        told: list[Any] = [None] * self.size
        sent = error
        if self.lockstep is not None and self.lockstep.parted and isinstance(error, RanksError):
            sent = None  # it stopped for another's error
        elif error is not None and not isinstance(error, BeftError):  # others may not be able to unpickle it
            sent = RanksError(
                f"process {self.rank + 1} of {self.size}",
                expected="no error",
                found=" ".join(f"{type(error).__name__}: {error}".split()),
            )
        self._collect(lambda: dist.all_gather_object(told, (value, sent), group=self.group))
        failed = [(number, each) for number, (_, each) in enumerate(told) if each is not None]
        if failed:
            number, first = failed[0]
            if error is not None and number == self.rank:
                raise self.known(error)
            raise self.known(first) from error
        return [each for each, _ in told]

    def _collect(self, call: Callable[[], Any]) -> None:
        """Take part in something that all ranks do."""
        try:
            call()
        except RuntimeError as error:
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> RanksError:
        return RanksError(
            f"process {self.rank + 1} of {self.size}",
            expected="all processes to take part",
            found=f"one that is gone or late ({str(error).splitlines()[0][:200]})",
            remedy="start the command again, with --resume if the run has begun",
        )

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def same(self, leaves: Iterable[Tensor]) -> None:
        """Give all ranks the values that the first one has."""
        if self.alone:
            return
        with torch.no_grad():
            for leaf in leaves:
                value = self._sendable(leaf.detach())
                self._collect(lambda value=value: dist.broadcast(value, 0, group=self.group))  # type: ignore[misc]
                leaf.copy_(value)

    def summed(self, compute: Callable[[], Sequence[float]], count: int, leaves: Sequence[nn.Parameter]) -> list[float]:
        """Sum over ranks: the `count` numbers that `compute` gives, and the gradients that it leaves in the leaves.

        A leaf that has a gradient on no rank stays without one. Each rank ends with the same numbers.

        Raises:
            BeftError: see `gather`; a rank that fails takes part in the sum before it says so.
        """
        if self.alone:
            return list(compute())
        self.stepping = True
        values, error = [0.0] * count, None
        try:
            values = list(compute())
        except Exception as caught:
            error = caught
        self._finish(error)
        present = [float(leaf.grad is not None) for leaf in leaves]
        own = leaves[0].new_tensor([float(error is not None), *values, *present], dtype=torch.float32)
        parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        flat = self._sendable(torch.cat([own, *(part.detach().flatten().to(own) for part in parts)]))
        self._collect(lambda: dist.all_reduce(flat, group=self.group))
        failures, *numbers = flat[: len(own)].tolist()
        if failures:
            self._exchange(None, error)
        start = len(own)
        for leaf, found in zip(leaves, numbers[count:], strict=True):
            if found:
                leaf.grad = flat[start : start + leaf.numel()].view_as(leaf).to(leaf)
            start += leaf.numel()
        return numbers[:count]

    @staticmethod
    def _sendable(tensor: Tensor) -> Tensor:
        """A copy where ranks can meet: on its own GPU, or else in the machine's memory."""
        return tensor.clone() if tensor.is_cuda else tensor.to("cpu", copy=True)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def leave(self, error: Exception) -> None:
        """Tell the others of an error that ends this rank, if they do not know of it and can hear.

        Raises:
            BeftError: the first rank's that failed too.
        """
        reach = not self.stepping and not (self.lockstep is not None and self.lockstep.within)
        if self.agreed is None and reach and not isinstance(error, RanksError):
            self._finish(error)
            self._exchange(None, error)
        elif error is not self.agreed:
            error.add_note(f"in process {self.rank + 1} of {self.size}")


ALONE = Ranks()
_here = ALONE


def here() -> Ranks:
    """This process among those of its run: inside `together`, else alone."""
    return _here


@contextmanager
def together(timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """Meet the other processes of the launch, if there are any, and part at the end. Inside of itself it does nothing.

    Who they are, a launcher says (see `beft.launcher`); where they meet, MASTER_ADDR and MASTER_PORT. A group that is
    there already is used and left as it is.

    Raises:
        RanksError: the others cannot be met.
    """
    global _here
    if not _here.alone:
        yield _here
        return
    check_meeting()
    own = place()
    if own.size == 1:
        yield _here
        return
    gpus = torch.cuda.device_count() if dist.is_nccl_available() else 0
    if own.local_rank < gpus:
        torch.cuda.set_device(own.local_rank)
    backend, foreign = "cpu:gloo,cuda:nccl" if gpus else "gloo", dist.is_initialized()
    group = None
    meeting = Ranks(own.rank, own.size)
    if foreign:
        group = dist.new_group(timeout=timeout, backend=backend)
    else:
        meeting._collect(lambda: dist.init_process_group(backend, timeout=timeout, rank=own.rank, world_size=own.size))
    _here = Ranks(dist.get_rank(), dist.get_world_size(), group)
    try:
        yield _here
    except Exception as error:
        _here.leave(error)
        raise
    finally:
        _here = ALONE
        dist.destroy_process_group(group)


def own_threads() -> int:
    """Threads for this process: torch's own number, or its share of the processors among the ranks of this machine.

    Launchers set OMP_NUM_THREADS to 1 where nobody else has set it: only another number is somebody's wish.
    """
    if place().size == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return torch.get_num_threads()
    return max(1, len(os.sched_getaffinity(0)) // place().local_size)


def check_device(device: str) -> None:
    """Raises RecipeError if ranks of this machine would have to share a GPU."""
    own = place()
    if own.size == 1 or not device.startswith("cuda"):
        return
    gpus = torch.cuda.device_count()
    if ":" in device or own.local_rank >= gpus:
        raise RecipeError(
            f"device {device!r}",
            expected="a GPU for each process, by --device cuda",
            found=f"{gpus} GPU{'s' if gpus != 1 else ''} for process {own.local_rank + 1} of this machine",
            remedy="start as many processes as there are GPUs",
        )


def _is_of_the_network(error: BaseException) -> bool:
    """Whether an error is of processes that do not reach each other any more."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
