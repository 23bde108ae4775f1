"""Splits keep shares, overlap nowhere and depend on the seed alone."""

from collections import Counter

import numpy as np
import pytest

from beft.tasks.task import Example, split_texts, stratified_split, subset


def rows(*counts: int) -> list[Example]:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    order = np.random.default_rng(3).permutation(len(labels))
    return [Example(number, (f"text {number}",), labels[place]) for number, place in enumerate(order)]


@pytest.mark.parametrize("counts", [(50, 50), (90, 10), (33, 33, 34), (5, 1, 94), (7, 7, 7, 7)])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_has_the_size_and_the_shares_and_no_overlap(counts: tuple[int, ...], share: float, seed: int) -> None:
    examples = rows(*counts)
    size = round(len(examples) * share)
    rest, part = stratified_split(examples, size, seed)
    assert sorted(rest + part) == list(range(len(examples)))
    assert len(part) == size
    assert rest == sorted(rest)
    assert part == sorted(part)
    taken = Counter(examples[i].label for i in part)
    for label, count in enumerate(counts):
        assert abs(taken[label] - share * count) <= 1
        assert taken[label] < count
    assert stratified_split(examples, size, seed) == (rest, part)


def test_another_seed_gives_another_split() -> None:
    assert stratified_split(rows(50, 50), 20, 0) != stratified_split(rows(50, 50), 20, 1)


def test_a_class_of_one_row_stays_in_the_rest() -> None:
    examples = rows(20, 1)
    rest, part = stratified_split(examples, 10, 0)
    assert [examples[i].label for i in part] == [0] * 10
    assert 1 in [examples[i].label for i in rest]


@pytest.mark.parametrize("size", [1, 7, 20, 21])
def test_all_rows_can_be_drawn_where_none_need_be_left(size: int) -> None:
    assert len(stratified_split(rows(20, 1), size, 0, leave=0)[1]) == size


def test_without_classes_the_draw_is_plain() -> None:
    examples = [Example(i, ("t",), i / 7) for i in range(30)]
    rest, part = stratified_split(examples, 6, 0, classes=False)
    assert len(part) == 6
    assert sorted(rest + part) == list(range(30))


def test_rows_of_one_text_are_on_one_side() -> None:
    examples = [Example(n, (f"text {n % 40}",), n % 40 % 2) for n in range(100)]
    rest, part = split_texts(examples, 20, 0)
    assert sorted(rest + part) == list(range(100))
    held = {examples[n].texts for n in part}
    assert not held & {examples[n].texts for n in rest}
    assert Counter(int(text.split()[1]) % 2 for (text,) in held) == {0: 4, 1: 4}
    assert 16 <= len(part) <= 24


def test_rows_of_different_texts_are_split_as_ever() -> None:
    assert split_texts(rows(20, 30), 10, 1) == stratified_split(rows(20, 30), 10, 1)


def test_the_papers_subset_is_numpys_permutation() -> None:
    examples = rows(60, 60)
    assert subset(examples, 9, 4) == [examples[i] for i in np.random.RandomState(4).permutation(120)[:9]]
