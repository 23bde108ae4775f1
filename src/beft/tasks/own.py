"""Making a `Task` of the user's own rows: a file or a Hub data set, by column names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from .load import hub_rows, parse_size
from .table import FORMATS, Row, read_rows
from .task import Example, Task, check_learnable, check_texts, draw, empty_texts, split_texts

NO_LABEL = frozenset({"", "nan", "NaN", "None", "null", "NULL"})
"""Words that tools write for a missing label. "none" is a class of some data sets."""

_HUB = re.compile(r"(?P<name>\w[\w.-]*/(?P<short>[\w.-]+))(:(?P<config>[^@]+))?(@(?P<split>.+))?", re.ASCII)


def own_task(
    data: str | Path,
    text: str | Sequence[str],
    label: str,
    *,
    eval_data: str | Path | None = None,
    hold_out: bool = True,
    size: int | str | None = None,
    eval_size: int | None = None,
    regression: bool = False,
    seed: int = 0,
    split_seed: int | None = None,
    name: str | None = None,
) -> Task:
    """A task from a file (CSV, TSV, JSON lines, Parquet) or a Hub data set ("owner/name[:config][@split]"), by columns.

    Without `eval_data` a stratified fifth of the rows is held out for evaluation, unless `hold_out` is False; rows of
    one text stay together. Labels are words, integers, or (if any has a fraction, or with `regression`) numbers to
    predict. Classes are sorted, integers by value. Of a Hub data set the split "train" is learned from and "validation"
    judged on, where its name says no other, and its classes go by their names.

    Args:
        text: the text column's name, or a list of two.
        label: name of the label column.
        size: training rows to draw, or "all".
        seed: of the rows held out and of those drawn.
        split_seed: of the rows held out, if another.

    Raises:
        DataError: a file, column or label that cannot be used; the row is named.
    """
    source = str(data)
    text = [text] if isinstance(text, str) else list(text)
    if label in text:
        raise DataError(f"column {label!r}", expected="text and label in two columns", found="one for both")
    rows = list(_own_rows(source, "train", text, label, regression))
    if not rows:
        raise DataError(source, expected="rows", found="none")
    is_number = regression or _looks_like_regression([row[2] for row in rows])
    labels = None if is_number else _class_names([row[2] for row in rows])
    examples = [_own_example(source, *row, labels) for row in rows]
    task = Task(
        name=name or source_name(source),
        labels=labels,
        fields=tuple(text),
        metrics=("spearman", "pearson") if is_number else ("accuracy", "f1_macro"),
        train=examples,
        label_field=label,
        notices=_alike(labels or ()),
    )
    if eval_data is not None:
        held = [
            _own_example(str(eval_data), *row, labels)
            for row in _own_rows(str(eval_data), "validation", text, label, regression)
        ]
        if not held:
            raise DataError(str(eval_data), expected="rows", found="none")
        task.evaluation = {"evaluation": held}
        overlap = len({e.texts for e in held} & {e.texts for e in examples})
        if overlap:
            task.notices.append(f"{overlap} evaluation text(s) stand in the training rows too")
        task.notices += [f"evaluation rows {said}" for said in empty_texts(e.id for e in held if e.empty)]
    elif hold_out:
        need_rows(len(examples), source)
        check_texts(task, source)
        held_seed = seed if split_seed is None else split_seed
        rest, part = split_texts(examples, max(1, round(len(examples) / 5)), held_seed, classes=labels is not None)
        if not part:
            check_learnable(task, source)
            raise DataError(
                f"{source}, column {label!r}",
                expected="a class of two texts or more, for some are held out",
                found=f"{len({each.texts for each in examples})} texts in {len(labels or ())} classes",
                remedy="check --label; or give --eval FILE, or --no-eval",
            )
        task.train = [examples[i] for i in rest]
        task.evaluation = {"held-out": [examples[i] for i in part]}
    _note_unjudged(task)
    if size is not None:
        count = parse_size(size, len(task.train), task.name)
        if count < len(task.train):
            task.train = [task.train[i] for i in draw(task.train, count, seed, classes=labels is not None)]
    if eval_size is not None:
        task.evaluation = {split: part[:eval_size] for split, part in task.evaluation.items()}
    check_learnable(task, source)
    return task


@dataclass(frozen=True)
class OwnRows:
    """Where own rows lie and how they are read: what `own_task` makes a task of.

    Attributes:
        file: CSV, TSV, JSON lines or Parquet, or a Hub data set ("owner/name[:config][@split]").
        evaluation: another such with the rows that judge; without it a fifth of the rows is held out, the same whatever
            rows are drawn from the rest.
    """

    file: str
    text: tuple[str, ...]
    label: str
    evaluation: str | None = None
    regression: bool = False

    def task(self, name: str, size: int | str | None, eval_size: int | None, seed: int) -> Task:
        """The rows, `size` of them drawn by `seed` to learn from. Raises DataError as `own_task`."""
        return own_task(
            self.file,
            self.text,
            self.label,
            eval_data=self.evaluation,
            size=size,
            eval_size=eval_size,
            regression=self.regression,
            seed=seed,
            split_seed=0,
            name=name,
        )


def own_examples(
    data: str | Path, text: Sequence[str], label: str | None, labels: Sequence[str] | None
) -> Iterable[Example]:
    """Rows to predict or evaluate with a trained adapter, as a stream; `label` None leaves labels out.

    Raises:
        DataError: a column that is missing, or a label the adapter does not know.
    """
    source = str(data)
    known = None if labels is None else tuple(labels)
    for row in _own_rows(source, "validation", text, label, regression=known is None):
        yield _own_example(source, *row, known) if label else Example(row[0], row[1])


def _own_rows(
    source: str, split: str, text: Sequence[str], label: str | None, regression: bool
) -> Iterable[tuple[int, tuple[str, ...], Any]]:
    needed = [*text, *([label] if label else [])]
    for number, row in rows_of(source, split, as_numbers=label if regression else None):
        for column in needed:
            if column not in row:
                raise DataError(
                    f"{source}, column {column!r}",
                    expected="a column of this name",
                    found=", ".join(map(str, row)),
                    remedy=nearest(column, [str(each) for each in row]),
                )
        texts = tuple("" if is_missing(row[column]) else str(row[column]) for column in text)
        yield number, texts, row[label] if label else None


def source_name(source: str | Path) -> str:
    """A task's name where none is given: its file's, without endings, or its Hub data set's, with the configuration."""
    place = _hub_place(str(source))
    if place is None:
        return Path(source).name.split(".")[0]
    return place["short"] + (f"-{place['config']}" if place["config"] else "")


def rows_of(source: str, split: str, *, as_numbers: str | None = None) -> Iterable[tuple[int, Row]]:
    """Rows of a file with their lines, or of a Hub data set ("owner/name[:config][@split]") with their numbers.

    Classes come by their names, also where the Hub data set holds their numbers.

    Args:
        split: the Hub data set's, where `source` names none.
        as_numbers: a column that keeps its numbers.

    Raises:
        DataError: a file or data set that cannot be read.
    """
    place = _hub_place(source)
    if place is None:
        return read_rows(Path(source))
    rows = hub_rows(place["name"], place["config"], place["split"] or split)
    return enumerate(_with_class_names(rows, as_numbers), 1)


def _hub_place(source: str) -> re.Match[str] | None:
    """What `source` says of a Hub data set, if it is one: no file, nor what reads like a file that is missing."""
    path, place = Path(source), _HUB.fullmatch(source)
    if path.exists() or place is None:
        return None
    named = Path(place["name"])
    reads = named.name.lower().removesuffix(".gz").endswith(FORMATS)
    missing = reads or (named.suffix and named.parent.is_dir())
    return None if missing else place


def _with_class_names(rows: Iterable[Row], but: str | None) -> Iterable[Row]:
    """Rows of a Hub data set with classes' names in place of their numbers (-1 is none), but in one column."""
    features = getattr(rows, "features", None) or {}
    classes = {column: kind for column, kind in features.items() if hasattr(kind, "int2str") and column != but}
    for row in rows:
        numbers = [(column, kind, row[column]) for column, kind in classes.items()]
        yield {**row, **{column: None if n in (None, -1) else kind.int2str(n) for column, kind, n in numbers}}


def _alike(labels: Sequence[str]) -> list[str]:
    """Says which words among the labels differ in nothing but case, spaces or punctuation."""
    groups: dict[str, list[str]] = {}
    for name in labels:
        plain = "".join(each for each in name.casefold() if each.isalnum())
        groups.setdefault(plain, []).append(name)
    alike = [group for plain, group in groups.items() if any(map(str.isalpha, plain)) and len(group) > 1]
    if not alike:
        return []
    said = " and ".join(map(repr, alike[0]))
    more = f", and {len(alike) - 1} more such" if len(alike) > 1 else ""
    return [f"the labels {said} are alike{more}: they count as different classes"]


def _note_unjudged(task: Task) -> None:
    """Say which classes have no evaluation row, where there are any such rows."""
    if task.labels is None or not task.evaluation:
        return
    judged = {example.label for part in task.evaluation.values() for example in part}
    left = [name for number, name in enumerate(task.labels) if number not in judged]
    if left:
        some = ", ".join(map(repr, left[:5])) + (", ..." if len(left) > 5 else "")
        task.notices.append(f"no evaluation row has the label {some}: not judged")


def is_missing(value: Any) -> bool:
    """Whether a field of a row holds nothing: null, or a float NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _own_example(
    source: str, number: int, texts: tuple[str, ...], value: Any, labels: tuple[str, ...] | None
) -> Example:
    where = f"{source}, line {number}"
    if isinstance(value, (list, tuple, dict)):
        raise DataError(
            where,
            expected="one label a row",
            found=f"{value!r}",
            remedy="multi-label data are out of scope; make one adapter for each label",
        )
    if is_missing(value) or label_word(value) in NO_LABEL:
        raise DataError(where, expected="a label", found=f"{value!r}", remedy="fill it in or take the row out")
    if labels is None:
        try:
            number_value = float(value)
        except ValueError:
            raise DataError(where, expected="a number as label", found=repr(value)) from None
        if not math.isfinite(number_value):
            raise DataError(where, expected="a finite number as label", found=repr(value))
        return Example(number, texts, number_value)
    word = label_word(value)
    known = [word] if word in labels else [each for each in labels if _same_number(each, word)]
    if len(known) != 1:
        raise DataError(
            where,
            expected=f"one of the {len(labels)} labels of training",
            found=repr(word),
            remedy=nearest(word, labels),
        )
    return Example(number, texts, labels.index(known[0]))


def _same_number(word: str, other: str) -> bool:
    """Whether two words are one number: a CSV's "1.0" is "1" where the column holds integers."""
    try:
        return float(word) == float(other)
    except ValueError:
        return False


def label_word(value: Any) -> str:
    """A label as its class's name: 1.0 is "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _looks_like_regression(values: Sequence[Any]) -> bool:
    """Whether all labels are numbers and at least one has a fraction."""
    fraction = False
    for value in values:
        if isinstance(value, (list, tuple, dict, bool)) or value is None:
            return False
        try:
            number = float(value)
        except ValueError:
            return False
        fraction = fraction or (math.isfinite(number) and not number.is_integer())
    return fraction


def _class_names(values: Sequence[Any]) -> tuple[str, ...]:
    usable = [v for v in values if not isinstance(v, (list, tuple, dict)) and not is_missing(v)]
    words = {label_word(value) for value in usable} - NO_LABEL
    try:
        return tuple(sorted(words, key=int))
    except ValueError:
        return tuple(sorted(words))


def need_rows(count: int, source: str) -> None:
    """Raises DataError if there are too few rows to hold some out."""
    if count < 5:
        raise DataError(
            source,
            expected="at least 5 rows to hold some out",
            found=str(count),
            remedy="add rows, give an evaluation file, or use --no-eval",
        )
