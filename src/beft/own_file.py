"""Objects out of a user's own file: `my_file.py:name`, wherever a name of beft's own is accepted."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import BeftError, ExtensionError, nearest

PREFIX = "beft_own_file_"
"""Begins the names of modules made of users' files."""


def is_reference(name: str) -> bool:
    """Whether a name points into a file, as "scales.py:Scales" does; a bare "scales.py" wants to, and is told how."""
    return ".py:" in name or name.strip().endswith(".py")


def load_file(path: str | Path) -> ModuleType:
    """The module of a file. It is run once, however often and by whatever path it is asked for.

    Raises:
        ExtensionError: no such file, or one that does not run.
        BeftError: what the file's own calls raise, such as `register_method` for a name that is taken.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no such file"
        raise ExtensionError(str(path), expected="a Python file", found=found, remedy=f"paths start at {Path.cwd()}")
    file = file.resolve()
    name = PREFIX + file.stem + "_" + hashlib.sha256(str(file).encode()).hexdigest()[:8]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up while the file runs
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, BeftError) or not isinstance(error, Exception):
            raise
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{_line(error, file)}"
        raise ExtensionError(str(path), expected="a Python file that runs", found=found) from error
    return module


def load_object(reference: str, accepts: Callable[[Any], bool], what: str) -> Any:
    """The object that "file.py:name" points to: the file's variable of this name, or its object that calls itself so.

    Args:
        accepts: whether an object is of the kind that is wanted.
        what: that kind, for the error: "a term (beft.Term)".

    Raises:
        ExtensionError: no such file or name, an object of another kind, or a file that does not run.
    """
    path, _, name = reference.strip().rpartition(":")
    if not path or not name:
        raise ExtensionError(
            reference, expected="FILE.py:NAME", found="no name", remedy=f"write {reference.strip().rstrip(':')}:NAME"
        )
    module = load_file(path)
    named = [each for each in vars(module).values() if accepts(each)]
    found = vars(module).get(name)
    if found is None:
        found = next((each for each in named if getattr(each, "name", None) == name), None)
    if found is None:
        own = [key for key, each in vars(module).items() if accepts(each)]
        remedy = nearest(name, own) if own else f"define {what} in it"
        raise ExtensionError(reference, expected=f"{what} called {name}", found=f"none in {path}", remedy=remedy)
    if not accepts(found):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"an object of type {type(found).__name__}"
        raise ExtensionError(reference, expected=what, found=kind)
    return found


def source_of(kind: type) -> dict[str, str] | None:
    """Where a class from outside of beft was defined, as "file.py:Class", with the SHA-256 of the file.

    The path is relative where the file lies below the working directory, else the file's name alone: folders travel.
    None for classes of beft's own; without a digest where there is no file (a notebook, an interactive session).
    """
    if kind.__module__.split(".")[0] == "beft":
        return None
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return {"reference": f"{kind.__module__}:{kind.__qualname__}"}
    path = Path(file).resolve()
    shown = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else path.name
    name = "" if "<locals>" in kind.__qualname__ else f":{kind.__qualname__}"
    return {"reference": shown + name, "sha256": digest(path)}


def digest(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()


def _line(error: Exception, file: Path) -> str:
    """Where in the file an error came up: " (line 12)"; nothing if that cannot be told."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})"
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""
