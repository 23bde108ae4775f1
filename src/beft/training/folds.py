"""Stratified folds, repeated, and what scores on the same folds say of two ways to learn."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from ..tasks.question import PromptTask
from ..tasks.task import Example, Task, same_text

USUAL = 5
"""Folds where nothing is said and the classes hold enough rows."""
FEWEST = 3
"""Folds at least where nothing is said: with two, a run would learn from half of the rows only."""


@dataclass(frozen=True)
class Fold:
    """Numbers of the training rows to learn from and to be judged on, both ascending."""

    repeat: int
    number: int
    rows: tuple[int, ...]
    judged: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the fold among all repeats."""
        return f"r{self.repeat}f{self.number}"


def make_folds(task: Task | PromptTask, count: int, repeat: int, seed: int) -> list[Fold]:
    """The training rows dealt into `count` folds, each class as evenly as can be; every row is judged once.

    Rows of one text are in one fold, by the class of the first: a text that was learned is no judge. Another `repeat`
    deals them anew. Numbers to predict, and questions without labels, are of one class.

    Raises:
        DataError: fewer different texts than folds.
    """
    groups = same_text(_texts(task))
    if not 2 <= count <= len(groups):
        raise DataError(f"{task.name}, {count} folds", expected=f"2 to {len(groups)}, the number of training texts")
    random = np.random.default_rng([seed, repeat, 20250917])
    classes: dict[object, list[int]] = {}
    for number, group in enumerate(groups):
        label = None if task.labels is None else task.train[group[0]].label
        classes.setdefault(label, []).append(number)
    deck: list[int] = []
    for key in sorted(classes, key=str):
        random.shuffle(classes[key])
        deck += classes[key]
    dealt = [sorted(row for number in deck[place::count] for row in groups[number]) for place in range(count)]
    everything = set(range(len(task.train)))
    return [
        Fold(repeat, number, tuple(sorted(everything - set(part))), tuple(part)) for number, part in enumerate(dealt)
    ]


def _texts(task: Task | PromptTask) -> list[Hashable]:
    return [row.texts if isinstance(row, Example) else row.prompt for row in task.train]


def fold_count(task: Task | PromptTask, asked: int | None, usual: int = USUAL) -> tuple[int, list[str]]:
    """How many folds, and what the user should know of it: as many as asked for; without, `usual` or fewer.

    Raises:
        DataError: more folds asked for than different texts, or than a class has; one row of every class.
    """
    counts: Counter[object] = Counter()
    firsts = [task.train[group[0]] for group in same_text(_texts(task))]
    if task.labels is not None:
        counts.update(task.labels[int(row.label or 0)] for row in firsts)
    smallest = min(counts, key=lambda name: (counts[name], str(name)), default=None)
    if asked is not None:
        if not 2 <= asked <= len(firsts):
            raise DataError(f"{task.name}, {asked} folds", expected=f"2 to {len(firsts)}, the number of training texts")
        if smallest is not None and counts[smallest] < asked:
            raise DataError(
                f"{task.name}, {asked} folds",
                expected="as many rows of every class",
                found=f"{counts[smallest]} of {smallest!r}",
                remedy="take fewer folds, add rows of that class, or leave --folds out to have the number chosen",
            )
        return asked, []
    if len(firsts) < FEWEST:
        raise DataError(f"{task.name}, training texts", expected=f"at least {FEWEST}", found=str(len(firsts)))
    most = min(usual, len(firsts))
    if smallest is None or counts[smallest] >= most:
        return most, []
    if isinstance(task, Task) and max(counts.values()) < 2:
        raise DataError(
            f"{task.name}, training rows",
            expected="two of a class at least, one to learn from and one to judge",
            found="one of every class",
            remedy="add rows, or give a learning rate, which needs no search",
        )
    chosen = max(FEWEST, counts[smallest])
    rare = sorted(str(name) for name, count in counts.items() if count < chosen)
    if not rare:
        return chosen, []
    few = f"{len(rare)} classes have" if len(rare) > 1 else f"the class {rare[0]!r} has"
    return chosen, [f"{few} fewer rows than the {chosen} folds: some folds do not judge them, or judge them unlearned"]


@dataclass(frozen=True)
class Paired:
    """Differences of two scores on the same folds: mean, standard deviation (n - 1), standard error of the mean, and
    how sure it is that the mean over many such samples of rows is above zero (0 to 1)."""

    mean: float
    sd: float
    error: float
    sure: float


def paired(differences: Sequence[float], folds: int) -> Paired:
    """Judge differences by a t-test that allows for training rows that folds have in common.

    Scores of folds are not independent: the variance of their mean is taken as sd^2 (1/n + 1/(folds - 1)), after
    Nadeau and Bengio (2003, "Inference for the Generalization Error"), whose second term is test rows over training
    rows.
    """
    from scipy.stats import t

    mean = statistics.fmean(differences)
    sd = statistics.stdev(differences) if len(differences) > 1 else 0.0
    if sd == 0:
        return Paired(mean, sd, 0.0, 0.5 if mean == 0 or len(differences) < 2 else float(mean > 0))
    error = sd * math.sqrt(1 / len(differences) + 1 / (folds - 1))
    return Paired(mean, sd, error, float(t.cdf(mean / error, len(differences) - 1)))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation (n - 1; 0 of a single value) of scores."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
