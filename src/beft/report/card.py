"""The model card: `README.md` of an adapter folder, in the Hub's format."""

from __future__ import annotations

import json
from typing import Any

from .names import metric_name

RECIPE = "## Recipe"


def model_card(
    *,
    model: str,
    metrics: dict[str, Any],
    run: dict[str, Any],
    task: dict[str, Any],
    pictures: list[str],
    peft_loads: bool,
    peft_refuses: str = "",
) -> str:
    """Markdown with the Hub's YAML head: what it is, how it scored, how to use it, how it was made.

    `peft_refuses` is why stock PEFT will refuse it, empty where it will not.
    """
    recipe = run["recipe"]
    evaluation = metrics.get("evaluation") or {}
    asks = recipe["head"] == "none"
    trained = "" if asks else f" and a head ({recipe['head']})"
    kind = "text-generation" if asks else "text-classification"
    lines = ["---", "library_name: beft"]
    if "/" in model and not model.startswith((".", "/", "~")):
        lines.append(f"base_model: {_yaml(model)}")
    lines += ["tags:", "- beft", "- bias-tuning", f"- {kind}"]
    if peft_loads:
        lines.append("- peft")
    if evaluation:
        lines += [
            "model-index:",
            "- name: " + _yaml(task["name"]),
            "  results:",
            "  - task:",
            f"      type: {kind}",
        ]
        lines += [
            "    dataset:",
            f"      name: {_yaml(task['name'])}",
            f"      type: {_yaml(task['name'])}",
            "    metrics:",
        ]
        for name, value in evaluation.items():
            lines += [f"    - type: {name}", f"      value: {value:.4f}"]
    method = recipe.get("method", "bias")
    kind_of = "a bias adapter" if method == "bias" else f"an adapter of the method {method}"
    lines += ["---", "", f"# {task['name']}: {kind_of} for {model}", ""]
    vectors = metrics["adapter_bytes"]
    kib = (vectors["vectors"] + vectors["head"]) / 1024
    lines += [
        f"{metrics['trainable_parameters']:,} trained values ({kib:.0f} KiB on disk) on a frozen base: {_what(recipe)}"
        f"{trained}. Made with beft "
        f"{run['versions']['beft']} from {metrics['train_examples']} labelled examples in "
        f"{metrics['train_seconds']:.0f} s of training.{_seeds(metrics)}",
        "",
    ]
    if peft_refuses:
        lines += [f"Stock PEFT will refuse it: {peft_refuses}.", ""]
    if evaluation:
        lines += [
            "## Scores",
            "",
            "| method | " + " | ".join(map(metric_name, evaluation)) + " |",
            "| --- |" + " ---: |" * len(evaluation),
        ]
        rows = {"this adapter": evaluation}
        numbers = not asks and task["labels"] is None
        named = {
            "zero_shot": "zero-shot",
            "frozen_logistic_regression": f"frozen states + {'ridge' if numbers else 'logistic'} regression",
            "majority": "the mean" if numbers else "majority",
        }
        for key, name in named.items():
            if metrics.get("baselines", {}).get(key):
                rows[name] = metrics["baselines"][key]
        for name, values in rows.items():
            lines.append(f"| {name} | " + " | ".join(f"{values[metric]:.3f}" for metric in evaluation) + " |")
        split, count = next(iter(metrics["evaluation_rows"].items()))
        how = {
            "dev": "The epoch was chosen on a part of the training rows; the evaluation rows were scored once.",
            "evaluation": "The epoch was chosen on these evaluation rows (the paper's protocol): an optimistic score.",
            None: "No selection: the last epoch counts.",
        }[metrics.get("selected_on")]
        lines += ["", f"{count} rows of {split}. {how}", ""]
    for picture in pictures:
        lines += [f"![{picture.removesuffix('.png').replace('_', ' ')}]({picture})", ""]
    if asks:
        merges = method.startswith(("bias", "bitfit")) and metrics.get("seeds", {}).get("kept") != "ensemble"
        return "\n".join([*lines, *_prompt_use(merges), *_recipe_table(recipe, metrics)])
    text = "two texts" if len(task["fields"]) > 1 else "text"
    text += ", each read by itself" if recipe.get("pairs") == "apart" else ""
    sample = '[("first text", "second text")]' if len(task["fields"]) > 1 else '["a text"]'
    lines += [
        "## Use",
        "",
        "```python",
        "import beft",
        "",
        f'predictor = beft.load("path/to/this/folder")  # base and adapter together; takes {text}',
        f"predictor.predict({sample})",
        "```",
        "",
    ]
    if task["labels"]:
        shown = ", ".join(f"`{label}`" for label in task["labels"][:20]) + (" ..." if len(task["labels"]) > 20 else "")
        lines += [f"Labels: {shown}.", ""]
    return "\n".join([*lines, *_recipe_table(recipe, metrics)])


def with_search(card: str, *, said: str, candidates: int, runs: int, folds: int, picture: str | None) -> str:
    """The card of an adapter whose settings were searched for, with a section on that before the recipe."""
    lines = [
        "## How the settings were chosen",
        "",
        f"`beft tune` compared {candidates} candidates in {runs} runs of cross-validation ({folds} folds) on the "
        f"training rows alone. {said}",
        "",
    ]
    if picture is not None:
        lines += [f"![scores by learning rate]({picture})", ""]
    before, recipe, after = card.partition(RECIPE)
    return before + "\n".join([*lines, ""]) + recipe + after


def _seeds(metrics: dict[str, Any]) -> str:
    """Which seeds stand behind it, if more than one."""
    several = metrics.get("seeds") or {"kept": "one"}
    if several["kept"] == "one":
        return ""
    numbers = ", ".join(str(each) for each in several["numbers"])
    if several["kept"] == "soup":
        return f" It is the mean of the adapters of the seeds {numbers}."
    return f" It is an ensemble: the scores of the adapters of the seeds {numbers}, in `members`, are averaged."


def _what(recipe: dict[str, Any]) -> str:
    """What was trained besides a head."""
    method = recipe.get("method", "bias")
    if method == "bias":
        return f"the bias `{recipe['terms']}` of its attention layers"
    return f"the method `{method}`" + (f" of the bias `{recipe['terms']}`" if method.startswith("bias-") else "")


def _prompt_use(merges: bool) -> list[str]:
    return [
        "## Use",
        "",
        "```bash",
        "beft evaluate path/to/this/folder",
        *(["beft merge path/to/this/folder --out merged  # a stock checkpoint"] if merges else []),
        "```",
        "",
    ]


def _recipe_table(recipe: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    interesting = ("method", "lr", "epochs", "batch_size", "schedule", "max_length", "pairs", "seed", "preset")
    lines = [RECIPE, "", "| setting | value |", "| --- | --- |"]
    lines += [f"| {key} | {recipe[key]} |" for key in interesting if key in recipe]
    stayed = "" if metrics["best_epoch"] else ": the head is the regression on frozen states, nothing else was learned"
    return [*lines, f"| best epoch | {metrics['best_epoch']}{stayed} |", ""]


def _yaml(text: str) -> str:
    """A YAML scalar of any text: quoted as JSON, which YAML reads."""
    return json.dumps(text, ensure_ascii=False)
