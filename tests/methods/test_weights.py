"""Weights of the model itself: full fine-tuning against plain PyTorch, stock checkpoints, half precision."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from beft.errors import RecipeError, StoreError
from beft.methods.registry import load_method
from methods.common import PLAIN, changed, mean_of, method_run, stock_loop, tensors
from toys import fast, same_tensors, toy_task
from training.common import learn


@pytest.mark.parametrize("head", ["linear", "model"])
def test_full_fine_tuning_is_a_plain_loop(headed: Path, head: str) -> None:
    run, _ = method_run(headed, toy_task(), fast(method="full", head=head, lr=1e-3, head_lr=1e-3, **PLAIN))
    start = {key: leaf.detach().clone() for key, leaf in run.leaves.items()}
    run.learn()
    kind = AutoModelForSequenceClassification if head == "model" else AutoModel
    changes = {"num_labels": 3} if head == "model" else {}
    stock = kind.from_pretrained(headed, dtype=torch.float32, attn_implementation="eager", **changes).eval()
    theirs = dict(stock.named_parameters())
    if head == "model":
        stock_loop(run, stock.parameters(), lambda batch: stock(**batch).logits)
    else:
        layer = nn.Linear(32, 3)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        theirs |= {f"head.{key}": value for key, value in layer.named_parameters()}
        stock_loop(
            run,
            [*stock.parameters(), *layer.parameters()],
            lambda batch: layer(mean_of(stock(**batch).last_hidden_state, batch.get("attention_mask"))),
        )
    ours = {key: leaf.detach() for key, leaf in run.leaves.items()}
    assert changed(start, ours) == set(ours)
    expected = {key: theirs[key if head == "linear" else key.removeprefix("head.")].detach() for key in ours}
    keys = [key for key in ours if ".key.bias" not in key]  # inert: rounding noise that Adam brings to full steps
    same_tensors({key: ours[key] for key in keys}, {key: expected[key] for key in keys}, 1e-6)
    unused = {key for key in theirs if key.startswith("pooler")} if head == "linear" else set()
    assert {key if head == "linear" else key.removeprefix("head.") for key in ours} == set(theirs) - unused


@pytest.mark.parametrize("head", ["linear", "model"])
def test_the_folder_is_a_stock_checkpoint(headed: Path, tmp_path: Path, head: str) -> None:
    recipe = fast(method="full", head=head, epochs=1, lr=1e-3)
    result = learn(headed, toy_task(24, 12), recipe, tmp_path / "out")
    run, _ = method_run(headed, toy_task(24, 12), recipe)
    part = run.parts["select"]
    batch = part.encoded.batch(range(6))
    load_run, _ = method_run(headed, toy_task(24, 12), fast(method="frozen", head=head))
    load_run.bank.remove("default")
    adapter, _ = load_method(load_run.bank, tmp_path / "out")
    load_run.bank.active = adapter.name
    ours = load_run.bank.logits(**batch)
    kind = AutoModelForSequenceClassification if head == "model" else AutoModel
    stock = kind.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager").eval()
    if head == "model":
        theirs = stock(**batch).logits
    else:
        layer = adapter.head
        assert isinstance(layer, nn.Module)
        theirs = layer(mean_of(stock(**batch).last_hidden_state, batch.get("attention_mask")))
    assert (ours - theirs).abs().max() < 1e-5
    assert "no method full" in result.metrics["peft"]
    refusal = "PEFT knows no method full"
    assert json.loads((tmp_path / "out" / "beft.json").read_text())["peft_refuses"] == refusal
    assert f"stock PEFT will refuse this adapter: {refusal}" in result.notices


def test_half_precision_is_trained_through_fp32_copies(bert: Path) -> None:
    run, method = method_run(bert, toy_task(), fast(method="full", lr=1e-4, head_lr=1e-4, **PLAIN), dtype="bf16")
    assert {leaf.dtype for leaf in run.leaves.values()} == {torch.float32}
    start = {key: leaf.detach().clone() for key, leaf in run.leaves.items()}
    before = tensors(run.bank.model)
    run.learn()
    moved = {key: (leaf.detach() - start[key]).abs().max() for key, leaf in run.leaves.items()}
    assert all(0 < value < 1e-4 * 12 for value in moved.values())
    method.written.write()  # type: ignore[attr-defined]
    for key, value in run.bank.model.named_parameters():
        if key in run.leaves:
            assert torch.equal(value, run.leaves[key].to(torch.bfloat16)), key
    method.detach()
    assert changed(before, tensors(run.bank.model)) == {"beft.default.head.weight", "beft.default.head.bias"}


def test_norms_are_all_norms_and_only_they(llama: Path) -> None:
    run, _ = method_run(llama, toy_task(8), fast(method="layernorm"))
    names = ("input_layernorm", "post_attention_layernorm")
    expected = {f"layers.{layer}.{norm}.weight" for layer in (0, 1) for norm in names} | {"norm.weight"}
    assert set(run.leaves) == expected | {"head.weight", "head.bias"}


def test_files_of_another_model_are_refused(bert: Path, headed: Path, tmp_path: Path) -> None:
    learn(bert, toy_task(16, 4), fast(method="layernorm", epochs=1), tmp_path / "out")
    path = tmp_path / "out" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    run, _ = method_run(bert, toy_task(8), fast(method="frozen"))
    run.bank.remove("default")
    with pytest.raises(StoreError, match="checksum"):
        load_method(run.bank, tmp_path / "out")


def test_quantised_bases_are_refused(bert: Path) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(RecipeError, match="in floating point"):
        learn(bert, toy_task(8, 4), fast(method="layernorm"), quantize="8bit")
