"""Which rows form a step, and how a step is cut into micro-batches of like length within a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 32
"""Batches to a window: rows are shuffled, sorted by length inside a window, and cut into batches."""
JITTER = 0.05
"""Lengths are blurred by up to this share before sorting, so that batches differ from epoch to epoch."""


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: Sequence[int], *, group_by_length: bool = True
) -> list[list[int]]:
    """Batches of row numbers for one epoch, every row once; a function of its arguments alone.

    Args:
        lengths: tokens of each row.
        seed: numbers that seed the order, such as (run seed, phase, epoch).
    """
    random = np.random.default_rng(list(seed))
    order = random.permutation(len(lengths)).tolist()
    if not group_by_length:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches = []
    span = batch_size * WINDOW
    for start in range(0, len(order), span):
        rows = order[start : start + span]
        blurred = dict(zip(rows, random.uniform(1 - JITTER, 1 + JITTER, len(rows)), strict=True))
        window = sorted(rows, key=lambda row: lengths[row] * blurred[row])
        batches += [window[place : place + batch_size] for place in range(0, len(window), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def micro_batches(
    rows: Sequence[int], lengths: Sequence[int], token_budget: int, most_rows: int | None = None
) -> list[list[int]]:
    """Cut rows, longest first, so that rows x longest stays within the budget; a row longer than it stands alone.

    Few pieces are preferred: a piece starts anew only when the next row would exceed the budget, or `most_rows`.
    """
    pieces: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        count = len(pieces[-1]) + 1 if pieces else 0
        if pieces and lengths[pieces[-1][0]] * count <= token_budget and count <= (most_rows or count):
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces
