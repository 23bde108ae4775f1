"""`beft export`: an adapter in a form that other programs apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import RecipeError, StoreError
from . import options as o
from .screen import console, kilobytes, notes, print_json

if TYPE_CHECKING:
    from torch import nn

    from ..core.steering import Steering


def export(
    directory: Annotated[Path, typer.Argument(help="Adapter folder.", metavar="ADAPTER")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .safetensors.", rich_help_panel=o.MAIN)],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="steering: a constant vector behind each attention's output projection.",
            rich_help_panel=o.MAIN,
        ),
    ] = "steering",
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Write vectors even where they are not exact (attention sinks, gates, clipped values), and say where.",
            rich_help_panel=o.MAIN,
        ),
    ] = False,
    model: o.OtherModel = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Write a value adapter as steering vectors: plain forward hooks add them, no beft needed.

    `beft export runs/tickets --format steering --out tickets.safetensors`
    """
    if format != "steering":
        raise RecipeError(f"--format {format}", expected="steering", remedy="beft merge writes whole checkpoints")
    if out.suffix.lower() != ".safetensors":
        raise RecipeError(f"--out {out}", expected="a file ending in .safetensors")
    from ..core.hub import adapter_folder
    from ..core.restore import base_name
    from ..core.steering import export_steering
    from ..training.base import base_folder
    from ..training.machine import avoid_undescribed_amx

    avoid_undescribed_amx()
    directory = adapter_folder(str(directory))
    name = model or base_name(directory)
    base = load_stock(base_folder(name), directory, trust_remote_code)
    base.config._name_or_path = name  # type: ignore[union-attr]
    result = export_steering(base, directory, out, approximate=approximate)
    if json:
        print_json({"out": str(out), "keys": list(result.vectors), **result.metadata})
    elif not quiet:
        _show(result, out)


def load_stock(folder: Path, adapter: Path, trust_remote_code: bool = False) -> nn.Module:
    """The base as its checkpoint's own class, or with a classification head if the adapter brings one; bf16 or fp32.

    Raises:
        StoreError: a folder that transformers cannot load.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    from ..core.probe import quiet_transformers
    from ..core.ship import head_outputs

    with quiet_transformers():
        try:
            config: Any = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            own = getattr(transformers, (getattr(config, "architectures", None) or ["AutoModel"])[0], None)
            kind: Any = own or transformers.AutoModel
            if head_outputs(adapter) is not None:
                kind = transformers.AutoModelForSequenceClassification
            half = config.get_text_config().dtype in (torch.bfloat16, "bfloat16")
            extra = {"trust_remote_code": True} if trust_remote_code else {}
            model: nn.Module = kind.from_pretrained(folder, dtype=torch.bfloat16 if half else torch.float32, **extra)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise StoreError(
                f"model {str(folder)!r}",
                expected="a transformers model",
                found=" ".join(str(error).split())[:160] or type(error).__name__,
                remedy="give another place of the base with --model",
            ) from error
    return model.eval()


def _show(result: Steering, out: Path) -> None:
    about = result.metadata["vectors"]
    sizes = sorted({vector.numel() for vector in result.vectors.values()})
    console.print(f"{len(result.vectors)} vectors of {' or '.join(map(str, sizes))} numbers, each added after")
    for key, vector in result.vectors.items():
        place = " ".join(filter(None, (about[key]["stack"], f"layer {about[key]['layer']}")))
        console.print(f"  {escape(about[key]['after'])}  [dim]{place}, norm {float(vector.norm()):.3g}[/]")
    notes([f"not exact after {about[key]['after']}: {reason}" for key, reason in result.inexact.items()])
    if result.metadata["head"]:
        notes([f"the adapter's head ({result.metadata['head']})"])
    exact = [each["error"] for each in about.values() if each["exact"]]
    if exact:
        console.print(f"largest deviation measured where exact: [bold green]{max(exact):.1e}[/]")
    console.print(f"[bold]{escape(str(out))}[/]  {kilobytes(out.stat().st_size)}")
