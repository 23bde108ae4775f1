"""What holds of every method: it trains what it says and nothing else, leaves no trace, is saved, loaded, resumed."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import beft
from beft.core.bank import attach
from beft.core.store import MANIFEST
from beft.errors import Interrupted, RecipeError, StoreError
from beft.methods.method import Method
from beft.methods.registry import BUILT_IN, find_method, method_names, register_method
from beft.training.base import Base, add_adapter
from beft.training.recipe import Recipe, method_lr, paper_recipe, prompt_recipe
from methods.common import PLAIN, SMALL, TRAINED, changed, method_run, tensors
from toys import adapter_files, fast, toy_task
from training.common import After, learn

pytest.importorskip("peft")

HEAD = {"beft.default.head.weight", "beft.default.head.bias"}
VALUES = {f"beft.default.vectors.encoder/layer/{layer}/attention/self/value" for layer in (0, 1)}


def recipe_of(name: str, **changes: Any) -> Recipe:
    return fast(method=name, **{**SMALL.get(name, {}), **changes})


def expected_changes(name: str, weights: set[str]) -> set[str]:
    """Tensors of the stock tiny BERT, less its pooler, and of the adapter that two steps of a method change."""
    inner = {key for key in weights if not key.startswith(("pooler", "beft"))}
    attention = [f"encoder.layer.{layer}.attention.self" for layer in (0, 1)]
    if name.startswith("bias"):
        return HEAD | VALUES
    if name == "bitfit":  # a vector wherever the model has a bias, that of the embeddings' norm included
        biased = {key.removesuffix(".bias").replace(".", "/") for key in inner if key.endswith(".bias")}
        return HEAD | {f"beft.default.vectors.{path}" for path in biased}
    return HEAD | {
        "full": inner,
        "layernorm": {key for key in inner if "LayerNorm" in key},
        "head": set(),
        "frozen": set(),
        "prefix": set(),
        "prompt": set(),
    }.get(name, {key for key in weights if any(path in key for path in attention) and key not in inner})


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ("random-mask", "rows-columns")])
def test_a_few_steps_change_what_the_method_says_and_nothing_else(bert: Path, name: str) -> None:
    # The first step moves the head alone, which starts at zero, and a product's second factor moves after its first.
    run, method = method_run(bert, toy_task(32), recipe_of(name, batch_size=8, epochs=1, selection="none", lr=0.01))
    model = run.bank.model
    stock = {key for key in tensors(model) if ".base_layer" not in key}
    before, leaves = tensors(model), {key: leaf.detach().clone() for key, leaf in run.leaves.items()}
    run.learn()
    method.files()  # brings tensors that are functions of leaves up to date
    assert all(not torch.equal(leaf, leaves[key]) for key, leaf in run.leaves.items()), name
    found = changed(before, tensors(model))
    own = {key for key in stock if any(word in key for word in ("lora_", "ia3_", "vera_lambda"))}
    assert found == (HEAD | own if own else expected_changes(name, stock))
    if name in ("lora", "dora", "vera"):
        assert {key.split(".")[5] for key in own} == {"query", "value"}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("head", ["linear", "model"])
def test_detached_the_model_is_as_before(headed: Path, name: str, head: str) -> None:
    recipe = recipe_of(name, batch_size=8, epochs=1, selection="none", head=head, lr=0.01)
    run, method = method_run(headed, toy_task(8), recipe)
    fresh, _ = method_run(headed, toy_task(8), fast(method="frozen", head=head))
    fresh.bank.detach()
    run.learn()
    method.detach()
    run.bank.detach()
    model, stock = run.bank.model, fresh.bank.model
    assert changed(tensors(stock), tensors(model)) == set()
    assert {key: type(module) for key, module in model.named_modules()} == {
        key: type(module) for key, module in stock.named_modules()
    }
    assert set(vars(model)) == set(vars(stock))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "head"), [(n, h) for n in TRAINED for h in ("linear", "model")] + [("probe", "linear")]
)
def test_a_loaded_folder_predicts_as_the_run_did(headed: Path, tmp_path: Path, name: str, head: str) -> None:
    changes = {} if name == "probe" else {"lr": 0.02}
    result = learn(headed, toy_task(24, 12), recipe_of(name, epochs=1, head=head, **changes), tmp_path / "out")
    predictor = beft.load(tmp_path / "out")
    texts = [example.texts[0] for example in toy_task(24, 12).evaluation["evaluation"]]
    found = torch.tensor(predictor.predict_proba(texts))  # type: ignore[union-attr]
    assert (found - torch.tensor(result.probabilities["evaluation"])).abs().max() < 1e-6
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["method"]["name"] == name
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["method"] == name
    size = sum(parameter.numel() for parameter in predictor.bank.model.parameters())
    assert 0 < metrics["trainable_share"] == metrics["trainable_parameters"] / metrics["base_parameters"]
    assert metrics["base_parameters"] <= size
    assert metrics["adapter_bytes"]["vectors"] > 0
    if not find_method(name).plain:
        with pytest.raises(StoreError, match=f"one of the method {name}"):
            attach(_plain(headed, head), "none", names=[]).load(tmp_path / "out")


def _plain(folder: Path, head: str) -> Any:
    run, _ = method_run(folder, toy_task(8), fast(method="frozen", head=head))
    run.bank.detach()
    return run.bank.model


@pytest.mark.parametrize("name", TRAINED)
def test_stopped_and_resumed_equals_a_whole_run(bert: Path, tmp_path: Path, name: str) -> None:
    task, recipe = toy_task(24, 6), recipe_of(name, batch_size=12, dropout="model", lr=0.01)
    learn(bert, task, recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        learn(bert, task, recipe, tmp_path / "out", listener=After(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    learn(bert, task, recipe, tmp_path / "out", resume=True)
    assert adapter_files(tmp_path / "out") == adapter_files(tmp_path / "whole")


def test_bitfits_count_on_bert_base() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_labels=2))
    model.to_empty(device="cpu")
    bank = attach(model, "none", names=[])
    base = Base(model, None, "bert-base", (), "mean")
    recipe = Recipe(method="bitfit", head="model")
    add_adapter(bank, base, "default", recipe, 2, ("a", "b"))
    assert sum(leaf.numel() for _, leaf in bank["default"].leaves()) == 104_450
    for method, count in {"bias": 11_522, "head": 768 + 1_538, "frozen": 1_538}.items():
        bank.remove("default")
        add_adapter(bank, base, "default", Recipe(method=method, head="model"), 2, ("a", "b"))
        assert sum(leaf.numel() for _, leaf in bank["default"].leaves()) == count


def test_a_probe_is_scikit_learns(bert: Path, tmp_path: Path) -> None:
    task = toy_task(36, 12)
    result = beft.train(str(bert), task, fast(method="probe"), dtype="fp32")
    baseline = dict(result.metrics["baselines"]["frozen_logistic_regression"])
    del baseline["splits"]
    assert result.evaluation == baseline
    assert result.history == []
    numbers = beft.train(
        str(bert), toy_task(36, 12, regression=True), fast(method="probe"), tmp_path / "n", dtype="fp32"
    )
    baseline = dict(numbers.metrics["baselines"]["frozen_logistic_regression"])
    del baseline["splits"]
    assert numbers.evaluation == pytest.approx(baseline, abs=1e-5)


# ---- names, options and rates ----------------------------------------------------------------------------------------


def test_unknown_methods_name_the_nearest_and_terms_say_how() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'bitfit'"):
        Recipe(method="bitfitt")
    with pytest.raises(RecipeError, match="--method bias --terms query\\+key"):
        find_method("query+key")
    with pytest.raises(RecipeError, match="Known: bias, bitfit"):
        find_method("zzz")


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_every_method_says_what_it_is(name: str) -> None:
    method = find_method(name)
    assert method.name == name
    assert len(method.summary) > 10
    assert list(method.grid) == sorted(method.grid)
    assert method.grid[0] <= method.lr <= method.grid[-1]
    assert Recipe(method=name, head=method.heads[0]).lr == method.lr == method_lr(name)


def test_a_rate_that_was_given_stays_and_one_that_was_not_changes_with_the_method() -> None:
    assert Recipe().with_method("full").lr == find_method("full").lr
    assert Recipe(lr=0.5).with_method("full").lr == 0.5
    assert Recipe(method="full").with_method("bias").lr == Recipe().lr == 3e-3
    assert Recipe(method="full", lr=3e-3).lr == 3e-3
    assert paper_recipe("rte", method="bitfit").lr == paper_recipe("rte").lr == 1e-3
    assert paper_recipe("rte", method="full").lr == 1e-5
    assert paper_recipe("rte", method="lora").lr == prompt_recipe("copa", method="lora").lr == find_method("lora").lr
    assert Recipe.from_dict(Recipe(method="lora").to_dict()) == Recipe(method="lora")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "full", "rank": 4}, "--rank"),
        ({"method": "lora", "mask_size": 4}, "--mask-size"),
        ({"method": "lora", "terms": "key"}, "--terms"),
        ({"method": "bias", "virtual_tokens": 4}, "--virtual-tokens"),
        ({"method": "probe", "head": "model"}, "--head linear"),
        ({"method": "lm-head"}, "prompts"),
        ({"method": "frozen", "head": "none"}, "prompts, which have no head"),
        ({"method": "lora", "rank": 0}, "rank"),
    ],
)
def test_options_that_a_method_does_not_heed_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe(**changes)


def test_a_method_from_outside_is_trained_by_its_name(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beft.methods import registry
    from beft.methods.bias import Bias

    monkeypatch.setattr(registry, "_REGISTERED", {})

    class Query(Bias):
        name = "only-query"
        uses = ()

        def terms(self, model: Any, head: str) -> str:
            return "query"

    assert register_method(Query) is Query
    assert method_names()[-1] == "only-query"
    result = learn(bert, toy_task(16, 4), fast(epochs=1), method="only-query")
    assert result.metrics["trainable_parameters"] == 2 * 32 + 3 * 32 + 3
    with pytest.raises(RecipeError, match="expected a new name"):
        register_method(Query)
    with pytest.raises(RecipeError, match="expected a new name"):
        register_method(Method)


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({"method": "bias", "lr": 1e-5}, 1e-5),
        ({"method": "full", "lr": 1e-5}, 3e-3),
        ({"method": "bias-lora", "lr": 1e-2}, 1e-2),
        ({"method": "full", "lr": 1e-5, "head_lr": 1e-4}, 1e-4),
        ({"method": "full", "lr": 1e-5, "head": "model"}, 1e-5),
    ],
    ids=str,
)
def test_a_linear_head_is_not_held_back_by_what_learns_slowly(bert: Path, changes: dict[str, Any], rate: float) -> None:
    recipe = fast(**{**PLAIN, "batch_size": 16, "epochs": 1, **changes})
    run, method = method_run(bert, toy_task(16), recipe)
    heads = {key: leaf.detach().clone() for key, leaf in run.leaves.items() if key.startswith("head.")}
    run.learn()
    moved = max(float((run.leaves[key].detach() - start).abs().max()) for key, start in heads.items())
    assert moved == pytest.approx(rate, rel=0.02)  # Adam's first step is as long as the rate
    assert {run.optimiser.rates[leaf] for key, leaf in run.leaves.items() if key not in heads} == {recipe.lr}
    method.detach()
