"""Every error a user can cause is a `BeftError`: one line says where, what was expected and found, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

SHOWN = 20
"""Names listed where many more than these are known."""


class BeftError(Exception):
    """Base of all errors that beft raises on purpose. The command line prints one in one line and exits with 2.

    `where` names the path, field or argument; the other parts are short clauses without a full stop.
    """

    def __init__(self, where: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        self.where, self.expected, self.found, self.remedy = where, expected, found, remedy
        parts = [where]
        if expected:
            parts.append(f"expected {expected}")
        if found:
            parts.append(f"found {found}")
        message = parts[0] + (": " + ", ".join(parts[1:]) if len(parts) > 1 else "")
        end = "" if remedy.endswith("?") else "."
        super().__init__(f"{message}. {remedy[0].upper() + remedy[1:]}{end}" if remedy else message + ".")

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes as they are."""
        return _again, (type(self), self.args, dict(self.__dict__))


def _again(kind: type[BeftError], args: tuple[Any, ...], state: dict[str, Any]) -> BeftError:
    """An error as it was before it was pickled."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class TermError(BeftError):
    """A name that is no term, or a term that the model does not have."""


class SiteError(BeftError):
    """The places of a term cannot be found in a model, or do not behave as places of that term."""


class RouteError(BeftError):
    """A route that does not fit the batch or names an adapter the bank does not hold."""


class BankError(BeftError):
    """An operation on a bank or on one of its adapters that cannot be done."""


class StoreError(BeftError):
    """An adapter folder that cannot be read, written, or does not fit the model."""


class DataError(BeftError):
    """Examples that cannot be read or learned from."""


class RecipeError(BeftError):
    """A hyperparameter or option out of range, or options that contradict one another."""


class TrainingError(BeftError):
    """Training stopped: the loss is not finite, or memory does not suffice for one row."""


class RanksError(BeftError):
    """The processes of one run cannot go on together: one of them is gone, or failed by an error of another kind."""


class WorkersError(BeftError):
    """Ray's workers cannot be had: Ray is not installed or not reached, it has no room, or the workers die."""


class StudyError(BeftError):
    """A study that cannot be read or run: faults in its file, or results that do not belong together."""


class ExtensionError(BeftError):
    """A user's own file that cannot be loaded, or that does not hold what was asked for."""


class Interrupted(BeftError):
    """A signal asked the run to stop; its state is on disk and `signal` says which signal it was."""

    def __init__(self, where: str, *, signal: int, remedy: str) -> None:
        super().__init__(where, remedy=remedy)
        self.signal = signal


def nearest(name: str, names: Iterable[str]) -> str:
    """`"did you mean 'x'?"`-style clause for the known name closest to it, or a list of names, some of very many."""
    known = list(names)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    if close:
        return f"did you mean {next(k for k in known if k.lower() == close[0])!r}?"
    more = f", ... ({len(known) - SHOWN} more)" if len(known) > SHOWN * 2 else ""
    return "known: " + ", ".join(known[:SHOWN] if more else known) + more
