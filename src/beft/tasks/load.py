"""Making a `Task` of a benchmark, by its name. `own` makes one of the user's own rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError, nearest
from .benchmarks import BENCHMARKS, REGIMES, Benchmark
from .registered import is_registered, registered_task
from .table import Row, read_rows
from .task import Example, Task, check_learnable, read_size, subset


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
            raise DataError(f"regime {regime!r}", expected="one of the regimes", remedy=nearest(regime, REGIMES))
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
    count = read_size(size, f"{name}, train size")
    if count is None:
        return available
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
        rows: Iterable[Row] = hub_rows(*spec.hub, split=split)
    else:
        if not folder.is_dir():
            raise DataError(str(folder), expected="a folder of benchmark data", found="no such folder")
        rows = (row for _, row in read_rows(split_file(folder / spec.name, split)))
    return [_benchmark_example(spec, number, row) for number, row in enumerate(rows)]


def split_file(folder: Path, split: str) -> Path:
    """The file of a split in a benchmark's folder.

    Raises:
        DataError: none there.
    """
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


def hub_rows(dataset: str, config: str | None, split: str) -> Iterable[Row]:
    """The rows of a data set on the Hub.

    Raises:
        DataError: the package `datasets` is missing, or the data set or its split cannot be loaded.
    """
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
        where, said = f"Hub data set {dataset}{':' + config if config else ''}", " ".join(str(error).split())
        splits = re.search(r"Unknown split .* Should be one of \[(.*)\]", said)
        if splits:
            there = splits[1].replace("'", "")
            raise DataError(
                f"{where}, split {split}",
                expected=f"one of its splits ({there})",
                found="none of this name",
                remedy="for your own rows name it behind an @, as owner/name@test",
            ) from error
        raise DataError(
            f"{where}, split {split}",
            expected="a data set that can be loaded",
            found=said[:200],
            remedy="check the name and the connection, or give local rows with --data or --data-dir",
        ) from error
