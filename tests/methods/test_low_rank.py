"""Low-rank biases: the formulas, their starts, and that they are plain bias adapters in a folder."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import beft
from beft.errors import RecipeError
from beft.methods.low_rank import dora, factor_shape, lora, vera, vera1
from methods.common import PLAIN, method_run, stock_loop
from toys import fast, toy_task
from training.common import learn

R, INNER, OUTER = 2, 8, 4  # 32 = 8 x 4
SITE = "encoder.layer.0.attention.self.value"


def test_factors_are_nearest_the_root() -> None:
    expected = {768: (32, 24), 1024: (32, 32), 32: (8, 4), 3072: (64, 48), 12: (4, 3), 7: (7, 1), 1: (1, 1)}
    assert {width: factor_shape(width) for width in expected} == expected


def test_the_formulas_entry_by_entry() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(R, INNER, generator=draw), torch.randn(OUTER, R, generator=draw)
    d, o, bias = torch.randn(R, generator=draw), torch.randn(OUTER, generator=draw), torch.randn(32, generator=draw)
    product = [sum(float(a[k, i] * b[j, k]) for k in range(R)) for i in range(INNER) for j in range(OUTER)]
    torch.testing.assert_close(lora(a, b, 0.5), 0.5 * torch.tensor(product))
    scaled = [sum(float(a[k, i] * d[k] * b[j, k] * o[j]) for k in range(R)) for i in range(INNER) for j in range(OUTER)]
    torch.testing.assert_close(vera(a, b, d, o, 0.5), 0.5 * torch.tensor(scaled))
    assert vera1(torch.tensor(3.0), 5, 0.25).tolist() == [0.75] * 5
    moved = torch.tensor(product) + bias
    length = float(moved.square().sum().sqrt())
    torch.testing.assert_close(dora(a, b, torch.tensor(7.0), bias, 0.5), 0.5 * 7.0 * moved / length - bias)


@pytest.mark.parametrize(
    ("name", "factors", "start"),
    [
        ("bias-lora", {"A": (2, 8), "B": (4, 2)}, lambda bias: torch.zeros(32)),
        ("bias-dora", {"A": (2, 8), "B": (4, 2), "norm": ()}, lambda bias: bias / 2 - bias),
        ("bias-vera", {"d": (2,), "b": (4,)}, lambda bias: torch.zeros(32)),
        ("bias-vera1", {"scalar": ()}, lambda bias: torch.full((32,), 0.5)),
    ],
)
def test_leaves_and_start(bert: Path, name: str, factors: dict[str, tuple[int, ...]], start: object) -> None:
    run, _ = method_run(bert, toy_task(8), fast(method=name, rank=2))
    shapes = {key.removeprefix(SITE + "."): tuple(v.shape) for key, v in run.leaves.items() if key.startswith(SITE)}
    assert shapes == factors
    assert len(run.leaves) == 2 * len(factors) + 2
    bias = run.bank.model.get_submodule(SITE).bias.detach()  # type: ignore[union-attr, operator]
    vector = dict(run.bank["default"].leaves())[SITE]
    torch.testing.assert_close(vector.detach(), start(bias))  # type: ignore[operator]


def test_kaiming_start_of_a_and_shared_frozen_factors(bert: Path) -> None:
    run, _ = method_run(bert, toy_task(8), fast(method="bias-lora", rank=64))
    a = run.leaves[SITE + ".A"].detach()
    assert 0.9 / 8**0.5 < float(a.abs().max()) <= 1 / 8**0.5  # uniform within 1 / root of the inner width
    assert not torch.equal(a, run.leaves[SITE.replace("0", "1") + ".A"])
    other, _ = method_run(bert, toy_task(8), fast(method="bias-lora", rank=64, seed=1))
    assert not torch.equal(a, other.leaves[SITE + ".A"])
    _, method = method_run(bert, toy_task(8), fast(method="bias-vera"))
    assert list(method.frozen) == [32]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["bias-lora", "bias-dora", "bias-vera", "bias-vera1"])
def test_training_is_that_of_a_stock_model_whose_bias_is_the_formula(bert: Path, name: str) -> None:
    from transformers import AutoModel

    from methods.common import mean_of

    run, method = method_run(bert, toy_task(), fast(method=name, rank=2, alpha=3, lr=0.02, **PLAIN))
    stock = AutoModel.from_pretrained(bert, dtype=torch.float32, attn_implementation="eager").eval()
    stock.requires_grad_(False)
    head = nn.Linear(32, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    theirs = {key: nn.Parameter(leaf.detach().clone()) for key, leaf in run.leaves.items() if "head" not in key}

    def vector(path: str, bias: torch.Tensor) -> torch.Tensor:
        own = {key.removeprefix(path + "."): leaf for key, leaf in theirs.items() if key.startswith(path)}
        if name == "bias-lora":
            return lora(own["A"], own["B"], 1.5)
        if name == "bias-dora":
            return dora(own["A"], own["B"], own["norm"], bias, 1.5)
        if name == "bias-vera":
            a, b = method.frozen[32]  # type: ignore[attr-defined]
            return vera(a, b, own["d"], own["b"], 1.5)
        return vera1(own["scalar"], 32, 1.5)

    def logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        changes = {}
        for layer in (0, 1):
            path = f"encoder.layer.{layer}.attention.self.value"
            bias = stock.get_submodule(path).bias
            changes[f"{path}.bias"] = bias + vector(path, bias)
        hidden = torch.func.functional_call(stock, changes, (), batch).last_hidden_state
        return head(mean_of(hidden, batch.get("attention_mask")))

    stock_loop(run, [*theirs.values(), *head.parameters()], logits)
    run.learn()
    for key, value in theirs.items():
        assert (value - run.leaves[key]).abs().max() < 1e-5, key


def test_a_folder_is_a_plain_bias_adapter_that_merges(bert: Path, tmp_path: Path) -> None:
    recipe = fast(method="bias-lora", terms="value+query", layers="last:1", lr=0.05, epochs=1)
    result = learn(bert, toy_task(24, 12), recipe, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "beft.json").read_text())
    assert (manifest["terms"], manifest["layers"]) == (["query", "value"], [1])
    assert result.metrics["trainable_parameters"] == 2 * (8 * 8 + 4 * 8) + 3 * 33
    run, _ = method_run(bert, toy_task(24, 12), fast(method="frozen"))
    bank = run.bank
    bank.remove("default")
    bank.active = bank.load(tmp_path / "out").name
    batch = run.parts["select"].encoded.batch(range(4))
    with torch.no_grad():
        expected = bank.model(**batch).last_hidden_state
        bank.detach()
        plain = bank.model(**batch).last_hidden_state
        merged = beft.merge(bank.model, tmp_path / "out")(**batch).last_hidden_state  # type: ignore[operator]
    assert float((expected - plain).abs().max()) > 1e-3
    assert float((expected - merged).abs().max()) < 1e-5


def test_dora_needs_biases_to_start_from(llama: Path) -> None:
    with pytest.raises(RecipeError, match="pretrained biases"):
        method_run(llama, toy_task(8), fast(method="bias-dora"))
    run, _ = method_run(llama, toy_task(8), fast(method="bias-lora"))
    assert run.leaves["layers.0.self_attn.v_proj.A"].shape == (8, 4)
