"""Fine-tune value biases of a causal model with TRL's SFTTrainer, in a folder that beft loads and merges.

python examples/trl_sft.py BASE TEXTS.txt OUT      (a text a line)
beft merge OUT --out merged
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import beft


def train(base: str | Path, texts: Sequence[str], out: str | Path, **options: Any) -> PeftModel:
    """Train on texts and write the adapter folder `out`; `options` are those of `SFTConfig`."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    # Biases want a learning rate 10 to 1000 times that of full fine-tuning.
    settings: dict[str, Any] = {"learning_rate": 1e-3, "num_train_epochs": 3, "save_strategy": "no"}
    settings |= {"bf16": torch.cuda.is_available()}  # TRL's default fails without a GPU
    settings |= {"report_to": "none", **options}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(out), **settings),
        train_dataset=Dataset.from_list([{"text": text} for text in texts]),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=beft.peft_config(model, task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    return trainer.model  # type: ignore[return-value]


if __name__ == "__main__":
    folder, file, target = sys.argv[1:]
    train(folder, Path(file).read_text(encoding="utf-8").splitlines(), target)
