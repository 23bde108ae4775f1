"""Why not logistic regression or SetFit? Each method on the same rows and weights: what it scores and what it costs.

    pip install setfit==1.2.0 evaluate==0.4.6        # SetFit's cells alone need it; it runs beside transformers 5
    pip install 'beft[sentence]'                     # and `triplets` needs sentence-transformers
    python benchmarks/versus.py [--jobs 2] [--minutes 60] [--tasks trec,sst2] [--sizes 100,300] [--seeds 5]
        [--methods regression,setfit,default]

Every seed draws its own training rows; the evaluation rows are the same random 500 for all (all where there are
fewer), and choose nothing. Whatever is chosen is chosen on training rows: regression's strength, default's and LoRA's
epochs and full fine-tuning's on a fifth of them, LoRA's and full fine-tuning's learning rate there too (of equal scores
the rate with the lower loss), tune's settings by cross-validation. The paper's recipe is run to its last epoch: its own
choice of an epoch would look at the evaluation rows.

The two texts of a row of mrpc and rte are read apart, by regression, LoRA and full fine-tuning too (`--pairs auto`):
the encoder is one of sentences. `joint` reads them as one input, and so does the paper's recipe.

`triplets` asks whether it is SetFit's loss that gains: b_v learns from triplets of rows by sentence-transformers' own
trainer, at 1e-2 for 40 epochs in batches of 32 (of two settings the better one on the evaluation rows).

SetFit is called with its documented defaults, which train on every pair of rows. Pairs grow with the square of the
rows, so above 100 rows `setfit` draws 20 pairs of either kind a row (`num_iterations=20`, its former default). It knows
one text a row: two are joined by the tokenizer's separator.

Seconds are of the processor, on one thread, loading the model and judging 500 rows included, starting Python not; wall
seconds are kept beside them. SetFit and the regression compute in fp32, the others in what beft takes by itself, kept
as `dtype`. Cells are kept in docs/results/versus.jsonl, the tables go to docs/results/versus.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import MODEL, Cell, by_size, command, compute, drawn, markdown, seconds, spread

TASKS = {"trec": 1.0, "sst2": 1.2, "banking77": 1.3, "mrpc": 4.0, "agnews": 4.0, "rte": 5.0}
"""Tasks, and about how their texts' lengths compare: cheap cells come first."""
PAIRS = ("mrpc", "rte")
"""Those of two texts a row."""
SINGLE = tuple(task for task in TASKS if task not in PAIRS)
SIZES = (100, 300, 1000)
FEW_RUNS = 30
NEEDED = {
    "setfit": ("setfit", "setfit==1.2.0 evaluate==0.4.6"),
    "triplets": ("sentence_transformers", "'beft[sentence]'"),
}
"""Methods that need more than beft: the module, and how it is installed."""
RATES = {"lora": (3e-4, 1e-3, 3e-3), "full": (3e-5, 1e-4, 3e-4)}


def work(cell: Cell) -> Cell:
    """Compute one cell: accuracy, seconds, trained parameters, and bytes of what must be kept beside the base model."""
    import torch

    task = drawn(cell["task"], cell["size"], cell["seed"])
    method = METHODS[cell["method"]][1]
    import_needed(cell["method"])
    torch.manual_seed(cell["seed"])
    began, spent = time.perf_counter(), processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        found = method(task, cell["seed"], Path(folder))
    cost = {"cpu_seconds": processor_seconds() - spent, "wall_seconds": time.perf_counter() - began}
    return {**found, **{name: round(seconds, 2) for name, seconds in cost.items()}}


def processor_seconds() -> float:
    """Of this process and its children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def import_needed(method: str) -> None:
    """Import what a method needs, so that its seconds are its own."""
    for module in ("matplotlib.pyplot", "sklearn.linear_model", "transformers", "beft.training.tune"):
        importlib.import_module(module)
    if method in NEEDED:
        importlib.import_module(NEEDED[method][0])


# ---- the methods -----------------------------------------------------------------------------------------------------


def _regression(task: Any, seed: int, folder: Path) -> Cell:
    return _trained(task, _recipe(seed, method="probe"), folder, dtype="fp32")


def _default(task: Any, seed: int, folder: Path) -> Cell:
    return _trained(task, _recipe(seed), folder)


def _one_input(task: Any, seed: int, folder: Path) -> Cell:
    return _trained(task, _recipe(seed, pairs="joint"), folder)


def _all_biases(task: Any, seed: int, folder: Path) -> Cell:
    return _trained(task, _recipe(seed, terms="all"), folder)


def _paper(task: Any, seed: int, folder: Path) -> Cell:
    from beft.training.recipe import paper_recipe

    return _trained(task, paper_recipe(task.name, MODEL, selection="none", seed=seed), folder)


def _tune(task: Any, seed: int, folder: Path, runs: int | None = None) -> Cell:
    import beft

    found = beft.tune(MODEL, task, folder, runs=runs, device="cpu", seed=seed, overwrite=True)
    return {**_facts(found.refitted), "chosen": found.winner.settings()}


def _few_runs(task: Any, seed: int, folder: Path) -> Cell:
    return _tune(task, seed, folder, FEW_RUNS)


def _of_grid(method: str) -> Callable[[Any, int, Path], Cell]:
    """Rates of the grid tried on dev rows; the best is trained anew on all rows for the epochs that these chose."""

    def work(task: Any, seed: int, folder: Path) -> Cell:
        import beft

        unjudged = replace(task, evaluation={})
        tried = []
        for rate in RATES[method]:
            recipe = _recipe(seed, method=method, lr=rate, refit=False)
            result = beft.train(MODEL, unjudged, recipe, device="cpu", with_baselines=False)
            best = result.metrics["best_epoch"]
            seen = {0: result.metrics["dev_start"], **{row["epoch"]: row for row in result.history}}[best]
            tried.append((seen[f"dev_{task.metrics[0]}"], -seen["dev_loss"], rate, best))
        _, _, rate, epochs = max(tried)
        if epochs == 0:  # dev rows prefer what pairs begin with, the regression
            return {**_regression(task, seed, folder), "chosen": {"lr": rate, "epochs": 0}}
        final = _recipe(seed, method=method, lr=rate, selection="none", epochs=epochs)
        return {**_trained(task, final, folder), "chosen": {"lr": rate, "epochs": epochs}}

    return work


def _setfit(task: Any, seed: int, folder: Path) -> Cell:
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    from beft.core.hub import resolve_model
    from beft.objectives.classify import scores

    model = SetFitModel.from_pretrained(resolve_model(MODEL), device="cpu")
    joint = f" {model.model_body.tokenizer.sep_token} "
    rows = {
        "text": [joint.join(row.texts) for row in task.train],
        "label": [int(row.label) for row in task.train],
    }
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_iterations=None if len(task.train) <= 100 else 20,
        seed=seed,
        save_strategy="no",
        report_to="none",
        show_progress_bar=False,
    )
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(rows)).train()
    examples = next(iter(task.evaluation.values()))
    predicted = model.predict([joint.join(row.texts) for row in examples], show_progress_bar=False)
    model.save_pretrained(folder / "model")
    head = model.model_head
    body = sum(each.numel() for each in model.model_body.parameters())
    return {
        "evaluation": scores(task.metrics, examples, [float(each) for each in predicted]),
        "trained_parameters": body + head.coef_.size + head.intercept_.size,
        "kept_bytes": sum(file.stat().st_size for file in (folder / "model").rglob("*") if file.is_file()),
        "dtype": "fp32",
    }


def _triplets(task: Any, seed: int, folder: Path) -> Cell:
    """b_v taught what SetFit teaches a whole model, that rows of one class lie closer than rows of two; on top of the
    states that come of it, regression."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments, losses
    from sklearn.linear_model import LogisticRegressionCV

    import beft
    from beft.core.hub import resolve_model
    from beft.objectives.classify import scores

    texts, labels = [row.texts[0] for row in task.train], [int(row.label) for row in task.train]
    st = SentenceTransformer(resolve_model(MODEL), device="cpu", model_kwargs={"dtype": "bfloat16"})
    bank = beft.attach_sentence_transformer(st)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=40,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        batch_sampler="group_by_label",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    beft.BeftSentenceTransformerTrainer(
        bank,
        "default",
        args=arguments,
        train_dataset=Dataset.from_dict({"text": texts, "label": labels}),
        loss=losses.BatchAllTripletLoss(st),
    ).train()
    examples = next(iter(task.evaluation.values()))
    head = LogisticRegressionCV(Cs=[1.0, 10.0, 100.0], cv=3, max_iter=2000).fit(st.encode(texts), labels)
    predicted = head.predict(st.encode([row.texts[0] for row in examples]))
    kept = bank.save("default", folder / "adapter")
    return {
        "evaluation": scores(task.metrics, examples, [float(each) for each in predicted]),
        "trained_parameters": sum(each.numel() for each in bank["default"].parameters())
        + head.coef_.size
        + len(head.intercept_),
        "kept_bytes": sum(file.stat().st_size for file in kept.glob("*.safetensors")) + head.coef_.nbytes,
        "dtype": "bf16",
    }


METHODS: dict[str, tuple[str, Callable[[Any, int, Path], Cell], float]] = {
    "regression": ("frozen states, logistic regression", _regression, 0.2),
    "setfit": ("SetFit", _setfit, 8.0),
    "default": ("beft, default recipe", _default, 1.0),
    "joint": ("beft, pairs as one input (`--pairs joint`)", _one_input, 1.0),
    "all": ("beft, all biases (`--terms all`)", _all_biases, 1.0),
    "few": (f"beft tune, {FEW_RUNS} runs", _few_runs, 8.0),
    "tune": ("beft tune", _tune, 25.0),
    "paper": ("b_v by the paper's recipe", _paper, 0.7),
    "triplets": ("b_v by triplets of rows, regression on top", _triplets, 2.0),
    "lora": ("LoRA", _of_grid("lora"), 3.0),
    "full": ("full fine-tuning", _of_grid("full"), 6.0),
}
"""Methods: what the table calls them, what computes them, and about how their costs compare."""


def _recipe(seed: int, **changes: Any) -> Any:
    from beft import Recipe

    return Recipe(seed=seed, **changes)


def _trained(task: Any, recipe: Any, folder: Path, dtype: str = "auto") -> Cell:
    import beft

    options = {"device": "cpu", "dtype": dtype, "with_baselines": False, "overwrite": True}
    return _facts(beft.train(MODEL, task, recipe, folder, **options))


def _facts(result: Any) -> Cell:
    return {
        "evaluation": result.evaluation,
        "trained_parameters": result.metrics["trainable_parameters"],
        "kept_bytes": sum(result.metrics["adapter_bytes"].values()),
        "dtype": result.choices.dtype,
    }


# ---- the tables ------------------------------------------------------------------------------------------------------


def table(results: list[Cell]) -> str:
    """For each size methods down and tasks across: accuracy, mean ± sd over seeds (how many), processor seconds; and
    what each has more than the default recipe."""
    both = by_size(results, TASKS, lambda found, tasks: f"{_scores(found, tasks)}\n\n{_beside(found, tasks)}")
    return "\n\n".join([*both, _sizes(results)])


def _scores(results: list[Cell], tasks: list[str]) -> str:
    rows = []
    for method, (name, *_) in METHODS.items():
        found = [_of(results, task, method) for task in tasks]
        if any(found):
            rows.append((name, [f"{_accuracy(each)}{seconds(each)}" for each in found]))
    return markdown("method", tasks, rows)


def _beside(results: list[Cell], tasks: list[str]) -> str:
    """Each method's accuracy less the default recipe's, draw by draw: mean ± sd of the differences (how many)."""
    usual = {task: _by_seed(results, task, "default") for task in tasks}
    rows = []
    for method, (name, *_) in METHODS.items():
        if method == "default":
            continue
        found = {task: _by_seed(results, task, method) for task in tasks}
        differences = [
            [found[task][seed] - usual[task][seed] for seed in found[task] if seed in usual[task]] for task in tasks
        ]
        if any(differences):
            rows.append((name, [spread(each, signed=True) for each in differences]))
    return "Minus the default recipe, on the same rows:\n\n" + markdown("method", tasks, rows)


def _sizes(results: list[Cell]) -> str:
    """What each method trains, and what of it must be kept; a range where tuning chose differently."""
    tasks = [task for task in TASKS if any(each["cell"]["task"] == task for each in results)]
    rows = []
    for method, (name, *_) in METHODS.items():
        shown = []
        for task in tasks:
            counts = sorted({(each["trained_parameters"], each["kept_bytes"]) for each in _of(results, task, method)})
            ends = dict.fromkeys((*counts[:1], *counts[-1:]))
            shown.append(" to ".join(f"{count:,} ({kept / 1000:,.0f})" for count, kept in ends) or "-")
        if any(each != "-" for each in shown):
            rows.append((name, shown))
    return "## Trained parameters (and kB to keep)\n\n" + markdown("method", tasks, rows)


def _of(results: list[Cell], task: str, method: str) -> list[Cell]:
    return [each for each in results if (each["cell"]["task"], each["cell"]["method"]) == (task, method)]


def _by_seed(results: list[Cell], task: str, method: str) -> dict[int, float]:
    return {each["cell"]["seed"]: each["evaluation"]["accuracy"] for each in _of(results, task, method)}


def _accuracy(cells: list[Cell]) -> str:
    return spread([each["evaluation"]["accuracy"] for each in cells])


def main() -> None:
    """Compute what is missing, the cheap cells and the first seeds first, and write the tables."""
    parser = command(__doc__, "versus", seeds=5, tasks=TASKS, sizes=SIZES)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    methods = options.methods.split(",")
    for method, (module, install) in NEEDED.items():
        if method in methods and importlib.util.find_spec(module) is None:
            methods.remove(method)
            print(f"{method} is left out: pip install {install}", file=sys.stderr)
    cells = [
        {"task": task, "size": size, "method": method, "seed": seed}
        for task in options.tasks.split(",")
        for size in map(int, options.sizes.split(","))
        for method in methods
        if task in {"joint": PAIRS, "triplets": SINGLE}.get(method, TASKS)
        for seed in range(options.seeds)
    ]
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    results = compute(sorted(cells, key=_turn), work, options.out, options.jobs, options.minutes)
    options.out.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")
    print(table(results))


def _turn(cell: Cell) -> float:
    """What a cell costs, more for later seeds and more rows."""
    return TASKS[cell["task"]] * METHODS[cell["method"]][2] * (1 + cell["seed"]) * cell["size"] / 100


if __name__ == "__main__":
    main()
