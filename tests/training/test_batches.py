"""Which rows form a step: every row once, within the budget, a function of the seed alone."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("budget", [1, 59, 100, 1000, 10**6])
def test_micro_batches_keep_every_row_and_the_budget(budget: int) -> None:
    rows = list(range(40, 90))
    pieces = micro_batches(rows, LENGTHS, budget)
    assert sorted(row for piece in pieces for row in piece) == rows
    for piece in pieces:
        assert len(piece) == 1 or max(LENGTHS[row] for row in piece) * len(piece) <= budget


def test_a_batch_that_fits_is_one_piece() -> None:
    assert len(micro_batches(range(16), [10] * 16, 160)) == 1
    assert len(micro_batches(range(16), [10] * 16, 159)) == 2


def test_a_micro_batch_has_no_more_rows_than_asked() -> None:
    pieces = micro_batches(range(16), LENGTHS * 16, 10_000, 3)
    assert [len(piece) for piece in pieces] == [3, 3, 3, 3, 3, 1]
    assert sorted(row for piece in pieces for row in piece) == list(range(16))
