"""What does bf16 cost in quality? The same bank of eight runs trained in bf16 and in fp32, run by run; and the same
runs trained alone in bf16, where company may change the rounding.

    python benchmarks/precision.py [--jobs 2] [--minutes 60]

Each run has a seed and 300 training rows of its own and the default recipe, but for five epochs and without choosing
one, so that both precisions take as many steps; all are judged on the same random 500 evaluation rows, in the precision
they were trained in. Banks are kept in docs/results/precision.jsonl, the table goes to docs/results/precision.md.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

from cells import MODEL, Cell, command, compute, drawn
from versus import processor_seconds

TASKS = ("trec", "sst2")
DTYPES = ("fp32", "bf16")
RUNS, ROWS, EPOCHS = 8, 300, 5


def work(cell: Cell) -> Cell:
    """Train one bank, or its runs one by one: each run's accuracy and last training loss, and the processor seconds."""
    from beft import Recipe, train
    from beft.training.many import train_many
    from beft.training.plan import Plan

    tasks = [drawn(cell["task"], ROWS, seed) for seed in range(RUNS)]
    recipes = [Recipe(seed=seed, selection="none", epochs=EPOCHS) for seed in range(RUNS)]
    plans = [Plan(f"run-{recipe.seed}", recipe, task) for recipe, task in zip(recipes, tasks, strict=True)]
    options: dict[str, Any] = {"device": "cpu", "dtype": cell["dtype"], "with_baselines": False}
    spent = processor_seconds()
    if cell.get("alone"):
        results = [train(MODEL, task, recipe, **options) for task, recipe in zip(tasks, recipes, strict=True)]
    else:
        found = train_many(MODEL, tasks[0], plans, **options)
        results = [found.results[plan.name] for plan in plans]
    return {
        "accuracy": [result.evaluation["accuracy"] for result in results],
        "train_loss": [result.history[-1]["train_loss"] for result in results],
        "predictions": [[int(each) for each in next(iter(result.predictions.values()))] for result in results],
        "cpu_seconds": round(processor_seconds() - spent, 1),
    }


def table(results: list[Cell]) -> str:
    """Tasks down: mean accuracy in either precision, the differences of the runs, and those of bf16's from alone."""
    lines = [
        "| task | accuracy fp32 | accuracy bf16 | difference, mean ± sd | each run | answers that differ | seconds "
        "| bf16, in company less alone | answers that differ from alone |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | --- | ---: |",
    ]
    for task in TASKS:
        here = {(each["cell"]["dtype"], each["cell"].get("alone", False)): each
                for each in results if each["cell"]["task"] == task}  # fmt: skip
        full, half = (here.get((dtype, False)) for dtype in DTYPES)
        if full is None or half is None:
            continue
        differences, differ = compared(half, full)
        lines.append(
            f"| {task} | {statistics.mean(full['accuracy']):.4f} | {statistics.mean(half['accuracy']):.4f} "
            f"| {mean_and_sd(differences)} | {each_of(differences)} | {differ:.1%} "
            f"| {full['cpu_seconds']:.0f}, {half['cpu_seconds']:.0f} | {beside_alone(half, here.get(('bf16', True)))} |"
        )
    return "\n".join(lines)


def beside_alone(bank: Cell, alone: Cell | None) -> str:
    """The last two columns: what company changes in a run of bf16."""
    if alone is None:
        return "not measured | "
    differences, differ = compared(bank, alone)
    return f"{mean_and_sd(differences)}: {each_of(differences)} | {differ:.1%}"


def compared(one: Cell, other: Cell) -> tuple[list[float], float]:
    """How much more accurate each run is than the same of the other, and the share of answers that differ."""
    differences = [a - b for a, b in zip(one["accuracy"], other["accuracy"], strict=True)]
    pairs = [
        answer == answers
        for run, runs in zip(one["predictions"], other["predictions"], strict=True)
        for answer, answers in zip(run, runs, strict=True)
    ]
    return differences, 1 - statistics.mean(pairs)


def mean_and_sd(differences: list[float]) -> str:
    """In four decimals, signed."""
    return f"{statistics.mean(differences):+.4f} ± {statistics.stdev(differences):.4f}"


def each_of(differences: list[float]) -> str:
    """In three decimals, signed."""
    return ", ".join(f"{each:+.3f}" for each in differences)


def main() -> None:
    """Compute what is missing and write the table."""
    options = command(__doc__, "precision").parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    cells: list[Cell] = [{"task": task, "dtype": dtype} for task in TASKS for dtype in DTYPES]
    cells += [{"task": task, "dtype": "bf16", "alone": True} for task in TASKS]
    results = compute(cells, work, options.out, options.jobs, options.minutes)
    options.out.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
