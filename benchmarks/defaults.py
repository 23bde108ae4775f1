"""What settled the default recipe: scores after ten epochs for learning rates, head starts, dropout and heads.

    python benchmarks/defaults.py [--jobs 2] [--minutes 60]

These rows are looked at to choose defaults, once for everybody; no run of a user's ever looks at its evaluation rows.
Cells are kept in docs/results/defaults.jsonl; the table goes to docs/results/defaults.md.
"""

from __future__ import annotations

from typing import Any

from cells import MODEL, Cell, command, compute, load_task, markdown, spread

TASKS = {"sst2": 500, "trec": 300, "tickets": None}
SETTINGS: dict[str, dict[str, Any]] = {
    "zero start, lr 1e-3": {"lr": 1e-3},
    "zero start, lr 3e-3": {"lr": 3e-3},
    "zero start, lr 1e-2": {"lr": 1e-2},
    "regression start, lr 1e-3": {"lr": 1e-3, "head_start": "regression"},
    "regression start, lr 3e-3": {"lr": 3e-3, "head_start": "regression"},
    "zero start, lr 3e-3, model's dropout": {"lr": 3e-3, "dropout": "model"},
    "model's own head, lr 3e-3": {"lr": 3e-3, "head": "model"},
}


def work(cell: Cell) -> Cell:
    """Train one cell for ten epochs on all its rows and score 600 evaluation rows at the end."""
    import beft

    task = load_task(cell["task"], cell["size"], cell["seed"], eval_size=600)
    changes = {"epochs": 10, "selection": "none", "max_length": 64, "seed": cell["seed"]}
    recipe = beft.Recipe(**{**changes, **SETTINGS[cell["setting"]]})
    result = beft.train(MODEL, task, recipe, device="cpu", dtype="fp32")
    return {
        "score": result.evaluation[task.metrics[0]],
        "frozen": result.metrics["baselines"]["frozen_logistic_regression"][task.metrics[0]],
        "seconds": result.metrics["train_seconds"],
    }


def main() -> None:
    """Compute what is missing and write the table."""
    options = command(__doc__, "defaults", seeds=2).parse_args()
    cells = [
        {"task": task, "size": size, "setting": setting, "seed": seed}
        for seed in range(options.seeds)
        for setting in SETTINGS
        for task, size in TASKS.items()
    ]
    results = compute(cells, work, options.out, options.jobs, options.minutes)
    options.out.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")
    print(table(results))


def table(results: list[Cell]) -> str:
    """Settings down, tasks across: accuracy, mean ± sd (seeds)."""
    names = list(TASKS)
    rows = []
    for setting in SETTINGS:
        row = []
        for task in names:
            chosen = [r for r in results if (r["cell"]["task"], r["cell"]["setting"]) == (task, setting)]
            row.append(spread([r["score"] for r in chosen]))
        rows.append((setting, row))
    row = []
    for task in names:
        frozen = {r["cell"]["seed"]: r["frozen"] for r in results if r["cell"]["task"] == task}
        row.append(spread(list(frozen.values())))
    rows.append(("frozen + logistic regression", row))
    return markdown("setting", names, rows)


if __name__ == "__main__":
    main()
