"""Stock PEFT under our config: it trains the sites and nothing else, and we load and merge what it saves."""

import re
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import beft
from bases import bert
from beft.core.sites import available_terms, get_module
from beft.errors import BankError, BeftError, SiteError, TermError
from core.common import WITH_SITES, close, states
from core.test_merge import HOMELESS
from core.test_steering import headed
from examples import load_example
from tiny import TINY, batch, build
from toys import COLOURS, texts

__all__ = ["bert"]
pytestmark = pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias")

CONV1D = ["gpt2"]
FUSED = [
    *("modernbert", "codegen", "gpt_neox", "gpt_neox-sequential", "gpt_bigcode", "gpt_bigcode-mha", "bloom", "mpt"),
    *("mpt-clip", "falcon-rw", "falcon-mha", "falcon-7b", "falcon-sequential", "falcon-40b", "falcon-11b", "phi3"),
    *("deepseek_v2", "deepseek_v2-lite", "deepseek_v3", "deepseek_v3-lite"),
]
PLAIN = [name for name in WITH_SITES if name not in FUSED + CONV1D]
UNSTACKABLE = [name for name in TINY if name not in WITH_SITES]
HEADS = {
    "distilbert": ("pre_classifier", "classifier"),
    **dict.fromkeys(("deberta-v2", "deberta-v3"), ("pooler", "classifier")),
    **dict.fromkeys(("bert", "roberta", "electra", "albert", "mpnet", "vit"), ("classifier",)),
    **dict.fromkeys(("llama", "opt", "gptj", "mistral", "qwen3", "gemma2"), ("score",)),
    **dict.fromkeys(("t5", "bart"), ("classification_head",)),
}


@torch.no_grad()
def output(model: nn.Module, name: str) -> Tensor:
    return states(model, batch(name, ragged=True))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def vectors_of(sites: list[beft.Site]) -> set[str]:
    return {f"base_model.model.{site.module}.beft_bias.default" for site in sites}


def step(model: Any, name: str, lr: float = 0.05) -> set[str]:
    """One step of SGD on every parameter that has a gradient; gives the names of those that changed."""
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    loss = states(model, batch(name, ragged=True)).float().pow(2).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(lr * parameter.grad / parameter.grad.abs().max().clamp(min=1e-30))
    return {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}


# ---- every family ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_stock_peft_trains_the_value_vectors_alone_and_we_load_and_merge_them(name: str, tmp_path: Path) -> None:
    base = headed(name)
    sites = beft.find_sites(base, "value")
    plain = output(base, name)
    config = beft.peft_config(base, modules_to_save=[])
    assert isinstance(config, peft.BeftConfig)
    assert config.target_modules == {site.module for site in sites}
    model = peft.get_peft_model(base, config)
    assert trainable(model) == vectors_of(sites)
    assert torch.equal(output(model, name), plain)
    assert step(model, name) == vectors_of(sites)
    expected = output(model, name)
    assert float((expected - plain).abs().max()) > 1e-3 * float(plain.abs().max())
    model.save_pretrained(str(tmp_path / "a"))
    fresh = headed(name)
    bank = beft.attach(fresh, "none", names=[])
    loaded = bank.load(tmp_path / "a")
    assert {site.key for site in loaded.sites} == {site.key for site in sites}
    bank.active = loaded.name
    close(output(fresh, name), expected)
    bank.detach()
    if name in (*HOMELESS, "olmo-clip", "gpt_oss", "qwen3_next"):
        return
    close(output(beft.merge(fresh, tmp_path / "a"), name), expected, 1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_terms_that_stock_peft_can_train_are_trained_alone_and_the_others_refused(name: str) -> None:
    base = build(name)
    fit: list[str] = []
    for term in available_terms(base):
        sites = beft.find_sites(base, term.name)
        possible = all(type(get_module(base, s.module)) is nn.Linear and s.whole for s in sites)
        if possible:
            fit.append(term.name)
        else:
            with pytest.raises(SiteError, match="stock PEFT"):
                beft.peft_config(base, term.name)
    assert {"query", "value"} <= set(fit)
    sites = beft.find_sites(base, "+".join(fit))
    assert trainable(peft.get_peft_model(base, beft.peft_config(base, "+".join(fit)))) == vectors_of(sites)


@pytest.mark.parametrize("name", FUSED)
def test_fused_projections_are_refused_and_why(name: str) -> None:
    with pytest.raises(SiteError, match=r"fused projection: b_v is \d+ of its \d+ features.*beft\.train"):
        beft.peft_config(build(name))


@pytest.mark.parametrize("name", CONV1D)
def test_conv1d_is_refused_as_stock_peft_does(name: str) -> None:
    model = build(name)
    with pytest.raises(SiteError, match=r"found a Conv1D, which stock PEFT refuses.*beft\.train"):
        beft.peft_config(model, "attention_output")
    with pytest.raises(SiteError, match="fused"):
        beft.peft_config(model)
    with pytest.raises(TypeError, match=r"Conv1D"):
        peft.get_peft_model(model, peft.BeftConfig(target_modules=["h.0.attn.c_proj"]))


@pytest.mark.parametrize("name", UNSTACKABLE)
def test_models_without_sites_say_so(name: str) -> None:
    with pytest.raises(SiteError, match="expected"):
        beft.peft_config(build(name))


def test_norms_are_refused_because_their_weights_would_be_trained_too() -> None:
    with pytest.raises(SiteError, match="a LayerNorm: stock PEFT can only train it whole"):
        beft.peft_config(build("bert"), "value+attention_norm")


# ---- layers, heads, task types ---------------------------------------------------------------------------------------


def test_layers_are_chosen_and_more_than_twenty_stay_exact() -> None:
    model = build("bert", num_hidden_layers=24)
    assert beft.peft_config(model, layers="last:2").target_modules == {
        f"encoder.layer.{layer}.attention.self.value" for layer in (22, 23)
    }
    odd = [*range(1, 24), 0]
    for layers in (odd[:-1], odd):  # PEFT shortens long lists of targets by their endings
        sites = beft.find_sites(model, "value", layers)
        wrapped = peft.get_peft_model(build("bert", num_hidden_layers=24), beft.peft_config(model, layers=layers))
        assert trainable(wrapped) == vectors_of(sites)


@pytest.mark.parametrize("name", HEADS)
def test_a_classification_head_is_trained_saved_and_loaded(name: str, tmp_path: Path) -> None:
    base = build(name, "classify")
    config = beft.peft_config(base)
    assert config.modules_to_save == list(HEADS[name])
    assert config.task_type == (None if name == "vit" else "SEQ_CLS")
    model = peft.get_peft_model(base, config)
    head = {
        f"base_model.model.{path}.modules_to_save.default.{key}"
        for path in HEADS[name]
        for key, _ in get_module(build(name, "classify"), path).named_parameters()
    }
    assert trainable(model) == vectors_of(beft.find_sites(build(name, "classify"), "value")) | head
    assert step(model, name) <= trainable(model)
    expected = output(model, name)
    model.save_pretrained(str(tmp_path / "a"))
    fresh = build(name, "classify")
    bank = beft.attach(fresh, "none", names=[])
    bank.active = bank.load(tmp_path / "a").name
    close(output(fresh, name), expected)


def test_a_language_models_head_is_not_trained_unless_it_is_named() -> None:
    plain = beft.peft_config(build("llama", "lm"))
    assert plain.modules_to_save is None
    assert plain.task_type is None
    assert beft.peft_config(build("llama", "lm"), task_type="CAUSAL_LM").task_type == "CAUSAL_LM"
    named = beft.peft_config(build("llama", "lm"), modules_to_save=["lm_head"])
    assert named.modules_to_save == ["lm_head"]


def test_the_head_may_be_left_out_whole_or_in_part() -> None:
    part = beft.peft_config(build("roberta", "classify"), modules_to_save=["classifier.out_proj"])
    assert part.task_type is None  # PEFT's SEQ_CLS would add all of `classifier`
    names = trainable(peft.get_peft_model(build("roberta", "classify"), part))
    assert {name.split(".modules_to_save")[0] for name in names if "beft_bias" not in name} == {
        "base_model.model.classifier.out_proj"
    }
    model = build("bert", "classify")
    wrapped = peft.get_peft_model(model, beft.peft_config(model, modules_to_save=[]))
    assert trainable(wrapped) == vectors_of(beft.find_sites(build("bert", "classify"), "value"))


def test_modules_to_save_that_would_take_others_along_are_refused() -> None:
    model = build("distilbert", "classify")
    with pytest.raises(BankError, match=r"found pre_classifier, which PEFT would train and save too"):
        beft.peft_config(model, modules_to_save=["classifier"])
    with pytest.raises(BankError, match=r"which the task type brings.*leave task_type out"):
        beft.peft_config(model, modules_to_save=[], task_type="SEQ_CLS")
    with pytest.raises(BankError, match=r"modules_to_save 'clasifier'.*At the top of the model are distilbert"):
        beft.peft_config(model, modules_to_save=["clasifier"])


def test_a_site_inside_a_module_to_save_is_refused() -> None:
    model = build("bert", "classify")
    with pytest.raises(SiteError, match=r"inside of bert\.encoder\.layer\.1, which PEFT trains whole"):
        beft.peft_config(model, modules_to_save=["bert.encoder.layer.1"])


def two_towers() -> nn.Module:
    """A BERT with a second encoder whose paths end like the first's."""
    model = build("bert")
    model.add_module("text", nn.ModuleDict({"encoder": build("bert", seed=1).get_submodule("encoder")}))
    return model


def test_targets_whose_paths_end_other_paths_are_refused() -> None:
    first = "encoder.layer.0.attention.self.value"
    wrapped = peft.get_peft_model(two_towers(), peft.BeftConfig(target_modules=[first]))
    both = {f"base_model.model.{path}.beft_bias.default" for path in (first, f"text.{first}")}
    assert trainable(wrapped) == both  # what stock PEFT makes of one path
    with pytest.raises(SiteError, match=rf"peft_config: text\.{first}.*would take for a target too"):
        beft.peft_config(two_towers(), layers=[0])
    assert len(beft.peft_config(two_towers()).target_modules) == 4


def test_models_that_are_not_plain_and_names_that_are_wrong_are_refused() -> None:
    model = build("bert")
    with pytest.raises(BankError, match=r"task_type 'SEQ'.*SEQ_CLS"):
        beft.peft_config(model, task_type="SEQ")
    with pytest.raises(TermError, match="valu"):
        beft.peft_config(model, "valu")
    bank = beft.attach(model)
    with pytest.raises(BankError, match="has a bank"):
        beft.peft_config(model)
    bank.detach()
    with pytest.raises(BankError, match="a PeftModel"):
        beft.peft_config(peft.get_peft_model(model, beft.peft_config(model)))


def test_without_peft_the_remedy_is_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BeftError, match=re.escape("pip install 'beft[peft]'")):
        beft.peft_config(build("bert"))


# ---- the Trainer -----------------------------------------------------------------------------------------------------


def test_the_trainer_example_trains_an_adapter_that_we_load_and_merge(bert: Path, tmp_path: Path) -> None:
    rows = [(text, COLOURS[colour]) for text, colour in texts(48)]
    options = {"use_cpu": True, "per_device_train_batch_size": 8, "learning_rate": 5e-2, "disable_tqdm": True}
    trained = load_example("peft_trainer").train(bert, rows, tmp_path / "a", **options, num_train_epochs=12).eval()
    stock: Any = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).eval()
    names = {f"base_model.model.{site.module}.beft_bias" for site in beft.find_sites(stock)}
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert set(stored) == names | {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    assert all(bool(stored[name].abs().min() > 1e-3) for name in names)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    inputs = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    wanted = torch.tensor([sorted(COLOURS).index(label) for _, label in rows])
    with torch.no_grad():
        expected = trained(**inputs).logits
        assert int((expected.argmax(1) == wanted).sum()) > 24  # 16 by chance
        bank = beft.attach(stock, "none", names=[])
        bank.active = bank.load(tmp_path / "a").name
        close(stock(**inputs).logits, expected)
        bank.detach()
        beft.merge(stock, tmp_path / "a").save_pretrained(tmp_path / "m")
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
        close(merged(**inputs).logits, expected, 1e-5)
