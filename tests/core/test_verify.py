import pytest
import torch
import transformers

import beft
from beft.errors import SiteError
from tiny import ODD, REGULAR, TINY, batch, build

from .common import close, same_snapshot, snapshot, states

INERT = {
    *["bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "albert-groups", "deberta-v2", "mpnet"],
    *["opt", "opt-350m", "gpt2", "gpt_neo", "gpt_bigcode", "gpt_bigcode-mha", "bloom", "mpt", "falcon-rw"],
    *["deepseek_v2", "deepseek_v2-lite", "deepseek_v3", "deepseek_v3-lite"],  # key rows of kv_b_proj carry no position
    *["t5", "t5-gated", "bart", "vit"],
}
"""Where a key bias cancels in every layer: positions that do not rotate keys. In SmolLM3 in one layer of two."""

UNPROVEN = {
    "gpt_oss": dict.fromkeys(("query", "key", "value"), "attention sinks"),
    "mpt-clip": {"value": "clipped at 0.5"},
    "olmo-clip": {"value": "clipped at 0.5"},
    "qwen3_next": {"value": "gated", "query": "gate"},
}


@pytest.mark.parametrize("attention", [None, "eager", "sdpa"])
@pytest.mark.parametrize("name", REGULAR)
def test_every_site_is_proven(name, attention):
    try:
        model = build(name, attn_implementation=attention)
    except ValueError:
        pytest.skip(f"no {attention} attention")
    proof = beft.verify_sites(model)
    assert proof.ok, proof.failures
    assert not proof.failures
    assert max(each.error for each in proof.proofs) < 1e-5
    assert {each.site.term.name for each in proof.proofs} == {"query", "key", "value"}
    assert all(not each.inert for each in proof.proofs if each.site.term.name != "key")
    keys = [each for each in proof.proofs if each.site.term.name == "key"]
    if name == "smollm3":
        assert proof.inert_key_layers == [1]
    else:
        assert {each.inert for each in keys} == {name in INERT}
    proof.raise_if_unproven()


@pytest.mark.parametrize("name", list(UNPROVEN))
def test_where_the_identity_does_not_hold_is_reported_with_the_reason(name):
    proof = beft.verify_sites(build(name))
    assert not proof.ok
    reasons = UNPROVEN[name]
    assert {each.site.term.name for each in proof.failures} == set(reasons)
    for each in proof.failures:
        assert reasons[each.site.term.name] in each.reason
        assert "NOT proven" in str(each)
    with pytest.raises(SiteError, match="expected a place of"):
        proof.raise_if_unproven()


def test_layers_without_attention_are_named():
    assert beft.verify_sites(build("qwen3_next")).without_attention == (0,)
    assert beft.verify_sites(build("llama")).without_attention == ()
    assert beft.verify_sites(build("llama"), layers=1).without_attention == ()


def test_a_stack_without_sites_is_named():
    config = transformers.LEDConfig(
        vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, attention_window=4,
    )  # fmt: skip
    checked = beft.verify_sites(transformers.LEDModel(config).eval())
    assert checked.ok
    assert checked.stacks_without == ("encoder",)
    assert {proof.site.stack for proof in checked.proofs} == {"decoder"}
    assert beft.verify_sites(build("bart"), "value@decoder").stacks_without == ()
    assert beft.verify_sites(build("bert")).stacks_without == ()


@pytest.mark.parametrize("name", [name for name in TINY if name not in ODD or name in UNPROVEN])
def test_the_model_is_left_as_it_was(name):
    model = build(name)
    model.train()
    before = snapshot(model)
    beft.verify_sites(model)
    same_snapshot(before, snapshot(model))


@pytest.mark.parametrize("name", ["mamba", "longformer", "xlnet", "convnext"])
def test_models_without_sites_are_refused_and_left_as_they_were(name):
    model = build(name)
    model.train()
    before = snapshot(model)
    with pytest.raises(SiteError):
        beft.verify_sites(model)
    same_snapshot(before, snapshot(model))


@pytest.mark.parametrize("head", ["classify", "lm"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "bart"])
def test_headed_classes(name, head):
    assert beft.verify_sites(build(name, head)).ok


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("bert", {"value": "encoder.layer.*.attention.self.key"}),
        ("bert", {"value": "encoder.layer.*.attention.self.query"}),
        ("bert", {"key": "encoder.layer.*.attention.self.value"}),
        ("llama", {"value": "layers.*.self_attn.k_proj"}),
        ("gpt2", {"value": "h.*.attn.c_attn[32:64]"}),
        ("gpt2", {"value": "h.*.attn.c_attn[60:92]"}),
        ("gpt2", {"query": "h.*.attn.c_attn[64:96]"}),
        ("gpt_neox", {"value": "layers.*.attention.query_key_value[64:96]"}),
        ("phi3", {"value": "layers.*.self_attn.qkv_proj[32:48]"}),
    ],
)
def test_a_wrong_site_named_by_hand_is_refuted(name, sites):
    proof = beft.verify_sites(build(name), "+".join(sites), sites=sites)
    assert not any(each.proven for each in proof.proofs)
    assert all(each.error > 1e-2 for each in proof.proofs)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("bert", {"value": "encoder.layer.*.attention.self.value"}),
        ("gpt2", {"value": "h.*.attn.c_attn[64:96]"}),
        ("gpt2", {"query": "h.*.attn.c_attn[0:32]", "key": "h.*.attn.c_attn[32:64]"}),
        ("llama", {"value": "layers.*.self_attn.v_proj", "key": "layers.*.self_attn.k_proj"}),
        ("phi3", {"value": "layers.*.self_attn.qkv_proj[48:64]"}),
    ],
)
def test_a_right_site_named_by_hand_is_proven(name, sites):
    proof = beft.verify_sites(build(name), "+".join(sites), sites=sites)
    assert len(proof.proofs) == 2 * len(sites)
    assert proof.ok, proof.failures


def test_a_site_by_hand_outside_attention_is_refused():
    with pytest.raises(SiteError, match=r"layers.0.mlp.up_proj.*named by hand"):
        beft.verify_sites(build("llama"), "value", sites={"value": "layers.*.mlp.up_proj"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "deepseek_v3", "vit", "bloom"])
def test_other_precisions(name, dtype):
    if name == "deepseek_v3" and dtype == torch.float64:
        pytest.skip("torch has no grouped product of experts in double precision")
    proof = beft.verify_sites(build(name).to(dtype))
    assert proof.ok, proof.failures
    if dtype == torch.float64:
        assert max(each.error for each in proof.proofs) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wrong_site_is_refuted_in_half_precision(dtype):
    model = build("gpt2").to(dtype)
    assert not beft.verify_sites(model, "value", sites={"value": "h.*.attn.c_attn[32:64]"}).ok


@pytest.mark.parametrize("name", ["bert", "gpt2", "bloom", "t5", "vit"])
def test_inert_key_biases_have_no_gradient_and_no_effect(name):
    """What `inert` predicts of the whole model."""
    model, inputs = build(name), batch(name)
    plain = states(model, inputs).detach()
    bank = beft.attach(model, "key")
    states(model, inputs).pow(2).sum().backward()
    assert max(float(p.grad.abs().max()) for p in bank.parameters("default")) < 1e-4
    with torch.no_grad():
        for parameter in bank.parameters("default"):
            parameter.normal_()
        close(states(model, inputs), plain, 1e-5)


def test_verifying_an_attached_model_ignores_its_adapters():
    model = build("bert")
    beft.attach(model, "value")
    with torch.no_grad():
        for parameter in model.beft.parameters():
            parameter.normal_()
    assert beft.verify_sites(model).ok
