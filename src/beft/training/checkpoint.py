"""The state of a run in one safetensors file, replaced as a whole: killed at any moment, the last one is there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import StoreError
from ..files import write
from .steps import AdamW

NAME = "checkpoint.safetensors"
FORMAT = "1"
WORTH = 20
"""Seconds of work that are worth a second of writing: what is lost to a kill is done again."""


@dataclass
class Position:
    """Where a run stands, and what it has decided. `step` counts the optimiser steps done of the current epoch."""

    phase: str = "select"
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_score: float | None = None
    epochs_without_gain: int = 0
    refit_epochs: int = 0
    epoch_loss: float = 0.0
    epoch_rows: int = 0
    train_seconds: float = 0.0
    trained_rows: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    start: dict[str, float] | None = None
    """Dev loss and metrics before the first step, of a run that may end there."""

    @property
    def stayed(self) -> bool:
        """Whether no epoch was better than the start."""
        return self.start is not None and self.best_epoch == 0

    def epochs_kept(self, most: int) -> int:
        """Epochs of what is kept: as many as were chosen, or `most` where there was no choice."""
        return 0 if self.stayed else self.best_epoch or most


class Pace:
    """When a checkpoint is due: the first at once, then as often as writing takes a twentieth of the work at most."""

    def __init__(self) -> None:
        self._cost = self._worked = 0.0

    @property
    def due(self) -> bool:
        """Whether so much was done since the last one."""
        return self._worked >= WORTH * self._cost

    def work(self, seconds: float) -> None:
        """So much more was done: trained, or judged on dev rows."""
        self._worked += seconds

    def wrote(self, seconds: float) -> None:
        """One was written, in so many seconds."""
        self._worked, self._cost = 0.0, seconds


def save_checkpoint(
    directory: Path,
    position: Position,
    leaves: dict[str, nn.Parameter],
    optimiser: AdamW,
    best: dict[str, Tensor],
    settings: dict[str, Any],
) -> None:
    """Write leaves, optimiser state, best leaves, position and settings.

    Raises:
        StoreError: the file cannot be written; the former one stays.
    """
    tensors: dict[str, Tensor] = {}
    for name, leaf in leaves.items():
        tensors[f"leaf.{name}"] = leaf.detach().cpu().contiguous()
        for key, value in optimiser.state.get(leaf, {}).items():
            tensors[f"optimiser.{key}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    tensors.update({f"best.{name}": value.detach().cpu().contiguous() for name, value in best.items()})
    metadata = {
        "format": FORMAT,
        "position": json.dumps(asdict(position)),
        "settings": json.dumps(settings),
    }
    write(directory / NAME, lambda path: save_file(tensors, path, metadata=metadata))


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings a checkpoint was written with.

    Raises:
        StoreError: no checkpoint, or one that cannot be read.
    """
    return json.loads(_open(directory)[1]["settings"])


def load_checkpoint(
    directory: Path, leaves: dict[str, nn.Parameter], optimiser: AdamW
) -> tuple[Position, dict[str, Tensor]]:
    """Put a checkpoint's leaves and optimiser state back; give its position and best leaves.

    Raises:
        StoreError: no checkpoint, one that cannot be read, or one of another run.
    """
    tensors, metadata = _open(directory)
    here, there = set(leaves), {key.removeprefix("leaf.") for key in tensors if key.startswith("leaf.")}
    if here != there:
        raise StoreError(
            str(directory / NAME),
            expected="a checkpoint of this run",
            found=f"one of other parameters ({', '.join(sorted(here ^ there)[:3])} ...)",
            remedy="start anew with --overwrite",
        )
    for name, leaf in leaves.items():
        if tensors[f"leaf.{name}"].shape != leaf.shape:
            raise StoreError(
                str(directory / NAME),
                expected=f"{name} of the shape {tuple(leaf.shape)}",
                found=f"one of the shape {tuple(tensors[f'leaf.{name}'].shape)}",
                remedy="start anew with --overwrite",
            )
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(tensors[f"leaf.{name}"])
    for name, leaf in leaves.items():
        state: dict[str, Any] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"optimiser.{key}.{name}" in tensors:
                value = tensors[f"optimiser.{key}.{name}"]
                state[key] = float(value) if key == "step" else value.to(leaf.device, copy=True)
        if state:
            optimiser.state[leaf] = state
    best = {key.removeprefix("best."): value for key, value in tensors.items() if key.startswith("best.")}
    return Position(**json.loads(metadata["position"])), best


def _open(directory: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = directory / NAME
    if not path.exists():
        raise StoreError(
            str(path), expected="a checkpoint to resume from", found="none", remedy="start the run without --resume"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise StoreError(
            str(path), expected="a whole checkpoint", found=str(error), remedy="start with --overwrite"
        ) from error
    if metadata.get("format") != FORMAT:
        raise StoreError(str(path), expected=f"format {FORMAT}", found=str(metadata.get("format")))
    return tensors, metadata
