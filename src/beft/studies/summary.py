"""Statistics of a study's records, as tables: intervals against the first method, tests across tasks, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..analysis.resampled import paired_metric_bootstrap
from ..analysis.statistics import Ranks, average_ranks, holm, paired_bootstrap, sign_test, wilcoxon_test
from ..report.cells import CellRecord, names_in, select
from ..report.tables import Field, Table

Block = tuple[str, str]
"""A task in a regime: what a method has one mean score for."""


@dataclass
class Ranking:
    """Average ranks of the methods that have every task of a model, and who is left out."""

    model: str
    ranks: Ranks
    left_out: list[str]


def interval_tables(records: Sequence[CellRecord]) -> list[Table]:
    """For each model and regime: the first method less each other, by task, with 95 % paired bootstrap intervals.

    Intervals are of the leading metric, over examples and seeds; only seeds that both methods have count. Of older
    cells without `answers` they are of the share of right answers, and there is none for numbers to predict.
    """
    tables = []
    for model, regime in dict.fromkeys((record.model, record.regime) for record in records):
        here = select(records, model=model, regime=regime)
        methods, tasks = names_in(here, "method"), names_in(here, "task")
        first = methods[0]
        rows = []
        shares: dict[str, None] = {}
        for other in methods[1:]:
            row = [Field(f"{first} − {other}")]
            for task in tasks:
                a, b = select(here, task=task, method=first), select(here, task=task, method=other)
                field, leads = _interval(a, b)
                row.append(field)
                shares |= {} if leads else {task: None}
            rows.append(row)
        if any(each.mark != "missing" for row in rows for each in row[1:]):
            notes = [
                "Difference of the leading metric with its 95 % interval: paired bootstrap over examples and seeds. "
                "Bold: the interval excludes zero. Not adjusted for their number."
            ]
            if shares:
                kept = "the share of right answers (token F1 of written ones), which is what these cells keep"
                notes.append(f"On {', '.join(shares)} it is of {kept}.")
            title = f"{first} against the others: {model}" + (f", {regime}" if regime else "")
            tables.append(Table(title, ["difference", *tasks], rows, notes))
    return tables


def _interval(first: Sequence[CellRecord], second: Sequence[CellRecord]) -> tuple[Field, bool]:
    """The interval of a task, and whether it is of the leading metric (and not of right answers in its place)."""
    a, b = ({record.seed: record for record in side if record.status == "done"} for side in (first, second))
    both = [(a[seed], b[seed]) for seed in a if seed in b]
    metric = next((name for record, _ in both for name in record.metrics), "")
    right = [(x.correct, y.correct) for x, y in both if x.correct and y.correct and len(x.correct) == len(y.correct)]
    kept = [(x.answers, y.answers) for x, y in both if x.answers and y.answers]
    kept = [(x, y) for x, y in kept if len(x["gold"]) == len(y["gold"])]
    leads = len(kept) >= max(1, len(right))  # of older cells no answers are kept
    if leads:
        sides = ([pair[place] for pair in kept] for place in (0, 1))
        asked = (([each["gold"] for each in side], [each["predicted"] for each in side]) for side in sides)
        found, seeds = paired_metric_bootstrap(metric, *asked), len(kept)
    elif right:
        found, seeds = paired_bootstrap(*zip(*right, strict=True)), len(right)
    else:
        return Field("–", "missing"), True
    text = f"{_signed(found.difference)} [{_signed(found.low)}, {_signed(found.high)}]"
    field = Field(text, "best" if found.excludes_zero else "", f"{seeds} seeds")
    return field, leads or metric in ("accuracy", "token_f1")


def test_table(records: Sequence[CellRecord], model: str) -> Table | None:
    """Across tasks (and regimes) of a model: the first method against each other by Wilcoxon's and the sign test.

    The p-values of Wilcoxon's tests are adjusted by Holm's method. None where no two methods share two tasks.
    """
    here = select(records, model=model)
    means = block_means(here)
    methods = names_in(here, "method")
    first = methods[0]
    found = {}
    for other in methods[1:]:
        blocks = [block for block in means.get(first, {}) if block in means.get(other, {})]
        if len(blocks) > 1:
            a, b = ([means[name][block] for block in blocks] for name in (first, other))
            found[other] = (np.mean(a) - np.mean(b), wilcoxon_test(a, b), sign_test(a, b), len(blocks))
    if not found:
        return None
    adjusted = holm({name: wilcoxon.p for name, (_, wilcoxon, _, _) in found.items()})
    rows = [
        [
            Field(f"{first} against {other}"),
            Field(_signed(float(difference))),
            Field(f"{signs.statistic:.0f} / {count - signs.pairs} / {signs.pairs - signs.statistic:.0f}"),
            Field(f"{wilcoxon.p:.3f}"),
            Field(f"{adjusted[other]:.3f}", "best" if adjusted[other] < 0.05 else ""),
            Field(f"{signs.p:.3f}"),
        ]
        for other, (difference, wilcoxon, signs, count) in found.items()
    ]
    header = ["methods", "mean difference", "won / tied / lost", "Wilcoxon p", "by Holm", "sign test p"]
    counts = sorted({count for *_, count in found.values()})
    notes = [
        f"Over the means of {' or '.join(map(str, counts))} tasks and regimes. Below six of them Wilcoxon's p cannot "
        "come under 0.05."
    ]
    return Table(f"{model}: tests across tasks", header, rows, notes)


def ranking(records: Sequence[CellRecord], model: str) -> Ranking | None:
    """Average ranks of the methods that have a score for every task (and regime) of a model that any method has.

    None with fewer than three such methods or two tasks.
    """
    means = block_means(select(records, model=model))
    blocks = list(dict.fromkeys(block for scores in means.values() for block in scores))
    whole = {name: [scores[block] for block in blocks] for name, scores in means.items() if set(scores) == set(blocks)}
    if len(whole) < 3 or len(blocks) < 2:
        return None
    left_out = [name for name in names_in(select(records, model=model), "method") if name not in whole]
    return Ranking(model, average_ranks(whole), left_out)


def ranking_sentence(found: Ranking) -> str:
    """Friedman's test and the critical difference in words."""
    ranks = found.ranks
    text = (
        f"{found.model}: over {ranks.tasks} tasks and regimes Friedman's test of equal ranks gives p = "
        f"{ranks.friedman.p:.3g}; ranks nearer than {ranks.critical_difference:.2f} are not told apart (Nemenyi, "
        f"{100 * ranks.alpha:.0f} %)."
    )
    return text + (f" Without {', '.join(found.left_out)}, which lack tasks." if found.left_out else "")


def block_means(records: Sequence[CellRecord]) -> dict[str, dict[Block, float]]:
    """Method to task and regime to the mean over seeds of the leading metric; what has no score is left out."""
    values: dict[str, dict[Block, list[float]]] = {}
    for record in records:
        of_method = values.setdefault(record.method, {})
        if record.status == "done" and record.score is not None:
            of_method.setdefault((record.task, record.regime), []).append(record.score)
    return {
        method: {block: float(np.mean(scores)) for block, scores in blocks.items()} for method, blocks in values.items()
    }


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
