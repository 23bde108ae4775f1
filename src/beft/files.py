"""Writing files so that nothing already written is lost: to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import StoreError

Writer = Callable[[Path], None]
SIDE_BY_SIDE = 16
"""Files that are waited for at the same time."""


def write_all(directory: Path, files: Mapping[str, bytes | str | Writer]) -> None:
    """Write several files of a folder together: all to temporary names first, renamed only when every one is complete.

    A value is the content, or a function that writes to the path it is given.

    Raises:
        StoreError: the folder or a file cannot be written; the files that were there are as before.
    """
    parts: dict[Path, Path] = {}
    final = directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            final = directory / name
            part = directory / f".{name}.{os.getpid()}.part"
            parts[part] = final
            if callable(content):
                mode = _mode_of_new(part)
                content(part)
                part.chmod(mode)  # safetensors writes files that their owner alone may read
            else:
                part.write_bytes(content.encode() if isinstance(content, str) else content)
        _to_disk(list(parts))
        _rename_all(parts)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise StoreError(
            str(directory),
            expected="a folder that can be written",
            found=f"{getattr(error, 'strerror', None) or error} ({_final(error, parts) or final})",
            remedy="free some space or choose another folder; files already there are untouched",
        ) from error
    finally:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _to_disk(parts: Sequence[Path]) -> None:
    """Wait until the disk has these files; side by side, for it takes many at once in the time of one."""
    try:
        own, others = parts[:1], [_waiters().submit(_wait, part) for part in parts[1:]]
    except RuntimeError:  # the main thread has ended: no other thread may be started
        own, others = parts, []
    for part in own:
        _wait(part)
    for other in others:
        other.result()


def _wait(part: Path) -> None:
    try:
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(part)) from error


@functools.cache
def _waiters() -> ThreadPoolExecutor:
    """Threads that stay: starting one takes as long as the disk does."""
    return ThreadPoolExecutor(SIDE_BY_SIDE, "beft-files")


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_waiters.cache_clear)


def _final(error: Exception, parts: Mapping[Path, Path]) -> Path | None:
    """The file that an error names, by its own name rather than a temporary one; None if it names none."""
    named = getattr(error, "filename", None)
    return None if named is None else parts.get(Path(named), Path(named))


def _rename_all(parts: Mapping[Path, Path]) -> None:
    """Rename every part to its final name; if one fails, put back what the others replaced."""
    if len(parts) == 1:  # nothing to put back
        os.replace(*next(iter(parts.items())))
        return
    kept: dict[Path, Path | None] = {}  # final name: a second name of the file that was there
    try:
        for part, final in parts.items():
            old = part.with_suffix(".old.part") if final.is_file() else None
            if old is not None:
                old.unlink(missing_ok=True)
                _second_name(final, old)
            kept[final] = old
            os.replace(part, final)
    except BaseException:
        for final, old in kept.items():
            if old is not None:
                os.replace(old, final)
            elif final.is_file():
                final.unlink()
        raise
    finally:
        for old in kept.values():
            if old is not None:
                old.unlink(missing_ok=True)


def _second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        shutil.copy2(path, name)


def clear_parts(directory: Path) -> None:
    """Take out what a killed process left half written."""
    for part in directory.glob(".*.part"):
        if part.is_file():
            part.unlink()


def write(path: Path, content: bytes | str | Writer) -> None:
    """Write one file, see `write_all`."""
    write_all(path.parent, {path.name: content})


def to_json(value: Any) -> str:
    """Indented JSON text with a final newline; NaN is refused, other objects become text."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n"


def to_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under their columns' names; what a row lacks is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        StoreError: no such file, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(str(path), expected="a file", found=error.strerror or str(error)) from error
    except ValueError as error:
        raise StoreError(str(path), expected="JSON", found=f"text that is none ({error})") from error
    if not isinstance(value, dict):
        raise StoreError(str(path), expected="a JSON object", found=type(value).__name__)
    return value


def sha256(path: Path) -> str:
    """Hex digest of a file's content.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(str(path), expected="a file", found=error.strerror or str(error)) from error


def new_folder(path: str | Path) -> Path:
    """A folder to write a model to. Raises StoreError if it holds files."""
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(str(target), expected="a new or empty folder", found="files there", remedy="choose another")
    return target


def _mode_of_new(path: Path) -> int:
    """Make an empty file; the mode that the process's umask gives it."""
    path.touch()
    return path.stat().st_mode


def _open_to_readers(folder: Path) -> None:
    """Give all files of a new folder the mode that the process's umask says, which safetensors does not."""
    probe = folder / ".mode"
    mode = _mode_of_new(probe)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


@contextmanager
def part_folder(target: Path) -> Iterator[Path]:
    """A folder under a temporary name, renamed to `target` at the end; removed if anything fails."""
    part = target.absolute().with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        _open_to_readers(part)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        raise StoreError(
            str(target), expected="a folder that can be written", found=error.strerror or str(error)
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
