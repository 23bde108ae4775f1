"""`beft evaluate`: score a trained adapter on rows with labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, RecipeError
from . import options as o
from .predict import check_labels, columns_for
from .screen import console, print_json, score_table

if TYPE_CHECKING:
    from ..tasks.task import Example
    from ..training.predictor import Predictor


def evaluate(
    directory: Annotated[Path, typer.Argument(help="Folder that `beft train` wrote.", metavar="DIR")],
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
) -> None:
    """Score a trained adapter on a file with labels, or on the evaluation rows of its benchmark task.

    `beft evaluate runs/tickets --data new.csv`
    """
    from ..objectives.classify import scores
    from ..training.predictor import Predictor

    predictor = Predictor(
        directory,
        model=model,
        device=device,
        dtype=dtype,
        token_budget=token_budget,
        trust_remote_code=trust_remote_code,
    )
    rows: dict[str, dict[str, float]] = {}
    for name, examples in _splits(predictor, task, data, text, label, data_dir).items():
        chosen = examples[:eval_size]
        if any(example.label is None for example in chosen):
            raise DataError(name, expected="labels", found="rows without one", remedy="use `beft predict` for these")
        predictions = [prediction for _, prediction, _ in predictor.stream(chosen)]
        rows[f"{name} ({len(chosen)} rows)"] = scores(predictor.task["metrics"], chosen, predictions)
    if json:
        print_json(rows)
    elif not quiet:
        console.print(score_table(str(directory), rows, first="rows"))
        if predictor.cut:
            console.print(f"[yellow]note:[/] {predictor.cut} texts were cut to {predictor.max_length} tokens")


def _splits(
    predictor: Predictor,
    task: str | None,
    data: str | None,
    text: list[str] | None,
    label: str | None,
    data_dir: Path | None,
) -> dict[str, list[Example]]:
    from ..tasks.load import benchmark, benchmark_split, own_examples

    trained: dict[str, Any] = predictor.task
    if data is not None and task is not None:
        raise RecipeError("--task and --data", expected="one of them", found="both")
    if data is not None:
        fields = columns_for(predictor, text)
        return {data: list(own_examples(data, fields, label or trained["label_field"], predictor.labels))}
    if task is None and not trained["benchmark"]:
        raise RecipeError("evaluate", expected="--data FILE", found="neither --data nor --task")
    spec = benchmark(task or trained["name"])
    check_labels(predictor, spec)
    parts = {ours: benchmark_split(spec, theirs, data_dir) for ours, theirs in spec.splits.items()}
    if spec.labels is None or predictor.labels is None or spec.labels == predictor.labels:
        return parts
    number = {old: predictor.labels.index(name) for old, name in enumerate(spec.labels)}  # cb and mnli differ in order
    return {name: [_renumbered(example, number) for example in part] for name, part in parts.items()}


def _renumbered(example: Example, number: dict[int, int]) -> Example:
    return example if example.label is None else replace(example, label=number[int(example.label)])
