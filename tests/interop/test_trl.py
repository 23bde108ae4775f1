"""TRL's SFTTrainer under our config: what it trains and saves, we load and merge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import beft
from core.common import close
from examples import load_example
from toys import save_base, texts

pytest.importorskip("trl", reason="trl is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias")

OPTIONS = {
    "use_cpu": True,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "max_length": 16,
    "disable_tqdm": True,
}
LINES = [text for text, _ in texts(32)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a head and grouped keys and values, its tokenizer with an end token."""
    folder = save_base(tmp_path_factory.mktemp("llama") / "tiny", "llama", head="lm", special=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "!"
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def loss_and_logits(model: Any, folder: Path) -> tuple[float, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(LINES[:8], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    found = model(**inputs, labels=inputs["input_ids"].where(inputs["attention_mask"].bool(), -100))
    return float(found.loss), found.logits


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_sft_example_trains_an_adapter_that_we_load_and_merge(
    base: Path, tmp_path: Path, checkpointing: bool
) -> None:
    options = {**OPTIONS, "gradient_checkpointing": checkpointing}
    trained = load_example("trl_sft").train(base, LINES, tmp_path / "a", **options).eval()
    stock: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    sites = beft.find_sites(stock)
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert set(stored) == {f"base_model.model.{site.module}.beft_bias" for site in sites}
    assert all(bool(vector.abs().min() > 1e-3) for vector in stored.values())
    before, _ = loss_and_logits(stock, base)
    after, expected = loss_and_logits(trained, base)
    assert after < before - 0.05
    bank = beft.attach(stock, "none", names=[])
    bank.active = bank.load(tmp_path / "a").name
    close(loss_and_logits(stock, base)[1], expected)
    bank.detach()
    beft.merge(stock, tmp_path / "a").save_pretrained(tmp_path / "m")
    close(loss_and_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval(), base)[1], expected, 1e-5)
