"""`beft merge` and `beft unmerge`: an adapter folded into a stock checkpoint, and the base taken back out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import RecipeError
from ..files import new_folder
from . import options as o
from .screen import byte_bar, console, print_json

if TYPE_CHECKING:
    from ..core.shipped import Shipped

Out = Annotated[Path, typer.Option("--out", "-o", help="New folder to write.", rich_help_panel=o.MAIN)]


def merge(
    adapters: Annotated[
        list[Path], typer.Argument(help="Adapter folder (or Hub repository), or several.", metavar="ADAPTER...")
    ],
    out: Out,
    weights: Annotated[
        str | None, typer.Option("--weights", help="A weight for each of several adapters: 0.5,0.5.")
    ] = None,
    model: o.OtherModel = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            help="Write the weights as a sibling architecture that has the biases: qwen2 or llama.",
            rich_help_panel=o.MAIN,
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            help="logits: load both models and compare outputs (default, but for sharded checkpoints); "
            "tensors: compare what was written, in the memory of one shard.",
            rich_help_panel=o.MACHINE,
        ),
    ] = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Fold adapters into their base: a stock transformers checkpoint with the same outputs, no beft needed to load it.

    `beft merge runs/tickets --out tickets-merged`
    """
    if verify not in (None, "logits", "tensors"):
        raise RecipeError(f"--verify {verify}", expected="logits or tensors")
    folders = weighted(adapters, weights)
    new_folder(out)
    from ..core.hub import adapter_folder
    from ..core.restore import base_name
    from ..core.shards import INDEX, SINGLE
    from ..core.ship import Verify, merge_as, merge_checkpoint
    from ..training.base import base_folder

    folders = {adapter_folder(str(each)): weight for each, weight in folders.items()}
    base = base_folder(model or base_name(next(iter(folders))))
    sharded = (base / INDEX).exists()
    if architecture or not (sharded or (base / SINGLE).exists()):
        shipped = merge_as(base, folders, out, architecture)
    else:
        how: Verify = "tensors" if verify == "tensors" or (sharded and verify is None) else "logits"
        with byte_bar("merging", quiet or json) as progress:
            shipped = merge_checkpoint(base, folders, out, verify=how, progress=progress)
    if json:
        print_json(report(shipped))
    elif not quiet:
        _show(shipped)


def unmerge(
    directory: Annotated[Path, typer.Argument(help="Folder that `beft merge` wrote.", metavar="DIR")],
    out: Out,
    quiet: o.Quiet = False,
) -> None:
    """Give back the base of a merged checkpoint, every tensor bit for bit.

    `beft unmerge tickets-merged --out base`
    """
    from ..core.ship import unmerge_checkpoint

    new_folder(out)
    with byte_bar("restoring", quiet) as progress:
        unmerge_checkpoint(directory, out, progress=progress)
    if not quiet:
        console.print(f"the base as it was before the merge: [bold]{escape(str(out))}[/]")


def weighted(adapters: list[Path], weights: str | None) -> dict[Path, float]:
    """Folders with their weights. Raises RecipeError where the two do not fit together."""
    try:
        numbers = [float(each) for each in weights.split(",")] if weights else [1.0] * len(adapters)
    except ValueError as error:
        raise RecipeError(f"--weights {weights}", expected="numbers with commas between") from error
    if len(numbers) != len(adapters) or (len(adapters) > 1 and not weights):
        raise RecipeError(
            "--weights",
            expected=f"{len(adapters)} numbers, one an adapter",
            found=str(weights),
            remedy="--weights 0.5,0.5 averages two",
        )
    if len(set(adapters)) != len(adapters):
        raise RecipeError("adapters", expected="each once", found="one twice")
    return dict(zip(adapters, numbers, strict=True))


def report(shipped: Shipped) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "out": str(shipped.folder),
        "architecture": shipped.architecture,
        "ways": dict(shipped.ways),
        "switched": shipped.switched,
        "tensors_changed": len(shipped.changed),
        "tensors_added": len(shipped.added),
        "error": shipped.error,
        "head": None if shipped.head is None else shipped.head.kind,
    }


MEANING = {
    "bias": "added to the bias that is there",
    "switch": "biases switched on in the config; all other new ones are zero",
    "fold": "value bias folded in behind the output projection: softmax rows sum to one",
}


def _show(shipped: Shipped) -> None:
    counts: dict[str, int] = {}
    for way in shipped.ways.values():
        counts[way] = counts.get(way, 0) + 1
    for way, count in counts.items():
        console.print(f"{count} modules: [bold]{escape(way)}[/]  [dim]{MEANING[way.split()[0]]}[/]")
    console.print(f"[dim]{escape(shipped.fingerprint)}[/]")
    if shipped.error is None:
        console.print("every written tensor compared bit for bit; outputs not compared ([bold]--verify logits[/] does)")
    else:
        console.print(f"largest difference from the attached model's outputs: [bold green]{shipped.error:.1e}[/]")
    name = shipped.architecture
    console.print(f"\n[bold]{escape(str(shipped.folder))}[/]  loads with")
    console.print(f"  transformers.{name}.from_pretrained({str(shipped.folder)!r})")
    if shipped.head is not None and shipped.head.kind == "linear":
        console.print(f"  SentenceTransformer({str(shipped.folder)!r}).encode(texts)  [dim]the linear head's logits[/]")
