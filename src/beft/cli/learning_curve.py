"""`beft learning-curve`: scores at growing numbers of labels, and whether more would help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import RecipeError
from ..report.names import metric_name
from . import options as o
from .grid import bank_progress
from .labelled import load_task, make_recipe
from .lists import numbers
from .screen import console, notes, print_json, titled_table

if TYPE_CHECKING:
    from ..training.curve import Curve


def learning_curve(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Base model: a folder or a Hub id.", rich_help_panel=o.MAIN)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for table, numbers and picture.", rich_help_panel=o.MAIN)
    ],
    data: o.Data = None,
    text: o.Text = None,
    label: o.Label = None,
    eval_data: o.EvalData = None,
    regression: o.Regression = False,
    train_size: Annotated[
        str | None, typer.Option("--train-size", help="Training rows at hand: N or all.", rich_help_panel=o.DATA)
    ] = None,
    eval_size: o.EvalSize = None,
    task: o.Task = None,
    data_dir: o.DataDir = None,
    regime: o.Regime = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            help="Training rows, commas between (default: 8 a class, doubled up to all).",
            rich_help_panel=o.GRID,
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option("--seeds", help="Seeds of each size, commas between.", rich_help_panel=o.GRID)
    ] = "0,1,2",
    memory: o.Memory = None,
    terms: Annotated[str, typer.Option("--terms", help="Biases to learn.", rich_help_panel=o.RECIPE)] = "value",
    pairs: o.Pairs = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.", rich_help_panel=o.RECIPE)] = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    max_length: o.MaxLength = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the curve in --out that was stopped.", rich_help_panel=o.MAIN)
    ] = False,
    overwrite: o.Overwrite = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    token_budget: o.TokenBudget = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Train at growing numbers of rows and say whether more labels would help.

    `beft learning-curve -m MODEL --data tickets.csv --text text --label intent -o runs/curve`
    """
    if resume and overwrite:
        raise RecipeError("--resume and --overwrite", expected="one of them", found="both")
    changes: dict[str, Any] = {
        "terms": terms, "pairs": pairs, "lr": lr, "epochs": epochs, "batch_size": batch_size, "max_length": max_length
    }  # fmt: skip
    recipe = make_recipe("default", None, model, {key: each for key, each in changes.items() if each is not None})
    the_sizes = None if sizes is None else numbers("--sizes", sizes, int)
    the_seeds = numbers("--seeds", seeds, int)

    from ..files import read_json
    from ..training.curve import learning_curve as run

    the_task = load_task(
        task, data, text, label, data_dir, eval_data, False, train_size, eval_size, regime, regression, 0
    )
    if not (quiet or json):
        notes(the_task.notices)
    with bank_progress(the_task.metrics[0], quiet or json) as listener:
        curve = run(
            model,
            the_task,
            out,
            sizes=the_sizes,
            seeds=the_seeds,
            recipe=recipe,
            resume=resume,
            overwrite=overwrite,
            listener=listener,
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            memory=memory,
            trust_remote_code=trust_remote_code,
        )
    if json:
        print_json(read_json(out / "learning_curve.json"))
    elif not quiet:
        notes([note for note in curve.notices if note not in the_task.notices])
        show_curve(curve)


def show_curve(curve: Curve) -> None:
    """A row a size, beside the frozen regression; then the sentence."""
    name = metric_name(curve.metric)
    table = titled_table(f"{name} on {curve.judged} {escape(curve.split)} rows, mean ± sd over seeds")
    for column in ("training rows", "beft", "frozen + regression"):
        table.add_column(column, justify="right")
    for point in curve.points:
        cells = [
            "" if each is None else f"{each['mean']:.3f} ± {each['sd']:.3f}"
            for each in (point["score"], point["frozen"])
        ]
        table.add_row(str(point["rows"]), *cells)
    console.print()
    console.print(table)
    console.print(f"\n[bold]{escape(curve.advice)}[/]")
    console.print(f"{len(curve.runs)} runs in {curve.seconds:.0f} s; table and picture: [bold]{curve.directory}[/]")
