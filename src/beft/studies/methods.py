"""Data: the names of methods, and which of them this version can train."""

from __future__ import annotations

from ..core.terms import ALIASES, parse_terms
from ..errors import BeftError, ExtensionError, TermError
from ..own_file import digest, is_reference

METHODS: dict[str, str] = {
    "head": "the matched head alone: what a term trains besides itself",
    "frozen": "the classifier alone",
    "probe": "logistic regression on frozen states",
    "bitfit": "all biases",
    "full": "all parameters",
    "random-mask": "a random uniform subset of the parameters",
    "rows-columns": "random rows and columns of the weights",
    "layernorm": "weights and biases of the norms",
    "lm-head": "the language-model head",
    "lora": "LoRA",
    "dora": "DoRA",
    "vera": "VeRA",
    "ia3": "IA3",
    "prefix": "prefix tuning",
    "prompt": "prompt tuning",
    "bias-lora": "LoRA put into the bias",
    "bias-dora": "DoRA put into the bias",
    "bias-vera": "VeRA put into the bias",
    "bias-vera1": "VeRA of one scalar put into the bias",
    "zero-shot": "the plain model, asked",
    "icl": "the plain model, asked with demonstrations",
}
"""Methods beside terms ("value", "query+key", "all" ...), which are methods too."""

SUGGESTED = (*METHODS, *dict.fromkeys(ALIASES.values()), "all")
"""Names to suggest for one that is not known."""


def terms_of(method: str) -> str | None:
    """The terms that a method trains as bias adapters do: a term's own name, "none" for "head"; None for others."""
    if method == "head":
        return "none"
    try:
        parse_terms(method)
    except (TermError, ExtensionError):
        return None
    return None if method in METHODS else method


def known(method: str) -> bool:
    """Whether a name is a method's."""
    return method in METHODS or terms_of(method) is not None or is_from_outside(method)


def is_from_outside(method: str) -> bool:
    """Whether a name is of a registered method, or points to one in a file ("my_file.py:scales")."""
    from ..methods.registry import BUILT_IN, find_method

    try:
        return method not in BUILT_IN and bool(find_method(method).name)
    except BeftError:
        return False


def source_digest(method: str) -> str | None:
    """Digest of the file that a method or term from outside stands in; None for those of beft's own."""
    return digest(method.partition(".py:")[0] + ".py") if is_reference(method) else None


def reason_not_to_run(method: str, objective: str) -> str:
    """Why this version cannot run a method for an objective; empty if it can."""
    if objective == "prompt" and method in ("head", "probe"):
        return f"the method {method} needs a head, and prompts have none"
    if objective == "classify" and method in ("zero-shot", "icl"):
        return f"the method {method} asks a language model: set objective = 'prompt'"
    if terms_of(method) is not None or method in ("probe", "zero-shot", "icl") or is_from_outside(method):
        return ""
    return f"the method {method} cannot be trained by this version"
