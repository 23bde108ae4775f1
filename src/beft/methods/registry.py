"""Methods by name. A built-in one is a line here and a short file beside this one; others come by `register_method`,
or out of a file of one's own, as `my_file.py:name`.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core.adapter import Adapter
from ..core.bank import Bank
from ..core.restore import load_adapter
from ..core.store import MANIFEST
from ..core.terms import ALIASES
from ..errors import RecipeError, nearest
from ..files import read_json
from ..own_file import is_reference, load_object, source_of
from .method import Method, Options

BUILT_IN: dict[str, str] = {
    "bias": "bias",
    "bitfit": "bias",
    "head": "bias",
    "frozen": "bias",
    "probe": "bias",
    "full": "weights",
    "layernorm": "weights",
    "lm-head": "weights",
    "random-mask": "masks",
    "rows-columns": "masks",
    "lora": "layers",
    "dora": "layers",
    "vera": "layers",
    "ia3": "layers",
    "prefix": "virtual",
    "prompt": "virtual",
    "bias-lora": "low_rank",
    "bias-dora": "low_rank",
    "bias-vera": "low_rank",
    "bias-vera1": "low_rank",
}
"""Names, and the module that defines them."""
_REGISTERED: dict[str, type[Method]] = {}


def method_names() -> list[str]:
    """All names, the built-in ones first."""
    return [*BUILT_IN, *_REGISTERED]


def register_method(method: type[Method]) -> type[Method]:
    """Make a method known by its name; may be used as a class decorator.

    Raises:
        RecipeError: no name, or one that is taken.
    """
    if not method.name or method.name in method_names() or is_reference(method.name):
        raise RecipeError(
            f"register_method({method.__name__})",
            expected="a new name",
            found=repr(method.name),
            remedy="set its class attribute `name`",
        )
    _REGISTERED[method.name] = method
    return method


def is_method(found: Any) -> bool:
    """Whether something is a class of methods, and not the contract itself."""
    return isinstance(found, type) and issubclass(found, Method) and bool(found.name)


def find_method(name: str) -> type[Method]:
    """The method of a name, or the one that "my_file.py:name" points to, registered.

    Raises:
        RecipeError: no such method, or a name in the file that is taken.
        ExtensionError: a file that cannot be loaded or has no such method.
    """
    if is_reference(name):
        found_in_file: type[Method] = load_object(name, is_method, "a method (a class derived from beft.Method)")
        known = _REGISTERED.get(found_in_file.name) is found_in_file
        return found_in_file if known else register_method(found_in_file)
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in BUILT_IN:
        is_term = all(part.split("@")[0].lower() in (*ALIASES, "all") for part in name.split("+"))
        raise RecipeError(
            f"method {name!r}",
            expected="a method",
            found="a term" if is_term else "none of this name",
            remedy=f"--method bias --terms {name}" if is_term else nearest(name, method_names()),
        )
    module = import_module(f".{BUILT_IN[name]}", __package__)
    found: dict[str, type[Method]] = {
        each.name: each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Method)
    }
    return found[name]


def load_method(bank: Bank, directory: Path, name: str | None = None) -> tuple[Adapter, Method]:
    """Add the adapter of a folder of any method to a bank, and put the method's own weights into the model.

    Raises:
        StoreError: see `load_adapter`.
        RecipeError: a method that is not known here; one from outside is never run unasked.
    """
    record = read_json(directory / MANIFEST).get("method") if (directory / MANIFEST).exists() else None
    if record and record.get("source") and record["name"] not in method_names():
        source = record["source"]["reference"]
        raise RecipeError(
            f"{directory}, method {record['name']!r}",
            expected=f"{source}, which defines it, to be loaded",
            found="no such method here",
            remedy=f"if you trust its code: `beft --use {source} COMMAND ...`, in Python beft.use({source!r})",
        )
    kind = find_method(record["name"]) if record else find_method("bias")
    here = source_of(kind)
    if record and here is not None and here.get("sha256") != record.get("source", {}).get("sha256"):
        warnings.warn(
            f"{directory} was trained by another version of {here['reference']}: outputs may differ", stacklevel=2
        )
    method = kind(Options(**record["options"]) if record else None)
    adapter = load_adapter(bank, directory, name, any_method=True)
    method.restore(bank, adapter.name, directory)
    return adapter, method
