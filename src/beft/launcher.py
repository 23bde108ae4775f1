"""What a launcher says of this process: its number among those that were started together, and how they are to train.

torchrun says it, and so do `accelerate launch` and `mpirun` (Open MPI, MPICH, Intel MPI, MVAPICH), each in environment
variables of its own. Nothing here imports torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import RanksError

NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
"""Variables of a process's number, of how many there are, and of the same on this machine: torchrun's, then MPI's."""


@dataclass(frozen=True)
class Place:
    """Number `rank` of `size` processes; number `local_rank` of `local_size` on this machine. Counted from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place() -> Place:
    """This process among those of its launch; alone without a launcher."""
    for rank, size, local_rank, local_size in NAMES:
        if _number(rank) is not None and (_number(size) or 0) > 1:
            count = _number(size) or 1
            here = _number(local_size) or count
            return Place(_number(rank) or 0, count, _number(local_rank) or 0, here)
    return Place()


def check_meeting() -> None:
    """Refuse a launch whose processes cannot meet, or that started one process where several were asked for.

    Raises:
        RanksError: see above.
    """
    if place().size > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise RanksError(
                f"{place().size} processes",
                expected="an address where they meet, in MASTER_ADDR and MASTER_PORT",
                found=f"no {' and no '.join(missing)}",
                remedy="start them by torchrun or accelerate launch, or export both (127.0.0.1 and a free port)",
            )
    elif os.environ.get("MASTER_ADDR") and _true("ACCELERATE_USE_CPU"):
        raise RanksError(
            "accelerate launch --cpu",
            expected="the processes that were asked for",
            found="one, for without MPI it starts no others",
            remedy="use --multi_gpu in place of --cpu (without GPUs it starts processes on the CPU), or give "
            "--mpirun_hostfile FILE, or use torchrun",
        )


def asks_to_shard() -> bool:
    """Whether the launcher asks to shard the model: `accelerate launch --use_fsdp`."""
    return place().size > 1 and _true("ACCELERATE_USE_FSDP")


def _true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else None
