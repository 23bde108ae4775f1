"""Hours that a study will take: rough before anything ran, better with every cell that is done."""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from .at_hand import count_parameters
from .plan import Cell

SHARE_OF_PEAK = 0.5
"""Of the matrix-product speed measured here, what training a small model reaches (fp32, batches of 16)."""
OVERHEAD = 4.0
"""Seconds to load a model and to write a cell's files."""
BYTES_PER_WEIGHT = 4


class Estimator:
    """Seconds of cells: from sizes and the machine's speed, corrected by the cells that were timed.

    `speed` is that of all workers together, of which this machine's is 1.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.said = self.took = 0.0

    def seconds(self, cell: Cell) -> float:
        """What a cell will probably take."""
        return plain_seconds(cell) / self.speed * self.correction

    @property
    def correction(self) -> float:
        """How much longer cells took than the sizes said, as yet."""
        return self.took / self.said if self.said else 1.0

    def observe(self, cell: Cell, seconds: float) -> None:
        """Learn from a cell that took so long."""
        self.said += plain_seconds(cell) / self.speed
        self.took += seconds


def plain_seconds(cell: Cell) -> float:
    """Seconds by floating-point operations: 4 a weight and token to train beside a frozen base (6 where the weights are
    trained too), 2 to evaluate; epochs and learning rates as the recipe says.

    A run on dev rows costs the epochs twice: to select, then to refit; each further learning rate costs the first part.
    """
    counted = count_parameters(cell.where, cell.objective)
    weights = counted[1] if counted else cell.model_bytes / BYTES_PER_WEIGHT
    tokens = min(cell.tokens, float(cell.recipe["max_length"]))
    each = 6.0 if cell.method in ("full", "random-mask", "rows-columns") else 4.0
    epochs = float(cell.recipe["epochs"] or 1)
    passes = epochs * (1 - cell.recipe["dev_fraction"])
    refits = cell.recipe["selection"] == "dev" and cell.recipe["refit"]
    passes = passes * max(1, len(cell.rates) + bool(cell.rates)) + (epochs if refits else 0)
    if cell.method in ("zero-shot", "icl", "probe"):
        passes = 0.0
    elif cell.method in ("head", "frozen"):  # nothing below the head has a gradient; a linear one learns from states
        passes = 0.0 if cell.recipe["head"] == "linear" and not cell.recipe["dropout"] else passes
        each = 2.0
    learning = each * weights * tokens * cell.train_rows * passes
    judging = 2.0 * weights * tokens * (cell.eval_rows + cell.train_rows) * (33 if cell.method == "icl" else 1)
    return OVERHEAD + (learning + judging) / (SHARE_OF_PEAK * machine_speed())


@cache
def machine_speed() -> float:
    """Floating-point operations a second of a matrix product in fp32 here: the best of a tenth of a second, by the
    clock or by this process's own time, as what else the machine does right now will not last."""
    side = 512
    first, second = np.ones((side, side), np.float32), np.ones((side, side), np.float32)
    _ = first @ second
    began, best = time.perf_counter(), float("inf")
    while time.perf_counter() - began < 0.1:
        started, worked = time.perf_counter(), time.process_time()
        _ = first @ second
        best = min(best, time.perf_counter() - started, time.process_time() - worked)
    return 2 * side**3 / best
