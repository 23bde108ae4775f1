"""Texts and labels as scikit-learn's users hold them, read into examples; and errors that are ValueErrors too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ..errors import BeftError, DataError, RecipeError, TermError


class InputError(DataError, ValueError):
    """Texts or labels that cannot be used: a `DataError`, and the ValueError that scikit-learn's callers expect."""


class ParameterError(RecipeError, ValueError):
    """A parameter out of range, or one that an estimator does not take: a `RecipeError` and a ValueError."""


class UnfittedError(BeftError, NotFittedError):
    """Something asked of an estimator before `fit`: scikit-learn's NotFittedError (a ValueError), as a `BeftError`."""


@contextmanager
def value_errors() -> Iterator[None]:
    """Inside, a DataError is raised as an InputError, a RecipeError or TermError as a ParameterError."""
    try:
        yield
    except ValueError:
        raise
    except (DataError, RecipeError, TermError) as error:
        kind = InputError if isinstance(error, DataError) else ParameterError
        raise kind(error.where, expected=error.expected, found=error.found, remedy=error.remedy) from error


# ---- texts -----------------------------------------------------------------------------------------------------------


def read_texts(X: Any) -> list[tuple[str, ...]]:
    """The rows of X, each one text or two.

    X is a list, tuple, 1-d array or Series of texts; or, for pairs, a list of tuples, an array or a frame of two
    columns. A frame or array of one column counts as texts.

    Raises:
        InputError: no collection, a row that is no text (missing ones included), or rows of different width.
    """
    rows: list[tuple[str, ...]] = []
    for number, row in enumerate(_rows(X)):
        parts = tuple(row) if isinstance(row, (list, tuple, np.ndarray)) else (row,)
        if not 1 <= len(parts) <= 2 or not all(isinstance(part, str) for part in parts):
            raise InputError(f"X, row {number}", expected="a text, or a pair of texts", found=_short(row))
        if rows and len(parts) != len(rows[0]):
            raise InputError(f"X, row {number}", expected=_width(len(rows[0])), found=_short(row))
        rows.append(tuple(str(part) for part in parts))
    return rows


def column_names(X: Any) -> tuple[str, ...] | None:
    """The columns of a frame (pandas or polars) if all of them are named with texts; else None."""
    columns = getattr(X, "columns", None)
    if columns is None or not hasattr(X, "to_numpy"):
        return None
    names = tuple(columns)
    return names if all(isinstance(name, str) for name in names) else None


def check_fields(
    rows: Sequence[tuple[str, ...]], names: tuple[str, ...] | None, fields: Sequence[str], fitted: Sequence[str] | None
) -> None:
    """Raise InputError if rows to predict have another width, or a frame other columns, than those of `fit`."""
    if rows and len(rows[0]) != len(fields):
        raise InputError("X, row 0", expected=f"{_width(len(fields))}, as in fit", found=_short(rows[0]))
    if names is not None and fitted is not None and names != tuple(fitted):
        raise InputError(
            "X",
            expected=f"the columns of fit ({', '.join(fitted)})",
            found=", ".join(names),
            remedy="choose and order the columns as in fit",
        )


def _rows(X: Any) -> list[Any]:
    if X is None or isinstance(X, (str, bytes, Mapping, AbstractSet)) or not hasattr(X, "__len__"):
        found = "one text" if isinstance(X, str) else type(X).__name__
        remedy = "put it in a list" if isinstance(X, str) else ""
        raise InputError("X", expected="a list, array or Series of texts", found=found, remedy=remedy)
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if not isinstance(X, np.ndarray):
        try:
            return list(X)
        except TypeError as error:
            raise InputError("X", expected="a list, array or Series of texts", found=type(X).__name__) from error
    if X.ndim not in (1, 2):
        raise InputError("X", expected="an array of one or two dimensions", found=f"{X.ndim}")
    return X.tolist()


def _width(count: int) -> str:
    return "a text" if count == 1 else f"{count} texts"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- labels ----------------------------------------------------------------------------------------------------------


def read_classes(y: Any, rows: int, who: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The classes, sorted, and the class number of every row. Classes keep the type they came in.

    Raises:
        InputError: labels missing (None, NaN), of mixed types, not one a row, or numbers with a fraction.
    """
    values = _column(y, rows, who)
    if isinstance(y, (list, tuple)):
        kinds = {"a text" if isinstance(each, str) else "a number" for each in y}
        if len(kinds) > 1:  # an array of both would turn the numbers into texts without a word
            raise InputError("y", expected="labels of one type", found="texts and numbers")
    with _with_reason():
        check_classification_targets(values)
        classes, numbers = np.unique(values, return_inverse=True)
    return classes, numbers


def read_numbers(y: Any, rows: int, who: str) -> NDArray[np.float64]:
    """The number to predict of every row, shape (rows,).

    Raises:
        InputError: numbers missing, not finite, not one a row, or something that is no number.
    """
    values = _column(y, rows, who)
    with _with_reason():
        numbers = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise InputError(f"y, row {bad[0]}", expected="a finite number", found=repr(float(numbers[bad[0]])))
    return numbers


def class_names(classes: NDArray[Any]) -> tuple[str, ...]:
    """Classes as the texts that an adapter folder keeps: 3.0 is "3", as the command line writes it."""
    plain = [each.item() if isinstance(each, np.generic) else each for each in classes]
    return tuple(str(int(each)) if isinstance(each, float) and each.is_integer() else str(each) for each in plain)


def class_type(classes: NDArray[Any]) -> str:
    """Name of the classes' type, to be kept with an adapter: str, int, float or bool."""
    first = classes[0]
    return type(first.item() if isinstance(first, np.generic) else first).__name__


def classes_from(names: Sequence[str], kind: str) -> NDArray[Any]:
    """Classes from the texts and the type that an adapter folder keeps."""
    read: dict[str, Any] = {"int": int, "float": float, "bool": lambda name: name == "True"}
    return np.asarray([read.get(kind, str)(name) for name in names])


def _column(y: Any, rows: int, who: str) -> NDArray[Any]:
    """y as a 1-d array of as many values as there are rows, none of them missing."""
    if y is None:
        raise InputError(f"{who} requires y to be passed, but the target y is None")
    if isinstance(y, str) or not hasattr(y, "__len__"):
        raise InputError("y", expected="a list, array or Series of labels", found=_short(y))
    if len(y) != rows:
        raise InputError("y", expected=f"as many labels as texts ({rows})", found=f"{len(y)}")
    for number, value in enumerate(y if isinstance(y, (list, tuple)) else np.asarray(y).ravel()):
        if _missing(value):
            raise InputError(
                f"y, row {number}",
                expected="a label",
                found=f"a missing one ({value})",
                remedy="fill it in or take the row out",
            )
    with _with_reason():
        values = column_or_1d(y.to_numpy() if hasattr(y, "to_numpy") else y, warn=True)
    if values.dtype == object and not any(isinstance(value, str) for value in values):
        return np.asarray(values.tolist())  # numbers or truth values that a frame kept as objects
    return values


def _missing(value: Any) -> bool:
    """Whether a label is None, NaN, or pandas' NA or NaT (known by name: pandas need not be installed)."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and math.isnan(value)


@contextmanager
def _with_reason() -> Iterator[None]:
    """Raise what numpy and scikit-learn refuse as an InputError, with their reason."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError("y cannot be used: " + " ".join(str(error).split()).rstrip(".")) from error
