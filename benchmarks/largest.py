"""The largest Llama that trains its value bias at 512 tokens in so much GPU memory, kept and run-again activations.

    python benchmarks/largest.py --out docs/results/largest.json           # within 24 and 80 GB, on one GPU

Models have random bf16 weights and the proportions of Llama 3 (hidden size 4096, feed-forward 14336, 32 heads, 8 of
keys and values, 32,000 tokens of vocabulary); their number of layers is what grows. A step is what the project does:
the loss of a text's second half after its first (256 of 512 tokens), backward, AdamW on the biases. Memory is capped by
the allocator, so that a model that does not fit fails as it would on a smaller card. Two small models give a line;
the number of layers it promises is tried and moved until one fits and the next does not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from encoder import machine

WIDTH, FORWARD, HEADS, KEY_HEADS, VOCABULARY = 4096, 14336, 32, 8, 32000
TOKENS = 512
DEVICE = "cuda"
SHARE = 0.95
"""Of a card's memory what the allocator may have: the context of CUDA and its libraries take the rest."""


def main() -> None:
    """Search each limit with and without checkpointing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", default="24,80", help="GB (10^9 bytes) of the cards")
    parser.add_argument("--rows", default="1,8", help="rows of 512 tokens in a micro-batch")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    for rows in map(int, options.rows.split(",")):
        for again in (False, True):
            small = [attempt(layers, rows, again) for layers in (2, 4)]
            for card in map(float, options.gb.split(",")):
                about = {"card_gb": card, "rows": rows, "checkpointing": again}
                found.append({**about, **largest(card, rows, again, small)})
                print(found[-1], flush=True)
                if options.out:
                    record = {"results": found, "machine": machine(), "share": SHARE}
                    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = tabulate(found)
    print(table)
    if options.out:
        options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")


def tabulate(found: list[dict[str, Any]]) -> str:
    """The found sizes as Markdown."""
    lines = [f"{machine()}; {TOKENS} tokens a row", ""]
    lines += ["| card | rows a step | layers run again | layers | weights | GB at the peak | tokens/s |"]
    lines += ["| ---: | ---: | --- | ---: | ---: | ---: | ---: |"]
    for each in sorted(found, key=lambda each: (each["card_gb"], each["rows"], each["checkpointing"])):
        again = "yes" if each["checkpointing"] else "no"
        lines.append(
            f"| {each['card_gb']:g} GB | {each['rows']} | {again} | {each['layers']} "
            f"| {each['weights'] / 1e9:.1f} billion | {each['bytes'] / 1e9:.1f} | {each['tokens_per_second']:,.0f} |"
        )
    return "\n".join(lines)


def largest(card: float, rows: int, again: bool, small: list[dict[str, Any]]) -> dict[str, Any]:
    """The most layers that fit, as tried: one more does not."""
    total = torch.cuda.get_device_properties(0).total_memory
    room = min(card * 1e9, total) * SHARE
    a_layer = (small[1]["bytes"] - small[0]["bytes"]) / 2
    layers = 2 + int((room - small[0]["bytes"]) / a_layer)
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        fits = attempt(layers, rows, again)
        while fits is None:
            layers -= 1
            fits = attempt(layers, rows, again)
        while (more := attempt(layers + 1, rows, again)) is not None:
            layers, fits = layers + 1, more
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return fits


def attempt(layers: int, rows: int, again: bool) -> dict[str, Any] | None:
    """Three steps of training; None where memory does not suffice."""
    from beft.training.memory import release

    release()
    torch.cuda.reset_peak_memory_stats()
    try:
        return _steps(layers, rows, again)
    except torch.OutOfMemoryError:
        return None


def _steps(layers: int, rows: int, again: bool) -> dict[str, Any]:
    import beft
    from beft.core.checkpointing import recompute_layers
    from beft.objectives.choose import Scorer
    from beft.objectives.prompt_tokens import EncodedQuestions

    model = llama(layers)
    bank = beft.attach(model, "value", names=["a"])
    model.eval()
    if again:
        recompute_layers(model)
        model.train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCABULARY, (rows, TOKENS), generator=generator).tolist()
    half = TOKENS // 2
    encoded = EncodedQuestions([row[:half] for row in ids], [[row[half:]] for row in ids], [(0,)] * rows, 0, TOKENS, 0)
    leaves = list(dict(bank["a"].leaves()).values())
    optimiser = torch.optim.AdamW(leaves, lr=1e-3, foreach=True)
    learner, seconds = Scorer(model, bank=bank), []
    for _ in range(3):
        began = time.perf_counter()
        with bank.route("a"):
            loss = -learner.scores(encoded, range(rows), ["a"] * rows)[:, 0].mean()
            loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        assert torch.isfinite(loss)
        seconds.append(time.perf_counter() - began)
    return {
        "layers": layers,
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "trained": sum(leaf.numel() for leaf in leaves),
        "bytes": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "tokens_per_second": round(rows * TOKENS / min(seconds)),
    }


def llama(layers: int) -> Any:
    """Random weights in bf16, made on the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=2 * TOKENS,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model = model.to_empty(device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # norms as they are, the rest small
            parameter.fill_(1.0) if parameter.dim() == 1 else parameter.uniform_(-0.02, 0.02, generator=generator)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(DEVICE)  # its buffers were emptied as well
    return model


if __name__ == "__main__":
    main()
