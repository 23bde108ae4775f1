"""Which bias to tune: b_v, b_q, b_k, the matched head alone, and frozen states with logistic regression, as they are.

    python benchmarks/terms.py [--jobs 2] [--minutes 60] [--dtype bf16] [--terms key,none]

MiniLM-L6 on sst2 (1,000 rows), rte (300) and cb (all 250; pairs, read as one input), both heads, three seeds, the
default recipe, every evaluation row. The last line counts the answers in which b_k and the head alone differ: with
absolute positions none, but for rounding. Cells are kept in docs/results/terms.jsonl; the tables, one a precision of
the frozen base, go to docs/results/terms.md.
"""

from __future__ import annotations

from cells import MODEL, Cell, command, compute, load_task, markdown, spread

TASKS = {"sst2": 1000, "rte": 300, "cb": None}
METHODS = {"value": "b_v", "query": "b_q", "key": "b_k", "none": "head only"}


def work(cell: Cell) -> Cell:
    """Train one cell in memory and score it."""
    import beft

    task = load_task(cell["task"], cell["size"], cell["seed"])
    recipe = beft.Recipe(terms=cell["terms"], head=cell["head"], pairs="joint", seed=cell["seed"])
    result = beft.train(MODEL, task, recipe, device="cpu", dtype=cell.get("dtype", "fp32"))
    return {
        "evaluation": result.metrics["evaluation"],
        "frozen": {k: v for k, v in result.metrics["baselines"]["frozen_logistic_regression"].items() if k != "splits"},
        "parameters": result.metrics["trainable_parameters"],
        "best_epoch": result.metrics["best_epoch"],
        "seconds": result.metrics["train_seconds"],
        "answers": result.predictions[next(iter(task.evaluation))],
    }


def main() -> None:
    """Compute what is missing and write the table."""
    parser = command(__doc__, "terms", seeds=3)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--terms", default=",".join(METHODS))
    options = parser.parse_args()
    cells = [
        {"task": task, "size": size, "head": head, "terms": terms, "seed": seed}
        | ({} if options.dtype == "fp32" else {"dtype": options.dtype})
        for seed in range(options.seeds)
        for head in ("linear", "model")
        for task, size in TASKS.items()
        for terms in options.terms.split(",")
    ]
    results = compute(cells, work, options.out, options.jobs, options.minutes)
    parts = {kind: [r for r in results if r["cell"].get("dtype", "fp32") == kind] for kind in ("fp32", "bf16")}
    text = "\n\n".join(f"Base in {kind}:\n\n{table(part)}" for kind, part in parts.items() if part)
    options.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


def table(results: list[Cell]) -> str:
    """Methods down, tasks and heads across: mean ± sd over seeds (number of seeds)."""
    metric = {"sst2": "accuracy", "rte": "accuracy", "cb": "f1_macro"}
    heads = [(task, head) for task in TASKS for head in ("linear", "model")]
    rows = []
    for terms, name in METHODS.items():
        row = []
        for task, head in heads:
            chosen = [
                r for r in results if (r["cell"]["task"], r["cell"]["head"], r["cell"]["terms"]) == (task, head, terms)
            ]
            row.append(spread([r["evaluation"][metric[task]] for r in chosen]))
        rows.append((name, row))
    row = []
    for task, _ in heads:
        by_seed = {r["cell"]["seed"]: r["frozen"][metric[task]] for r in results if r["cell"]["task"] == task}
        row.append(spread(list(by_seed.values())))
    rows.append(("frozen + logistic regression", row))
    rows.append(("answers: b_k is not the head alone's", [unlike(results, *each) for each in heads]))
    return markdown("method", [f"{task}, {head} head" for task, head in heads], rows)


def unlike(results: list[Cell], task: str, head: str) -> str:
    """In how many answers b_k and the head alone differ, over the seeds that both have; "-" where none was kept."""
    here = [r for r in results if (r["cell"]["task"], r["cell"]["head"]) == (task, head) and "answers" in r]
    key, none = (
        {r["cell"]["seed"]: r["answers"] for r in here if r["cell"]["terms"] == terms} for terms in ("key", "none")
    )
    pairs = [pair for seed in sorted(key.keys() & none.keys()) for pair in zip(key[seed], none[seed], strict=True)]
    return f"{sum(a != b for a, b in pairs)} of {len(pairs):,}" if pairs else "-"


if __name__ == "__main__":
    main()
