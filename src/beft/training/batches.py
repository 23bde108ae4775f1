"""Which rows form a step, and how a step is cut into micro-batches of like length within a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..objectives.encode import rounded

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
    rows: Sequence[int],
    lengths: Sequence[int],
    token_budget: int,
    most_rows: int | None = None,
    *,
    piece_cost: int = 0,
    multiple: int = 1,
) -> list[list[int]]:
    """Cut rows, longest first, into the pieces that cost least: their tokens, padding counted, and a charge for each.

    In a piece rows x longest stays within the budget; a row longer than it stands alone.

    Args:
        token_budget: tokens of a piece at most, before lengths are rounded up.
        most_rows: rows of a piece at most.
        piece_cost: what one more piece costs beside its tokens, as a number of tokens.
        multiple: what lengths are rounded up to (see `rounded`) and, where it can be, the rows of a piece, too.
    """
    ordered = sorted(rows, key=lambda row: -lengths[row])
    starts: list[int] = []  # places where a piece may begin: rows from here on are shorter when padded
    padded: list[int] = []
    for place in range(0, len(ordered), multiple):
        length = rounded(lengths[ordered[place]], multiple)
        if not padded or length != padded[-1]:
            starts.append(place)
            padded.append(length)
    most = [_most(lengths[ordered[place]], token_budget, most_rows, multiple) for place in starts]
    starts.append(len(ordered))
    cheapest, begun = [0], [0]  # of the rows before each start: their cost, and where the last stretch of it begins
    for end in range(1, len(starts)):
        costs = [
            cheapest[first] + (count := starts[end] - start) * padded[first] + piece_cost * -(-count // most[first])
            for first, start in enumerate(starts[:end])
        ]
        begun.append(min(range(end), key=costs.__getitem__))
        cheapest.append(costs[begun[-1]])
    pieces: list[list[int]] = []
    end = len(padded)
    while end:
        first = begun[end]
        stretch = ordered[starts[first] : starts[end]]
        even = -(-len(stretch) // -(-len(stretch) // most[first]))
        even = min(most[first], -(-even // multiple) * multiple)
        pieces[:0] = [stretch[place : place + even] for place in range(0, len(stretch), even)]
        end = first
    return pieces


def _most(longest: int, token_budget: int, most_rows: int | None, multiple: int) -> int:
    """Rows of a piece at most, a multiple where the budget holds one."""
    most = max(1, token_budget // longest)
    if most > multiple:
        most -= most % multiple
    return min(most, most_rows) if most_rows else most
