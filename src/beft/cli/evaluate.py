"""`beft evaluate`: score a trained adapter on rows with labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, RecipeError
from . import options as o
from . import prompting as p
from .answers import Shown, asks, evaluate_prompts
from .predict import check_labels, columns_for, renumbered
from .screen import console, notes, print_json, score_table

if TYPE_CHECKING:
    from ..tasks.benchmarks import Benchmark
    from ..tasks.task import Example, Task
    from ..training.predictor import Predictor


def evaluate(
    directory: Annotated[
        Path | None, typer.Argument(help="Folder that `beft train` wrote; none with --method.", metavar="[DIR]")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="A plain language model instead: zero-shot, or icl (in-context).", rich_help_panel=p.PROMPT
        ),
    ] = None,
    k: Annotated[
        int, typer.Option("--k", "-k", min=1, help="Demonstrations of icl, as many as fit.", rich_help_panel=p.PROMPT)
    ] = 32,
    fixed: Annotated[
        int,
        typer.Option(
            "--fixed",
            min=0,
            help="Demonstrations that all rows share: so many sets, each scored; 0 draws them for each row.",
            rich_help_panel=p.PROMPT,
        ),
    ] = 0,
    reduction: Annotated[
        str,
        typer.Option(
            "--score",
            help="How a candidate is scored: mean or sum of log-probabilities, or calibrated (by the prompt without "
            "its input; calibrated-icl: with the demonstrations).",
            rich_help_panel=p.PROMPT,
        ),
    ] = "mean",
    template: p.Template = None,
    candidates: p.Candidates = None,
    answer: p.Answer = None,
    blank: p.Blank = None,
    chat: p.Chat = False,
    stop: p.Stop = None,
    generation: p.Generation = None,
    seed: Annotated[int, typer.Option("--seed", help="Draws the demonstrations.", rich_help_panel=p.PROMPT)] = 0,
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Tokens of a prompt at most.", rich_help_panel=p.PROMPT)
    ] = None,
    data: o.Data = None,
    text: o.Text = None,
    label: o.Label = None,
    eval_size: o.EvalSize = None,
    task: o.Task = None,
    data_dir: o.DataDir = None,
    model: o.OtherModel = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    token_budget: o.TokenBudget = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
    quantize: o.Quantize = None,
    device_map: o.DeviceMap = None,
) -> None:
    """Score a trained adapter on a file with labels, or on the evaluation rows of its benchmark task.

    `beft evaluate runs/tickets --data new.csv`

    A language model as it is: `beft evaluate --method icl --k 16 -m DECODER --task sst2`
    """
    from ..training.quantize import read_device_map

    machine: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "token_budget": token_budget}
    machine |= {"trust_remote_code": trust_remote_code, "quantize": quantize}
    machine["device_map"] = read_device_map(device_map)
    asked = p.Asked(None, template, candidates, answer, blank, chat, stop, generation)
    if method is not None or (directory is not None and asks(directory)):
        scored, counts, said = evaluate_prompts(
            directory,
            method,
            {"task": task, "data": data, "data_dir": data_dir, "label": label, "eval_size": eval_size},
            asked,
            Shown(k, fixed, reduction, seed),
            {**machine, "max_length": max_length},
        )
        _show(str(directory or f"{method}, {model}"), scored, counts, said, quiet, json)
        return
    if directory is None:
        raise RecipeError("evaluate", expected="a folder that `beft train` wrote, or --method", found="neither")
    asked.refuse()
    from ..objectives.classify import scores
    from ..tasks.task import empty_texts
    from ..training.predictor import Predictor

    predictor = Predictor(directory, **machine)
    found: dict[str, dict[str, float]] = {}
    rows: dict[str, int] = {}
    empty: list[int | str] = []
    for name, examples in _splits(predictor, task, data, text, label, data_dir).items():
        chosen = examples[:eval_size]
        if not chosen:
            raise DataError(name, expected="rows", found="none")
        if any(example.label is None for example in chosen):
            raise DataError(name, expected="labels", found="rows without one", remedy="use `beft predict` for these")
        empty += [example.id for example in chosen if example.empty]
        predictions = [prediction for _, prediction, _ in predictor.stream(chosen)]
        found[name] = scores(predictor.task["metrics"], chosen, predictions)
        rows[name] = len(chosen)
    _show(str(directory), found, rows, [*predictor.notices, *empty_texts(empty)], quiet, json)


def _show(
    title: str, found: dict[str, dict[str, float]], rows: dict[str, int], said: list[str], quiet: bool, json: bool
) -> None:
    """Scores by split, and of how many rows: as a table, or as JSON with the count beside the scores."""
    if json:
        print_json({name: {"rows": rows[name], **scores} for name, scores in found.items()})
    elif not quiet:
        table = {f"{name} ({rows[name]} rows)": scores for name, scores in found.items()}
        console.print(score_table(title, table, first="split"))
    if not quiet:
        notes(said)


def _splits(
    predictor: Predictor,
    task: str | None,
    data: str | None,
    text: list[str] | None,
    label: str | None,
    data_dir: Path | None,
) -> dict[str, list[Example]]:
    from ..tasks.load import benchmark, benchmark_split, benchmark_task
    from ..tasks.own import own_examples
    from ..tasks.registered import is_registered

    trained: dict[str, Any] = predictor.task
    if data is not None and task is not None:
        raise RecipeError("--task and --data", expected="one of them", found="both")
    if data is not None:
        fields = columns_for(predictor, text)
        return {data: list(own_examples(data, fields, label or trained["label_field"], predictor.labels))}
    spec: Benchmark | Task
    if task is None and not trained["benchmark"]:
        raise RecipeError("evaluate", expected="--data FILE", found="neither --data nor --task")
    if task is not None and is_registered(task):
        spec = benchmark_task(task, data_dir)
        parts = spec.evaluation
    else:
        spec = benchmark(task or trained["name"])
        parts = {ours: benchmark_split(spec, theirs, data_dir) for ours, theirs in spec.splits.items()}
    check_labels(predictor, spec)
    return {name: renumbered(predictor, spec, part) for name, part in parts.items()}
