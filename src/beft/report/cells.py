"""Cells of a study, one a model, task, regime, method and seed, and the tables and files made of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .names import several
from .tables import Field, Table, marked

Status = Literal["done", "missing", "failed"]


@dataclass(frozen=True)
class CellRecord:
    """What one cell gave, or why it gave nothing.

    `metrics` are by name, the first one leads. `efficiency` has names of `EFFICIENCY`. `correct` holds one number for
    each evaluation example (1 or 0, or a score in between), for paired intervals; where the leading metric is no mean
    over examples, `answers` holds their classes' numbers (or values), "gold" and "predicted". `made_by` is of the
    cache: hashes of recipe, data, model and code.
    """

    model: str
    task: str
    regime: str
    method: str
    seed: int
    metrics: dict[str, float] = field(default_factory=dict)
    efficiency: dict[str, float] = field(default_factory=dict)
    correct: list[float] | None = None
    answers: dict[str, list[float]] | None = None
    status: Status = "done"
    reason: str = ""
    made_by: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The leading metric, or None."""
        return next(iter(self.metrics.values()), None)

    @classmethod
    def read(cls, value: CellRecord | Mapping[str, Any], where: str = "cell") -> CellRecord:
        """A record, or one made of a mapping such as a line of cells.jsonl.

        Raises:
            DataError: missing or unknown fields, a finished cell without metrics, or another without a reason.
        """
        if isinstance(value, CellRecord):
            return value
        known = {each.name for each in fields(cls)}
        faults = [f"no {name}" for name in ("model", "task", "regime", "method", "seed") if name not in value]
        faults += [f"an unknown field {name!r}" for name in value if name not in known]
        if value.get("status", "done") not in ("done", "missing", "failed"):
            faults.append(f"the status {value['status']!r}")
        if value.get("status", "done") == "done" and not value.get("metrics"):
            faults.append("no metrics in a finished cell")
        if value.get("status", "done") != "done" and not value.get("reason"):
            faults.append("no reason in a cell that is not finished")
        if faults:
            raise DataError(where, expected="a cell of a study", found="; ".join(faults))
        return cls(**value)

    def to_line(self) -> str:
        """One JSON line, fields without content left out."""
        kept = {name: value for name, value in asdict(self).items() if value not in (None, {}, "")}
        return json.dumps(kept, ensure_ascii=False, allow_nan=False) + "\n"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _bytes(value: float) -> str:
    return f"{value / 1024:.1f} KiB" if value < 1 << 20 else f"{value / (1 << 20):.1f} MiB"


EFFICIENCY: dict[str, tuple[str, Callable[[float], str]]] = {
    "trained_parameters": ("trained parameters", lambda value: f"{value:,.0f}"),
    "share": ("share of the model", _share),
    "adapter_bytes": ("on disk", _bytes),
    "seconds": ("training, s", lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.1f}"),
    "examples_per_second": ("examples/s", lambda value: f"{value:,.0f}"),
    "peak_memory_mib": ("peak memory, MiB", lambda value: f"{value:,.0f}"),
}
"""Names of efficiency columns: what they are called and how a value reads."""


def names_in(records: Iterable[CellRecord], what: str) -> list[str]:
    """The different values of a field, in the order they come."""
    return list(dict.fromkeys(getattr(record, what) for record in records))


def select(records: Iterable[CellRecord], **wanted: Any) -> list[CellRecord]:
    """The records whose fields have these values."""
    return [record for record in records if all(getattr(record, name) == value for name, value in wanted.items())]


def score_text(records: Sequence[CellRecord]) -> tuple[str, float | None, str]:
    """Of one cell's seeds: mean ± sd as text, the mean (None without any), and what is missing.

    The sd (n - 1) is left out for a single seed; "(3 of 5)" follows where seeds are missing.
    """
    scores = [record.score for record in records if record.status == "done" and record.score is not None]
    reasons = "; ".join(dict.fromkeys(f"{r.status}: {r.reason}" for r in records if r.status != "done"))
    if not scores:
        return next((r.status for r in records if r.status != "done"), "missing"), None, reasons or "not in the study"
    mean = float(np.mean(scores))
    text = f"{mean:.3f}" + (f" ± {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else "")
    return text + (f" ({len(scores)} of {len(records)})" if len(scores) < len(records) else ""), mean, reasons


def score_tables(records: Sequence[CellRecord]) -> list[Table]:
    """One table for each model and regime: methods down, tasks across (their leading metric), their mean at the end.

    A cell without a result stays, marked missing or failed, with its reason among the notes. The mean over tasks is
    given only where a method has every task: means over different tasks do not compare.
    """
    tables = []
    for model, regime in dict.fromkeys((record.model, record.regime) for record in records):
        here = select(records, model=model, regime=regime)
        methods, tasks = names_in(here, "method"), names_in(here, "task")
        columns: list[list[Field]] = []
        means: dict[str, list[float | None]] = {method: [] for method in methods}
        reasons: dict[str, list[str]] = {}
        for task in tasks:
            found = [score_text(select(here, task=task, method=method)) for method in methods]
            texts, values, hints = zip(*found, strict=True)
            columns.append(marked(texts, values, hints))
            for method, value, hint in zip(methods, values, hints, strict=True):
                means[method].append(value)
                if hint:
                    reasons.setdefault(hint, []).append(f"{method} on {task}")
        header = ["method", *(f"{task} ({_metric(here, task)})" for task in tasks)]
        if len(tasks) > 1:
            averages = [_mean(means[method]) for method in methods]
            columns.append(marked(["–" if value is None else f"{value:.3f}" for value in averages], averages))
            header.append("mean")
        seeds = len(names_in(here, "seed"))
        spread = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
        notes = [spread] if any(record.status == "done" for record in here) else []
        notes += [f"{_upper(reason)} ({several(cells)})." for reason, cells in reasons.items()]
        rows = [[Field(method), *(column[place] for column in columns)] for place, method in enumerate(methods)]
        tables.append(Table(f"{model}, {regime}" if regime else model, header, rows, notes))
    return tables


def efficiency_tables(records: Sequence[CellRecord]) -> list[Table]:
    """One table for each model: methods down, means over all finished cells of what `EFFICIENCY` names across."""
    tables = []
    for model in names_in(records, "model"):
        here = [record for record in select(records, model=model) if record.status == "done"]
        columns = [name for name in EFFICIENCY if any(name in record.efficiency for record in here)]
        if not columns:
            continue
        rows = []
        for method in names_in(select(records, model=model), "method"):
            row = [Field(method)]
            for name in columns:
                values = [r.efficiency[name] for r in select(here, method=method) if name in r.efficiency]
                if values:
                    row.append(Field(EFFICIENCY[name][1](float(np.mean(values)))))
                else:
                    row.append(Field("–") if select(here, method=method) else Field("missing", "missing"))
            rows.append(row)
        shared = any(record.extra.get("bank", 1) > 1 for record in here)
        header = ["method", *(EFFICIENCY[name][0] for name in columns)]
        notes = ["Means over tasks, regimes and seeds. Peak memory: of the process (or the GPU), base model included."]
        if shared:
            notes.append("Some runs shared passes over the model: their seconds are shares, their memory is not told.")
        tables.append(Table(f"{model}: cost", header, rows, notes))
    return tables


def rate_tables(records: Sequence[CellRecord]) -> list[Table]:
    """One table for each model whose cells chose among learning rates: by method and task, what each rate gave on the
    dev rows (the leading metric), the mean over seeds."""
    tables = []
    for model in names_in(records, "model"):
        here = [record for record in select(records, model=model) if len(_tried(record)) > 1]
        rates = sorted({rate for record in here for rate in _tried(record)}, key=float)
        rows = []
        for method, task, regime in dict.fromkeys((r.method, r.task, r.regime) for r in here):
            tried = [_tried(record) for record in select(here, method=method, task=task, regime=regime)]
            means = [_mean([each.get(rate) for each in tried]) for rate in rates]
            failed = [any(each.get(rate, 0.0) is None for each in tried) for rate in rates]
            texts = [
                f"{mean:.3f}" if mean is not None else "failed" if bad else "–"
                for mean, bad in zip(means, failed, strict=True)
            ]
            rows.append([Field(", ".join(filter(None, (method, task, regime)))), *marked(texts, means)])
        if rows:
            notes = ["Leading metric on dev rows, mean over seeds; a cell's run has the rate that was best for it."]
            tables.append(Table(f"{model}: learning rates", ["method, task, rows", *rates], rows, notes))
    return tables


def _tried(record: CellRecord) -> dict[str, float | None]:
    """Dev scores by learning rate, None of a rate that failed."""
    failed = dict.fromkeys(record.extra.get("learning_rates_failed", {}))
    return {**record.extra.get("learning_rates", {}), **failed}


def to_csv(records: Sequence[CellRecord]) -> str:
    """One line for each model, regime, task, method and metric: mean, sd, seeds, cost, what is missing."""
    text = io.StringIO()
    keys = ["model", "regime", "task", "method", "metric", "mean", "sd", "seeds_done", "seeds_planned", *EFFICIENCY]
    writer = csv.DictWriter(text, [*keys, "status", "reason"], lineterminator="\n")
    writer.writeheader()
    for place in dict.fromkeys((r.model, r.regime, r.task, r.method) for r in records):
        here = select(records, **dict(zip(("model", "regime", "task", "method"), place, strict=True)))
        done = [record for record in here if record.status == "done"]
        common: dict[str, Any] = dict(zip(("model", "regime", "task", "method"), place, strict=True))
        common |= {"seeds_done": len(done), "seeds_planned": len(here)}
        common["status"] = "done" if len(done) == len(here) else "partly" if done else here[0].status
        common["reason"] = "; ".join(dict.fromkeys(record.reason for record in here if record.reason))
        for name in EFFICIENCY:
            values = [record.efficiency[name] for record in done if name in record.efficiency]
            common[name] = f"{np.mean(values):.6g}" if values else ""
        for metric in dict.fromkeys(metric for record in done for metric in record.metrics) or [""]:
            values = [record.metrics[metric] for record in done if metric in record.metrics]
            mean = f"{np.mean(values):.6f}" if values else ""
            sd = f"{np.std(values, ddof=1):.6f}" if len(values) > 1 else ""
            writer.writerow({**common, "metric": metric, "mean": mean, "sd": sd})
    return text.getvalue()


def to_json_lines(records: Iterable[CellRecord]) -> str:
    """One line for each cell and seed, the missing ones too."""
    return "".join(record.to_line() for record in records)


def _metric(records: Sequence[CellRecord], task: str) -> str:
    return next((next(iter(r.metrics)) for r in records if r.task == task and r.metrics), "–")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(known)) if len(known) == len(values) else None


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
