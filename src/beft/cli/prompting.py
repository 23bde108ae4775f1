"""What `train`, `evaluate` and `predict` share of prompts: options, and making a `PromptTask` of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecipeError
from .labelled import check_one

if TYPE_CHECKING:
    from ..tasks.choices import Candidates as Choice
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
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        help=r"Text that ends a written answer, \n by default; repeat for several, the first is learned as its end.",
        rich_help_panel=PROMPT,
    ),
]
Generation = Annotated[
    str | None,
    typer.Option(
        "--generation",
        help="How answers are written, as transformers' GenerationConfig names it: num_beams=4,max_new_tokens=100, "
        "or do_sample=true,temperature=0.7. Default: greedily.",
        rich_help_panel=PROMPT,
    ),
]


@dataclass(frozen=True)
class Asked:
    """What the options say of prompts, as typed, or as an adapter's training had it."""

    objective: str | None = None
    template: str | None = None
    candidates: Choice | None = None
    answer: str | None = None
    blank: str | None = None
    chat: bool = False
    stop: list[str] | None = None
    generation: str | None = None

    def given(self, *names: str) -> list[str]:
        """Which of these fields were given, as options; of all but the objective where none is named."""
        fields = names or ("template", "candidates", "answer", "blank", "chat", "stop", "generation")
        return [f"--{name}" for name in fields if getattr(self, name)]

    def refuse(self) -> None:
        """Raises RecipeError for an option of prompts where nothing is a prompt."""
        if wrong := self.given():
            raise RecipeError(
                wrong[0], expected="a prompt", found="a task of labels", remedy="give --template, or leave it out"
            )

    def written(self) -> dict[str, Any]:
        """How answers are to be written, so far as it was said: `stop` and `generation` of a `PromptTask`.

        Raises:
            RecipeError: settings that transformers does not have or refuses.
        """
        said: dict[str, Any] = {}
        if self.stop:
            said["stop"] = tuple(line_ends(each) for each in self.stop)
        if self.generation:
            said["generation"] = read_generation(self.generation)
        return said


def read_generation(text: str) -> dict[str, Any]:
    """Settings such as "num_beams=4,do_sample=true" by name, checked by transformers.

    Raises:
        RecipeError: no such settings.
    """
    from ..objectives.generate import generation_config

    settings = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise RecipeError(
                f"--generation {text}", expected="such as num_beams=4,max_new_tokens=100", found=repr(part)
            )
        try:
            settings[name.strip()] = json.loads(value.strip().lower())
        except ValueError:
            settings[name.strip()] = value.strip()
    generation_config(settings)
    return settings


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

    from ..core.hub import resolve_model
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
    asked: Asked,
    *,
    data_dir: Path | None = None,
    label: str | None = None,
    eval_data: str | None = None,
    hold_out: bool = True,
    size: str | None = None,
    eval_size: int | None = None,
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

    check_one(task, data)
    written = asked.written()
    if task is not None:
        wrong = asked.given("template", "candidates", "answer", "blank")
        wrong += [name for name, value in (("--label", label), ("--eval", eval_data)) if value]
        if wrong:
            raise RecipeError(wrong[0], expected="--data beside it", found=f"--task {task}")
        made = prompt_task(task, data_dir, size=size or 1000, eval_size=eval_size or 1000, seed=seed)
        if written and not made.generates:
            raise RecipeError(f"--{next(iter(written))}", expected="answers to write", found=f"candidates in {task}")
        made.generation |= written.get("generation", {})
        made.chat, made.stop = asked.chat, written.get("stop", made.stop)
        return made
    if not asked.template:
        raise RecipeError("--data", expected="--template beside it", found="none", remedy="--template '{text} It was'")
    fits = "generate" if asked.answer else "choose"
    if asked.objective not in (None, fits):
        given = "--answer" if asked.answer else "--candidates"
        raise RecipeError(f"--objective {asked.objective}", expected=fits, found=given)
    if written and not asked.answer:
        raise RecipeError(f"--{next(iter(written))}", expected="--answer beside it", found="candidates")
    assert data is not None
    options: dict[str, Any] = {
        "template": line_ends(asked.template),
        "candidates": line_ends(asked.candidates) if isinstance(asked.candidates, str) else asked.candidates,
        "label": label,
        "answer": asked.answer,
        "blank": line_ends(asked.blank or ""),
        "eval_size": eval_size,
        **written,
    }
    if judge_only:
        made = own_rows_to_judge(data, **options)
    else:
        made = own_prompt_task(data, **options, evaluation=eval_data, hold_out=hold_out, size=size, seed=seed)
    made.chat = asked.chat
    return made


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
