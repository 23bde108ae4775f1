"""Train value biases with stock PEFT and the Hugging Face Trainer, in a folder that beft loads and merges.

python examples/peft_trainer.py BASE ROWS.csv OUT      (columns text and label)
beft merge OUT --out merged
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import beft


def train(base: str | Path, rows: Sequence[tuple[str, str]], out: str | Path, **options: Any) -> PeftModel:
    """Train on (text, label) rows and write the adapter folder `out`; `options` are those of `TrainingArguments`."""
    set_seed(0)  # the new head is random
    labels = sorted({label for _, label in rows})
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels), **names)
    config = beft.peft_config(model, task_type="SEQ_CLS")  # the value biases, and the head that is new
    data = [{**tokenizer(text, truncation=True), "labels": labels.index(label)} for text, label in rows]
    # Biases want a learning rate 10 to 1000 times that of full fine-tuning.
    settings: dict[str, Any] = {"learning_rate": 1e-3, "num_train_epochs": 10}
    settings |= {"save_strategy": "no", "report_to": "none", **options}
    trainer = Trainer(
        model=get_peft_model(model, config),
        args=TrainingArguments(output_dir=str(out), **settings),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(out)
    return trainer.model  # type: ignore[return-value]


if __name__ == "__main__":
    folder, table, target = sys.argv[1:]
    with open(table, encoding="utf-8", newline="") as handle:
        train(folder, [(row["text"], row["label"]) for row in csv.DictReader(handle)], target)
