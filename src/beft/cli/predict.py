"""`beft predict`: label rows with a trained adapter, as a stream."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import DataError, RecipeError, StoreError
from . import options as o
from . import prompting as p
from .answers import TEST, answers, asks, own_split
from .labelled import check_one
from .screen import console, notes, print_json

if TYPE_CHECKING:
    from ..tasks.benchmarks import Benchmark
    from ..tasks.task import Example, Task
    from ..training.predictor import Predictor


def predict(
    directory: Annotated[Path, typer.Argument(help="Folder that `beft train` wrote.", metavar="DIR")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write: .jsonl, .csv or .tsv.", rich_help_panel=o.MAIN)
    ],
    data: o.Data = None,
    text: o.Text = None,
    task: o.Task = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Split of the task to label: a benchmark's (default test), or an evaluation split of your own task "
            "(default its first).",
            rich_help_panel=o.TASK,
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="default: as --out ends; glue: a submission file (index, prediction).",
            show_default=False,
            rich_help_panel=o.TASK,
        ),
    ] = "default",
    data_dir: o.DataDir = None,
    model: o.OtherModel = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    token_budget: o.TokenBudget = None,
    generation: p.Generation = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
    quantize: o.Quantize = None,
    device_map: o.DeviceMap = None,
) -> None:
    """Label every row of a file, of any size, in the order it came.

    `beft predict runs/tickets --data new.csv --out labelled.jsonl`
    """
    check_one(task, data)
    if format not in ("default", "glue") or (format == "glue" and task is None):
        raise RecipeError(f"--format {format}", expected="default, or glue with --task")
    kind = out.suffix.lower()
    if kind not in (".jsonl", ".csv", ".tsv"):
        raise RecipeError(f"--out {out}", expected="a file ending in .jsonl, .csv or .tsv")
    if data is not None and out.exists() and Path(data).exists() and out.samefile(data):
        raise RecipeError(f"--out {out}", expected="another file than --data, which it would replace", found="the same")

    from ..training.quantize import read_device_map

    options: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "token_budget": token_budget}
    options |= {"trust_remote_code": trust_remote_code, "quantize": quantize}
    options["device_map"] = read_device_map(device_map)
    if asks(directory):
        if format == "glue":
            raise RecipeError("--format glue", expected="an adapter with a head", found="one that answers prompts")
        from ..training.prompt_predictor import PromptPredictor

        written = None if generation is None else p.read_generation(generation)
        answering = PromptPredictor(directory, generation=written, **options)
        found = answers(answering, data, task, split, data_dir)
        count = write_stream(out, _answer_lines(found, kind), header=0 if kind == ".jsonl" else 1)
        _report(out, count, "answered", answering.notices, quiet, json)
        return
    if generation is not None:
        raise RecipeError("--generation", expected="an adapter that writes answers", found="one with a head")
    from ..tasks.load import benchmark, benchmark_split, benchmark_task
    from ..tasks.own import own_examples
    from ..tasks.registered import is_registered
    from ..tasks.task import empty_texts
    from ..training.predictor import Predictor

    predictor = Predictor(directory, **options)
    examples: Iterable[Example]
    if data is not None:
        examples = own_examples(data, columns_for(predictor, text), None, predictor.labels)
    elif is_registered(task):
        own = benchmark_task(task or "", data_dir)
        if format == "glue":
            raise DataError(f"task {own.name}", expected="a GLUE task", found="one of your own")
        check_labels(predictor, own)
        examples = renumbered(predictor, own, own_split(own, split))
    else:
        spec = benchmark(task or "")
        if format == "glue" and not spec.glue_file:
            raise DataError(f"task {spec.name}", expected="a GLUE task", found="one of SuperGLUE")
        if format == "glue":
            check_labels(predictor, spec)
        examples = renumbered(predictor, spec, benchmark_split(spec, split or TEST, data_dir))
    empty: list[int | str] = []
    examples = _noting_empty(examples, empty)
    if format == "glue":
        lines = _glue(predictor, spec.labels, examples)
    else:
        lines = _lines(predictor, examples, kind)
    count = write_stream(out, lines, header=0 if kind == ".jsonl" else 1)
    _report(out, count, "labelled", [*predictor.notices, *empty_texts(empty)], quiet, json)


def _report(out: Path, count: int, done: str, said: list[str], quiet: bool, as_json: bool) -> None:
    """What was written and what is to be said of it."""
    if as_json:
        print_json({"rows": count, "out": str(out), "notes": said})
    elif not quiet:
        console.print(f"{count} rows {done}: [bold]{escape(str(out))}[/]")
        notes(said)


def _noting_empty(examples: Iterable[Example], empty: list[int | str]) -> Iterator[Example]:
    """The rows, as they come; ids of those without any text are added to `empty`."""
    for example in examples:
        if example.empty:
            empty.append(example.id)
        yield example


def _answer_lines(found: Iterable[dict[str, Any]], kind: str) -> Iterator[str]:
    separator = "\t" if kind == ".tsv" else ","
    if kind != ".jsonl":
        yield _delimited(["id", "prediction"], separator)
    for line in found:
        if kind == ".jsonl":
            yield json.dumps(line, ensure_ascii=False) + "\n"
        else:
            yield _delimited([line["id"], line["prediction"]], separator)


def columns_for(predictor: Predictor, text: list[str] | None) -> list[str]:
    """Text columns to read: those given, else those of training.

    Raises:
        RecipeError: another number of them than the adapter was trained on.
    """
    fields: list[str] = predictor.task["fields"]
    if text and len(text) != len(fields):
        raise RecipeError(
            "--text", expected=f"{len(fields)} column(s), as in training ({', '.join(fields)})", found=str(len(text))
        )
    return text or fields


def check_labels(predictor: Predictor, spec: Benchmark | Task) -> None:
    """Raises DataError if the adapter's labels are not the benchmark's (in any order)."""
    here = None if predictor.labels is None else sorted(predictor.labels)
    there = None if spec.labels is None else sorted(spec.labels)
    if here != there:
        raise DataError(
            f"task {spec.name}",
            expected=f"an adapter for {'a number' if there is None else ', '.join(there)}",
            found=f"one for {'a number' if here is None else ', '.join(here[:8])}",
        )


def renumbered(predictor: Predictor, spec: Benchmark | Task, examples: Iterable[Example]) -> list[Example]:
    """A task's rows with labels numbered as the adapter's are, which may stand in another order (cb's and mnli's do);
    without their labels where the adapter has others."""
    if spec.labels == predictor.labels:
        return list(examples)
    ours, theirs = predictor.labels or (), spec.labels or ()
    number = dict(enumerate(map(ours.index, theirs))) if sorted(ours) == sorted(theirs) else {}
    return [each if each.label is None else replace(each, label=number.get(int(each.label))) for each in examples]


def write_stream(path: Path, lines: Iterator[str], header: int) -> int:
    """Write lines to a temporary file, renamed when the last is written. Gives the number of lines less the header's.

    Raises:
        StoreError: the file cannot be written; one that was there is as before.
    """
    part = path.with_name(f".{path.name}.part")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", newline="") as handle:
            for line in lines:
                handle.write(line)
                count += 1
        part.replace(path)
    except OSError as error:
        raise StoreError(
            str(path), expected="a file that can be written", found=error.strerror or str(error)
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return count - header


def _lines(predictor: Predictor, examples: Iterable[Example], kind: str) -> Iterator[str]:
    from ..training.outputs import prediction_line

    rows = (prediction_line(predictor.labels, *each) for each in predictor.stream(examples))
    if kind == ".jsonl":
        for row in rows:
            yield json.dumps(row, ensure_ascii=False) + "\n"
        return
    separator = "\t" if kind == ".tsv" else ","
    yield _delimited(["id", "prediction", *([] if predictor.labels is None else ["score"])], separator)
    for row in rows:
        score = [] if predictor.labels is None else [row["scores"][row["prediction"]]]
        yield _delimited([row["id"], row["prediction"], *score], separator)


def _glue(predictor: Predictor, labels: tuple[str, ...] | None, examples: Iterable[Example]) -> Iterator[str]:
    """GLUE's submission format: class names for the entailment tasks, class numbers or the score elsewhere.

    `labels` are the benchmark's own, in its order; WNLI alone of the entailment tasks wants numbers.
    """
    yield "index\tprediction\n"
    for number, (_, prediction, _scores) in enumerate(predictor.stream(examples)):
        if predictor.labels is None or labels is None:
            value: Any = f"{min(5.0, max(0.0, prediction)):.3f}"
        else:
            label = predictor.labels[int(prediction)]
            value = label if labels[0] == "entailment" else labels.index(label)
        yield f"{number}\t{value}\n"


def _delimited(values: list[Any], separator: str) -> str:
    import io

    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerow(values)
    return text.getvalue()
