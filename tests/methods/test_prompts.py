"""Methods that answer prompts: chosen and written answers, trained, saved, loaded and resumed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import beft
from beft.core.bank import attach
from beft.errors import Interrupted, RecipeError
from beft.methods.method import Options
from beft.methods.registry import find_method
from beft.training.recipe import prompt_recipe
from methods.common import SMALL
from tiny import batch, build
from toys import adapter_files, save_base
from training.common import After
from training.test_prompts import choosing, writing

pytest.importorskip("peft")
METHODS = ["bitfit", "full", "layernorm", "lm-head", "random-mask", "rows-columns", "lora", "ia3", "prefix", "prompt"]
METHODS += ["bias-lora"]


def train(base: Path, task: Any, name: str, out: Path | None = None, **options: Any) -> beft.Result:
    recipe = prompt_recipe(method=name, lr=0.02, epochs=1, max_length=64, **SMALL.get(name, {}))
    return beft.train(str(base), task, recipe, out, dtype="fp32", with_baselines=False, **options)


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_folder_answers_as_the_run_did(decoder: Path, tmp_path: Path, name: str) -> None:
    task = choosing(16, 6)
    plain = beft.train(str(decoder), task, prompt_recipe(lr=1e-9, epochs=1, max_length=64), dtype="fp32")
    result = train(decoder, task, name, tmp_path / "out")
    predictor = beft.load(tmp_path / "out")
    found = [scores for _, _, scores in predictor.stream(task, task.evaluation["evaluation"])]  # type: ignore[union-attr, arg-type]
    scores = torch.tensor(result.probabilities["evaluation"])
    assert (torch.tensor(found) - scores).abs().max() < 1e-5
    assert (torch.tensor(plain.probabilities["evaluation"]) - scores).abs().max() > 1e-3
    assert result.metrics["baselines"] == {}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "bias-lora"] + ["bias-vera1"])
@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_every_leaf_reaches_the_scores_whichever_module_the_language_model_calls(family: str, name: str) -> None:
    model = build(family, "lm")
    bank = attach(model, "none", names=[])
    method = find_method(name)(Options(**SMALL.get(name, {})))
    bank.add("default", terms=method.terms(model, "none"))
    leaves = method.attach(bank, "default")
    inputs = batch(family)

    def output() -> torch.Tensor:
        with bank.route("default"):
            return model(**inputs).logits

    before = output()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in leaves.values():
            leaf.add_(0.3 * torch.randn(leaf.shape, generator=draw))
    after = output()
    assert (after - before).abs().max() > 1e-3
    after.square().mean().backward()
    assert any(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves.values())
    assert after.shape == before.shape
    method.detach()
    bank.detach()


@pytest.mark.parametrize("name", ["full", "lora", "prefix", "prompt"])
def test_writing(decoder: Path, tmp_path: Path, name: str) -> None:
    task = writing(12, 4)
    result = train(decoder, task, name, tmp_path / "out")
    predictor = beft.load(tmp_path / "out")
    found = [text for _, text, _ in predictor.stream(task, task.evaluation["evaluation"])]  # type: ignore[union-attr, arg-type]
    assert found == result.predictions["evaluation"]


@pytest.mark.parametrize("name", ["lm-head", "prompt"])
def test_stopped_and_resumed_equals_a_whole_run(decoder: Path, tmp_path: Path, name: str) -> None:
    task = choosing(24, 6)
    train(decoder, task, name, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(decoder, task, name, tmp_path / "out", listener=After(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    train(decoder, task, name, tmp_path / "out", resume=True)
    assert adapter_files(tmp_path / "out") == adapter_files(tmp_path / "whole")


def test_the_zero_shot_baseline_is_the_plain_models_whatever_is_attached(decoder: Path) -> None:
    task, recipe = choosing(8, 6), prompt_recipe(epochs=1, max_length=32)
    expected = beft.train(str(decoder), task, recipe, dtype="fp32").metrics["baselines"]
    for name in ("prefix", "prompt", "lora", "full"):
        found = beft.train(str(decoder), task, recipe, method=name, dtype="fp32").metrics["baselines"]
        assert found == expected


def test_a_tied_head_is_untied_and_tied_again(tmp_path: Path) -> None:
    base = save_base(tmp_path / "tied", "llama", head="lm", special=False, tie_word_embeddings=True)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    bank = attach(model, "none", names=["default"])
    method = find_method("lm-head")()
    leaves = method.attach(bank, "default")
    assert list(leaves) == ["lm_head.weight"]
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    before = model.model.embed_tokens.weight.detach().clone()
    with torch.no_grad():
        leaves["lm_head.weight"].add_(1.0)
    assert torch.equal(model.model.embed_tokens.weight, before)
    method.detach()
    bank.detach()
    assert isinstance(model.lm_head, nn.Linear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before)
    result = train(base, choosing(16, 6), "lm-head", tmp_path / "out")
    predictor: Any = beft.load(tmp_path / "out")
    found = [scores for _, _, scores in predictor.stream(choosing(16, 6), choosing(16, 6).evaluation["evaluation"])]
    assert (torch.tensor(found) - torch.tensor(result.probabilities["evaluation"])).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["head", "frozen", "probe"])
def test_heads_have_nothing_to_train(decoder: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="prompts, which have no head"):
        beft.train(str(decoder), choosing(8, 4), method=name)
