"""The cells that are done: one JSON file each, named by what was asked and by the code that answered.

Where that folder is gone, the study's cells.jsonl stands for it: a published study goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from ..errors import StoreError, StudyError
from ..files import read_json, to_json, write
from ..report.cells import CellRecord
from ..training.machine import DTYPES
from .plan import Cell, code_version

PUBLISHED = "cells.jsonl"


class Cache:
    """A folder of finished cells, and the cells.jsonl beside it.

    A result counts only for the very code version that made it.
    """

    def __init__(self, directory: Path, code: str | None = None) -> None:
        self.directory, self.code = directory, code or code_version()

    def path(self, cell: Cell, code: str | None = None) -> Path:
        """Where a cell's result lies."""
        return self.directory / f"{cell.question}-{(code or self.code).rpartition('+')[2]}.json"

    def get(self, cell: Cell) -> CellRecord | None:
        """The result of a cell by this code version, or None.

        Raises:
            StudyError: a file whose content is not what its name says.
            DataError: a line of cells.jsonl that is no cell.
        """
        path = self.path(cell)
        if path.exists():
            return self._read(path, cell, self.code)
        same = (each for each in self._published.get(cell.question, ()) if each.made_by.get("code") == self.code)
        return next((_named(each, cell) for each in same), None)

    def other(self, cell: Cell) -> CellRecord | None:
        """The newest result of a cell by another code version, or None."""
        paths = [path for path in self.directory.glob(f"{cell.question}-*.json") if path != self.path(cell)]
        newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
        if newest is not None:
            return self._read(newest, cell, None)
        others = (each for each in self._published.get(cell.question, ()) if each.made_by.get("code") != self.code)
        return next((_named(each, cell) for each in others), None)

    def in_their_precision(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells in the precision of those that are done here, whatever this machine would choose by itself today.

        Only where none is done in the precision that they have.
        """
        for dtype in dict.fromkeys((*(cell.dtype for cell in cells[:1]), *DTYPES)):
            found = [replace(cell, dtype=dtype) for cell in cells]
            if any(self.get(cell) or self.other(cell) for cell in found):
                return found
        return list(cells)

    def put(self, cell: Cell, record: CellRecord) -> CellRecord:
        """Keep a finished cell; gives it with what it was made by."""
        made_by = {
            **record.made_by,
            "question": cell.question,
            "code": self.code,
            "data": cell.data,
            "weights": cell.weights,
        }
        kept = replace(record, made_by=made_by)
        write(self.path(cell), to_json(asdict(kept)))
        return kept

    def _read(self, path: Path, cell: Cell, code: str | None) -> CellRecord:
        record = CellRecord.read(read_json(path), str(path))
        made = record.made_by
        if made.get("question") != cell.question or (code is not None and made.get("code") != code):
            raise StudyError(
                str(path),
                expected=f"the cell {cell.question} made by {code or 'any version'}",
                found=f"{made.get('question')} made by {made.get('code')}",
                remedy="the file was renamed or changed; remove it, and the cell is run again",
            )
        return _named(record, cell)

    @cached_property
    def _published(self) -> dict[str, list[CellRecord]]:
        """The finished cells of cells.jsonl by what was asked."""
        path = self.directory.with_name(PUBLISHED)
        found: dict[str, list[CellRecord]] = {}
        for record in read_records(path) if path.exists() else ():
            if record.status == "done":
                found.setdefault(str(record.made_by.get("question")), []).append(record)
        return found


def _named(record: CellRecord, cell: Cell) -> CellRecord:
    """The record under the cell's names: what a study calls its models and tasks may change; what they are is in the
    hash."""
    return replace(record, model=cell.model, task=cell.task, regime=cell.regime, method=cell.method, seed=cell.seed)


def refuse_mixed(records: list[CellRecord], where: str, *, allowed: bool = False) -> list[str]:
    """The code versions of finished cells; several are refused unless they are allowed.

    Raises:
        StudyError: results of several code versions.
    """
    versions = sorted({str(record.made_by.get("code", "unknown")) for record in records if record.status == "done"})
    if len(versions) > 1 and not allowed:
        raise StudyError(
            where,
            expected="results of one code version",
            found=f"those of {', '.join(versions)}",
            remedy="run the study again to make them anew, or allow it with --other-versions",
        )
    return versions


def read_records(path: Path) -> list[CellRecord]:
    """The cells of a study's cells.jsonl (or its folder).

    Raises:
        StoreError, DataError: a file that cannot be read, or a line that is no cell.
    """
    from ..tasks.table import read_rows

    file = path / PUBLISHED if path.is_dir() else path
    if not file.exists():
        raise StoreError(str(file), expected="the cells of a study", found="no such file")
    return [CellRecord.read(row, f"{file}, line {number}") for number, row in read_rows(file)]
