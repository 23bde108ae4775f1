"""Options of `beft train` that say what is trained, and how that is named on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..training.recipe import Recipe

METHOD = "Method"

MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        help="What is trained. Biases: bias (the default; --terms says which), bitfit, bias-lora, bias-dora, "
        "bias-vera, bias-vera1. Heads: head, frozen, probe, lm-head. Weights: full, layernorm, random-mask, "
        "rows-columns. By PEFT: lora, dora, vera, ia3, prefix, prompt. Your own: FILE.py:NAME. Each has its own --lr.",
        rich_help_panel=METHOD,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", min=1, help="Rank of lora, dora, bias-* (8) or vera (256).", rich_help_panel=METHOD),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        help="Low-rank products are scaled by alpha / rank (lora, dora 16; bias-* 1).",
        rich_help_panel=METHOD,
    ),
]
MaskSize = Annotated[
    int | None,
    typer.Option(
        "--mask-size",
        min=1,
        help="Parameters of random-mask (bert-base 100000, bert-large 280000, roberta-base 105000; else 0.1 %).",
        rich_help_panel=METHOD,
    ),
]
VirtualTokens = Annotated[
    int | None,
    typer.Option("--virtual-tokens", min=1, help="Tokens of prefix (5) or prompt (20).", rich_help_panel=METHOD),
]


def described(recipe: Recipe) -> str:
    """A recipe's method in a few words, such as "value bias" or "lora"."""
    if recipe.method == "bias":
        return f"{recipe.terms} bias"
    name = recipe.method.rpartition(":")[2]  # of "my_file.py:scales"
    return f"{name}, {recipe.terms} bias" if name.startswith("bias-") else name
