"""The files of a run: metrics.json, run.json, history.csv, predictions, errors, pictures, model card."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.store import ENSEMBLE, MEMBERS
from ..errors import TrainingError
from ..files import Writer, read_json, to_csv, to_json, write, write_all
from ..report import plots
from ..report.card import model_card
from ..tasks.metrics import CLASS_TABLE, class_table
from ..tasks.question import PromptTask
from ..tasks.task import Example, Task
from .machine import Choices
from .prompt_outputs import judged_files
from .recipe import Recipe

if TYPE_CHECKING:
    from .result import Result


OURS = (
    "checkpoint.safetensors",
    "adapter_model.safetensors",
    "head.safetensors",
    "weights.safetensors",
    "model.safetensors",
    "config.json",
    "adapter_config.json",
    "beft.json",
    ENSEMBLE,
    "metrics.json",
    "run.json",
    "history.csv",
    "README.md",
    "learning_curve.png",
    *("tune.json", "tune.csv", "lr_curve.png"),
    *("predictions*.jsonl", "errors*.csv", "per_class*.csv", "confusion_matrix*.png", "scatter*.png"),
)
"""Names of the files a run writes."""


def clear_results(directory: Path) -> None:
    """Take out what a former run wrote, so that nothing of it stands beside the new one's files."""
    members = directory / MEMBERS
    if (directory / ENSEMBLE).exists() and members.is_dir():
        for folder in [each for each in members.iterdir() if each.is_dir()]:
            clear_results(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
        if not any(members.iterdir()):
            members.rmdir()
    for pattern in OURS:
        for path in directory.glob(pattern):
            path.unlink()


def write_run(
    directory: Path,
    model: str,
    task: Task | PromptTask,
    recipe: Recipe,
    choices: Choices,
    notices: Sequence[str],
    *,
    status: str,
) -> None:
    """Write run.json: everything needed to repeat the run."""
    write(directory / "run.json", to_json(run_record(model, task, recipe, choices, notices, status)))


def run_record(
    model: str, task: Task | PromptTask, recipe: Recipe, choices: Choices, notices: Sequence[str], status: str
) -> dict[str, Any]:
    """The contents of run.json."""
    import numpy
    import sklearn
    import transformers

    from .. import __version__

    return {
        "status": status,
        "command": [Path(sys.argv[0]).name.replace("__main__.py", "beft"), *sys.argv[1:]],
        "model": model,
        "task": task.name,
        "recipe": recipe.to_dict(),
        "machine": {**choices.to_dict(), "processor": platform.machine(), "system": platform.system()},
        "data": {
            "fingerprint": task.fingerprint(),
            "train": len(task.train),
            "evaluation": {name: len(part) for name, part in task.evaluation.items()},
            "fields": list(task.fields),
            "label": task.label_field,
        },
        "notices": list(notices),
        "versions": {
            "beft": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": numpy.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }


def write_failure(directory: Path, error: TrainingError) -> None:
    """Say in run.json that training failed, and how; the adapter beside it is the last good one."""
    record = read_json(directory / "run.json")
    write(directory / "run.json", to_json({**record, "status": "failed", "error": str(error)}))


def write_results(directory: Path, result: Result, model: str, *, bare: bool = False, peft_refuses: str = "") -> None:
    """Write everything that follows from a finished run, together; `bare`: scores and history alone.

    `peft_refuses` says, for the model card, why stock PEFT will refuse the adapter.
    """
    task = result.task
    files: dict[str, bytes | str | Writer] = {"history.csv": to_csv(_union_keys(result.history), result.history)}
    if bare:
        record = run_record(model, task, result.recipe, result.choices, result.notices, "finished")
        write_all(directory, {**files, "metrics.json": to_json(result.metrics), "run.json": to_json(record)})
        return
    pictures = []
    title = f"{task.name}, {len(task.train)} training rows"
    for number, split in enumerate(task.evaluation):
        tail = "" if number == 0 else f"-{split}"
        predicted, scores = result.predictions[split], result.probabilities[split]
        if isinstance(task, PromptTask):
            judged = judged_files(task, task.evaluation[split], predicted, scores, tail, title)
        else:
            judged = _judged(task, task.evaluation[split], predicted, scores, tail, title)
        files.update(judged)
        pictures += [name for name in judged if name.endswith(".png")]
    if plots.available() and result.history:
        metric = task.metrics[0]
        kept = {"chosen": result.metrics["best_epoch"], "start": result.metrics["dev"].get(metric)}
        files["learning_curve.png"] = lambda path: plots.learning_curve(result.history, metric, path, title, **kept)
        pictures.append("learning_curve.png")
    elif not plots.installed():
        result.notices.append("no pictures were drawn: matplotlib is not installed (pip install 'beft[plots]')")
    record = run_record(model, task, result.recipe, result.choices, result.notices, "finished")
    files["README.md"] = model_card(
        model=model,
        metrics=result.metrics,
        run=record,
        task={"name": task.name, "labels": task.labels, "fields": task.fields},
        pictures=pictures,
        peft_loads=result.metrics["peft"].startswith("stock PEFT"),
        peft_refuses=peft_refuses,
    )
    files["metrics.json"] = to_json(result.metrics)
    files["run.json"] = to_json(record)
    write_all(directory, files)


def _judged(
    task: Task,
    examples: Sequence[Example],
    predicted: Sequence[float],
    scores: Sequence[Sequence[float]],
    tail: str,
    title: str,
) -> dict[str, str | Writer]:
    """Files on one evaluation split."""
    files: dict[str, str | Writer] = {f"predictions{tail}.jsonl": _predictions(task, examples, predicted, scores)}
    if any(example.label is None for example in examples):
        return files
    files[f"errors{tail}.csv"] = _errors(task, examples, predicted, scores)
    if task.labels is not None:
        gold, chosen = [int(example.label or 0) for example in examples], [int(number) for number in predicted]
        files[f"per_class{tail}.csv"] = to_csv(CLASS_TABLE, class_table(task.labels, gold, chosen))
    if plots.available():
        files[_picture(task, tail)] = _judgement(task, examples, predicted, title)
    return files


def prediction_line(
    labels: Sequence[str] | None, example: Example, predicted: float, scores: Sequence[float]
) -> dict[str, Any]:
    """One line of predictions.jsonl: id, gold (if known), prediction, scores by label."""
    line: dict[str, Any] = {"id": example.id}
    if labels is None:
        if example.label is not None:
            line["gold"] = example.label
        return {**line, "prediction": predicted}
    if example.label is not None:
        line["gold"] = labels[int(example.label)]
    rounded = {label: round(score, 6) for label, score in zip(labels, scores, strict=True)}
    return {**line, "prediction": labels[int(predicted)], "scores": rounded}


def _predictions(
    task: Task, examples: Sequence[Example], predicted: Sequence[float], scores: Sequence[Sequence[float]]
) -> str:
    lines = (prediction_line(task.labels, *each) for each in zip(examples, predicted, scores, strict=True))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _errors(
    task: Task, examples: Sequence[Example], predicted: Sequence[float], scores: Sequence[Sequence[float]]
) -> str:
    """Wrong rows, the most confident mistake first (largest error first for numbers)."""
    rows: list[tuple[float, dict[str, Any]]] = []
    for example, value, row_scores in zip(examples, predicted, scores, strict=True):
        texts = dict(zip(task.fields, example.texts, strict=False))
        assert example.label is not None
        if task.labels is None:
            miss = abs(value - example.label)
            rows.append((miss, {"id": example.id, "gold": example.label, "prediction": value, "error": miss, **texts}))
        elif int(value) != example.label:
            sure = row_scores[int(value)]
            words = {"gold": task.labels[int(example.label)], "prediction": task.labels[int(value)]}
            rows.append((sure, {"id": example.id, **words, "confidence": round(sure, 4), **texts}))
    rows.sort(key=lambda row: -row[0])
    keys = ["id", "gold", "prediction", "error" if task.labels is None else "confidence", *task.fields]
    return to_csv(keys, [row for _, row in rows])


def _picture(task: Task, tail: str) -> str:
    return f"{'scatter' if task.regression else 'confusion_matrix'}{tail}.png"


def _judgement(task: Task, examples: Sequence[Example], predicted: Sequence[float], title: str) -> Writer:
    gold = [example.label for example in examples if example.label is not None]
    labels = task.labels
    if labels is None:
        return lambda path: plots.scatter([float(g) for g in gold], predicted, path, title)
    whole = [int(p) for p in predicted]
    return lambda path: plots.confusion_matrix([int(g) for g in gold], whole, labels, path, title)


def _union_keys(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
