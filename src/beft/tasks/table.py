"""Rows of a user's own file: CSV, TSV, JSON lines, Parquet, plain or gzip'd. One dict a row, read as a stream."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError, nearest

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row). Line numbers count from 1 and are those a text editor shows (rows, for Parquet).

    Raises:
        DataError: no such file, an unknown format, a broken line (named), or a row of another width than the header.
    """
    if not path.exists():
        around = sorted(path.parent.glob("*"), key=lambda p: (len(p.name), p.name))
        siblings = [p.name for p in around if _format(p) in FORMATS and p.is_file()]
        remedy = nearest(path.name, siblings) if siblings else "check the path"
        raise DataError(str(path), expected="a file", found="none of this name", remedy=remedy)
    if path.is_dir():
        raise DataError(str(path), expected="a file", found="a folder")
    kind = _format(path)
    if kind not in FORMATS:
        raise DataError(
            str(path),
            expected=f"a file ending in {', '.join(FORMATS)} (or one of these .gz)",
            found=kind or "no ending",
        )
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        with _open(path) as handle:
            yield from (
                _delimited(path, handle, "\t" if kind == ".tsv" else ",")
                if kind in (".csv", ".tsv")
                else (_json_lines(path, handle))
            )
    except UnicodeDecodeError as error:
        raise DataError(
            str(path),
            expected="UTF-8 text",
            found=f"another encoding (byte {error.object[error.start]:#04x}; Windows-1252 is common)",
            remedy='save it as UTF-8 (Excel: "CSV UTF-8"), or convert it: iconv -f WINDOWS-1252 -t UTF-8',
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(path), expected="a file that can be read", found=str(error)) from error


def columns(path: Path) -> list[str]:
    """The column names of a file, from its first row."""
    for _, row in read_rows(path):
        return list(row)
    return []


def _format(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _delimited(path: Path, handle: TextIO, delimiter: str) -> Iterator[tuple[int, Row]]:
    """Rows by column names. A comma's file whose header has none, but semicolons or tabs, is separated by those."""
    csv.field_size_limit(1 << 30)
    record: list[str] = []  # lines of the row at hand
    lines = _noted(handle, record)
    reader, before = csv.reader(lines, delimiter=delimiter), 0
    header: list[str] | None = None
    start = line = 1
    try:
        while True:
            last = list(record)
            record.clear()
            values = next(reader, None)
            if values is None:
                _check_closed(f"{path}, line {start}", last, delimiter)
                return
            start, line = line, before + reader.line_num + 1
            if not values:
                continue
            if header is None:
                other = next((each for each in (";", "\t") if each in values[0]), None)
                if delimiter == "," and len(values) == 1 and other:
                    values = next(csv.reader(values, delimiter=other))
                    delimiter = other
                    reader, before = csv.reader(lines, delimiter=other), line - 1
                header = [name.strip() for name in values]
                twice = [name for name in header if name and header.count(name) > 1]
                if twice:
                    raise DataError(f"{path}, line {start}", expected="every column once", found=f"{twice[0]!r} twice")
                continue
            if len(values) != len(header):
                _check_closed(f"{path}, line {start}", record, delimiter)
                raise DataError(
                    f"{path}, line {start}",
                    expected=f"{len(header)} columns ({', '.join(header)})",
                    found=str(len(values)),
                    remedy="quote texts that hold the separator",
                )
            yield start, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {before + reader.line_num}", expected="CSV", found=str(error)) from error


def _noted(handle: TextIO, record: list[str]) -> Iterator[str]:
    """The lines of a file as they come, each noted in `record`."""
    for line in handle:
        record.append(line)
        yield line


def _check_closed(where: str, record: list[str], delimiter: str) -> None:
    """Raises DataError if a file's last row ends inside a quotation, which has then swallowed all rows behind it."""
    try:
        list(csv.reader(record, delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise DataError(
                where,
                expected='a closing " for each that opens a field',
                found="none up to the end of the file",
                remedy='close it; a " inside a quoted text is doubled',
            ) from error


def _json_lines(path: Path, handle: TextIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(handle, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}",
                expected="one JSON object a line",
                found=f"text that is none ({error})",
                remedy="mend or remove that line",
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}", expected="a JSON object", found=type(row).__name__)
        yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            str(path), expected="pyarrow, to read Parquet", found="no such package", remedy="pip install 'beft[data]'"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, ValueError) as error:
        raise DataError(str(path), expected="a Parquet file", found=str(error)) from error
