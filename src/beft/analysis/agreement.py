"""Does a score rank the terms as their measured accuracies do? The paper's argument for its projection score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.terms import ALIASES
from ..errors import DataError, nearest
from ..tasks.table import read_rows


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of a score with accuracies over the terms that both have, with two-sided p-values."""

    terms: tuple[str, ...]
    spearman: float
    spearman_p: float
    kendall: float
    kendall_p: float
    first_by_score: str
    first_measured: str

    @property
    def picks_the_best(self) -> bool:
        """Whether the term of the highest score is the most accurate one."""
        return self.first_by_score == self.first_measured


def agreement(scores: Mapping[str, float], accuracies: Mapping[str, float]) -> Agreement | None:
    """Spearman's and Kendall's correlation (tau-b) of scores and accuracies by term; None below three common terms."""
    from scipy import stats

    terms = tuple(name for name in scores if name in accuracies)
    if len(terms) < 3:
        return None
    a, b = [scores[name] for name in terms], [accuracies[name] for name in terms]
    if len(set(a)) == 1 or len(set(b)) == 1:
        return None  # a constant has no ranks
    rho, tau = stats.spearmanr(a, b), stats.kendalltau(a, b)
    return Agreement(
        terms,
        float(rho.statistic),
        float(rho.pvalue),
        float(tau.statistic),
        float(tau.pvalue),
        max(terms, key=lambda name: scores[name]),
        max(terms, key=lambda name: accuracies[name]),
    )


def read_accuracies(
    source: str | Path, task: str | None = None, *, regime: str | None = None, model: str | None = None
) -> dict[str, float]:
    """Accuracy of tuning each term alone, by term.

    Args:
        source: a CSV (or TSV, JSON lines) with the columns `term` and `accuracy`; a JSON object of term to accuracy; or
            the cells.jsonl of a study, or its folder: methods that are terms count, seeds are averaged.
        task: of a study, the task to read; needed if it has several.
        regime: likewise, the size of the training rows; `model`: the model.

    Raises:
        DataError: a file that cannot be read so, an unknown term, a number that is none, or a study of several tasks,
            regimes or models of which none was chosen.
    """
    path = Path(source)
    path = path / "cells.jsonl" if path.is_dir() else path
    if path.suffix == ".json":
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(str(path), expected="a JSON object of term to accuracy", found=str(error)) from error
        rows = [{"term": key, "accuracy": value} for key, value in loaded.items()] if isinstance(loaded, dict) else []
    else:
        rows = [dict(row) for _, row in read_rows(path)]
        if rows and "method" in rows[0]:
            rows = _of_study(rows, {"task": task, "regime": regime, "model": model}, str(path))
    if not rows:
        raise DataError(str(path), expected="rows of term and accuracy", found="none")
    values: dict[str, list[float]] = {}
    for row in rows:
        if not {"term", "accuracy"} <= row.keys():
            raise DataError(str(path), expected="the columns term and accuracy", found=", ".join(map(str, row)))
        name = str(row["term"]).strip().lower()
        if name not in ALIASES:
            raise DataError(f"{path}, term {row['term']!r}", expected="a term", remedy=nearest(name, ALIASES))
        try:
            values.setdefault(ALIASES[name], []).append(float(row["accuracy"]))
        except (TypeError, ValueError):
            raise DataError(f"{path}, {name}", expected="a number", found=repr(row["accuracy"])) from None
    return {name: sum(each) / len(each) for name, each in values.items()}


def _of_study(rows: list[dict[str, Any]], chosen: Mapping[str, str | None], where: str) -> list[dict[str, Any]]:
    """Rows of term and first metric from a study's cells whose method is a term: those of one task, regime and model.

    A task that was chosen must be there; a regime or a model tells several apart, for the same one has many names.
    """
    rows = [row for row in rows if str(row["method"]).lower() in ALIASES and row.get("metrics")]
    for key, name in chosen.items():
        there = sorted({str(row.get(key, "")) for row in rows})
        if name in there:
            rows = [row for row in rows if str(row.get(key, "")) == name]
        elif len(there) > 1 or (there and key == "task" and name is not None):
            raise DataError(
                where,
                expected=f"accuracies of one {key}" + ("" if name is None else f", or {name!r} among them"),
                found=", ".join(there),
                remedy=f"{_CHOICES[key]}, or give a file with the rows of one",
            )
    return [{"term": row["method"], "accuracy": next(iter(row["metrics"].values()))} for row in rows]


_CHOICES = {
    "task": "choose by task= (--task)",
    "regime": "choose by regime= (--regime)",
    "model": "choose by model=",
}
