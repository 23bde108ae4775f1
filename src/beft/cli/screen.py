"""What the commands share of the screen: output modes, the progress bar, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..report.names import metric_name
from ..report.tables import Table as ReportTable
from ..training.progress import Listener
from .launch import speaks

if TYPE_CHECKING:
    from ..tasks.question import PromptTask
    from ..tasks.task import Task

console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not speaks())
"""Everything for a person goes to standard error; standard output is for results that a program reads."""

BASELINES = {
    "majority": "majority",
    "frozen_logistic_regression": "frozen states + regression",
    "zero_shot": "zero-shot",
}
STAGES = {
    "zero-shot": "zero-shot",
    "frozen": "frozen baseline",
    "select": "training",
    "refit": "refit on all rows",
    "evaluation": "evaluation",
    "gradients": "gradients",
}


def error_line(text: str) -> None:
    """One line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(
        "error: " + " ".join(text.split()), style="red"
    )


def print_json(value: Any) -> None:
    """JSON on standard output, for `--json`; of several processes, from the first."""
    if speaks():
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


class Screen(Listener):
    """A live progress bar with loss, dev score, examples/s and time left; notes above it."""

    def __init__(self, progress: Progress, metric: str) -> None:
        self.progress, self.metric = progress, metric
        self.task: TaskID | None = None
        self.dev = ""
        self.loss = 0.0
        self.rows = 0

    def stage(self, name: str, steps: int) -> None:
        """A new bar."""
        if self.task is not None:
            self.progress.stop_task(self.task)
        self.dev, self.rows, self.loss = "", 0, 0.0
        self.task = self.progress.add_task(STAGES.get(name, name), total=steps, loss="", dev="", speed="")

    def step(self, loss: float | None, examples: int) -> None:
        """Move the bar."""
        if self.task is None:
            return
        self.rows += examples
        elapsed = self.progress.tasks[self.progress.task_ids.index(self.task)].elapsed or 1e-9
        speed = f"{self.rows / elapsed:.0f} ex/s"
        if loss is None:
            self.progress.update(self.task, advance=examples, speed=speed)
            return
        self.loss = 0.9 * self.loss + 0.1 * loss if self.loss else loss
        self.progress.update(self.task, advance=1, loss=f"loss {self.loss:.3f}", dev=self.dev, speed=speed)

    def epoch(self, row: dict[str, Any]) -> None:
        """Show the dev score."""
        if f"dev_{self.metric}" in row:
            self.dev = f"dev {row[f'dev_{self.metric}']:.3f}"
        if self.task is not None:
            self.progress.update(self.task, dev=self.dev)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.progress.console.print(f"[yellow]note:[/] {escape(text)}")


Bars = Progress


@contextmanager
def training_bars() -> Iterator[Bars]:
    """Bars with loss, dev score and speed, live on the screen."""
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[cyan]{task.fields[loss]}"),
        TextColumn("[green]{task.fields[dev]}"),
        TextColumn("[dim]{task.fields[speed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as bars:
        yield bars


@contextmanager
def progress(metric: str, quiet: bool) -> Iterator[Listener]:
    """A listener that draws, or one that does not."""
    if quiet:
        yield Listener()
        return
    with training_bars() as bars:
        yield Screen(bars, metric)


@contextmanager
def byte_bar(title: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over bytes; gives the function that moves it (done, in all)."""
    if quiet:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def notes(texts: Sequence[str]) -> None:
    """Things the user should know, a line each."""
    for text in texts:
        console.print(f"[yellow]note:[/] {escape(text)}")


def baseline_names(task: Task | PromptTask) -> dict[str, str]:
    """What a task's baselines are called, by their keys: where numbers are predicted, the majority is their mean."""
    from ..tasks.question import PromptTask

    numbers = not isinstance(task, PromptTask) and task.regression
    return BASELINES | ({"majority": "the mean"} if numbers else {})


def titled_table(title: str) -> Table:
    """An empty table without rules under a title; markup in the title counts."""
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)


def score_table(title: str, rows: dict[str, dict[str, float]], first: str = "method") -> Table:
    """Methods down, metrics across."""
    table = titled_table(escape(title))
    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))
    table.add_column(first)
    for metric in metrics:
        table.add_column(metric_name(metric), justify="right")
    best = {metric: max(scores.get(metric, -9.0) for scores in rows.values()) for metric in metrics}
    for name, scores in rows.items():
        cells = []
        for metric in metrics:
            value = scores.get(metric)
            text = "" if value is None else f"{value:.3f}"
            cells.append(f"[bold green]{text}[/]" if value == best[metric] and len(rows) > 1 else text)
        table.add_row(escape(name), *cells)
    return table


def print_table(table: ReportTable) -> None:
    """A report's table on the screen: best bold, second underlined, missing in yellow."""
    styles = {"best": "bold green", "second": "underline", "missing": "yellow"}
    console.print(f"[bold]{escape(table.title)}[/]")  # as the table's own title it would wrap at the table's width
    shown = Table(header_style="bold", box=None, pad_edge=False)
    for place, name in enumerate(table.header):
        shown.add_column(escape(name), justify="right" if place else "left", no_wrap=not place)
    for row in table.rows:
        shown.add_row(
            *(f"[{styles[each.mark]}]{escape(each.text)}[/]" if each.mark else escape(each.text) for each in row)
        )
    if console.is_terminal:
        console.print(shown)
    else:  # a file has no width to wrap at
        wide = Console(stderr=True, highlight=False, width=500)
        wide.print(shown, width=Measurement.get(wide, wide.options, shown).maximum)
    for note in table.notes:
        console.print(f"[dim]{escape(note)}[/]")


def kilobytes(count: int) -> str:
    """A size as people read it."""
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"
