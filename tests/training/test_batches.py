"""Which rows form a step: every row once, within the budget, a function of the seed alone."""

import itertools

import numpy as np
import pytest

from beft.objectives.encode import rounded
from beft.training.batches import epoch_batches, micro_batches

LENGTHS = np.random.default_rng(0).integers(3, 60, 203).tolist()


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("size", [1, 8, 16, 500])
def test_every_row_comes_once_in_batches_of_the_size(grouped: bool, size: int) -> None:
    batches = epoch_batches(LENGTHS, size, [0, 1, 2], group_by_length=grouped)
    assert sorted(row for batch in batches for row in batch) == list(range(len(LENGTHS)))
    assert len(batches) == -(-len(LENGTHS) // size)
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)


@pytest.mark.parametrize("grouped", [True, False])
def test_order_is_a_function_of_the_seed(grouped: bool) -> None:
    one = epoch_batches(LENGTHS, 16, [5, 1, 0], group_by_length=grouped)
    assert one == epoch_batches(LENGTHS, 16, [5, 1, 0], group_by_length=grouped)
    assert one != epoch_batches(LENGTHS, 16, [5, 1, 1], group_by_length=grouped)
    assert one != epoch_batches(LENGTHS, 16, [6, 1, 0], group_by_length=grouped)


def test_grouping_wastes_less_padding() -> None:
    def padded(batches: list[list[int]]) -> int:
        return sum(max(LENGTHS[row] for row in batch) * len(batch) for batch in batches)

    grouped = padded(epoch_batches(LENGTHS, 16, [0]))
    assert grouped < 0.8 * padded(epoch_batches(LENGTHS, 16, [0], group_by_length=False))


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("cost", [0, 48, 10**6])
@pytest.mark.parametrize("budget", [1, 59, 100, 1000, 10**6])
def test_micro_batches_keep_every_row_and_the_budget(budget: int, cost: int, multiple: int) -> None:
    rows = list(range(40, 90))
    pieces = micro_batches(rows, LENGTHS, budget, piece_cost=cost, multiple=multiple)
    assert sorted(row for piece in pieces for row in piece) == rows
    longest = [LENGTHS[piece[0]] for piece in pieces]
    assert longest == sorted(longest, reverse=True)
    for piece in pieces:
        assert LENGTHS[piece[0]] == max(LENGTHS[row] for row in piece)
        assert len(piece) == 1 or LENGTHS[piece[0]] * len(piece) <= budget


def test_a_batch_that_fits_is_one_piece() -> None:
    assert len(micro_batches(range(16), [10] * 16, 160)) == 1
    assert len(micro_batches(range(16), [10] * 16, 159)) == 2
    assert len(micro_batches(range(203), LENGTHS, 10**6, piece_cost=10**6)) == 1


@pytest.mark.parametrize("cost", [0, 20, 48, 200])
def test_no_other_cut_is_cheaper(cost: int) -> None:
    rows = list(range(9))

    def price(pieces: list[list[int]]) -> int:
        return sum(cost + len(piece) * max(LENGTHS[row] for row in piece) for piece in pieces)

    ordered = sorted(rows, key=lambda row: -LENGTHS[row])
    prices = []
    for places in range(2 ** (len(rows) - 1)):
        cuts = [0, *(n for n in range(1, len(rows)) if places >> (n - 1) & 1), len(rows)]
        prices.append(price([ordered[a:b] for a, b in itertools.pairwise(cuts)]))
    assert price(micro_batches(rows, LENGTHS, 10**6, piece_cost=cost)) == min(prices)


def test_rows_of_several_batches_are_hardly_padded() -> None:
    batches = [epoch_batches(LENGTHS, 16, [seed])[0] for seed in range(4)]
    rows = [row for batch in batches for row in batch]
    real = sum(LENGTHS[row] for row in rows)
    for multiple, most in ((1, 1.12), (8, 1.25)):
        pieces = micro_batches(rows, LENGTHS, 2048, piece_cost=48, multiple=multiple)
        assert sum(rounded(LENGTHS[piece[0]], multiple) * len(piece) for piece in pieces) < most * real


def test_in_half_precision_pieces_have_multiples_of_rows() -> None:
    pieces = micro_batches(range(192), LENGTHS, 1000, piece_cost=48, multiple=8)
    assert all(len(piece) % 8 == 0 for piece in pieces)


def test_a_micro_batch_has_no_more_rows_than_asked() -> None:
    for cost in (0, 48):
        pieces = micro_batches(range(16), LENGTHS * 16, 10_000, 3, piece_cost=cost)
        assert max(len(piece) for piece in pieces) <= 3
        assert sorted(row for piece in pieces for row in piece) == list(range(16))
    assert [len(piece) for piece in micro_batches(range(16), [5] * 16, 10_000, 3)] == [3, 3, 3, 3, 3, 1]
