"""What does bf16 cost in quality? The same bank of eight runs trained in bf16 and in fp32, run by run.

    python benchmarks/precision.py [--jobs 2] [--minutes 60]

Each run has a seed and 300 training rows of its own and the default recipe, but for five epochs and without choosing
one, so that both precisions take as many steps; all are judged on the same random 500 evaluation rows, in the precision
they were trained in. Banks are kept in docs/results/precision.jsonl, the table goes to docs/results/precision.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from cells import MODEL, Cell, compute
from versus import drawn, processor_seconds

TASKS = ("trec", "sst2")
DTYPES = ("fp32", "bf16")
RUNS, ROWS, EPOCHS = 8, 300, 5


def work(cell: Cell) -> Cell:
    """Train one bank: each run's accuracy and last training loss, and the processor seconds of all."""
    from beft import Recipe
    from beft.training.many import train_many
    from beft.training.plan import Plan

    tasks = [drawn(cell["task"], ROWS, seed) for seed in range(RUNS)]
    recipes = [Recipe(seed=seed, selection="none", epochs=EPOCHS) for seed in range(RUNS)]
    plans = [Plan(f"run-{recipe.seed}", recipe, task) for recipe, task in zip(recipes, tasks, strict=True)]
    spent = processor_seconds()
    found = train_many(MODEL, tasks[0], plans, device="cpu", dtype=cell["dtype"], with_baselines=False)
    results = [found.results[plan.name] for plan in plans]
    return {
        "accuracy": [result.evaluation["accuracy"] for result in results],
        "train_loss": [result.history[-1]["train_loss"] for result in results],
        "predictions": [[int(each) for each in next(iter(result.predictions.values()))] for result in results],
        "cpu_seconds": round(processor_seconds() - spent, 1),
    }


def table(results: list[Cell]) -> str:
    """Tasks down: mean accuracy in either precision, and the differences of the runs."""
    lines = [
        "| task | accuracy fp32 | accuracy bf16 | difference, mean ± sd | each run | answers that differ | seconds |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for task in TASKS:
        of = {each["cell"]["dtype"]: each for each in results if each["cell"]["task"] == task}
        if len(of) < len(DTYPES):
            continue
        full, half = (of[dtype] for dtype in DTYPES)
        differences = [b - a for a, b in zip(full["accuracy"], half["accuracy"], strict=True)]
        pairs = [
            answer == other
            for run, others in zip(full["predictions"], half["predictions"], strict=True)
            for answer, other in zip(run, others, strict=True)
        ]
        lines.append(
            f"| {task} | {statistics.mean(full['accuracy']):.4f} | {statistics.mean(half['accuracy']):.4f} "
            f"| {statistics.mean(differences):+.4f} ± {statistics.stdev(differences):.4f} "
            f"| {', '.join(f'{each:+.3f}' for each in differences)} | {1 - statistics.mean(pairs):.1%} "
            f"| {full['cpu_seconds']:.0f}, {half['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compute what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--out", type=Path, default=Path("docs/results/precision.jsonl"))
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    cells = [{"task": task, "dtype": dtype} for task in TASKS for dtype in DTYPES]
    results = compute(cells, work, options.out, options.jobs, options.minutes)
    options.out.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
