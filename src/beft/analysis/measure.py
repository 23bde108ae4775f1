"""Measuring importance: all biases of a model tuned together on a task, then scored against what they were."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.adapter import Adapter, LinearHead, compares
from ..core.bank import Bank, attach
from ..core.restore import refuse_ensemble
from ..core.sites import available_terms
from ..core.store import MANIFEST
from ..core.terms import LAYER_TERMS
from ..errors import DataError, StoreError
from ..files import read_json
from ..objectives.encode import encode
from ..tasks.question import PromptTask
from ..tasks.task import Example, Task
from ..training.aims import Aim, ClassifyAim, Part
from ..training.base import Base, add_adapter, load_base, token_limit
from ..training.infer import Watch, inputs_of
from ..training.language import load_language_model
from ..training.machine import Choices, choose
from ..training.prompt_aims import PromptAim
from ..training.recipe import Recipe
from .effect import relative_effects
from .fisher import fisher_scores
from .importance import Importance, SiteScores, magnitude_score, own_bias, projection_score, undefined_terms
from .scores import Score, registered_scores

START = "start"
EFFECT_ROWS = 64
"""Training examples whose tokens the attention output is averaged over."""


def to_be_scored(model: str, terms: str | None = None, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Changes to a recipe, so that every bias of these terms moves and can be scored.

    Without terms they are all that the model has, which is loaded to tell; and no penalty holds the head at the start,
    for dev rows may then prefer biases that have not moved.

    Raises:
        What `all_terms` raises.
    """
    return {"terms": terms or all_terms(model, trust_remote_code=trust_remote_code), "head_penalty": "none"}


def all_terms(model: str, *, trust_remote_code: bool = False) -> str:
    """The terms of a layer that a model has, as `--terms` takes them: "query+key+value+..."

    Raises:
        StoreError, SiteError: no such model, or one without attention of a known pattern.
    """
    base = load_base(model, choose("cpu", "fp32"), trust_remote_code=trust_remote_code)
    present = {term.name for term in available_terms(base.model)}
    return "+".join(name for name in LAYER_TERMS if name in present)


def measure_importance(
    folder: str | Path,
    task: Task | PromptTask | None = None,
    *,
    model: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    watch: Watch | None = None,
) -> Importance:
    """Score every bias that a finished adapter moved. The base is loaded in fp32.

    Fisher scores are taken at the pretrained biases. The head is the model's own as the seed drew it; a linear one,
    which mostly starts at zero and would pass nothing back, is the trained one.

    Args:
        folder: an adapter folder that `beft.train` wrote, of terms such as "all".
        task: what it was trained on; without it there are no Fisher scores and no relative effects.
        model: another place of the same base.

    Raises:
        StoreError: no such folder, another base, or an adapter whose biases have not moved.
        DataError: a task with other labels than the adapter's.
    """
    directory = Path(folder)
    refuse_ensemble(directory)
    if not (directory / MANIFEST).exists():
        raise StoreError(str(directory), expected="a folder that beft trained", found=f"no {MANIFEST}")
    manifest, run = read_json(directory / MANIFEST), read_json(directory / "run.json")
    recipe = Recipe.from_dict(run["recipe"])
    name = model or manifest["base"]["name"]
    described = manifest.get("task") or {}
    if task is not None:
        _check_task(directory, described, task)
    choices = choose(device, "fp32", recipe.max_length)
    labels = described.get("labels")
    outputs = 1 if labels is None else len(labels)
    if recipe.head == "none":
        base = load_language_model(name, choices, trust_remote_code=trust_remote_code)
    else:
        base = load_base(
            name, choices, head=recipe.head, outputs=outputs, labels=labels, trust_remote_code=trust_remote_code
        )
    bank = attach(base.model, "none", names=[])
    tuned = bank.load(directory, "tuned")
    if tuned.sites and not any(bool(vector.any()) for _, vector in tuned.items()):
        raise StoreError(
            str(directory),
            expected="an adapter whose biases have moved",
            found="vectors of zeros",
            remedy="train it with --head-penalty none",
        )
    notes: list[str] = []
    fisher: dict[tuple[str, str], tuple[float, float]] = {}
    effects: dict[tuple[str, str], float] = {}
    if task is not None:
        aim, part = _start(bank, base, task, recipe, choices, tuned)
        fisher = fisher_scores(bank, START, aim, part, watch)
        effects = relative_effects(bank, tuned, _single_texts(base, task, recipe, choices, compares(tuned.head)))
        if run.get("data", {}).get("fingerprint") != task.fingerprint():
            notes.append("the task's rows are not those that the adapter was trained on")
    else:
        notes.append(
            "no Fisher scores and no relative effects: they need the task's training rows; without them nothing tells "
            "which terms are inert, and such terms have a rank as well"
        )
    sites = _scores(bank, tuned, fisher, effects)
    undefined = undefined_terms(sites)
    if undefined:
        notes.append(
            f"the projection score is undefined for {', '.join(undefined)}: the base has no bias there, or a zero one, "
            "and a zero vector has no direction; the other scores and the relative effect of the value vectors hold"
        )
    about = {
        "adapter": str(folder),
        "recipe": recipe.to_dict(),
        "data": run.get("data"),
        "versions": run.get("versions"),
        "evaluation": read_json(directory / "metrics.json").get("evaluation"),
    }
    found = Importance(name, str(described.get("name", "")), sites, notes, about)
    if found.inert():
        notes.append(
            f"{', '.join(found.inert())}: inert on these rows; the gradient is rounding, which Adam brings to full "
            "steps, so its projection and magnitude tell of the optimiser and not of the task; it has no rank, and no "
            "part in the agreement with accuracies"
        )
    return found


def _check_task(directory: Path, described: dict[str, Any], task: Task | PromptTask) -> None:
    theirs = None if task.labels is None else list(task.labels)
    asks = described.get("objective") in ("choose", "generate")
    if described.get("labels") != theirs or asks != isinstance(task, PromptTask):
        raise DataError(
            f"task {task.name!r}",
            expected=f"the task of {directory} ({described.get('name')}, labels {described.get('labels')})",
            found=f"labels {theirs}" + (", asked as a prompt" if isinstance(task, PromptTask) else ""),
        )


def _start(
    bank: Bank, base: Base, task: Task | PromptTask, recipe: Recipe, choices: Choices, tuned: Adapter
) -> tuple[Aim, Part]:
    """An adapter of zero vectors and the head of `measure_importance`, with its aim and the training rows."""
    recipe = replace(recipe, terms="+".join(name for name in tuned.terms if name != "pooler") or "none")
    if isinstance(task, PromptTask):
        bank.add(START, terms=recipe.terms, layers=recipe.layers)
        aim = PromptAim(bank, START, task, base.tokenizer, choices, recipe.max_length)
        return aim, aim.part(task.train, to_learn=True)
    apart = compares(tuned.head)
    recipe = replace(recipe, pairs="apart" if apart else "joint")
    limit = token_limit(base, recipe.max_length)
    part = Part(task.train, encode(base.tokenizer, task.train, limit, apart=apart))
    add_adapter(bank, base, START, recipe, task.outputs, task.labels)
    head = bank[START].head
    if isinstance(head, LinearHead) and isinstance(tuned.head, LinearHead):
        head.load_state_dict(tuned.head.state_dict())
    return ClassifyAim(bank, START, task, choices), part


def _single_texts(
    base: Base, task: Task | PromptTask, recipe: Recipe, choices: Choices, apart: bool
) -> list[dict[str, torch.Tensor]]:
    """The inputs of the first training rows (or prompts), one a batch; two a row where its texts are read apart."""
    if isinstance(task, PromptTask):
        examples = [Example(question.id, (question.prompt,)) for question in task.train[:EFFECT_ROWS]]
    else:
        examples = task.train[:EFFECT_ROWS]
    encoded = encode(base.tokenizer, examples, token_limit(base, recipe.max_length), apart=apart)
    batches = [encoded.batch([row], choices.device) for row in range(len(examples))]
    return [each for batch in batches for each in inputs_of(batch)]


def _scores(
    bank: Bank,
    tuned: Adapter,
    fisher: dict[tuple[str, str], tuple[float, float]],
    effects: dict[tuple[str, str], float],
) -> list[SiteScores]:
    result = []
    for site, vector in tuned.items():
        if not site.term.per_layer:
            continue
        before = own_bias(bank.model, site)
        after = before + vector.detach().float().cpu() * tuned.scale
        papers, textbook = fisher.get(site.key, (None, None))
        result.append(
            SiteScores(
                term=site.term.name,
                layer=site.layer,
                module=site.module,
                attention=site.attention,
                stack=site.stack,
                width=site.width,
                projection=projection_score(before, after),
                magnitude=magnitude_score(before, after),
                fisher_paper=papers,
                fisher=textbook,
                effect=effects.get(site.key),
                others={score.name: _number(score, before, after) for score in registered_scores()},
            )
        )
    return result


def _number(score: Score, before: torch.Tensor, after: torch.Tensor) -> float | None:
    value = score.function(before, after)
    if value is not None and not math.isfinite(value):
        raise DataError(f"score {score.name!r}", expected="a finite number, or None", found=str(value))
    return None if value is None else float(value)
