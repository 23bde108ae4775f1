"""Tasks from outside: registered by a name, or in a file of one's own as `my_file.py:name`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..errors import BeftError, DataError
from ..own_file import is_reference, load_object
from .benchmarks import BENCHMARKS
from .prompts import PROMPTS
from .question import PromptTask
from .task import Task

AnyTask = Task | PromptTask
Maker = Callable[..., AnyTask]
"""Makes a task, of a seed if it takes one (the parameter `seed`): which rows to train on, say."""

_REGISTERED: dict[str, AnyTask | Maker] = {}
WHAT = "a task (beft.Task, beft.PromptTask, or a function that makes one)"


def register_task(name: str, task: AnyTask | Maker) -> None:
    """Make a task known by a name, wherever benchmarks are: `--task NAME`, `beft.benchmark_task(NAME)`, studies.

    Args:
        name: small letters and digits; hyphens and underscores do not count, as in benchmarks' names.
        task: a task, or a function that makes it, of a seed if it has the parameter `seed`. A function is called when
            the task is first asked for.

    Raises:
        DataError: a name that is taken, or something that is no task.
    """
    key = _plain(name)
    if not key or is_reference(name) or key in (*BENCHMARKS, *PROMPTS, *_REGISTERED):
        raise DataError(f"register_task({name!r})", expected="a new name", found=repr(name), remedy="choose another")
    if not is_task(task):
        raise DataError(f"register_task({name!r})", expected=WHAT, found=f"an object of type {type(task).__name__}")
    _REGISTERED[key] = task


def use_task(reference: str) -> None:
    """Register the task that "my_file.py:name" points to, by its name there.

    Raises:
        ExtensionError: no such file or task.
        DataError: a name that is taken.
    """
    task, name = load_object(reference, is_task, WHAT), reference.rpartition(":")[2].strip()
    if _REGISTERED.get(_plain(name)) is not task:
        register_task(name, task)


def is_task(found: Any) -> bool:
    """Whether something can be registered as a task."""
    return isinstance(found, (Task, PromptTask)) or (callable(found) and not isinstance(found, type))


def is_registered(name: str | None) -> bool:
    """Whether a name is of a task from outside."""
    return name is not None and (is_reference(name) or _plain(name) in _REGISTERED)


def registered_task(name: str, seed: int = 0) -> AnyTask:
    """A task from outside, all of its rows.

    Raises:
        ExtensionError: a file that cannot be loaded or has no such task.
        DataError: a function that fails, or makes something else.
    """
    task = _made(name, seed)
    return replace(task, notices=list(task.notices))


@lru_cache(maxsize=8)
def _made(name: str, seed: int) -> AnyTask:
    source = load_object(name, is_task, WHAT) if is_reference(name) else _REGISTERED[_plain(name)]
    if isinstance(source, (Task, PromptTask)):
        return source
    takes_seed = "seed" in inspect.signature(source).parameters
    try:
        made: Any = source(seed=seed) if takes_seed else source()
    except BeftError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(f"task {name!r}", expected="a function that makes a task", found=found) from error
    if not isinstance(made, (Task, PromptTask)):
        found = f"an object of type {type(made).__name__}"
        raise DataError(f"task {name!r}", expected="a function that makes a beft.Task or beft.PromptTask", found=found)
    return made


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
