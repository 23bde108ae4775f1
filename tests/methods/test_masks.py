"""Random masks: exact counts in proportion to size, and not an entry outside them moves."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2Model

from beft.core.bank import attach
from beft.errors import RecipeError
from beft.methods.masks import rows_columns, uniform
from beft.methods.method import Options
from beft.methods.registry import find_method
from beft.methods.weights import norms
from beft.training.base import Base, add_adapter
from beft.training.recipe import Recipe
from methods.common import PLAIN, method_run, tensors
from toys import fast, toy_task


def test_a_uniform_mask_has_its_exact_size_in_proportion(bert: Path) -> None:
    run, _ = method_run(bert, toy_task(8), fast(method="frozen"))
    weights = {key: value for key, value in run.bank.model.named_parameters() if not key.startswith("beft")}
    total = sum(weight.numel() for weight in weights.values())
    for size in (1, 17, 500, total):
        chosen = uniform(weights, size, seed=3)
        assert sum(len(index) for index in chosen.values()) == size
        for name, index in chosen.items():
            assert len(index.unique()) == len(index)
            assert abs(len(index) - size * weights[name].numel() / total) < 1
    with pytest.raises(RecipeError, match=f"at most {total}"):
        uniform(weights, total + 1, seed=0)
    again, other = uniform(weights, 500, seed=3), uniform(weights, 500, seed=4)
    first = uniform(weights, 500, seed=3)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("hidden", "layers", "size"), [(768, 12, 100_000), (1024, 24, 280_000)])
def test_the_papers_sizes_on_bert(hidden: int, layers: int, size: int) -> None:
    config = BertConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64, num_labels=2)
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    model.to_empty(device="cpu")
    bank = attach(model, "none", names=[])
    add_adapter(bank, Base(model, None, "b", (), "mean"), "default", Recipe(method="frozen", head="model"), 2, None)
    mask = find_method("random-mask")(Options())
    assert sum(len(index) for index in mask.entries(bank, "default").values()) == size  # type: ignore[attr-defined]


def test_rows_and_columns_on_bert_base_are_as_many_as_the_definition_says() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_labels=2))
    weights = {key: value for key, value in model.named_parameters() if not key.startswith("classifier")}
    norm = {key for key in weights if "LayerNorm" in key and key.endswith("weight")}
    seen = set()
    for seed in range(4):
        chosen = rows_columns(model, weights, norm, seed)
        assert not any(key.endswith("bias") or "embeddings" in key for key in chosen)
        sizes = {key: len(index) for key, index in chosen.items()}
        assert all(sizes[key] == 768 for key in chosen if "LayerNorm" in key)
        # a row of a square matrix and a column of it are as many entries, and so are 3072 // 768 rows of 768
        assert sum(sizes.values()) == 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768
        for key in chosen:
            matrix = torch.zeros(weights[key].numel())
            matrix[chosen[key]] = 1
            matrix = matrix.view(weights[key].shape)
            if matrix.ndim == 1:
                continue
            outputs, inputs = matrix.shape
            rows, columns = int(matrix.all(1).sum()), int(matrix.all(0).sum())
            assert (rows, columns) in ((outputs // inputs, 0), (0, 1))
            assert rows == 0 or outputs >= inputs
            seen.add((key, rows > 0))
    both = {key for key, rows in seen if rows} & {key for key, rows in seen if not rows}
    assert len(both) > 20


def test_conv1d_counts_outputs_from_the_other_side() -> None:
    model = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=50, n_positions=16))
    weights = dict(model.named_parameters())
    for seed in range(4):
        chosen = rows_columns(model, weights, set(), seed)
        assert len(chosen["h.0.attn.c_attn.weight"]) == 96  # (32, 96): a column of 96 outputs, or 3 rows of 32
        assert len(chosen["h.0.mlp.c_proj.weight"]) == 32  # (128, 32): 32 outputs


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["random-mask", "rows-columns"])
def test_entries_outside_the_mask_stay_bit_for_bit(bert: Path, name: str, dtype: str) -> None:
    options = {"mask_size": 500} if name == "random-mask" else {}
    recipe = fast(method=name, weight_decay=0.1, lr=0.05, **options, **PLAIN)
    run, method = method_run(bert, toy_task(), recipe, dtype)
    before = tensors(run.bank.model)
    run.learn()
    method.written.write()  # type: ignore[attr-defined]
    after = tensors(run.bank.model)
    moved = 0
    for key, value in after.items():
        if key.startswith("beft"):
            continue
        differs = (value != before[key]).flatten()
        inside = torch.zeros(value.numel(), dtype=torch.bool)
        if key in method.indices:  # type: ignore[attr-defined]
            inside[method.indices[key]] = True  # type: ignore[attr-defined]
        assert not (differs & ~inside).any(), key
        moved += int(differs.sum())
    count = sum(leaf.numel() for key, leaf in run.leaves.items() if not key.startswith("head."))
    if name == "random-mask":
        assert count == 500
    assert count // 2 < moved <= count  # embeddings of absent words get no gradient, only decay
    assert set(norms(run.bank, "default"))


def test_masked_gradients_are_the_full_ones_at_the_entries(bert: Path) -> None:
    def gradients(name: str, **options: int) -> tuple[dict[str, torch.Tensor], object]:
        run, method = method_run(bert, toy_task(8), fast(method=name, **options))
        part = run.parts["select"]
        run.aim.fit(part)
        with torch.no_grad():
            run.leaves["head.weight"].copy_(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
        run._gradients(part, part.encoded.lengths(), list(range(8)), [0])
        return {key: leaf.grad for key, leaf in run.leaves.items() if leaf.grad is not None}, method

    full, _ = gradients("full")
    masked, method = gradients("random-mask", mask_size=500)
    for key, index in method.indices.items():  # type: ignore[attr-defined]
        assert torch.equal(masked[key], full[key].flatten()[index])
