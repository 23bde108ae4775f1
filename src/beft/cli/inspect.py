"""`beft inspect`: what a model offers, proven; or what an adapter folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from . import options as o
from .screen import console, kilobytes, notes, print_json


def inspect(
    target: Annotated[
        str, typer.Argument(help="A model (folder or Hub id) or an adapter folder.", metavar="MODEL|DIR")
    ],
    terms: Annotated[
        str, typer.Option("--terms", help="Biases to list: value, query+key, all ...")
    ] = "query+key+value",
    device: o.Device = "auto",
    quiet: o.Quiet = False,
    json: o.Json = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """List the sites of a model and prove them by measurement, or show what an adapter holds."""
    folder = Path(target)
    if (folder / "adapter_config.json").exists() or (folder / "ensemble.json").exists():
        record = _adapter(folder)
    else:
        record = _model(target, terms, device, trust_remote_code)
    if json:
        print_json(record)
    elif not quiet:
        (_show_adapter if "vectors" in record else _show_model)(record)


def _model(name: str, terms: str, device: str, trust_remote_code: bool) -> dict[str, Any]:
    from ..core.sites import available_terms, find_sites
    from ..core.verify import verify_sites
    from ..training.base import load_base
    from ..training.language import is_gguf, load_language_model
    from ..training.machine import choose

    choices = choose(device, "fp32")
    if is_gguf(name):
        model = load_language_model(name, choices, trust_remote_code=trust_remote_code).model
    else:
        model = load_base(name, choices, trust_remote_code=trust_remote_code, tokenizer=False).model
    present = available_terms(model)
    sites = find_sites(model, terms)
    checked = verify_sites(model)
    proofs = {proof.site.key: proof for proof in checked.proofs}
    total = sum(parameter.numel() for parameter in model.parameters())
    entries = []
    for site in sites:
        proof = proofs.get(site.key)
        entries.append(
            {
                "term": site.term.name,
                "symbol": site.term.symbol,
                "layer": site.layer,
                "stack": site.stack,
                "attention": site.attention,
                "module": site.module,
                "width": site.width,
                "features": site.features,
                "shared_by_layers": site.shared,
                "proven": None if proof is None else proof.proven,
                "error": None if proof is None else proof.error,
                "effect": None if proof is None else proof.effect,
                "inert": None if proof is None else proof.inert,
                "reason": "" if proof is None else proof.reason,
            }
        )
    counts = {term.name: sum(site.width for site in find_sites(model, term.name)) for term in present}
    return {
        "model": name,
        "class": type(model).__name__,
        "model_type": model.config.model_type,
        "parameters": total,
        "terms": counts,
        "layers_without_attention": list(checked.without_attention),
        "stacks_without_sites": list(checked.stacks_without),
        "sites": entries,
    }


def _show_model(record: dict[str, Any]) -> None:
    from rich.table import Table

    from ..core.terms import TERMS

    console.print(f"[bold]{escape(record['model'])}[/]  {record['class']}, {record['parameters']:,} parameters\n")
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name, side in (
        ("term", "left"),
        ("symbol", "left"),
        ("values", "right"),
        ("of the model", "right"),
        ("what it is", "left"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for name, count in record["terms"].items():
        term = TERMS[name]
        table.add_row(name, term.symbol, f"{count:,}", f"{count / record['parameters']:.4%}", term.meaning)
    console.print(table)
    console.print()
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name, side in (
        ("symbol", "left"),
        ("layer", "right"),
        ("module", "left"),
        ("features", "right"),
        ("proof", "left"),
        ("effect", "right"),
    ):
        whole = name == "module"  # a path that is cut short is of no use
        table.add_column(name, justify=side, no_wrap=whole, overflow="fold")  # type: ignore[arg-type]
    for site in record["sites"]:
        proof = {None: "", True: "[green]proven[/]", False: f"[red]{site['reason']}[/]"}[site["proven"]]
        effect = "" if site["effect"] is None else "[yellow]inert[/]" if site["inert"] else f"{site['effect']:.2f}"
        width = str(site["width"]) if site["width"] == site["features"] else f"{site['width']} of {site['features']}"
        layer = f"{site['stack']} {site['layer']}".strip() + (
            f" (shared by {site['shared_by_layers']})" if site["shared_by_layers"] > 1 else ""
        )
        symbol = site["symbol"] + (" cross" if site["attention"] == "cross" else "")
        table.add_row(symbol, layer, site["module"], width, proof, effect)
    console.print(table)
    if record["layers_without_attention"]:
        console.print(f"\n[yellow]note:[/] layers without softmax attention: {record['layers_without_attention']}")
    for stack in record["stacks_without_sites"]:
        console.print(f"\n[yellow]note:[/] no site in the {stack}: its attention follows no known pattern")
    errors = [site["error"] for site in record["sites"] if site["proven"]]
    if errors:
        console.print(
            f"\nProven: adding a vector there moved attention as theory says, to {max(errors):.0e} of its size. "
            "Effect: the largest movement, relative; inert: none."
        )


def _adapter(folder: Path) -> dict[str, Any]:
    from ..core.restore import read_tensors, refuse_ensemble
    from ..core.store import HEAD, MANIFEST, WEIGHTS
    from ..files import read_json

    refuse_ensemble(folder)
    tensors = read_tensors(folder / WEIGHTS)
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
    vectors = {
        key.removeprefix("base_model.model.").removesuffix(".beft_bias"): float(value.norm())
        for key, value in tensors.items()
        if key.endswith(".beft_bias")
    }
    head = (folder / HEAD).stat().st_size if (folder / HEAD).exists() else 0
    return {
        "adapter": str(folder),
        "made_by": f"beft {manifest.get('versions', {}).get('beft', '')}".strip() if manifest else "peft",
        "base": manifest.get("base") or read_json(folder / "adapter_config.json").get("base_model_name_or_path"),
        "terms": manifest.get("terms"),
        "head": manifest.get("head"),
        "task": manifest.get("task"),
        "peft_refuses": manifest.get("peft_refuses"),
        "bytes": {"vectors": (folder / WEIGHTS).stat().st_size, "head": head},
        "vectors": vectors,
        "metrics": read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else None,
    }


def _show_adapter(record: dict[str, Any]) -> None:
    from rich.table import Table

    base = record["base"]
    console.print(f"[bold]{escape(record['adapter'])}[/]  made by {record['made_by']}")
    console.print(f"base: {escape(str(base['name'] if isinstance(base, dict) else base))}")
    sizes = record["bytes"]
    console.print(f"on disk: {kilobytes(sizes['vectors'])} vectors, {kilobytes(sizes['head'])} head")
    if record["task"]:
        console.print(escape(f"task: {_task_line(record['task'])}"))
    if record["head"]:
        console.print(f"head: {_head_line(record['head'])}")
    if record["metrics"] and record["metrics"].get("evaluation"):
        scores = ", ".join(f"{name} {value:.3f}" for name, value in record["metrics"]["evaluation"].items())
        console.print(f"evaluation: {scores}")
    if record["peft_refuses"]:
        notes([f"stock PEFT will refuse it: {record['peft_refuses']}"])
    console.print()
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("module", no_wrap=True, overflow="fold")
    table.add_column("norm of the vector", justify="right")
    for module, norm in record["vectors"].items():
        table.add_row(module, f"{norm:.3f}")
    console.print(table)


def _head_line(head: dict[str, Any]) -> str:
    """What stands above the states, and what it reads of them."""
    if head["kind"] != "linear":
        return "the architecture's own"
    reads = {
        "mean": "the mean state",
        "last": "the last token's state",
        "pair": "two texts' mean states, read apart and compared",
    }
    return f"one linear layer on {reads[head.get('pooling', 'mean')]}"


def _task_line(task: dict[str, Any]) -> str:
    """What an adapter was trained for: labels from fields, or answers to prompts."""
    labels = task["labels"]
    shown = "" if labels is None else ", ".join(labels[:12]) + (" ..." if len(labels) > 12 else "")
    if task.get("objective", "classify") == "classify":
        return f"{task['name']} from {' and '.join(task['fields'])}; labels: {shown or 'a number'}"
    does = "writes answers" if task["objective"] == "generate" else "chooses among candidates"
    source = "a benchmark's prompts" if task["benchmark"] else "prompts of its own"
    asked = f"the template {task['asked']['template']!r}" if task.get("asked") else source
    return f"{task['name']} from {asked}; {does}" + (f": {shown}" if shown else "")
