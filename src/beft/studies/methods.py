"""What a study may compare: every method of `beft.methods`, every term by its own name, and plain models, asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..core.terms import ALIASES, parse_terms
from ..errors import BeftError, ExtensionError, RecipeError, TermError
from ..methods.method import Method, Options
from ..methods.registry import find_method, method_names
from ..own_file import digest, is_reference

ASKED = ("zero-shot", "icl")
"""Plain language models, asked without and with demonstrations."""
OPTIONS = tuple(each.name for each in fields(Options) if each.name not in ("terms", "seed"))
"""Settings of a recipe that reach the methods which heed them, and no others."""


def names() -> list[str]:
    """All names to suggest for one that is not known."""
    return [*method_names(), *ASKED, *dict.fromkeys(ALIASES.values()), "all"]


def known(name: str) -> bool:
    """Whether a name is a method's."""
    return name in ASKED or _is_method(name) or _is_term(name)


def settings_of(name: str) -> dict[str, Any]:
    """What a recipe says of a method: {"method": "lora"}, or {"terms": "query"} where the name is a term's."""
    if name in ASKED or name == "probe":  # they read the lengths and the seed of a recipe, whatever it trains
        return {}
    return {"method": name} if _is_method(name) else {"method": "bias", "terms": name}


def kind_of(name: str) -> type[Method] | None:
    """The method behind a name; None for plain models.

    Raises:
        RecipeError: no such method.
    """
    return None if name in ASKED else find_method(name if _is_method(name) else "bias")


def rates_of(name: str) -> tuple[float, ...]:
    """A method's own learning rates worth trying; none where nothing is trained by steps."""
    kind = kind_of(name)
    return () if kind is None or kind.fitted else kind.grid


def heeds(name: str, option: str) -> bool:
    """Whether a method heeds one of `OPTIONS`."""
    kind = kind_of(name)
    return kind is not None and option in kind.uses


def heeded(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of a recipe that concern a method: all but the options that it does not heed."""
    return {key: value for key, value in changes.items() if key not in OPTIONS or heeds(name, key)}


def reason_not_to_run(name: str, objective: str, head: str) -> str:
    """Why a method cannot be run for an objective and a kind of head ("linear", "model"); empty if it can."""
    if name in ASKED:
        return "" if objective == "prompt" else f"the method {name} asks a language model: set objective = 'prompt'"
    kind = kind_of(name)
    assert kind is not None
    if objective == "prompt":
        head = "none"
    elif kind.fitted:
        head = "linear"  # it has no other, whatever the others train
    try:
        kind.check(head, Options())
    except RecipeError as error:
        return f"the {error}"
    return ""


def source_digest(name: str) -> str | None:
    """Digests of the files that a method or terms from outside stand in; None for those of beft's own."""
    parts = [part.split("@")[0].strip() for part in name.replace(",", "+").split("+")]
    files = dict.fromkeys(part.rpartition(":")[0] for part in parts if is_reference(part))
    return "+".join(map(digest, files)) or None


def _is_method(name: str) -> bool:
    if name in method_names():
        return True
    try:
        return is_reference(name) and bool(find_method(name).name)
    except BeftError:
        return False


def _is_term(name: str) -> bool:
    try:
        parse_terms(name)
    except (TermError, ExtensionError):
        return False
    return name != "none"
