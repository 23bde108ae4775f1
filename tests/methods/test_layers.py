"""PEFT's layers: trained as by a plain loop on stock PEFT, and saved so that stock PEFT loads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import beft
from beft.methods.registry import load_method
from methods.common import PLAIN, SMALL, method_run, stock_loop
from toys import fast, save_base, toy_task
from training.common import learn

peft = pytest.importorskip("peft")
LAYERS = ["lora", "dora", "vera", "ia3"]


def stock(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", num_labels=3
    ).eval()


def test_lora_is_stock_pefts_under_a_plain_loop(headed: Path) -> None:
    run, _ = method_run(headed, toy_task(), fast(method="lora", head="model", rank=2, lr=3e-3, **PLAIN))
    config = peft.LoraConfig(r=2, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(stock(headed), config).eval()
    theirs = {key: p for key, p in model.named_parameters() if p.requires_grad}
    start = {key: leaf.detach().clone() for key, leaf in run.leaves.items()}
    with torch.no_grad():
        for key, leaf in start.items():
            if not key.startswith("head."):
                theirs["base_model.model." + key].copy_(leaf)
    stock_loop(run, theirs.values(), lambda batch: model(**batch).logits)
    run.learn()
    assert len(theirs) == len(run.leaves) == 8 + 2
    for key, leaf in run.leaves.items():
        name = "base_model.model." + key
        if key.startswith("head."):
            name = "base_model.model." + key.removeprefix("head.").replace(
                "classifier", "classifier.modules_to_save.default"
            )
        assert (leaf - theirs[name]).abs().max() < 1e-6, key
        assert not torch.equal(leaf, start[key])


@pytest.mark.parametrize("name", LAYERS)
def test_stock_peft_loads_the_folder(headed: Path, tmp_path: Path, name: str) -> None:
    recipe = fast(method=name, head="model", epochs=1, lr=0.05, **SMALL.get(name, {}))
    result = learn(headed, toy_task(24, 12), recipe, tmp_path / "out")
    assert result.metrics["peft"] == "stock PEFT loads this adapter"
    assert "peft_refuses" not in json.loads((tmp_path / "out" / "beft.json").read_text())
    run, _ = method_run(headed, toy_task(24, 12), fast(method="frozen", head="model"))
    run.bank.remove("default")
    run.bank.active = load_method(run.bank, tmp_path / "out")[0].name
    batch = run.parts["select"].encoded.batch(range(6))
    with torch.no_grad():
        ours = run.bank.logits(**batch)
        theirs = peft.PeftModel.from_pretrained(stock(headed), str(tmp_path / "out")).eval()(**batch).logits
        plain = stock(headed)(**batch).logits
    assert (ours - theirs).abs().max() < 1e-6
    assert (ours - plain).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "modernbert", "deberta-v3", "opt", "gemma2", "phi3"])
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_families_that_peft_knows_no_targets_of(tmp_path: Path, family: str, name: str) -> None:
    base = save_base(tmp_path / "base", family, head="classify")
    result = learn(base, toy_task(8, 4), fast(method=name, epochs=1), tmp_path / "out")
    assert result.metrics["trainable_parameters"] > 99
    found = beft.load(tmp_path / "out").predict_proba([e.texts[0] for e in toy_task(8, 4).evaluation["evaluation"]])  # type: ignore[union-attr]
    assert abs(torch.tensor(found) - torch.tensor(result.probabilities["evaluation"])).max() < 1e-5


def test_layers_are_chosen_and_the_seed_draws(bert: Path) -> None:
    run, _ = method_run(bert, toy_task(8), fast(method="lora", layers="last:1", rank=3))
    own = {key: leaf for key, leaf in run.leaves.items() if not key.startswith("head.")}
    assert all(key.startswith("encoder.layer.1.") for key in own)
    assert {leaf.shape for leaf in own.values()} == {(3, 32), (32, 3)}
    again, _ = method_run(bert, toy_task(8), fast(method="lora", layers="last:1", rank=3))
    other, _ = method_run(bert, toy_task(8), fast(method="lora", layers="last:1", rank=3, seed=1))
    for key, leaf in own.items():
        assert torch.equal(leaf, again.leaves[key])
        assert "lora_B" in key or not torch.equal(leaf, other.leaves[key])


def test_a_quantised_base_takes_lora(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    result = learn(bert, toy_task(12, 6), fast(method="lora", epochs=1), tmp_path / "out", quantize="8bit")
    found = beft.load(tmp_path / "out").predict_proba([e.texts[0] for e in toy_task(12, 6).evaluation["evaluation"]])  # type: ignore[union-attr]
    assert abs(torch.tensor(found) - torch.tensor(result.probabilities["evaluation"])).max() < 1e-5
