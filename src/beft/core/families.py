"""Data: where each family of models keeps its projections, and how fused ones are laid out.

A family is a line of `ATTENTIONS`: the paths of its projections below a layer, `|` between alternatives, and the model
types for which this was proven by test. A model of another type that has the same paths follows the same pattern, and
`find_sites` then checks by a tiny forward that the first axis is the batch. Norms and feed-forward projections are
found by `BLOCK_PATHS`, in the order of preference written there. `register_family` adds a family from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..errors import SiteError, nearest
from .terms import TERMS, Term


@dataclass(frozen=True)
class Attention:
    """Paths below a layer (`encoder.layer.0`) of one attention's projections, the same path thrice if fused."""

    query: str
    key: str
    value: str
    output: str
    types: str
    kind: str = "self"
    layout: str = "separate"


def _three(path: str, output: str, types: str, kind: str = "self") -> Attention:
    """A line with separate projections: `attn.{q}_proj` stands for q, k and v, `attn.{query}` for the whole words."""
    query, key, value = (path.format(q=word[0], query=word) for word in ("query", "key", "value"))
    return Attention(query, key, value, output, types, kind)


def _fused(path: str, output: str, types: str, layout: str) -> Attention:
    return Attention(path, path, path, output, types, layout=layout)


_LLAMA_KIN = (
    "opt bart phi llama mistral mixtral qwen2 qwen3 gemma gemma2 gemma3 gemma3_text olmo olmo2 stablelm cohere smollm3 "
    "granite mbart pegasus marian qwen3_next gpt_oss"
)

ATTENTIONS: tuple[Attention, ...] = (
    _three("attention.self.{query}", "attention.output.dense", "bert roberta xlm-roberta electra camembert"),
    _three("attention.self.{query}_proj", "attention.output.dense", "deberta-v2"),
    _three("attention.{query}", "attention.dense", "albert"),
    _three("attention.{q}_lin", "attention.out_lin", "distilbert"),
    _three("attention.attn.{q}", "attention.attn.o", "mpnet"),
    _three("attention.{q}_proj", "attention.o_proj", "vit"),
    _three("layer.0.SelfAttention.{q}", "layer.0.SelfAttention.o", "t5 mt5"),
    _three("layer.1.EncDecAttention.{q}", "layer.1.EncDecAttention.o", "t5 mt5", "cross"),
    _three("self_attn.{q}_proj", "self_attn.o_proj|self_attn.out_proj|self_attn.dense", _LLAMA_KIN),
    _three("encoder_attn.{q}_proj", "encoder_attn.out_proj", "bart mbart pegasus marian", "cross"),
    _three("attn.attention.{q}_proj", "attn.attention.out_proj", "gpt_neo"),
    _three("attn.{q}_proj", "attn.out_proj", "gptj"),
    _fused("attn.c_attn", "attn.c_proj", "gpt2", "blocks"),
    _fused("attn.c_attn", "attn.c_proj", "gpt_bigcode", "bigcode"),
    _fused("attn.Wqkv", "attn.Wo|attn.out_proj", "modernbert mpt", "blocks"),
    _fused("attn.qkv_proj", "attn.out_proj", "codegen", "codegen"),
    _fused("self_attn.qkv_proj", "self_attn.o_proj", "phi3", "blocks"),
    _fused("attention.query_key_value", "attention.dense", "gpt_neox", "heads"),
    _fused("self_attention.query_key_value", "self_attention.dense", "bloom", "heads"),
    _fused("self_attention.query_key_value", "self_attention.dense", "falcon", "falcon"),
    Attention(
        "self_attn.q_b_proj|self_attn.q_proj",
        "self_attn.kv_b_proj",
        "self_attn.kv_b_proj",
        "self_attn.o_proj",
        "deepseek_v2 deepseek_v3",
        layout="latent",
    ),
)

BLOCK_PATHS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention_norm": (
            "attention.output.LayerNorm",  # BERT kin, DeBERTa
            "attention.LayerNorm",  # ALBERT, MPNet
            "sa_layer_norm",  # DistilBERT
            "attn_norm",  # ModernBERT (an Identity in its first layer: no site there)
            "layer.0.layer_norm",  # T5
            "self_attn_layer_norm",  # BART, OPT
            "ln_1",  # GPT-2 kin
            "norm_1",  # MPT
            "ln_attn",  # Falcon, new decoder
            "layernorm_before",  # ViT
            "input_layernorm",  # Llama kin, NeoX, BLOOM, Falcon
            "post_attention_layernorm",  # OLMo 2: the norm behind attention
        ),
        "intermediate": (
            "intermediate.dense",
            "ffn.lin1",
            "mlp.Wi",  # ModernBERT: act(first half) * second half
            "layer.-1.DenseReluDense.wi_1",  # T5, gated
            "layer.-1.DenseReluDense.wi",
            "fc1",  # BART, OPT
            "mlp.c_fc",
            "mlp.fc_in",
            "mlp.fc1",
            "mlp.up_proj",
            "mlp.gate_up_proj",  # Phi-3: gate first, then up
            "mlp.dense_h_to_4h",
            "ffn.up_proj",
            "ffn",  # ALBERT
        ),
        "output": (
            "output.dense",
            "ffn.lin2",
            "mlp.Wo",
            "layer.-1.DenseReluDense.wo",
            "fc2",
            "mlp.c_proj",
            "mlp.fc_out",
            "mlp.fc2",
            "mlp.down_proj",
            "mlp.dense_4h_to_h",
            "ffn.down_proj",
            "ffn_output",
        ),
        "output_norm": (
            "output.LayerNorm",
            "full_layer_layer_norm",  # ALBERT
            "output_layer_norm",  # DistilBERT
            "mlp_norm",  # ModernBERT
            "layer.-1.layer_norm",  # T5
            "final_layer_norm",  # BART, OPT
            "ln_2",
            "norm_2",
            "ln_mlp",
            "layernorm_after",
            "pre_feedforward_layernorm",  # Gemma 2 and 3
            "post_feedforward_layernorm",  # OLMo 2
            "post_attention_layernorm",
        ),
    }
)
"""Paths below a layer, first found wins; `layer.-1` is the last entry of the layer's own list (T5)."""

MODEL_PATHS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "embedding_norm": (
            "embeddings.LayerNorm",
            "embeddings.norm",
            "word_embeddings_layernorm",
            "layernorm_embedding",
        ),
        "pooler": ("pooler.dense", "pooler"),
    }
)

_OWN_LINES: list[Attention] = []
_OWN_PATHS: dict[tuple[str, str], tuple[str, ...]] = {}
"""Of families from outside: attentions, and paths by (model type, term)."""


def attention_lines(model_type: str | None) -> tuple[Attention, ...]:
    """The attentions to look for in a model of a type: those registered for it, then beft's own."""
    return (*(line for line in _OWN_LINES if line.types == model_type), *ATTENTIONS)


def term_paths(term: Term, model_type: str | None) -> tuple[str, ...]:
    """Paths of a norm's or a feed-forward part's term, first found wins; those registered for the type come first."""
    own = _OWN_PATHS.get((model_type or "", term.name), ())
    return (*own, *(BLOCK_PATHS if term.per_layer else MODEL_PATHS).get(term.name, term.paths))


def register_family(
    model_type: str,
    *,
    query: str,
    key: str,
    value: str,
    output: str,
    kind: str = "self",
    layout: str = "separate",
    paths: Mapping[str, str] | None = None,
) -> None:
    """Say where the projections of a family from outside are. `find_sites` still checks its batch axis by a forward.

    Args:
        model_type: the config's `model_type`.
        query, key, value, output: paths below a layer (the module of a list), the same path thrice if fused.
        kind: "self", or "cross" in a second call for models that have both.
        layout: of a fused projection, a name in `LAYOUTS`; "separate" otherwise.
        paths: below a layer, of other terms: {"intermediate": "ffn.0"}. Without them beft's own are tried.

    Raises:
        SiteError: a type that has such an attention already, an unknown kind, layout, or term of `paths`.
    """
    where = f"register_family({model_type!r})"
    if any(model_type in line.types.split() and line.kind == kind for line in (*_OWN_LINES, *ATTENTIONS)):
        raise SiteError(where, expected="a new model type", found=f"one whose {kind}-attention is known")
    for name, given, known in (
        ("kind", kind, ("self", "cross")),
        ("layout", layout, ("separate", *LAYOUTS, *LAYOUT_BY_CONFIG)),
        *(("paths", term, tuple(TERMS)) for term in paths or {}),
    ):
        if given not in known:
            raise SiteError(
                f"{where}, {name}", expected="a known name", found=repr(given), remedy=nearest(given, known)
            )
    _OWN_LINES.append(Attention(query, key, value, output, model_type, kind, layout))
    _OWN_PATHS.update({(model_type, term): (path,) for term, path in (paths or {}).items()})


SECOND_HALF: frozenset[str] = frozenset({"mlp.gate_up_proj", "mlp.Wi"})
"""Fused gate-and-up projections whose up part is the second half of their output features."""

CROSS_NORMS: tuple[str, ...] = ("encoder_attn_layer_norm", "layer.1.layer_norm")


@dataclass(frozen=True)
class Heads:
    """Shape of an attention: query heads, key/value heads, features a head; key and value features if they differ."""

    query: int
    key_value: int
    width: int
    nope_width: int = 0  # features of a latent key that carry no position
    value_width: int = 0

    @property
    def value(self) -> int:
        return self.value_width or self.width


Parts = tuple[int, tuple[tuple[str, int], ...]]
"""A fused layout: how often it repeats, and the (part, features) of one repetition in order."""

LAYOUTS: Mapping[str, Callable[[Heads], Parts]] = MappingProxyType(
    {
        "blocks": lambda h: (
            1,
            (("query", h.query * h.width), ("key", h.key_value * h.width), ("value", h.key_value * h.width)),
        ),
        "heads": lambda h: (h.query, (("query", h.width), ("key", h.width), ("value", h.width))),
        "groups": lambda h: (
            h.key_value,
            (("query", h.query // h.key_value * h.width), ("key", h.width), ("value", h.width)),
        ),
        "codegen": lambda h: (
            4,  # one block a core of the machine it was trained on
            (("query", h.query * h.width // 4), ("value", h.query * h.width // 4), ("key", h.query * h.width // 4)),
        ),
        "latent": lambda h: (h.query, (("key", h.nope_width), ("value", h.value))),
    }
)

LAYOUT_BY_CONFIG: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "falcon": lambda c: "groups" if c.new_decoder_architecture else "blocks" if c.multi_query else "heads",
        "bigcode": lambda c: "blocks" if c.multi_query else "heads",
    }
)
"""Families whose layout hangs on their config."""

SHARED_LAYERS: Mapping[str, Callable[[Any], int]] = MappingProxyType(
    {"albert": lambda c: c.num_hidden_layers // (c.num_hidden_groups * c.inner_group_num)}
)
"""Families whose layers share weights: how many layers of the computation use one stored layer."""


def head_shape(config: Any, module: Any) -> Heads:
    """Heads of an attention, from the projection's owner where it says, else from the config.

    Falcon's `num_kv_heads` counts only in its new decoder, and `multi_query` means one key/value head.
    """

    def first(*names: str) -> int:
        for source in (module, config):
            for name in names:
                value = getattr(source, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return 0

    query = first("num_attention_heads", "num_heads", "n_head", "n_heads", "n_head", "encoder_attention_heads")
    hidden = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0))
    width = first("head_dim", "attention_head_size", "size_per_head", "key_value_proj_dim", "d_kv")
    width = width or (hidden // query if query else 0)
    if getattr(config, "model_type", "") == "falcon":
        key_value = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else query
    elif getattr(config, "multi_query", False):
        key_value = 1
    else:
        key_value = getattr(config, "num_key_value_heads", None) or query
    return Heads(query, key_value, width, first("qk_nope_head_dim"), first("v_head_dim"))


KNOWN_TYPES: frozenset[str] = frozenset(name for line in ATTENTIONS for name in line.types.split())

PARALLEL_OUTPUT: Mapping[str, str] = MappingProxyType({"gptj": "mlp.fc_out", "codegen": "mlp.fc_out"})
"""Families whose attention and feed-forward part run side by side and whose only bias behind them is this one's."""
