"""Merging: a stock model with the attached one's outputs, in every family that has a place for the vectors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import beft
import tiny
from beft.core.merge import merged, save_merged
from beft.errors import BankError, StoreError

WAYS = {
    "modernbert": "switch attention_bias",
    "gpt_neo": "fold into out_proj",
    "gptj": "fold into mlp.fc_out",
    "codegen": "fold into mlp.fc_out",
    **dict.fromkeys(("falcon-mha", "falcon-7b", "falcon-sequential", "falcon-40b", "falcon-11b"), "switch bias"),
    **dict.fromkeys(("stablelm", "stablelm-parallel"), "switch use_qkv_bias"),
    **dict.fromkeys(
        ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "cohere", "smollm3", "granite"),
        "switch attention_bias",
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v2-lite", "deepseek_v3", "deepseek_v3-lite"), "fold into o_proj"),
}
HOMELESS = ("mpt", "phi3", "mistral", "mixtral", "t5", "t5-gated")


def built(name: str) -> nn.Module:
    for head in ("lm", "base"):
        try:
            return tiny.build(name, head=head)
        except LookupError:
            continue
    raise AssertionError(name)


def saved(model: nn.Module, folder: Path, terms: str = "value", head: Any = None, seed: int = 0) -> tuple[Path, Any]:
    """A random adapter in a folder, and what the model gives with it attached."""
    bank = beft.attach(model, "none", names=[])
    bank.add("a", terms=terms, head=head)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bank.parameters("a"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    bank.active = "a"
    bank.save("a", folder)
    return folder, bank


def outputs(model: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny.batch(name))[0]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", [name for name in tiny.REGULAR if name not in HOMELESS])
def test_a_merged_model_saved_and_loaded_by_stock_transformers_gives_the_attached_outputs(
    name: str, tmp_path: Path
) -> None:
    model = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folder, bank = saved(model, tmp_path / "a")
    expected = outputs(model, name)
    bank.detach()
    plain = outputs(model, name)
    result = merged(model, folder)
    assert result.way == WAYS.get(name, "bias")
    assert difference(outputs(result.model, name), expected) < 1e-5
    assert difference(expected, plain) > 1e-2
    save_merged(result, None, tmp_path / "m")
    loaded, report = type(model).from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(outputs(loaded.eval(), name), outputs(result.model, name))
    # the original is as it was, bit for bit
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(outputs(model, name), plain)


@pytest.mark.parametrize("name", HOMELESS)
def test_an_architecture_without_a_place_says_so(name: str, tmp_path: Path) -> None:
    model = built(name)
    folder, bank = saved(model, tmp_path / "a")
    bank.detach()
    with pytest.raises(BankError, match="expected a place for the vector of"):
        beft.merge(model, folder)


def test_unchanged_weights_are_shared_with_the_original(tmp_path: Path) -> None:
    model = built("llama")
    folder, bank = saved(model, tmp_path / "a")
    bank.detach()
    merged_model = beft.merge(model, folder)
    here, there = dict(model.named_parameters()), dict(merged_model.named_parameters())
    assert all(there[name].data_ptr() == parameter.data_ptr() for name, parameter in here.items())
    assert set(there) - set(here) == {
        f"model.layers.{layer}.self_attn.{letter}_proj.bias" for layer in range(2) for letter in "qkvo"
    }


def test_rounding_of_many_layers_is_told_from_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32's own rounding may pass the bound: the same in fp64 decides, and a real difference is refused."""
    from beft.core import merge as module

    model = built("gpt2")
    folder, bank = saved(model, tmp_path / "a")
    bank.detach()
    measured = module.relative_difference
    calls: list[torch.dtype] = []

    def noisy(found: torch.Tensor, expected: torch.Tensor) -> float:
        calls.append(found.dtype)
        return 3e-5 if len(calls) == 1 else measured(found, expected)

    monkeypatch.setattr(module, "relative_difference", noisy)
    assert merged(model, folder).error < 1e-6
    assert len(calls) == 2
    calls.clear()
    wrong = module._add_to_bias
    monkeypatch.setattr(module, "_add_to_bias", lambda owner, shift: wrong(owner, shift * 1.001))
    with pytest.raises(BankError, match="expected the attached model's outputs"):
        merged(model, folder)


def test_unmerging_gives_the_base_back(tmp_path: Path) -> None:
    model = built("llama")
    folder, bank = saved(model, tmp_path / "a")
    bank.detach()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    base = beft.unmerge(beft.merge(model, folder))
    assert base is model
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert base.config.attention_bias is False
    with pytest.raises(BankError, match=r"expected a model that beft\.merge gave"):
        beft.unmerge(model)


def test_all_terms_of_bert_merge_and_the_models_own_head_and_labels_go_along(tmp_path: Path) -> None:
    model = tiny.build("bert", head="classify", num_labels=2)
    head = beft.ModelHead(model, ["classifier"], ["no", "yes"])
    folder, bank = saved(model, tmp_path / "a", terms="all+pooler+embedding_norm", head=head)
    expected = outputs(model, "bert")
    bank.detach()
    result = merged(model, folder)
    assert difference(outputs(result.model, "bert"), expected) < 1e-5
    save_merged(result, None, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
    assert torch.equal(
        outputs(type(model).from_pretrained(tmp_path / "m").eval(), "bert"), outputs(result.model, "bert")
    )


def test_a_linear_head_stays_beside_the_model(tmp_path: Path) -> None:
    model = tiny.build("bert")
    folder, bank = saved(model, tmp_path / "a", head=beft.LinearHead(32, 2, ["no", "yes"]))
    bank.detach()
    result = merged(model, folder)
    assert result.head is not None
    assert result.head.labels == ("no", "yes")


def test_several_adapters_merge_with_weights(tmp_path: Path) -> None:
    model = built("gpt2")
    first, bank = saved(model, tmp_path / "a", seed=1)
    bank.detach()
    second, bank = saved(model, tmp_path / "b", seed=2)
    bank.load(first, name="first")
    bank.combine("both", {"first": 0.25, "a": 0.75})
    bank.active = "both"
    expected = outputs(model, "gpt2")
    bank.detach()
    plain = beft.merge(model, {first: 0.25, second: 0.75})
    assert difference(outputs(plain, "gpt2"), expected) < 1e-5


def test_the_error_in_bf16_is_that_of_rounding(tmp_path: Path) -> None:
    model = built("llama").to(torch.bfloat16)
    folder, bank = saved(model, tmp_path / "a")
    bank.detach()
    assert merged(model, folder).error < 5e-2


def test_terms_that_need_a_bias_which_the_architecture_lacks_are_refused(tmp_path: Path) -> None:
    model = built("gptj")
    folder, bank = saved(model, tmp_path / "a", terms="query")
    bank.detach()
    with pytest.raises(BankError, match="b_q can only be merged as a bias"):
        beft.merge(model, folder)


def test_merging_twice_or_while_attached_is_refused(tmp_path: Path) -> None:
    model = built("bert")
    folder, bank = saved(model, tmp_path / "a")
    with pytest.raises(BankError, match="has a bank"):
        beft.merge(model, folder)
    bank.detach()
    once = beft.merge(model, folder)
    with pytest.raises((BankError, StoreError)):
        beft.merge(once, folder)


def test_other_weights_of_the_same_shape_are_refused(tmp_path: Path) -> None:
    folder, _ = saved(built("bert"), tmp_path / "a")
    with pytest.raises(StoreError, match="other weights of the same shape"):
        beft.merge(tiny.build("bert", head="lm", seed=5), folder)


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path) -> None:
    model = built("bert")
    folder, bank = saved(model, tmp_path / "a")
    bank.detach()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("keep")
    with pytest.raises(StoreError, match="new or empty folder"):
        save_merged(merged(model, folder), None, tmp_path / "m")
    assert (tmp_path / "m" / "mine.txt").read_text() == "keep"


def test_a_head_that_predicts_a_number_is_loaded_with_one_output(tmp_path: Path) -> None:
    model = tiny.build("bert", head="classify", num_labels=1)
    folder, bank = saved(model, tmp_path / "a", head=beft.ModelHead(model, ["classifier"]))
    expected = outputs(model, "bert")
    bank.detach()
    model.config.num_labels = 3  # as of a checkpoint that knows of no task yet
    save_merged(merged(model, folder), None, tmp_path / "m")
    loaded = type(model).from_pretrained(tmp_path / "m").eval()
    assert (loaded.num_labels, loaded.config.problem_type) == (1, "regression")
    assert difference(outputs(loaded, "bert"), expected) < 1e-5
