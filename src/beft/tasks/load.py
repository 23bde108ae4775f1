"""Making a `Task`: a benchmark by name, or the user's own rows by column names."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from .benchmarks import BENCHMARKS, REGIMES, Benchmark
from .registered import is_registered, registered_task
from .table import Row, read_rows
from .task import Example, Task, check_learnable, stratified_split, subset

# ---- benchmarks ------------------------------------------------------------------------------------------------------


def benchmark(name: str) -> Benchmark:
    """A benchmark by name, case ignored; "SST-2", "sst_2" and "STS-B" are understood.

    Raises:
        DataError: no such task; the nearest name is suggested.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in BENCHMARKS:
        raise DataError(f"task {name!r}", expected="a known task", found="none", remedy=nearest(name, BENCHMARKS))
    return BENCHMARKS[key]


def benchmark_task(
    name: str,
    data_dir: str | Path | None = None,
    *,
    size: int | str | None = None,
    regime: str | None = None,
    eval_size: int | None = None,
    seed: int = 0,
) -> Task:
    """A benchmark with the training rows of a regime (default "low") or of a given size, and its evaluation rows.

    Rows come from `data_dir`, else the folder named by the environment variable BEFT_DATA, else the Hub. The training
    rows are the paper's subset: the first of a permutation seeded with `seed`. The name may be of a task from outside
    too (`register_task`, or "my_file.py:name"): it brings its own rows, all of which are used unless a size is given.

    Raises:
        DataError: unknown task or regime, more rows asked for than there are, or files that cannot be read.
        ExtensionError: a file of one's own that cannot be loaded or has no such task.
    """
    if is_registered(name):
        return _task_from_outside(name, data_dir, size, regime, eval_size, seed)
    spec = benchmark(name)
    rows = benchmark_split(spec, "train", data_dir)
    count = _train_size(spec, len(rows), size, regime)
    task = Task(
        name=spec.name,
        labels=spec.labels,
        fields=spec.fields,
        metrics=spec.metrics,
        train=subset(rows, count, seed) if count < len(rows) else rows,
        evaluation={ours: benchmark_split(spec, theirs, data_dir) for ours, theirs in spec.splits.items()},
        benchmark=True,
    )
    if eval_size is not None:
        task.evaluation = {split: part[:eval_size] for split, part in task.evaluation.items()}
    check_learnable(task)
    return task


def _task_from_outside(
    name: str,
    data_dir: str | Path | None,
    size: int | str | None,
    regime: str | None,
    eval_size: int | None,
    seed: int,
) -> Task:
    task = registered_task(name, seed)
    if not isinstance(task, Task):
        raise DataError(
            f"task {name!r}", expected="a task of labels", found="prompts", remedy="use --objective choose or generate"
        )
    for option, given in (("regime", regime), ("data-dir", data_dir)):
        if given is not None:
            expected = "nothing, for a task of your own" + (
                ": give the rows (train size)" if option == "regime" else ""
            )
            raise DataError(f"task {name!r}, {option}", expected=expected, found=repr(str(given)))
    if size is not None:
        count = parse_size(size, len(task.train), task.name)
        task.train = subset(task.train, count, seed) if count < len(task.train) else task.train
    if eval_size is not None:
        task.evaluation = {split: part[:eval_size] for split, part in task.evaluation.items()}
    check_learnable(task)
    return task


def _train_size(spec: Benchmark, available: int, size: int | str | None, regime: str | None) -> int:
    if size is not None and regime is not None:
        raise DataError("regime and train size", expected="one of them", found=f"{regime!r} and {size!r}")
    if size is None:
        regime = regime or "low"
        if regime not in REGIMES:
            raise DataError(f"regime {regime!r}", expected="low, medium or high", remedy=nearest(regime, REGIMES))
        wanted = getattr(spec, regime)
        if wanted is None:
            defined = [each for each in REGIMES if getattr(spec, each) is not None]
            raise DataError(
                f"regime {regime!r} of {spec.name}",
                expected=f"a regime that the paper defines for it ({', '.join(defined)})",
                remedy="give the number of rows with --train-size",
            )
        size = wanted or available
    return parse_size(size, available, spec.name)


def parse_size(size: int | str, available: int, name: str) -> int:
    """A number of rows from an int, its text, or "all".

    Raises:
        DataError: not a positive number, or more than there are.
    """
    if size == "all":
        return available
    try:
        count = int(size)
    except ValueError:
        raise DataError(f"train size {size!r}", expected="a number of rows or 'all'") from None
    if count < 1:
        raise DataError(f"train size {size!r}", expected="at least 1 row")
    if count > available:
        raise DataError(
            f"{name}, training rows",
            expected=f"at least {count}",
            found=f"{available} at hand",
            remedy="use --train-size all, or point --data-dir to a folder with the full set",
        )
    return count


def benchmark_split(spec: Benchmark, split: str, data_dir: str | Path | None = None) -> list[Example]:
    """One split of a benchmark; rows without a label (the official test sets) have label None."""
    folder = Path(data_dir or os.environ.get("BEFT_DATA") or "")
    if data_dir is None and not os.environ.get("BEFT_DATA"):
        rows: Iterable[Row] = _hub_rows(*spec.hub, split=split)
    else:
        if not folder.is_dir():
            raise DataError(str(folder), expected="a folder of benchmark data", found="no such folder")
        rows = (row for _, row in read_rows(_split_file(folder / spec.name, split)))
    return [_benchmark_example(spec, number, row) for number, row in enumerate(rows)]


def _split_file(folder: Path, split: str) -> Path:
    for ending in (".jsonl.gz", ".jsonl", ".csv", ".tsv", ".csv.gz", ".parquet"):
        if (folder / (split + ending)).exists():
            return folder / (split + ending)
    there = sorted(p.name for p in folder.glob("*")) if folder.is_dir() else []
    raise DataError(
        str(folder / split),
        expected="a file such as " + split + ".jsonl.gz",
        found=f"only {', '.join(there)}" if there else "no such folder",
        remedy="check --data-dir or the variable BEFT_DATA; without both the data come from the Hub",
    )


def _benchmark_example(spec: Benchmark, number: int, row: Row) -> Example:
    missing = [name for name in spec.fields if name not in row]
    if missing:
        raise DataError(f"{spec.name}, row {number}", expected=f"the field {missing[0]!r}", found=", ".join(row))
    texts = [str(row[name]) for name in spec.fields]
    if spec.word_field:
        texts[0] = f"{row[spec.word_field]}: {texts[0]}"
    label = row.get("label")
    known: float | int | None = None
    try:
        if label is not None and spec.labels is None:
            known = float(label)
        elif label is not None and int(label) >= 0:
            known = int(label)
            spec.labels[known]  # type: ignore[index]
    except (ValueError, TypeError, IndexError):
        wanted = "a number" if spec.labels is None else f"a class number below {len(spec.labels)}"
        raise DataError(f"{spec.name}, row {number}, label", expected=wanted, found=repr(label)) from None
    return Example(row.get("idx", number), tuple(texts), known)


def _hub_rows(dataset: str, config: str | None, split: str) -> Iterable[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"Hub data set {dataset}",
            expected="the package datasets",
            found="no such package",
            remedy="pip install 'beft[data]', or give a local folder with --data-dir",
        ) from error
    try:
        return load_dataset(dataset, config, split=split)
    except Exception as error:
        raise DataError(
            f"Hub data set {dataset}{'/' + config if config else ''}, split {split}",
            expected="a data set that can be loaded",
            found=str(error).split("\n")[0][:200],
            remedy="check the name and the connection, or give a local folder with --data-dir",
        ) from error


NO_LABEL = frozenset({"", "nan", "NaN", "None", "null", "NULL"})
"""Words that tools write for a missing label. "none" is a class of some data sets."""


# ---- the user's own rows ---------------------------------------------------------------------------------------------


def own_task(
    data: str | Path,
    text: Sequence[str],
    label: str,
    *,
    eval_data: str | Path | None = None,
    hold_out: bool = True,
    size: int | str | None = None,
    eval_size: int | None = None,
    regression: bool = False,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """A task from a file (CSV, TSV, JSON lines, Parquet) or a Hub data set, by column names.

    Without `eval_data` a stratified fifth of the rows is held out for evaluation, unless `hold_out` is False. Labels
    are words, integers, or (if any has a fraction, or with `regression`) numbers to predict. Classes are sorted,
    integers by value.

    Raises:
        DataError: a file, column or label that cannot be used; the row is named.
    """
    source = str(data)
    if label in text:
        raise DataError(f"column {label!r}", expected="text and label in two columns", found="one for both")
    rows = list(_own_rows(source, "train", text, label))
    if not rows:
        raise DataError(source, expected="rows", found="none")
    is_number = regression or _looks_like_regression([row[2] for row in rows])
    labels = None if is_number else _class_names([row[2] for row in rows])
    examples = [_own_example(source, *row, labels) for row in rows]
    task = Task(
        name=name or Path(source).name.split(".")[0],
        labels=labels,
        fields=tuple(text),
        metrics=("spearman", "pearson") if is_number else ("accuracy", "f1_macro"),
        train=examples,
        label_field=label,
    )
    if eval_data is not None:
        held = [
            _own_example(str(eval_data), *row, labels) for row in _own_rows(str(eval_data), "validation", text, label)
        ]
        if not held:
            raise DataError(str(eval_data), expected="rows", found="none")
        task.evaluation = {"evaluation": held}
        overlap = len({e.texts for e in held} & {e.texts for e in examples})
        if overlap:
            task.notices.append(f"{overlap} evaluation text(s) stand in the training rows too")
    elif hold_out:
        _need_rows(task)
        rest, part = stratified_split(examples, max(1, round(len(examples) / 5)), seed, classes=labels is not None)
        if not part:
            raise DataError(
                f"{source}, column {label!r}",
                expected="a class of two rows or more, for some are held out",
                found=f"{len(examples)} rows of as many classes",
                remedy="check --label; or give --eval FILE, or --no-eval",
            )
        task.train = [examples[i] for i in rest]
        task.evaluation = {"held-out": [examples[i] for i in part]}
        known = {example.texts for example in task.train}
        twice = sum(examples[i].texts in known for i in part)
        if twice:
            task.notices.append(f"{twice} of {len(part)} held-out texts stand in the training rows too: scores flatter")
    if size is not None:
        count = parse_size(size, len(task.train), task.name)
        if count < len(task.train):
            _, part = stratified_split(task.train, count, seed, classes=labels is not None, leave=0)
            task.train = [task.train[i] for i in part]
    if eval_size is not None:
        task.evaluation = {split: part[:eval_size] for split, part in task.evaluation.items()}
    check_learnable(task)
    return task


def own_examples(
    data: str | Path, text: Sequence[str], label: str | None, labels: Sequence[str] | None
) -> Iterable[Example]:
    """Rows to predict or evaluate with a trained adapter, as a stream; `label` None leaves labels out.

    Raises:
        DataError: a column that is missing, or a label the adapter does not know.
    """
    source = str(data)
    known = None if labels is None else tuple(labels)
    for row in _own_rows(source, "validation", text, label):
        yield _own_example(source, *row, known) if label else Example(row[0], row[1])


def _own_rows(
    source: str, split: str, text: Sequence[str], label: str | None
) -> Iterable[tuple[int, tuple[str, ...], Any]]:
    path = Path(source)
    from_hub = not path.exists() and not path.suffix and source.count("/") == 1
    stream = enumerate(_hub_rows(source, None, split), 1) if from_hub else read_rows(path)
    needed = [*text, *([label] if label else [])]
    for number, row in stream:
        for column in needed:
            if column not in row:
                raise DataError(
                    f"{source}, column {column!r}",
                    expected="a column of this name",
                    found=", ".join(map(str, row)),
                    remedy=nearest(column, [str(each) for each in row]),
                )
        texts = tuple("" if _missing(row[column]) else str(row[column]) for column in text)
        yield number, texts, row[label] if label else None


def _missing(value: Any) -> bool:
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
    if _missing(value) or _word(value) in NO_LABEL:
        raise DataError(where, expected="a label", found=f"{value!r}", remedy="fill it in or take the row out")
    if labels is None:
        try:
            number_value = float(value)
        except ValueError:
            raise DataError(where, expected="a number as label", found=repr(value)) from None
        if not math.isfinite(number_value):
            raise DataError(where, expected="a finite number as label", found=repr(value))
        return Example(number, texts, number_value)
    word = _word(value)
    if word not in labels:
        raise DataError(
            where,
            expected=f"one of the {len(labels)} labels of training",
            found=repr(word),
            remedy=nearest(word, labels),
        )
    return Example(number, texts, labels.index(word))


def _word(value: Any) -> str:
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
    usable = [v for v in values if not isinstance(v, (list, tuple, dict)) and not _missing(v)]
    words = {_word(value) for value in usable} - NO_LABEL
    try:
        return tuple(sorted(words, key=int))
    except ValueError:
        return tuple(sorted(words))


def _need_rows(task: Task) -> None:
    if len(task.train) < 5:
        raise DataError(
            task.name,
            expected="at least 5 rows to hold some out",
            found=str(len(task.train)),
            remedy="add rows, give an evaluation file, or use --no-eval",
        )
