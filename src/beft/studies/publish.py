"""The files of a study: tables, cells, pictures and the page."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.terms import TERMS
from ..files import Writer, write_all
from ..report import plots
from ..report.cells import (
    CellRecord,
    efficiency_tables,
    names_in,
    rate_tables,
    score_tables,
    select,
    to_csv,
    to_json_lines,
)
from ..report.importance import drawn, ranking_table
from ..report.page import Picture, Section, page
from ..report.tables import Table, to_latex, to_markdown
from .runner import Outcome
from .study import Study
from .summary import interval_tables, ranking, ranking_sentence, test_table


def publish(directory: Path, study: Study, outcome: Outcome, command: Sequence[str] | None = None) -> list[str]:
    """Write table.md, table.tex, table.csv, cells.jsonl, report.html and pictures; gives the names of the files."""
    records = outcome.records
    sections = _importance_sections(records) if study.kind == "importance" else _score_sections(study, records)
    tables = [table for section in sections for table in section.tables]
    pictures = [picture for section in sections for picture in section.pictures]
    line = shlex.join(command or ["beft", *sys.argv[1:]])
    notes = [_sentence(note) for note in outcome.notes]
    if not plots.available():
        notes.append("No pictures were drawn: matplotlib is not installed (pip install 'beft[plots]').")
    if any(record.extra.get("selected_on") == "evaluation" for record in records):
        notes.append("Epochs were chosen on the evaluation rows (the paper's protocol): optimistic scores.")
    if notes:
        sections.insert(0, Section("Notes", notes))
    head = [f"# {study.title}", "", study.question, "", f"`{line}`", ""]
    text = "\n".join([*head, *(f"> {note}\n" for note in notes), *map(to_markdown, tables)])
    files: dict[str, bytes | str | Writer] = {
        "table.md": text,
        "table.tex": "\n".join(to_latex(table, f"{study.name} {table.title}") for table in tables),
        "table.csv": to_csv(records),
        "cells.jsonl": to_json_lines(records),
        "report.html": page(study.title, study.question, sections, line, _facts(outcome)),
        **{f"picture_{number}.png": picture.light for number, picture in enumerate(pictures, 1)},
    }
    if study.text:
        files["study.toml"] = study.text
    for stale in directory.glob("picture_*.png"):
        if stale.name not in files:
            stale.unlink()
    write_all(directory, files)
    return list(files)


# ---- scores ----------------------------------------------------------------------------------------------------------


def _score_sections(study: Study, records: list[CellRecord]) -> list[Section]:
    scores = Section("Scores", tables=score_tables(records), pictures=_cost_pictures(records))
    tests: list[Table] = interval_tables(records)
    sentences: list[str] = []
    pictures: list[Picture] = []
    for model in names_in(records, "model"):
        tests += [table for table in [test_table(records, model)] if table is not None]
        found = ranking(records, model)
        if found is not None:
            sentences.append(ranking_sentence(found))
            pictures += _rank_pictures(model, found.ranks.average, found.ranks.critical_difference)
    sections = [scores]
    if tests or sentences:
        sections.append(Section("How sure", sentences, tests, pictures))
    rates = rate_tables(records)
    if rates:
        sections.append(Section("Learning rates", tables=rates))
    costs = efficiency_tables(records)
    if costs:
        sections.append(Section("Cost", tables=costs))
    return sections


def _rank_pictures(model: str, average: Mapping[str, float], difference: float) -> list[Picture]:
    if not plots.available():
        return []
    from ..report.diagrams import THEMES, critical_difference

    title = f"{model}: average ranks"
    light, dark = (critical_difference(average, difference, title, theme) for theme in THEMES.values())
    order = ", ".join(f"{name} {rank:.2f}" for name, rank in sorted(average.items(), key=lambda pair: pair[1]))
    return [Picture(f"{title} (1 is best): {order}. Bars join what is not told apart.", light, dark)]


def _cost_pictures(records: Sequence[CellRecord]) -> list[Picture]:
    """Score against trained parameters, where a model has one task and one regime and the methods differ in size."""
    if not plots.available():
        return []
    import numpy as np

    from ..report.diagrams import THEMES, Point, cost_plot

    result = []
    for model in names_in(records, "model"):
        here = select(records, model=model, status="done")
        places = list(dict.fromkeys((record.task, record.regime) for record in here))
        points = []
        for method in names_in(here, "method"):
            own = [
                r for r in select(here, method=method) if r.score is not None and "trained_parameters" in r.efficiency
            ]
            scores = [float(r.score or 0) for r in own]
            if own:
                size, mean = int(own[0].efficiency["trained_parameters"]), float(np.mean(scores))
                sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
                points.append(Point(method, size, mean, mean - sd, mean + sd))
        if len(places) != 1 or len({point.parameters for point in points}) < 3:
            continue
        metric = next(iter(here[0].metrics))
        title = f"{model}, {' '.join(places[0])}: score against trained parameters"
        light, dark = (cost_plot(points, title, metric, theme) for theme in THEMES.values())
        bars = " Bars: one standard deviation over seeds." if any(point.low < point.high for point in points) else ""
        result.append(Picture(f"{title}.{bars}", light, dark))
    return result


# ---- importance ------------------------------------------------------------------------------------------------------


def importance_tables(records: Sequence[CellRecord]) -> list[Table]:
    """The ranking of terms of every cell of an importance study; none of another kind."""
    tables = []
    for record in records:
        if record.status == "done" and "importance" in record.extra:
            table = _ranked(record)[1]
            table.notes = [_sentence(note) for note in record.extra["importance"]["notes"]]
            tables.append(table)
    return tables


def _importance_sections(records: Sequence[CellRecord]) -> list[Section]:
    from ..analysis.importance import LEGEND

    sections = []
    for record in records:
        found = record.extra.get("importance")
        if record.status != "done" or found is None:
            sections.append(Section(_cell_name(record), [f"{record.status}: {record.reason}"]))
            continue
        measured, table = _ranked(record)
        notes = [LEGEND, *(_sentence(note) for note in found["notes"])]
        sections.append(Section(_cell_name(record), notes, [table], _heatmaps(measured)))
    return sections


def _cell_name(record: CellRecord) -> str:
    return f"{record.model}, {record.task}, {record.regime}, seed {record.seed}"


def _ranked(record: CellRecord) -> tuple[Any, Table]:
    """What an importance cell measured, and its table of ranks."""
    from ..analysis.importance import SCORES, Importance, SiteScores

    measured = Importance(
        record.model, record.task, [SiteScores.from_dict(site) for site in record.extra["importance"]["sites"]]
    )
    values = {score: measured.values(score) for score in SCORES}
    symbols = {term: TERMS[term].symbol for term in measured.terms}
    title = f"{_cell_name(record)}: mean over layers (rank)"
    return measured, ranking_table(title, values, SCORES, symbols, measured.values("effect"), measured.inert())


def _heatmaps(measured: Any) -> list[Picture]:
    if not plots.available():
        return []
    from ..analysis.importance import SCORES
    from ..report.diagrams import THEMES, heatmap

    columns = [f"${TERMS[name].latex}$" for name in measured.terms]
    inert = measured.inert()
    result = []
    for score in SCORES:
        known = measured.values(score)
        if known:
            title = f"{measured.task}: {SCORES[score]}"
            light, dark = (
                heatmap(
                    drawn(measured.matrix(score), measured.terms, inert, score),
                    measured.row_names(),
                    columns,
                    title,
                    score,
                    theme,
                )
                for theme in THEMES.values()
            )
            best = next(iter(measured.ranking(score)), "none")
            result.append(Picture(f"{title}, by layer and term. Largest on average: {best}.", light, dark))
    return result


# ---- facts -----------------------------------------------------------------------------------------------------------


def _facts(outcome: Outcome) -> dict[str, dict[str, str]]:
    """Versions, machine, and fingerprints of data and models, for the page's last section."""
    done = [record for record in outcome.records if record.status == "done"]
    versions: dict[str, str] = {}
    data: dict[str, str] = {}
    weights: dict[str, str] = {}
    for record in done:
        versions |= record.made_by.get("versions", {})
        weights[record.model] = str(record.made_by.get("weights", ""))
        data[f"{record.task}, {record.regime}, seed {record.seed}"] = str(record.made_by.get("data", ""))
    if outcome.versions:
        versions["code"] = ", ".join(outcome.versions)
    machine = {"processor": platform.machine(), "system": platform.system()}
    return {"Versions": versions, "Machine": machine, "Weights (fingerprints)": weights, "Data (fingerprints)": data}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
