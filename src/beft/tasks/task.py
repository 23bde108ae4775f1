"""A task: examples with texts and a label, the label names, and the metrics that judge it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import DataError

Label = int | float


@dataclass(frozen=True)
class Example:
    """One row: its id, one or two texts, and its label (class number, or a number to predict; None if unknown)."""

    id: int | str
    texts: tuple[str, ...]
    label: Label | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read in any of its texts."""
        return not any(text.strip() for text in self.texts)


@dataclass
class Task:
    """Examples to learn from and to judge on.

    `labels` are class names in the order of their numbers, or None for a number to predict (regression). `evaluation`
    maps the name of each evaluation split to its examples; it may be empty. `metrics` are names of
    `beft.tasks.metrics`, the first is the one that selects. `fields` are the columns the texts came from. `notices` are
    things found in the data that the user should know.
    """

    name: str
    labels: tuple[str, ...] | None
    fields: tuple[str, ...]
    metrics: tuple[str, ...]
    train: list[Example]
    evaluation: dict[str, list[Example]] = field(default_factory=dict)
    label_field: str = "label"
    notices: list[str] = field(default_factory=list)
    benchmark: bool = False

    @property
    def regression(self) -> bool:
        """Whether the label is a number to predict."""
        return self.labels is None

    @property
    def outputs(self) -> int:
        """Number of logits a model needs."""
        return 1 if self.labels is None else len(self.labels)

    def fingerprint(self) -> str:
        """Hex digest over every example, in order."""
        digest = hashlib.sha256()
        for part in (self.train, *self.evaluation.values()):
            for example in part:
                digest.update(repr((example.texts, example.label)).encode())
            digest.update(b"|")
        return digest.hexdigest()[:32]


def check_learnable(task: Task, source: str | None = None) -> None:
    """Raise for what nothing can be learned from; note what is merely odd.

    Args:
        source: the file that the training rows came from, whose lines their ids are.

    Raises:
        DataError: no rows, fewer rows than classes, one class only, or an empty text.
    """
    rows = task.train
    labels = f"{source}, column {task.label_field!r}" if source else f"{task.name}, {task.label_field}"
    if not rows:
        raise DataError(source or task.name, expected="labelled rows to train on", found="none")
    check_texts(task, source)
    if task.labels is None:
        if len({example.label for example in rows}) < 2:
            raise DataError(labels, expected="different numbers", found="one value only")
    else:
        counts = Counter(example.label for example in rows)
        if len(counts) < 2:
            only = task.labels[int(rows[0].label or 0)]
            raise DataError(
                labels,
                expected="at least two classes",
                found=f"one class only ({only!r})",
                remedy="add rows of another class",
            )
        if len(rows) < len(task.labels):
            raise DataError(
                labels,
                expected=f"at least one row for each of {len(task.labels)} classes",
                found=f"{len(rows)} rows",
                remedy="add rows, or check that the label column is not a text column",
            )
        missing = [name for number, name in enumerate(task.labels) if number not in counts]
        if missing:
            task.notices.append(f"no training row has the label {', '.join(map(repr, missing[:5]))}")
    _note_contradictions(task)


def check_texts(task: Task, source: str | None = None) -> None:
    """Raises DataError if a training row has no text; it names the line of its `source`, if that is a file."""
    for example in task.train:
        if example.empty:
            raise DataError(
                f"{source}, line {example.id}" if source else f"{task.name}, row {example.id}",
                expected=f"text in {' and '.join(task.fields)}",
                found="an empty text",
                remedy="fill it in or take the row out",
            )


def empty_texts(rows: Iterable[int | str]) -> list[str]:
    """What is to be said of rows to judge or predict that have no text, by their ids; nothing if there are none."""
    ids = list(rows)
    return [f"without text, so that the label means nothing: {len(ids)} (the first: row {ids[0]})"] if ids else []


def _note_contradictions(task: Task) -> None:
    if task.labels is None:
        return
    seen: dict[tuple[str, ...], set[Label | None]] = {}
    for example in task.train:
        seen.setdefault(example.texts, set()).add(example.label)
    twice = [texts for texts, labels in seen.items() if len(labels) > 1]
    if twice:
        text = twice[0][0][:60]
        task.notices.append(
            f"{len(twice)} training {'text has' if len(twice) == 1 else 'texts have'} two labels, e.g. {text!r}"
        )


def read_size(size: int | str, where: str) -> int | None:
    """A number of rows from an int or its text; None for "all".

    Raises:
        DataError: no positive number. It names `where`.
    """
    if size == "all":
        return None
    try:
        count = int(size)
    except ValueError:
        raise DataError(where, expected="a number of rows or 'all'", found=repr(size)) from None
    if count < 1:
        raise DataError(where, expected="at least 1 row", found=str(size))
    return count


def subset(rows: Sequence[Example], size: int, seed: int) -> list[Example]:
    """The paper's low-data subset: the first `size` rows of a seeded permutation of all."""
    order = np.random.RandomState(seed).permutation(len(rows))[:size]
    return [rows[int(i)] for i in order]


def stratified_split(
    rows: Sequence[Example], size: int, seed: int, classes: bool = True, leave: int = 1
) -> tuple[list[int], list[int]]:
    """Row numbers of (rest, part): `size` rows drawn so that classes keep their shares; both in ascending order.

    Each class leaves at least `leave` rows in the rest. Without classes the draw is plain.
    """
    random = np.random.default_rng([seed, 20250915])
    if not classes:
        part = sorted(int(i) for i in random.permutation(len(rows))[:size])
        chosen = set(part)
        return [i for i in range(len(rows)) if i not in chosen], part
    groups: dict[Label | None, list[int]] = {}
    for number, example in enumerate(rows):
        groups.setdefault(example.label, []).append(number)
    for group in groups.values():
        random.shuffle(group)
    share = size / len(rows)
    take = {label: max(0, min(math.floor(share * len(group)), len(group) - leave)) for label, group in groups.items()}
    by_remainder = sorted(groups, key=lambda label: (take[label] - share * len(groups[label]), str(label)))
    while sum(take.values()) < size:
        open_groups = [label for label in by_remainder if take[label] < len(groups[label]) - leave]
        if not open_groups:
            break
        for label in open_groups[: size - sum(take.values())]:
            take[label] += 1
    part = sorted(i for label, group in groups.items() for i in group[: take[label]])
    rest = sorted(i for label, group in groups.items() for i in group[take[label] :])
    return rest, part


def draw(rows: Sequence[Example], size: int, seed: int, classes: bool = True) -> list[int]:
    """Numbers of `size` of the rows, each class with its share, in ascending order."""
    return stratified_split(rows, size, seed, classes, leave=0)[1]


def split_texts(rows: Sequence[Example], size: int, seed: int, classes: bool = True) -> tuple[list[int], list[int]]:
    """As `stratified_split`, rows of one text on one side: where texts repeat, the part has about `size` rows.

    A text that was learned would be known by heart when it is judged. The first row of each text is drawn, and the
    others follow it.
    """
    places = same_text([example.texts for example in rows])
    if len(places) == len(rows):
        return stratified_split(rows, size, seed, classes)
    firsts = [rows[group[0]] for group in places]
    drawn = stratified_split(firsts, max(1, round(size * len(firsts) / len(rows))), seed, classes)
    rest, part = (sorted(number for place in side for number in places[place]) for side in drawn)
    return rest, part


def same_text(texts: Sequence[Hashable]) -> list[list[int]]:
    """Numbers of rows, those of one text in one group, in the order of their first rows."""
    groups: dict[Hashable, list[int]] = {}
    for number, text in enumerate(texts):
        groups.setdefault(text, []).append(number)
    return list(groups.values())
