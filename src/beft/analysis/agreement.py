"""Does a score rank the terms as their measured accuracies do? The paper's argument for its projection score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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


def read_accuracies(source: str | Path, task: str | None = None) -> dict[str, float]:
    """Accuracy of tuning each term alone, by term.

    Args:
        source: a CSV (or TSV, JSON lines) with the columns `term` and `accuracy`; a JSON object of term to accuracy; or
            the cells.jsonl of a study, or its folder: methods that are terms count, seeds (and models) are averaged.
        task: of a study, the task to read; needed if it has several.

    Raises:
        DataError: a file that cannot be read so, an unknown term, or a number that is none.
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
            rows = list(_of_study(rows, task, str(path)))
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


def _of_study(rows: list[dict[str, Any]], task: str | None, where: str) -> Iterable[dict[str, Any]]:
    """Rows of term and first metric from a study's cells: those of one task whose method is a term."""
    tasks = sorted({str(row["task"]) for row in rows})
    if task is None and len(tasks) > 1:
        raise DataError(where, expected="one task, or the name of one", found=", ".join(tasks))
    for row in rows:
        metrics = row.get("metrics") or {}
        if row["task"] == (task or tasks[0]) and str(row["method"]).lower() in ALIASES and metrics:
            yield {"term": row["method"], "accuracy": next(iter(metrics.values()))}
