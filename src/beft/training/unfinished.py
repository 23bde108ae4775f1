"""A folder that holds more until its result is there: the runs of a search or a curve, in a subfolder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import BeftError, Interrupted, StoreError
from ..files import clear_parts
from .folder import check_new, gone_if_it_fails, is_empty
from .ranks import here


@dataclass(frozen=True)
class Unfinished:
    """What a folder holds until its result is there: a search or the like, in the subfolder `name`. It has begun when
    the file `record` lies in that, and the result is there when the file `end` lies beside it."""

    what: str
    name: str
    record: str
    end: str

    @property
    def removed(self) -> str:
        """What the subfolder is called while it is taken away."""
        return f".{self.name}.part"


@contextmanager
def kept_until_done(directory: Path, kind: Unfinished, *, resume: bool, overwrite: bool) -> Iterator[tuple[Path, bool]]:
    """The subfolder, and whether there is something to go on with in it. It is removed at the end; an error leaves it,
    unless no run had ended yet.

    Raises:
        What `open_unfinished` raises.
    """
    ranks, under = here(), directory / kind.name
    with gone_if_it_fails(directory):
        goes_on = ranks.first(lambda: open_unfinished(directory, kind, resume=resume, overwrite=overwrite))
        try:
            yield under, goes_on
        except BeftError as error:
            stopped = isinstance(error, Interrupted) or goes_on
            if ranks.leads and not stopped and not any(under.rglob("metrics.json")):
                shutil.rmtree(under, ignore_errors=True)
            raise
    if ranks.leads:
        _remove(directory, kind)


def open_unfinished(directory: Path, kind: Unfinished, *, resume: bool, overwrite: bool) -> bool:
    """Check a folder before anything long begins; gives whether there is something to go on with.

    Raises:
        StoreError: not a folder, not empty without `resume` or `overwrite`, not writable, or nothing to resume in it.
    """
    under = directory / kind.name
    shutil.rmtree(directory / kind.removed, ignore_errors=True)
    begun = (under / kind.record).exists()
    if resume and begun:
        clear_parts(directory)
        return True
    if not begun and under.exists() and not is_empty(under):
        raise StoreError(
            str(under),
            expected=f"{kind.what}, or nothing there yet",
            found="other files",
            remedy="choose another --out",
        )
    if not begun and is_empty(under):
        shutil.rmtree(under)  # one that was killed before it had written anything
    if resume and directory.is_dir() and any(directory.iterdir()):
        finished = (directory / kind.end).exists()
        raise StoreError(
            str(directory),
            expected=f"{kind.what} to resume",
            found="a finished one" if finished else "other files",
            remedy=f"read its {kind.end}, or start anew with --overwrite" if finished else "choose another --out",
        )
    check_new(directory, overwrite, "use --resume to go on, --overwrite to replace it, or another --out")
    if begun:
        shutil.rmtree(under)
    return False


def _remove(directory: Path, kind: Unfinished) -> None:
    """Take the subfolder away, under another name first: killed meanwhile, half of one is none to go on with."""
    with suppress(OSError):
        (directory / kind.name).rename(directory / kind.removed)
    for name in (kind.name, kind.removed):
        shutil.rmtree(directory / name, ignore_errors=True)
