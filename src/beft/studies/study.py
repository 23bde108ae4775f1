"""A study as a file: models, tasks, regimes, methods, seeds. Read with all of its faults reported at once."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import BeftError, DataError, StudyError, nearest
from ..methods.registry import find_method, method_names
from ..own_file import is_reference
from ..tasks.benchmarks import BENCHMARKS, REGIMES
from ..tasks.load import benchmark
from ..tasks.own import OwnRows
from ..tasks.prompts import PROMPTS
from ..tasks.reading import prompt
from ..tasks.registered import is_registered, registered_task
from ..training.recipe import Recipe
from .methods import OPTIONS, heeds, known, names, rates_of

OBJECTIVES = ("classify", "prompt")
KINDS = ("scores", "importance")
RECIPES = ("default", "paper")
OWN = "own"
"""As a grid: every method's own."""
NAMES = ("table1", "table2", "table3", "table4", "table5", "table6", "figures")


@dataclass(frozen=True)
class Study:
    """A grid of runs.

    Attributes:
        kind: "scores" (a table), or "importance" (scores of terms and heatmaps; methods do not count).
        objective: "classify" (a head) or "prompt" (a language model asked).
        data: names of tasks made of the user's own rows, and where those lie.
        regimes: of benchmark tasks; empty with `train_size`.
        recipe: "default", or "paper": its settings and its selection on the evaluation rows.
        banks: whether runs that can share a pass over the frozen model do. Where seconds and memory are compared, none
            do: those of a run beside others are not its own.
        changes: of the recipe, for all methods; those of `methods.OPTIONS` for the methods that heed them.
        grid: learning rates of a method, tried on the dev rows; "own" in a file: each method's own.
        quick: fields to put in place of the others for a first look.
    """

    name: str
    title: str
    question: str
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    data: Mapping[str, OwnRows] = field(default_factory=dict)
    regimes: tuple[str, ...] = ()
    kind: str = "scores"
    objective: str = "classify"
    recipe: str = "default"
    train_size: int | str | None = None
    eval_size: int | None = None
    banks: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""

    def quicker(self) -> Study:
        """The study with what its `quick` table says in place."""
        return replace(self, **self.quick, quick={})


def study_text(name: str) -> str:
    """The text of one of beft's own studies, to edit.

    Raises:
        StudyError: no such study.
    """
    if name not in NAMES:
        raise StudyError(
            f"study {name!r}", expected="a study of beft's, or a file", found="neither", remedy=nearest(name, NAMES)
        )
    return (files("beft.studies") / "files" / f"{name}.toml").read_text(encoding="utf-8")


def read_study(source: str) -> Study:
    """A study by name ("table1") or from a TOML file.

    Raises:
        StudyError: no such study, no TOML, or faults in it, all of which are named.
    """
    path = Path(source)
    own = source in NAMES or path.suffix != ".toml"
    try:
        text = study_text(source) if own else path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise StudyError(source, expected="a study's TOML file", found=error.strerror or str(error)) from error
    except ValueError as error:
        raise StudyError(source, expected="TOML", found=f"text that is none ({error})") from error
    return make_study(values, source if own else path.stem, source, text)


def make_study(values: Mapping[str, Any], name: str, where: str, text: str = "") -> Study:
    """A study of a TOML file's values, every one of them checked. Raises StudyError with all faults."""
    faults: list[str] = []
    tables = values["data"] if isinstance(values.get("data"), dict) else {}
    if tables:
        values = {"tasks": list(tables), **values}
    checked = _checked(values, faults, "")
    own = checked.get("data", {})
    for needed in ("models", "tasks", "seeds", *(() if values.get("kind") == "importance" else ("methods",))):
        if needed not in values:
            faults.append(f"no {needed}")
    objective = checked.get("objective", "classify")
    quick = _checked(values.get("quick", {}), faults, "quick.") if isinstance(values.get("quick", {}), dict) else {}
    for part, prefix in ((checked, ""), (quick, "quick.")):
        for task in part.get("tasks", ()):
            if task not in tables:  # of those, what is wrong was said
                _check_task(task, quick.get("objective", objective) if prefix else objective, prefix, faults)
        methods = part.get("methods", checked.get("methods", ()))
        if part.get("grid") == OWN:
            part["grid"] = {method: rates_of(method) for method in methods if rates_of(method)}
        for option in part.get("changes", {}):
            if option in OPTIONS and not any(heeds(method, option) for method in methods):
                faults.append(f"{prefix}changes.{option}: none of the methods heeds it")
        for method in part.get("grid", {}):
            if method not in (*checked.get("methods", ()), *quick.get("methods", ())):
                faults.append(f"{prefix}grid.{method}: not one of the methods")
    if objective == "classify" and not values.get("regimes") and "train_size" not in values:
        faults.append("neither regimes nor train_size")
    if checked.get("regimes") and ("train_size" in checked or objective == "prompt"):
        faults.append("regimes: not beside " + ("train_size" if "train_size" in checked else "objective 'prompt'"))
    if own and checked.get("regimes"):
        faults.append("regimes: not for rows of one's own, which have none: give train_size")
    if own and objective == "prompt":
        faults.append("data: rows with labels are for objective 'classify'")
    if faults:
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        numbered = "; ".join(f"({number}) {fault}" for number, fault in enumerate(faults, 1))
        raise StudyError(where, expected="a study without faults", found=f"{count}: {numbered}")
    if quick.get("train_size") is not None:
        quick.setdefault("regimes", ())
    defaults = {"title": name, "question": "", "methods": ("all",)}
    return Study(**{**defaults, **checked, "name": name, "quick": quick, "text": text})


def _checked(values: Mapping[str, Any], faults: list[str], prefix: str) -> dict[str, Any]:
    """The values that are well-formed; what is not is added to the faults."""
    result: dict[str, Any] = {}
    allowed = [
        each.name for each in fields(Study) if each.name not in ("name", "text", *(("quick",) if prefix else ()))
    ]
    for key, value in values.items():
        if key not in allowed:
            faults.append(f"{prefix}{key}: unknown, {nearest(key, allowed).rstrip('?')}")
        elif key != "quick":
            good = _CHECKS[key](value, f"{prefix}{key}", faults)
            if good is not None:
                result[key] = good
        elif not isinstance(value, dict):
            faults.append(f"quick: a table is expected, not {value!r}")
    return result


def _text(value: Any, where: str, faults: list[str]) -> str | None:
    if isinstance(value, str):
        return value
    faults.append(f"{where}: a text is expected, not {value!r}")
    return None


def _flag(value: Any, where: str, faults: list[str]) -> bool | None:
    if isinstance(value, bool):
        return value
    faults.append(f"{where}: true or false is expected, not {value!r}")
    return None


def _one_of(choices: tuple[str, ...]) -> Callable[[Any, str, list[str]], Any]:
    def check(value: Any, where: str, faults: list[str]) -> str | None:
        if value in choices:
            return str(value)
        faults.append(f"{where}: {value!r} is none of {', '.join(choices)}")
        return None

    return check


def _list(kind: type, good: Callable[[Any], str] | None = None) -> Callable[[Any, str, list[str]], Any]:
    """A check of a list without repetition; `good` gives what is wrong with an item, or nothing."""

    def check(value: Any, where: str, faults: list[str]) -> tuple[Any, ...] | None:
        if not isinstance(value, list) or not value:
            faults.append(f"{where}: a list of one or more is expected, not {value!r}")
            return None
        before = len(faults)
        for item in value:
            if type(item) is not kind:
                faults.append(f"{where}: {item!r} is no {'whole number' if kind is int else 'text'}")
            elif good is not None and good(item):
                faults.append(f"{where}: {good(item)}")
        faults.extend(f"{where}: {item!r} twice" for item in dict.fromkeys(value) if value.count(item) > 1)
        return tuple(value) if len(faults) == before else None

    return check


def _wrong_method(name: str) -> str:
    if known(name):
        return ""
    if is_reference(name):
        return _fault_of(lambda: find_method(name))
    return f"unknown method {name!r}, {nearest(name, names()).rstrip('?')}"


def _fault_of(call: Callable[[], Any]) -> str:
    """What a call raises, as one clause; nothing if it does not."""
    try:
        call()
    except BeftError as error:
        return str(error).rstrip(".")
    return ""


def _wrong_regime(name: str) -> str:
    return "" if name in REGIMES else f"unknown regime {name!r}, {nearest(name, REGIMES).rstrip('?')}"


def _wrong_seed(number: int) -> str:
    return "" if 0 <= number < 2**32 else f"{number} is no seed"


def _size(value: Any, where: str, faults: list[str]) -> int | str | None:
    if (type(value) is int and value > 0) or (value == "all" and where.endswith("train_size")):
        return value
    faults.append(f"{where}: a number of rows is expected, not {value!r}")
    return None


def _changes(value: Any, where: str, faults: list[str]) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        faults.append(f"{where}: a table is expected, not {value!r}")
        return None
    before = len(faults)
    allowed = [each.name for each in fields(Recipe) if each.name not in ("method", "terms", "seed", "preset")]
    for key in value:
        if key not in allowed:
            faults.append(f"{where}.{key}: no setting of a recipe, {nearest(key, allowed).rstrip('?')}")
    try:
        Recipe(**{key: each for key, each in value.items() if key in allowed and key not in OPTIONS})
        for option in OPTIONS:
            if option in value:
                Recipe(**{option: value[option]}, method=next(each for each in method_names() if heeds(each, option)))
    except BeftError as error:
        faults.append(f"{where}: {error.found}")
    except TypeError as error:
        faults.append(f"{where}: {error}")
    return dict(value) if len(faults) == before else None


def _grid(value: Any, where: str, faults: list[str]) -> dict[str, tuple[float, ...]] | str | None:
    if value == OWN:
        return OWN
    if not isinstance(value, dict):
        faults.append(f"{where}: a table of method to learning rates or {OWN!r} is expected, not {value!r}")
        return None
    for method, rates in value.items():
        rates = rates if isinstance(rates, list) else [rates]
        if not rates or not all(isinstance(rate, (int, float)) and 0 < rate < 1e3 for rate in rates):
            faults.append(f"{where}.{method}: learning rates above 0 are expected, not {value[method]!r}")
    return {method: tuple(rates) if isinstance(rates, list) else (rates,) for method, rates in value.items()}


def _data(value: Any, where: str, faults: list[str]) -> dict[str, OwnRows] | None:
    """Tables of a file and its columns, by the names of the tasks that they make."""
    if not isinstance(value, dict):
        faults.append(f"{where}: tables such as [data.tickets] are expected, not {value!r}")
        return None
    before, found = len(faults), {}
    for name, table in value.items():
        here = f"{where}.{name}"
        if name.lower() in BENCHMARKS:
            faults.append(f"{here}: the name of a benchmark, choose another")
        if not isinstance(table, dict):
            faults.append(f"{here}: a table of file, text and label is expected, not {table!r}")
            continue
        for key, each in table.items():
            if key not in _OWN:
                faults.append(f"{here}.{key}: unknown, {nearest(key, _OWN).rstrip('?')}")
            elif not isinstance(each, _OWN[key][0]) or each in ("", []):
                faults.append(f"{here}.{key}: {each!r} is no {_OWN[key][1]}")
        faults.extend(f"{here}: no {key}" for key in ("file", "text", "label") if key not in table)
        if len(faults) == before:
            text = table["text"]
            found[name] = OwnRows(**{**table, "text": (text,) if isinstance(text, str) else tuple(map(str, text))})
    return found if len(faults) == before else None


_OWN: dict[str, tuple[Any, str]] = {
    "file": (str, "file"),
    "text": ((str, list), "column or list of columns"),
    "label": (str, "column"),
    "evaluation": (str, "file"),
    "regression": (bool, "true or false"),
}
"""What a table of own rows may say: types, and their name in a fault."""

_CHECKS: dict[str, Callable[[Any, str, list[str]], Any]] = {
    "title": _text,
    "question": _text,
    "kind": _one_of(KINDS),
    "objective": _one_of(OBJECTIVES),
    "recipe": _one_of(RECIPES),
    "models": _list(str),
    "tasks": _list(str),
    "data": _data,
    "regimes": _list(str, _wrong_regime),
    "methods": _list(str, _wrong_method),
    "seeds": _list(int, _wrong_seed),
    "train_size": _size,
    "eval_size": _size,
    "banks": _flag,
    "changes": _changes,
    "grid": _grid,
}


def _check_task(name: str, objective: str, prefix: str, faults: list[str]) -> None:
    if is_registered(name):
        fault = _fault_of(lambda: registered_task(name))
        faults.extend([f"{prefix}tasks: {fault}"] if fault else [])
        return
    try:
        (benchmark if objective == "classify" else prompt)(name)
    except DataError:
        names = BENCHMARKS if objective == "classify" else PROMPTS
        faults.append(f"{prefix}tasks: unknown task {name!r}, {nearest(name, names).rstrip('?')}")
