import pytest
import torch
import transformers as tf
from torch import nn

import beft
from beft.core.attentions import output_features
from beft.core.sites import available_terms, parse_layers
from beft.core.terms import LAYER_TERMS
from beft.errors import SiteError, TermError
from tiny import batch, build

from .common import WITH_SITES

ONE_NORM = {"gptj", "codegen", "falcon-mha", "falcon-7b", "falcon-11b", "phi", "stablelm-parallel", "cohere"}
ALL_EXPERTS = {"mixtral", "gpt_oss", "qwen3_next"}  # feed-forward parts without a projection of their own
HIDDEN = {"codegen": 64}
STACKS = {"t5", "t5-gated", "bart"}

WANT_PATHS = {
    "bert": {
        "query": "encoder.layer.1.attention.self.query",
        "attention_output": "encoder.layer.1.attention.output.dense",
        "attention_norm": "encoder.layer.1.attention.output.LayerNorm",
        "intermediate": "encoder.layer.1.intermediate.dense",
        "output": "encoder.layer.1.output.dense",
        "output_norm": "encoder.layer.1.output.LayerNorm",
    },
    "llama": {
        "value": "layers.1.self_attn.v_proj",
        "attention_norm": "layers.1.input_layernorm",
        "intermediate": "layers.1.mlp.up_proj",
        "output": "layers.1.mlp.down_proj",
        "output_norm": "layers.1.post_attention_layernorm",
    },
    "gemma2": {
        "attention_norm": "layers.1.input_layernorm",
        "output_norm": "layers.1.pre_feedforward_layernorm",
    },
    "olmo": {
        "attention_norm": "layers.1.input_layernorm",
        "output_norm": "layers.1.post_attention_layernorm",
    },
    "olmo2": {
        "attention_norm": "layers.1.post_attention_layernorm",
        "output_norm": "layers.1.post_feedforward_layernorm",
    },
    "falcon-40b": {"attention_norm": "h.1.ln_attn", "output_norm": "h.1.ln_mlp"},
    "albert": {"value": "encoder.albert_layer_groups.0.albert_layers.0.attention.value"},
}

H, K = 4, 2  # query heads, key/value heads of the tiny models
WANT_ROWS = {  # in layer 0: rows of query, key, value
    "gpt2": ([(0, 32)], [(32, 64)], [(64, 96)]),
    "gpt_bigcode": ([(0, 32)], [(32, 40)], [(40, 48)]),
    "gpt_bigcode-mha": tuple([(24 * h + 8 * part, 24 * h + 8 * part + 8) for h in range(H)] for part in range(3)),
    "bloom": tuple([(24 * h + 8 * part, 24 * h + 8 * part + 8) for h in range(H)] for part in range(3)),
    "gpt_neox": tuple([(24 * h + 8 * part, 24 * h + 8 * part + 8) for h in range(H)] for part in range(3)),
    "falcon-rw": tuple([(24 * h + 8 * part, 24 * h + 8 * part + 8) for h in range(H)] for part in range(3)),
    "falcon-7b": ([(0, 32)], [(32, 40)], [(40, 48)]),
    "falcon-40b": ([(0, 16), (32, 48)], [(16, 24), (48, 56)], [(24, 32), (56, 64)]),
    "phi3": ([(0, 32)], [(32, 48)], [(48, 64)]),
    "mpt": ([(0, 32)], [(32, 64)], [(64, 96)]),
    "modernbert": ([(0, 32)], [(32, 64)], [(64, 96)]),
    "codegen": tuple([(48 * b + o, 48 * b + o + 16) for b in range(4)] for o in (0, 32, 16)),
    "deepseek_v3": ([(0, 48)], [(18 * h, 18 * h + 8) for h in range(H)], [(18 * h + 8, 18 * h + 18) for h in range(H)]),
    "llama": ([(0, 32)], [(0, 16)], [(0, 16)]),
}


def expected_terms(name):
    missing = set()
    if name in ONE_NORM:
        missing.add("output_norm")
    if name in ALL_EXPERTS:
        missing |= {"intermediate", "output"}
    return [term for term in LAYER_TERMS if term not in missing]


@pytest.mark.parametrize("name", WITH_SITES)
def test_every_term_is_found_where_it_exists(name):
    model = build(name)
    found = {term.name for term in available_terms(model)}
    assert found - {"pooler", "embedding_norm"} == set(expected_terms(name))
    hidden = HIDDEN.get(name, 32)
    for term in expected_terms(name):
        sites = beft.find_sites(model, term)
        assert len({site.module for site in sites}) == len(sites)
        for site in sites:
            module = model.get_submodule(site.module)
            assert not isinstance(module, nn.Identity)
            assert site.rows[-1][1] <= site.features == output_features(module)
            assert ("norm" in type(module).__name__.lower()) == term.endswith("_norm")
            if term in ("attention_output", "output", "attention_norm", "output_norm"):
                assert site.width == hidden
            if term == "intermediate":
                assert site.width in (56, 4 * hidden)


@pytest.mark.parametrize("name", sorted(ONE_NORM | ALL_EXPERTS))
def test_a_term_the_model_lacks_is_refused(name):
    missing = next(term for term in LAYER_TERMS if term not in expected_terms(name))
    with pytest.raises(TermError, match="b_LN2" if missing == "output_norm" else "b_m2"):
        beft.find_sites(build(name), missing)


@pytest.mark.parametrize("name", WITH_SITES)
def test_site_output_has_the_features_and_the_batch_first(name):
    """One forward: a site's module gives (rows, ..., features)."""
    model = build(name)
    sites = beft.find_sites(model, expected_terms(name))
    shapes = {}

    def note(path):
        def hook(module, args, output):
            shapes.setdefault(path, output.shape)

        return hook

    for site in sites:
        model.get_submodule(site.module).register_forward_hook(note(site.module))
    with torch.no_grad():
        model(**batch(name))
    for site in sites:
        flat = {3 * 7} if name.startswith("opt") else set()  # its feed-forward part sees tokens, not rows
        assert shapes[site.module][0] in {3} | flat
        assert shapes[site.module][-1] == site.features


@pytest.mark.parametrize("name", list(WANT_PATHS))
def test_paths(name):
    model = build(name)
    for term, path in WANT_PATHS[name].items():
        assert beft.find_sites(model, term)[-1].module == path


@pytest.mark.parametrize("name", list(WANT_ROWS))
def test_rows_of_fused_projections(name):
    model = build(name)
    for term, rows in zip(("query", "key", "value"), WANT_ROWS[name], strict=True):
        assert list(beft.find_sites(model, term)[0].rows) == rows, term


@pytest.mark.parametrize("name", WITH_SITES)
def test_fused_rows_do_not_overlap(name):
    model = build(name)
    taken = {}
    for site in beft.find_sites(model, "query+key+value"):
        for feature in site.index().tolist():
            assert (site.module, feature) not in taken
            taken[site.module, feature] = site.term.name


def test_widen_and_narrow_are_inverse_and_leave_the_other_features_alone():
    site = beft.find_sites(build("bloom"), "value")[0]
    vector = torch.randn(2, site.width)
    full = site.widen(vector)
    assert full.shape == (2, site.features)
    assert torch.equal(site.narrow(full), vector)
    others = torch.ones(site.features, dtype=torch.bool)
    others[site.index()] = False
    assert not full[:, others].any()


def test_order_is_layers_encoder_before_decoder_self_before_cross():
    sites = beft.find_sites(build("t5"), "value+query")
    places = [(s.stack, s.layer, s.attention, s.term.name) for s in sites]
    assert places[:4] == [
        ("encoder", 0, "self", "query"),
        ("encoder", 0, "self", "value"),
        ("encoder", 1, "self", "query"),
        ("encoder", 1, "self", "value"),
    ]
    assert places[4:8] == [
        ("decoder", 0, "self", "query"),
        ("decoder", 0, "self", "value"),
        ("decoder", 0, "cross", "query"),
        ("decoder", 0, "cross", "value"),
    ]


@pytest.mark.parametrize("name", sorted(STACKS))
def test_qualifiers_choose_attention_and_stack(name):
    model = build(name)

    def places(terms):
        return {(s.stack, s.attention) for s in beft.find_sites(model, terms)}

    assert places("value") == {("encoder", "self"), ("decoder", "self"), ("decoder", "cross")}
    assert places("v@cross") == {("decoder", "cross")}
    assert places("b_v@self") == {("encoder", "self"), ("decoder", "self")}
    assert places("value@encoder") == {("encoder", "self")}
    assert places("value@decoder@self") == {("decoder", "self")}
    assert len(beft.find_sites(model, "value@decoder+value@cross")) == 4  # a site named twice counts once
    assert len(beft.find_sites(model, "LN1@cross")) == 2


def test_qualifier_without_meaning_is_refused():
    for terms in ("value@cross", "value@decoder"):
        with pytest.raises(TermError, match="only"):
            beft.find_sites(build("bert"), terms)
    assert len(beft.find_sites(build("bert"), "value@self")) == 2


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        (1, [1]),
        (-1, [3]),
        ([0, -1], [0, 3]),
        ("0-1,3", [0, 1, 3]),
        ("last:2", [2, 3]),
        ("first:1", [0]),
        ("last:9", [0, 1, 2, 3]),
        ("all", [0, 1, 2, 3]),
        ("-2", [2]),
    ],
)
def test_layers(layers, numbers):
    assert parse_layers(layers, 4) == numbers
    model = build("bert", num_hidden_layers=4)
    assert [site.layer for site in beft.find_sites(model, "value", layers)] == numbers


def test_layers_apply_to_each_stack():
    sites = beft.find_sites(build("bart"), "value", "last:1")
    assert [(s.stack, s.layer, s.attention) for s in sites] == [
        ("encoder", 1, "self"),
        ("decoder", 1, "self"),
        ("decoder", 1, "cross"),
    ]


@pytest.mark.parametrize("layers", [2, "0-7", "x", "-3", [], "last:0", ["1", "y"]])
def test_layers_that_name_none_are_refused(layers):
    with pytest.raises(SiteError, match="layers="):
        beft.find_sites(build("bert"), "value", layers)


def test_layers_of_the_whole_model_when_only_some_have_the_term():
    """The dense feed-forward part stands in layer 0 only, yet -1 means the model's last layer."""
    model = build("deepseek_v3")
    assert [site.layer for site in beft.find_sites(model, "intermediate")] == [0]
    assert [site.layer for site in beft.find_sites(model, "intermediate", "first:1")] == [0]
    with pytest.raises(SiteError, match="at least one layer"):
        beft.find_sites(model, "intermediate", -1)


def test_terms_once_a_model_ignore_layers():
    sites = beft.find_sites(build("bert"), "pooler+value+embedding_norm", 1)
    assert [site.module for site in sites] == [
        "embeddings.LayerNorm",
        "pooler.dense",
        "encoder.layer.1.attention.self.value",
    ]


def test_shared_layers_say_so():
    (site,) = beft.find_sites(build("albert"), "value")
    assert site.shared == 2
    assert [site.shared for site in beft.find_sites(build("albert-groups"), "value")] == [1, 1]
    assert {site.shared for site in beft.find_sites(build("bert"), "value")} == {1}


def test_paths_in_headed_classes():
    sites = beft.find_sites(build("bert", "classify"), "value+pooler")
    assert [site.module for site in sites] == [
        "bert.pooler.dense",
        "bert.encoder.layer.0.attention.self.value",
        "bert.encoder.layer.1.attention.self.value",
    ]
    assert beft.find_sites(build("llama", "lm"))[0].module == "model.layers.0.self_attn.v_proj"


@pytest.mark.parametrize("name", ["mamba", "xlnet", "convnext"])
def test_models_without_known_attention_are_refused_with_candidates(name):
    with pytest.raises(SiteError) as caught:
        beft.find_sites(build(name))
    assert "candidate modules: " in str(caught.value)
    assert "sites=" in str(caught.value)
    assert "*" in str(caught.value)


@pytest.mark.parametrize("name", ["mamba", "xlnet", "convnext"])
def test_available_terms_says_so_too(name):
    with pytest.raises(SiteError, match="candidate modules"):
        available_terms(build(name))


@pytest.mark.parametrize("terms", ["value", "query", "output"])
def test_time_major_projections_are_refused(terms):
    model = build("longformer")
    modes = [m.training for m in model.modules()]
    with pytest.raises(SiteError, match=r"first axis is the batch.*found shape \(8, 3, 32\)"):
        beft.find_sites(model, terms)
    assert modes == [m.training for m in model.modules()]
    assert not any(m._forward_hooks for m in model.modules())


# ---- types that no line of data names --------------------------------------------------------------------------------


class NewLlamaConfig(tf.LlamaConfig):
    model_type = "newllama"


class NewLongformerConfig(tf.LongformerConfig):
    model_type = "newlongformer"


class NewGPT2Config(tf.GPT2Config):
    model_type = "newgpt2"


def test_unknown_type_of_a_known_pattern_is_found_and_verified():
    config = NewLlamaConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=56,
    )
    model = tf.LlamaModel(config).eval()
    assert [s.module for s in beft.find_sites(model)] == [f"layers.{n}.self_attn.v_proj" for n in range(2)]
    assert beft.verify_sites(model).ok
    assert {term.name for term in available_terms(model)} == set(LAYER_TERMS)


def test_unknown_type_with_time_major_projections_is_refused():
    config = NewLongformerConfig(**build("longformer").config.to_diff_dict())
    with pytest.raises(SiteError, match="first axis is the batch"):
        beft.find_sites(tf.LongformerModel(config).eval())


def test_unknown_type_with_a_fused_projection_asks_for_the_features():
    model = tf.GPT2Model(NewGPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4)).eval()
    with pytest.raises(SiteError, match=r"split into query, key and value that is not known.*\[start:stop\]"):
        beft.find_sites(model)
    (site,) = beft.find_sites(model, "value", sites={"value": "h.*.attn.c_attn[64:96]"})
    assert (site.rows, site.features, site.width) == (((64, 96),), 96, 32)
    assert beft.verify_sites(model, "value", sites={"value": "h.*.attn.c_attn[64:96]"}).ok
    assert not beft.verify_sites(model, "value", sites={"value": "h.*.attn.c_attn[32:64]"}).ok
    assert beft.find_sites(model, "attention_output+output")


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_by_hand_patterns():
    model = build("llama")
    hand = beft.find_sites(model, "value", sites={"v": "layers.*.self_attn.v_proj"})
    assert [(s.layer, s.module, s.rows) for s in hand] == [
        (n, f"layers.{n}.self_attn.v_proj", ((0, 16),)) for n in range(2)
    ]
    assert [s.layer for s in beft.find_sites(model, "value", -1, sites={"value": "*.v_proj"})] == [1]
    mixed = beft.find_sites(model, "value+query", sites={"value": "layers.1.self_attn.v_proj[4:8]"})
    assert [(s.term.name, s.width) for s in mixed] == [("query", 32), ("query", 32), ("value", 4)]


def test_by_hand_in_a_model_without_known_attention():
    model = build("convnext")
    sites = beft.find_sites(model, "output", sites={"output": "encoder.stages.*.layers.*.pwconv2"})
    assert [site.features for site in sites] == [16, 32]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layers.*.nothing", "Candidates: layers.*.self_attn.q_proj"),
        ("layers.*.self_attn.v_proj[8:20]", "16 features"),
        ("layers.*.self_attn.v_proj[8:8]", "16 features"),
        ("layers.*.self_attn", "0 features"),
        ("layers.*.mlp.act_fn", "0 features"),
    ],
)
def test_by_hand_faults(pattern, message):
    with pytest.raises(SiteError) as caught:
        beft.find_sites(build("llama"), "value", sites={"value": pattern})
    assert message in str(caught.value)


def test_by_hand_for_a_term_that_is_not_asked_for():
    with pytest.raises(TermError, match="sites"):
        beft.find_sites(build("llama"), "value", sites={"query": "layers.*.self_attn.q_proj"})


def test_sites_by_hand_leave_the_bank_out():
    model = build("bert", "classify")
    bank = beft.attach(model)
    bank.set_head("default", beft.ModelHead(model, ["bert.pooler", "classifier"]))
    before = [s.module for s in beft.find_sites(model, "all+pooler")]
    assert not any(path.startswith("beft") for path in before)
    assert [s.module for s in beft.find_sites(model, "pooler", sites={"pooler": "*pooler*dense"})] == [
        "bert.pooler.dense"
    ]
