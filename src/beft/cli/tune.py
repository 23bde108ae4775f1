"""`beft tune`: the settings to train with, chosen by cross-validation within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import RecipeError
from ..report.names import metric_name
from . import options as o
from . import prompting as p
from .grid import bank_progress
from .labelled import load_task
from .lists import numbers, words
from .screen import baseline_names, console, notes, print_json, score_table, titled_table

if TYPE_CHECKING:
    from ..tasks.question import PromptTask
    from ..tasks.task import Task
    from ..training.combination import Combination
    from ..training.space import Space
    from ..training.tune_result import TuneResult

BUDGET, SEARCH, SEEDS = "Budget", "What to choose from", "Several seeds"
SHOWN = 8
"""Candidates in the table; tune.json has all."""


def tune(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Base model: a folder or a Hub id.", rich_help_panel=o.MAIN)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; it is the refitted adapter.", rich_help_panel=o.MAIN)
    ],
    data: o.Data = None,
    text: o.Text = None,
    label: o.Label = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            "--eval",
            help="Rows that judge the refitted adapter; without it cross-validation alone does.",
            rich_help_panel=o.DATA,
        ),
    ] = None,
    regression: o.Regression = False,
    objective: p.Objective = None,
    template: p.Template = None,
    candidates: p.Candidates = None,
    answer: p.Answer = None,
    blank: p.Blank = None,
    chat: p.Chat = False,
    stop: p.Stop = None,
    generation: p.Generation = None,
    train_size: o.TrainSize = None,
    eval_size: o.EvalSize = None,
    task: o.Task = None,
    data_dir: o.DataDir = None,
    regime: o.Regime = None,
    runs: Annotated[
        int | None,
        typer.Option("--runs", help="Runs of cross-validation at most (default 112).", rich_help_panel=BUDGET),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", help="Minutes at most, the refit included, in place of --runs.", rich_help_panel=BUDGET
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", help="Folds (default 5, fewer where a class is small).", rich_help_panel=BUDGET),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Repeats of the folds in the last round.", rich_help_panel=BUDGET)
    ] = 2,
    combine: Annotated[
        str,
        typer.Option(
            "--combine",
            help="Compare one seed of the best with several: soup (their mean, one adapter), ensemble (all answer), "
            "auto (both), none. Kept only where the folds say that it helps.",
            rich_help_panel=SEEDS,
        ),
    ] = "none",
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="Seeds to combine (default 3).", rich_help_panel=SEEDS)
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option(
            "--lrs", help="Learning rates, commas between (default 1e-3,3e-3,1e-2,3e-2).", rich_help_panel=SEARCH
        ),
    ] = None,
    terms: Annotated[
        str | None,
        typer.Option(
            "--terms",
            help="Biases to learn; commas list choices (default value,all,query+value).",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option("--epochs", help="Passes over the rows (default: as train has, twice).", rich_help_panel=SEARCH),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers", help="Layers; repeat it for choices (default all and last:2).", rich_help_panel=SEARCH
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads",
            help="linear, means or regression (linear, started at the classes' means or the regression), apart or "
            "joint (linear, two texts read apart or as one input), model (default linear,regression; with many classes "
            "and few rows means before these, where texts are read apart joint behind them).",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    pairs: o.Pairs = None,
    batch_size: o.BatchSize = None,
    max_length: o.MaxLength = None,
    class_weight: o.ClassWeight = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seeds the rows, the folds and the order.", rich_help_panel=o.RECIPE)
    ] = 0,
    memory: o.Memory = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search in --out that was stopped.", rich_help_panel=o.MAIN)
    ] = False,
    overwrite: o.Overwrite = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    token_budget: o.TokenBudget = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
    ray: o.Ray = None,
) -> None:
    """Choose learning rate, epochs, terms, layers and head by cross-validation; train on all rows with the best.

    `beft tune -m MODEL --data tickets.csv --text text --label intent --minutes 10 -o runs/tickets`

    Candidates meet in rounds: all on few folds and epochs, the better ones on more. Beside them stands logistic
    regression on the frozen model, on the very same folds. The folder is the adapter, with tune.json, tune.csv and
    lr_curve.png.

    Stopped, it goes on with the same command and `--resume`. Prompts: `beft tune -m DECODER --task copa -o runs/copa`
    """
    changes: dict[str, Any] = {
        "pairs": pairs, "batch_size": batch_size, "max_length": max_length, "class_weight": class_weight
    }  # fmt: skip
    the_space = _space(lrs, terms, layers, heads, epochs)
    if runs is not None and minutes is not None:
        raise RecipeError("--runs and --minutes", expected="one of them", found="both")
    if resume and overwrite:
        raise RecipeError("--resume and --overwrite", expected="one of them", found="both")
    if seeds is not None and combine == "none":
        raise RecipeError("--seeds", expected="--combine soup, ensemble or auto beside it", found="--combine none")
    asked = p.Asked(objective, template, candidates, answer, blank, chat, stop, generation)
    prompted = p.objective(objective, task, template, model) == "prompt"
    if prompted:
        p.refuse_beside_prompts(
            {
                "--text": text,
                "--regression": regression,
                "--regime": regime,
                "--heads": heads,
                "--pairs": pairs,
                "--class-weight": class_weight,
            }
        )
    else:
        asked.refuse()

    from ..files import read_json
    from ..training.recipe import Recipe
    from ..training.tune import RUNS
    from ..training.tune import tune as search

    given = {key: value for key, value in changes.items() if value is not None}
    the_task: Task | PromptTask
    if prompted:
        the_task = p.prompts(
            task, data, asked, data_dir=data_dir, label=label, eval_data=eval_data, hold_out=bool(eval_data),
            size=train_size, eval_size=eval_size, seed=seed,
        )  # fmt: skip
        recipe = p.make_prompt_recipe("default", the_task.name, given)
    else:
        recipe = Recipe(**given)
        the_task = load_task(
            task, data, text, label, data_dir, eval_data, task is None and not eval_data, train_size, eval_size, regime,
            regression, seed,
        )  # fmt: skip
    if not (quiet or json):
        bound = f"; {RUNS} runs, --runs or --minutes bounds the search" if runs is None and minutes is None else ""
        console.print(f"[bold]{escape(the_task.name)}[/]: {len(the_task.train)} training rows to choose on{bound}")
        notes(the_task.notices)
    with bank_progress(the_task.metrics[0], quiet or json) as listener:
        result = search(
            model,
            the_task,
            out,
            runs=runs,
            minutes=minutes,
            space=the_space,
            recipe=recipe,
            folds=folds,
            repeats=repeats,
            combine=combine,  # type: ignore[arg-type]
            seeds=3 if seeds is None else seeds,
            seed=seed,
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            memory=memory,
            resume=resume,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            ray=ray,
            listener=listener,
        )
    if json:
        print_json(read_json(out / "tune.json"))
    elif not quiet:
        notes([note for note in result.notices if note not in the_task.notices])
        show_tuning(result)


def _space(
    lrs: str | None, terms: str | None, layers: list[str] | None, heads: str | None, epochs: str | None
) -> Space:
    """The axes that were given."""
    from ..training.space import Space

    return Space(
        None if lrs is None else numbers("--lrs", lrs, float),
        None if terms is None else words(terms),
        None if layers is None else [None if each == "all" else each for each in layers],
        None if heads is None else words(heads),
        None if epochs is None else numbers("--epochs", epochs, int),
    )


def show_tuning(result: TuneResult) -> None:
    """The best candidates, what to expect beside the baseline, evaluation rows if there are any, and the sentence."""
    from ..training.tune_report import standings

    table = titled_table(f"the best of {len({trial.candidate.name for trial in result.trials})} candidates")
    for name in ("terms", "lr", "epochs", "layers", "head"):
        table.add_column(name, justify="right" if name in ("lr", "epochs") else "left")
    table.add_column("round", justify="right")
    table.add_column("folds", justify="right")
    table.add_column(metric_name(result.metric), justify="right")
    for row in standings(result)[:SHOWN]:
        score = row["score"]
        cells = [escape(str(row[key])) for key in ("terms", "lr", "epochs", "layers", "head", "rounds", "folds")]
        text = "[red]failed[/]" if row["failed"] else f"{score['mean']:.3f} ± {score['sd']:.3f}"
        won = row["candidate"] == result.winner.name
        table.add_row(*cells, f"[bold green]{text}[/]" if won else text)
    console.print()
    console.print(table)
    if result.combination is not None:
        console.print()
        console.print(_seeds_table(result.combination, result.metric))
    if result.refitted.evaluation:
        named = baseline_names(result.task)
        rows = {
            named[key]: value["splits"][next(iter(value["splits"]))]
            for key, value in result.refitted.metrics["baselines"].items()
            if value
        }
        rows["beft, tuned"] = result.refitted.evaluation
        count = next(iter(result.refitted.metrics["evaluation_rows"].values()))
        console.print()
        console.print(score_table(f"{count} evaluation rows, which chose nothing", rows))
    console.print(f"\n[bold]{escape(result.recommendation)}[/]")
    console.print(f"{result.runs} runs in {result.seconds:.0f} s")
    console.print(f"adapter on all rows, tune.json, tune.csv, lr_curve.png: [bold]{escape(str(result.directory))}[/]")


def _seeds_table(combination: Combination, metric: str) -> Table:
    """One seed beside several on the same folds, the way that was kept marked."""
    from ..training.folds import spread

    count = len(combination.scores["one"])
    table = titled_table(f"the best settings with {combination.seeds} seeds, on {count} folds")
    table.add_column("way")
    table.add_column(metric_name(metric), justify="right")
    table.add_column("gain ± standard error", justify="right")
    names = {"one": "one seed alone", "soup": "soup: their mean, one adapter", "ensemble": "ensemble: all answer"}
    for way, scores in combination.scores.items():
        text = "{mean:.3f} ± {sd:.3f}".format(**spread(list(scores.values())))
        gain = combination.gains.get(way)
        gained = "" if gain is None else f"{gain.mean:+.3f} ± {gain.error:.3f}"
        table.add_row(names[way], f"[bold green]{text}[/]" if way == combination.kept else text, gained)
    return table
