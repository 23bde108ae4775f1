"""What settles the default recipe where rows are few: terms, the head's start and rates, beside logistic regression.

    python benchmarks/few.py [--jobs 2] [--minutes 60] [--tasks trec,sst2] [--sizes 100,300] [--seeds 3]

All rows, those that judge too, are drawn from the training files, so that no evaluation row has a say in the default.
Every setting trains the number of epochs that the default has for so many rows, without selection. The settings of a
task and seed are one bank. Cells are kept in docs/results/few.jsonl; the tables go to docs/results/few.md.
"""

from __future__ import annotations

from typing import Any

from cells import MODEL, Cell, by_size, command, compute_groups, load_task, markdown, spread

TASKS = ("trec", "sst2", "banking77", "mrpc", "agnews", "rte")
JUDGED = 500
USUAL = {"head_start": "zero", "pairs": "joint"}
"""Where a setting's head starts, and how it reads pairs, unless it says otherwise."""
SETTINGS: dict[str, dict[str, Any]] = {
    "b_v": {},
    "b_v, lr 1e-2": {"lr": 1e-2},
    "b_v, regression start": {"head_start": "regression"},
    "b_v, means start": {"head_start": "means"},
    "b_v, head lr 1e-2": {"head_lr": 1e-2},
    "b_v, head lr 1e-3": {"head_lr": 1e-3},
    "b_v, lr 1e-2, head lr 1e-3": {"lr": 1e-2, "head_lr": 1e-3},
    "all": {"terms": "all"},
    "all, lr 1e-3": {"terms": "all", "lr": 1e-3, "head_lr": 3e-3},
    "all, lr 1e-2": {"terms": "all", "lr": 1e-2},
    "all, head lr 1e-3": {"terms": "all", "head_lr": 1e-3},
    "all, lr 1e-2, head lr 1e-3": {"terms": "all", "lr": 1e-2, "head_lr": 1e-3},
    "all, regression start": {"terms": "all", "head_start": "regression"},
    "all, means start": {"terms": "all", "head_start": "means"},
    "query+value": {"terms": "query+value"},
}
FROZEN = "frozen_logistic_regression"


def work(group: list[Cell]) -> list[Cell]:
    """Train the settings of one task, size and seed as one bank; the score of each on the judging rows."""
    import numpy as np

    import beft
    from beft.training.plan import Plan

    name, size, seed = (group[0][key] for key in ("task", "size", "seed"))
    task = load_task(name, size + JUDGED, seed)
    order = np.random.default_rng(seed).permutation(len(task.train)).tolist()
    plans = [
        Plan(
            f"run{number}",
            beft.Recipe(selection="none", max_length=128, seed=seed, **{**USUAL, **SETTINGS[cell["setting"]]}),
            rows=order[:size],
            judged=order[size:],
        )
        for number, cell in enumerate(group)
    ]
    found = beft.train_many(MODEL, task, plans, device="cpu")
    results = [found.results[plan.name] for plan in plans]
    metric = task.metrics[0]
    return [
        {
            "score": result.evaluation[metric],
            "frozen": result.metrics["baselines"][FROZEN][metric],
            "dtype": result.choices.dtype,
        }
        for result in results
    ]


def main() -> None:
    """Compute what is missing and write the tables."""
    parser = command(__doc__, "few", seeds=3, tasks=TASKS, sizes=(100, 300))
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="one of them only; may be given again")
    options = parser.parse_args()
    groups = [
        [{"task": task, "size": size, "seed": seed, "setting": setting} for setting in options.setting or SETTINGS]
        for size in map(int, options.sizes.split(","))
        for seed in range(options.seeds)
        for task in options.tasks.split(",")
    ]
    results = compute_groups(groups, work, options.out, options.jobs, options.minutes)
    options.out.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")
    print(table(results))


def table(results: list[Cell]) -> str:
    """For each size settings down and tasks across: accuracy, mean ± sd over seeds (how many)."""
    return "\n\n".join(by_size(results, TASKS, _table))


def _table(results: list[Cell], tasks: list[str]) -> str:
    rows = [(setting, [_of(results, task, setting, "score") for task in tasks]) for setting in SETTINGS]
    frozen = [_of(results, task, next(iter(SETTINGS)), "frozen") for task in tasks]
    rows = [*(row for row in rows if any(row[1])), ("frozen states, logistic regression", frozen)]
    return markdown("setting", tasks, [(name, list(map(spread, scores))) for name, scores in rows])


def _of(results: list[Cell], task: str, setting: str, key: str) -> list[float]:
    return [each[key] for each in results if (each["cell"]["task"], each["cell"]["setting"]) == (task, setting)]


if __name__ == "__main__":
    main()
