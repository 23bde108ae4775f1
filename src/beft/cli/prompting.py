"""What `train`, `evaluate` and `predict` share of prompts: options, and making a `PromptTask` of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecipeError

if TYPE_CHECKING:
    from ..tasks.question import PromptTask
    from ..training.recipe import Recipe

PROMPT = "Prompts (language models)"
PROMPT_ONLY = ("boolq", "wsc", "multirc", "copa", "record", "squad", "drop")
"""Benchmarks that are prompts alone; the others take a head as well."""

Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="classify (a head), choose (score candidates) or generate; default: classify for encoders and own rows "
        "without a template, else as the task is.",
        rich_help_panel=PROMPT,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help=r"The prompt: columns as {column}, braces doubled, \n for a line end.",
        rich_help_panel=PROMPT,
    ),
]
Candidates = Annotated[
    str | None,
    typer.Option(
        "--candidates",
        help="What to choose from: 'negative= bad,positive= good', ' bad| good', or a column of lists.",
        rich_help_panel=PROMPT,
    ),
]
Answer = Annotated[
    str | None,
    typer.Option("--answer", help="Column of the text to write, without candidates.", rich_help_panel=PROMPT),
]
Blank = Annotated[
    str | None,
    typer.Option(
        "--blank",
        help="The prompt without its input (' It was'), for --score calibrated; a template too. Default: nothing.",
        rich_help_panel=PROMPT,
    ),
]
Chat = Annotated[
    bool, typer.Option("--chat", help="In the chat template of the model's tokenizer.", rich_help_panel=PROMPT)
]


def objective(asked: str | None, task: str | None, template: str | None, model: str | None) -> str:
    """How a task is to be posed: "classify", or "prompt" (whether to choose or to write, the task says).

    Raises:
        RecipeError: an unknown objective, or one that the task does not allow.
    """
    if asked not in (None, "classify", "choose", "generate"):
        raise RecipeError(f"--objective {asked}", expected="classify, choose or generate")
    from ..tasks.registered import is_registered

    if task is not None and is_registered(task):
        return _of_task_from_outside(asked, task)
    name = (task or "").lower().replace("-", "").replace("_", "")
    only = name in PROMPT_ONLY
    if asked == "classify" and (only or template):
        raise RecipeError(
            "--objective classify",
            expected="a task with labels",
            found=f"{task}, which is asked as a prompt" if only else "--template",
        )
    if asked in ("choose", "generate"):
        if asked == "generate" and task and name not in ("squad", "drop"):
            raise RecipeError("--objective generate", expected="squad, drop or --answer COLUMN", found=f"--task {task}")
        if asked == "choose" and name in ("squad", "drop"):
            raise RecipeError("--objective choose", expected="a task with candidates", found=f"--task {task}")
        return "prompt"
    if asked == "classify":
        return "classify"
    if template or only:
        return "prompt"
    return "prompt" if task and _known(name) and model and _is_causal(model) else "classify"


def _of_task_from_outside(asked: str | None, task: str) -> str:
    """A task from outside is either of labels or of prompts; what is asked must fit."""
    from ..tasks.question import PromptTask
    from ..tasks.registered import registered_task

    made = registered_task(task)
    fits = ("generate" if made.generates else "choose") if isinstance(made, PromptTask) else "classify"
    if asked not in (None, fits):
        raise RecipeError(f"--objective {asked}", expected=fits, found=f"--task {task}")
    return "classify" if fits == "classify" else "prompt"


def _known(name: str) -> bool:
    from ..tasks.prompts import PROMPTS

    return name in PROMPTS


def _is_causal(model: str) -> bool:
    """Whether a model predicts the next token and nothing else; False if its config cannot be read."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    from ..training.base import resolve_model
    from ..training.language import is_gguf

    try:
        if is_gguf(model):
            return True
        kind = AutoConfig.from_pretrained(resolve_model(model)).model_type
    except (OSError, ValueError, KeyError):
        return False  # loading the model will say what is wrong
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def prompts(
    task: str | None,
    data: str | None,
    *,
    data_dir: Path | None = None,
    template: str | None = None,
    candidates: str | None = None,
    label: str | None = None,
    answer: str | None = None,
    blank: str | None = None,
    eval_data: str | None = None,
    hold_out: bool = True,
    size: str | None = None,
    eval_size: int | None = None,
    chat: bool = False,
    seed: int = 0,
    judge_only: bool = False,
) -> PromptTask:
    """A benchmark as prompts, or own rows in a template, from the options; with `judge_only` all own rows are judged.

    Raises:
        RecipeError: options that contradict one another or are missing.
        DataError: see `beft.tasks.reading` and `beft.tasks.ask`.
    """
    from ..tasks.ask import own_prompt_task, own_rows_to_judge
    from ..tasks.reading import prompt_task

    if (task is None) == (data is None):
        raise RecipeError("--task and --data", expected="one of them", found="both" if task else "neither")
    if task is not None:
        given = {"--template": template, "--candidates": candidates, "--answer": answer}
        given |= {"--blank": blank, "--eval": eval_data}
        wrong = next((name for name, value in given.items() if value), None)
        if wrong:
            raise RecipeError(wrong, expected="--data beside it", found=f"--task {task}")
        made = prompt_task(task, data_dir, size=size or 1000, eval_size=eval_size or 1000, seed=seed)
        made.chat = chat
        return made
    if not template:
        raise RecipeError("--data", expected="--template beside it", found="none", remedy="--template '{text} It was'")
    asked: dict[str, Any] = {
        "template": line_ends(template),
        "candidates": None if candidates is None else line_ends(candidates),
        "label": label,
        "answer": answer,
        "blank": line_ends(blank or ""),
    }
    assert data is not None
    if judge_only:
        made = own_rows_to_judge(data, **asked, eval_size=eval_size)
        made.chat = chat
        return made
    made = own_prompt_task(
        data, **asked, evaluation=eval_data, hold_out=hold_out, size=size, eval_size=eval_size, seed=seed
    )
    made.asked, made.chat = asked, chat
    return made


def refuse_without_template(given: dict[str, Any]) -> None:
    """Raises RecipeError for an option of prompts where nothing is a prompt."""
    wrong = next((name for name, value in given.items() if value), None)
    if wrong:
        raise RecipeError(
            wrong, expected="a prompt", found="a task of labels", remedy="give --template, or leave it out"
        )


def line_ends(text: str) -> str:
    r"""A text of the command line, where \n and \t are typed as two characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def refuse_beside_prompts(given: dict[str, Any]) -> None:
    """Raises RecipeError for an option that only a head understands."""
    wrong = next((name for name, value in given.items() if value), None)
    if wrong:
        raise RecipeError(
            wrong, expected="--objective classify beside it", found="a prompt", remedy="leave it out for prompts"
        )


def make_prompt_recipe(preset: str, task: str, changes: dict[str, Any]) -> Recipe:
    """The decoder recipe with the user's changes; the paper's keeps the last epoch.

    Raises:
        RecipeError: an unknown preset, or values out of range.
    """
    from ..training.recipe import prompt_recipe

    if preset not in ("default", "paper"):
        raise RecipeError(f"--recipe {preset}", expected="default or paper")
    return prompt_recipe(task, **({"selection": "none", "preset": "paper"} if preset == "paper" else {}), **changes)
