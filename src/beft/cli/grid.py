"""`beft train` of a grid: terms, learning rates and seeds side by side, a folder a run, a table of them all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import TaskID
from rich.table import Table

from ..errors import RecipeError, TrainingError
from ..report.names import metric_name
from ..training.progress import BankListener, Listener
from .lists import numbers, words
from .screen import STAGES, Bars, baseline_names, console, notes, print_json, titled_table, training_bars

if TYPE_CHECKING:
    from ..tasks.question import PromptTask
    from ..tasks.task import Task
    from ..training.many import ManyResult
    from ..training.plan import Plan
    from ..training.recipe import Recipe


@dataclass(frozen=True)
class Axes:
    """What the runs of a grid are made of; None where nothing was said."""

    terms: Sequence[str | None]
    lrs: Sequence[float | None]
    seeds: Sequence[int]


def read_axes(changes: Mapping[str, Any], *, terms: str | None, lrs: str | None, seeds: str | None) -> Axes | None:
    """The axes of a grid, or None if the options are of one run.

    Raises:
        RecipeError: a value that is no number or stands twice, or --lr beside --lrs, or --seed beside --seeds.
        TermError: terms that are none.
    """
    from ..core.terms import same_terms

    listed = words(terms or "")
    if lrs is None and seeds is None and len(listed) < 2:
        return None
    for single, many, values in (("lr", "lrs", lrs), ("seed", "seeds", seeds)):
        if values is not None and single in changes:
            raise RecipeError(f"--{single} and --{many}", expected="one of them", found="both")
    axes = Axes(
        listed or [None],
        [changes.get("lr")] if lrs is None else numbers("--lrs", lrs, float),
        [changes.get("seed", 0)] if seeds is None else numbers("--seeds", seeds, int),
    )
    for name, given in (("--terms", axes.terms), ("--lrs", axes.lrs), ("--seeds", axes.seeds)):
        twice = next((each for each in given if list(given).count(each) > 1), None)
        if twice is not None:
            raise RecipeError(name, expected="every value once", found=f"{twice} twice")
    same = same_terms(listed)
    if same is not None:
        raise RecipeError("--terms", expected="every value once", found=f"{same[0]} and {same[1]}, the same")
    return axes


def refuse_beside_many(given: Mapping[str, Any]) -> None:
    """Raises RecipeError for an option of single runs."""
    wrong = next((name for name, value in given.items() if value), None)
    if wrong:
        raise RecipeError(wrong, expected="one run", found="a grid of runs", remedy="leave it out, or train one run")


def make_plans(
    axes: Axes,
    task_of: Callable[[int], Task | PromptTask],
    recipe_of: Callable[[str, dict[str, Any]], Recipe],
) -> list[Plan]:
    """One plan for each point of the grid, named by what tells it apart. Seeds whose rows are the same share a task."""
    from ..training.plan import Plan, folder_name

    def recipe(name: str, terms: str | None, lr: float | None, seed: int) -> Recipe:
        changes = {"terms": terms, "lr": lr, "seed": seed}
        return recipe_of(name, {key: value for key, value in changes.items() if value is not None})

    for point in itertools.product(axes.terms, axes.lrs, axes.seeds):
        recipe("", *point)  # faults show before any row is read
    tasks: dict[int, Task | PromptTask] = {}
    alike: dict[str, Task | PromptTask] = {}
    for seed in axes.seeds:
        task = task_of(seed)
        tasks[seed] = alike.setdefault(task.fingerprint(), task)
    plans = []
    for terms, lr, seed in itertools.product(axes.terms, axes.lrs, axes.seeds):
        words = [terms or ""] if len(axes.terms) > 1 else []
        words += [f"lr{lr:g}"] if lr is not None and len(axes.lrs) > 1 else []
        words += [f"seed{seed}"] if len(axes.seeds) > 1 or not words else []
        task = tasks[seed]
        plans.append(Plan(folder_name("-".join(words)), recipe(task.name, terms, lr, seed), task))
    return plans


def train_grid(
    model: str,
    axes: Axes,
    task_of: Callable[[int], Task | PromptTask],
    recipe_of: Callable[[str, dict[str, Any]], Recipe],
    out: Path,
    *,
    quiet: bool,
    json: bool,
    **options: Any,
) -> None:
    """Train the grid as one bank and show its table.

    Raises:
        TrainingError: every run failed.
        And what `beft.train_many` raises.
    """
    from ..files import read_json
    from ..training.many import train_many

    plans = make_plans(axes, task_of, recipe_of)
    task = plans[0].task
    assert task is not None
    if not (quiet or json):
        evaluation = ", ".join(f"{len(part)} {name}" for name, part in task.evaluation.items()) or "none"
        console.print(
            f"[bold]{escape(task.name)}[/]: {len(plans)} run{'s' if len(plans) > 1 else ''}, "
            f"{len(task.train)} training rows each, "
            f"evaluation rows: {evaluation}"
        )
    with bank_progress(task.metrics[0], quiet or json) as listener:
        found = train_many(model, task, plans, out, listener=listener, **options)
    if json:
        print_json(read_json(out / "summary.json"))
    elif not quiet:
        notes(found.notices)
        show_table(found, task)
    if not found.results:
        raise TrainingError(
            f"all {len(plans)} runs", expected="a finite loss", found="none in any", remedy="lower the learning rate"
        )


def show_table(found: ManyResult, task: Task | PromptTask) -> None:
    """A row a run, the best dev score marked; then mean and spread over seeds, and the baselines."""
    rows = found.table
    measured = list(dict.fromkeys(key for row in rows for key in row if key.startswith(("dev_", "evaluation_"))))
    known = {"run", "status", "error", "best_epoch", "train_examples", "trainable_parameters", "train_seconds"}
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("run", no_wrap=True, min_width=max(len(row["run"]) for row in rows))
    for key in measured:
        table.add_column(_heading(key), justify="right")
    table.add_column("epochs", justify="right")
    table.add_column("s", justify="right")
    chosen = next((key for key in measured if key.endswith("_" + task.metrics[0])), None)
    best = max((row.get(chosen, -9.0) for row in rows), default=None) if chosen else None
    for row in rows:
        if row["status"] != "finished":
            table.add_row(escape(row["run"]), "[red]failed[/]", *[""] * (len(measured) + 1))
            continue
        cells = [
            f"[bold green]{row[key]:.3f}[/]"
            if key == chosen and row[key] == best
            else f"{row[key]:.3f}"
            if key in row
            else ""
            for key in measured
        ]
        table.add_row(escape(row["run"]), *cells, str(row["best_epoch"]), f"{row['train_seconds']:.0f}")
    console.print()
    console.print(table)
    if found.spread:
        spread = titled_table("over seeds: mean ± sd")
        keys = [key for key in found.spread[0] if key not in (*known, "runs", *measured)]
        for key in keys:
            spread.add_column(key)
        for key in measured:
            spread.add_column(_heading(key), justify="right")
        for row in found.spread:
            cells = [f"{row[key]['mean']:.3f} ± {row[key]['sd']:.3f}" if key in row else "" for key in measured]
            spread.add_row(*(escape(str(row[key])) for key in keys), *cells)
        console.print()
        console.print(spread)
    if found.baselines:
        plain = titled_table("without an adapter, on the same evaluation rows")
        plain.add_column("method")
        shown = list(dict.fromkeys(metric for scores in found.baselines.values() for metric in scores))
        for metric in shown:
            plain.add_column(metric_name(metric), justify="right")
        named = baseline_names(task)
        for name, scores in found.baselines.items():
            plain.add_row(named[name], *(_baseline(scores[key]) if key in scores else "" for key in shown))
        console.print()
        console.print(plain)
    console.print(f"\nadapters, a folder a run, and summary.csv: [bold]{escape(str(found.directory))}[/]")


def _baseline(score: Mapping[str, float]) -> str:
    """Its score, with the spread where seeds differ in it."""
    return f"{score['mean']:.3f} ± {score['sd']:.3f}" if score["sd"] else f"{score['mean']:.3f}"


def _heading(key: str) -> str:
    part, _, metric = key.partition("_")
    return f"{part} {metric_name(metric)}"


# ---- live ------------------------------------------------------------------------------------------------------------


class BankScreen(BankListener):
    """One bar over the steps of all runs, with the runs that ended, the mean loss and the best dev score so far."""

    def __init__(self, bars: Bars, metric: str) -> None:
        self.bars, self.metric = bars, metric
        self.steps: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.total = self.ended_runs = self.runs = self.rows = 0
        self.losses: dict[str, float] = {}
        self.best: float | None = None

    def begin(self, steps: Mapping[str, int], done: Sequence[str]) -> None:
        """Draw the bar."""
        self.steps, self.left = dict(steps), dict(steps)
        self.runs, self.ended_runs = len(steps) + len(done), len(done)
        self.total, self.rows = sum(steps.values()), 0
        self.task = self.bars.add_task("", total=self.total, loss="", dev="", speed="")
        self._draw()

    def of(self, name: str) -> Listener:
        """Counts a run's steps; stages without training get bars of their own."""
        return _Part(self, name)

    def restarted(self, name: str) -> None:
        """Count all of its steps once more."""
        self.shorten(name, self.steps[name])
        self.losses.pop(name, None)
        self._draw()

    def ended(self, name: str, scores: Mapping[str, float] | None, error: Exception | None) -> None:
        """Leave out what the run will not do any more."""
        self.ended_runs += 1
        self.shorten(name, 0)
        self.losses.pop(name, None)
        if error is not None:
            self.note(f"{name} failed: {error}")
        self._draw()

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.bars.console.print(f"[yellow]note:[/] {escape(text)}")

    def shorten(self, name: str, left: int) -> None:
        """A run has so many steps left, fewer than was thought (or more, where they are done again)."""
        self.total -= self.left[name] - left
        self.left[name] = left

    def advance(self, name: str, loss: float, rows: int) -> None:
        """A step of a run."""
        self.left[name] -= 1
        self.rows += rows
        self.losses[name] = loss
        self.bars.advance(self.task)
        self._draw()

    def scored(self, score: float) -> None:
        """A dev score of a run."""
        self.best = score if self.best is None else max(self.best, score)

    def _draw(self) -> None:
        elapsed = self.bars.tasks[self.bars.task_ids.index(self.task)].elapsed or 1e-9
        self.bars.update(
            self.task,
            total=self.total,
            description=f"{self.ended_runs}/{self.runs} runs done",
            loss=f"loss {sum(self.losses.values()) / len(self.losses):.3f}" if self.losses else "",
            dev="" if self.best is None else f"best dev {self.best:.3f}",
            speed=f"{self.rows / elapsed:.0f} ex/s",
        )


class _Part(Listener):
    """Passes one run's events to the screen of all."""

    def __init__(self, screen: BankScreen, name: str) -> None:
        self.screen, self.name = screen, name
        self.bar: TaskID | None = None

    def stage(self, name: str, steps: int) -> None:
        """A phase of training has so many steps (a refit may be shorter than was thought); others get a bar."""
        if name == "refit":
            self.screen.shorten(self.name, steps)
        elif name != "select":
            bars = self.screen.bars
            self.bar = bars.add_task(STAGES.get(name, name), total=steps, loss="", dev="", speed="")

    def resumed(self, steps: int) -> None:
        """So many steps were done before."""
        self.screen.shorten(self.name, max(0, self.screen.left[self.name] - steps))

    def step(self, loss: float | None, examples: int) -> None:
        """Move the bar that it belongs to."""
        if loss is not None:
            self.screen.advance(self.name, loss, examples)
        elif self.bar is not None:
            self.screen.bars.advance(self.bar, examples)

    def epoch(self, row: dict[str, Any]) -> None:
        """Keep the best dev score."""
        if f"dev_{self.screen.metric}" in row:
            self.screen.scored(row[f"dev_{self.screen.metric}"])


@contextmanager
def bank_progress(metric: str, quiet: bool) -> Iterator[BankListener]:
    """A listener that draws, or one that does not."""
    if quiet:
        yield BankListener()
        return
    with training_bars() as bars:
        yield BankScreen(bars, metric)
