"""Importance scores as files: importance.csv, ranking.md and heatmaps."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .tables import Field, Mark, Table

Matrix = list[list[float | None]]


def scores_csv(sites: Sequence[Mapping[str, Any]]) -> str:
    """One line a term and layer; empty where a score is undefined or was not measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(sites[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in site.items()} for site in sites)
    return text.getvalue()


def ranking_table(
    title: str,
    values: Mapping[str, Mapping[str, float]],
    names: Mapping[str, str],
    symbols: Mapping[str, str],
    effects: Mapping[str, float] | None = None,
    inert: Collection[str] = (),
) -> Table:
    """Terms down, scores across with the term's rank by each: "0.350 (1)"; terms in the order of the first score.

    Inert terms come last and have no rank: what moved them is not the task.

    Args:
        values: name of a score to term to its mean over layers; terms without one are marked undefined.
        names: of the scores, as the header calls them.
        symbols: of every term.
        effects: of value vectors on attention, a last column if there are any.
        inert: terms without a gradient but rounding.
    """
    shown = [score for score in values if values[score]]
    first = values[shown[0]] if shown else {}
    terms = sorted(symbols, key=lambda term: (term in inert, -first.get(term, float("-inf"))))
    rows = []
    for term in terms:
        row = [Field(f"{term} {symbols[term]}")]
        for score in shown:
            of_score = values[score]
            if term not in of_score:
                row.append(Field("undefined", "missing"))
                continue
            if term in inert:
                row.append(Field(f"{number(of_score[term])} (inert)", "missing"))
                continue
            rank = 1 + sum(value > of_score[term] for other, value in of_score.items() if other not in inert)
            row.append(Field(f"{number(of_score[term])} ({rank})", _MARKS.get(rank, "")))
        if effects:
            row.append(Field(number(effects[term]) if term in effects else "–"))
        rows.append(row)
    header = ["term", *(names[score] for score in shown), *(["effect on attention"] if effects else [])]
    return Table(title, header, rows)


def drawn(matrix: Sequence[Sequence[float | None]], terms: Sequence[str], inert: Collection[str], score: str) -> Matrix:
    """A heatmap's values (rows, terms): of inert terms none but the Fisher scores, which say that they are inert."""
    kept = [score.startswith("fisher") or term not in inert for term in terms]
    return [[value if keep else None for value, keep in zip(row, kept, strict=True)] for row in matrix]


_MARKS: dict[int, Mark] = {1: "best", 2: "second"}


def number(value: float) -> str:
    """Three decimals, or two digits and an exponent where they would say nothing."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"
