"""Tiny random models, one per family and layout, and batches for them.

`TINY` is the table; `build` makes a model of an entry and `batch` its inputs. Nothing is downloaded and a build takes
well under a second. The sizes are chosen so that a mix-up shows: the feed-forward is no multiple of the hidden size,
keys and values are grouped where the family can group them, a head size is free of `hidden / heads` where the family
lets it be, sliding windows are shorter than a batch, and clips are tight enough to clip.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import transformers as tf

Kind = Literal["encoder", "decoder", "encoder-decoder", "vision"]
Head = Literal["base", "classify", "lm"]

PAD, BOS, EOS = 1, 2, 3  # 0 is a common default for padding, so a forgotten `pad_token_id` would go unseen
FIRST_TOKEN, VOCAB = 4, 97  # a batch draws from [FIRST_TOKEN, VOCAB)
LABELS = 3
IMAGE = 12


@dataclass(frozen=True)
class Tiny:
    """One family in one layout.

    Attributes:
        name: the key in `TINY`.
        kind: which inputs the model takes, and which class its language-model head has.
        config: makes the configuration; keywords override its fields.
        odd: empty, or why adding a vector to the values does not simply shift the attention's output by it, or
            why the values are not the output features of a linear layer, batch first.
    """

    name: str
    kind: Kind
    config: Callable[..., tf.PreTrainedConfig]
    odd: str = ""


def build(
    name: str, head: Head = "base", seed: int = 0, attn_implementation: str | None = None, **overrides: Any
) -> tf.PreTrainedModel:
    """A model of the entry `name`, in `eval()`, every parameter random and non-zero, every buffer as it comes.

    A parameter depends on `seed`, its shape and its name in the backbone, so the backbone is the same under every head.
    `attn_implementation` is the family's default unless given; `overrides` are fields of the configuration.

    Raises:
        LookupError: no such entry, or transformers has no class with that head for the family.
    """
    entry = _entry(name)
    config = entry.config(**overrides)
    auto, mapping = _HEADS.get((entry.kind, head), (None, {}))
    if auto is None or type(config) not in mapping:
        raise LookupError(f"transformers has no class with the head {head!r} for {name!r} ({type(config).__name__})")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: tf.PreTrainedModel = auto.from_config(config, attn_implementation=attn_implementation)
    _randomise(model, seed)
    model.eval()
    return model


def batch(name: str, rows: int = 3, length: int = 7, seed: int = 0, ragged: bool = False) -> dict[str, torch.Tensor]:
    """Inputs for a model of the entry `name`: right-padded rows of different lengths when `ragged`.

    Special tokens appear only where a model needs them: padding, and the end token that closes each row of an
    encoder-decoder (its classifier reads the state there). A vision model gets images; it knows no `length`.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = _entry(name).kind
    if kind == "vision":
        return {"pixel_values": torch.randn(rows, 3, IMAGE, IMAGE, generator=generator)}
    lengths = torch.tensor([length - row % (length // 2 + 1) if ragged else length for row in range(rows)])
    mask = torch.arange(length) < lengths[:, None]
    ids = torch.randint(FIRST_TOKEN, VOCAB, (rows, length), generator=generator).where(mask, PAD)
    if kind != "encoder-decoder":
        return {"input_ids": ids, "attention_mask": mask.long()}
    ids[torch.arange(rows), lengths - 1] = EOS
    start = ids.new_full((rows, 1), _entry(name).config().decoder_start_token_id)
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "decoder_input_ids": torch.cat([start, ids[:, :-1]], dim=1),
    }


def _entry(name: str) -> Tiny:
    if name not in TINY:
        raise LookupError(f"no tiny model {name!r}; there are {', '.join(TINY)}")
    return TINY[name]


def _randomise(model: tf.PreTrainedModel, seed: int) -> None:
    """Vectors (biases, norms) get noise on top of what they are; the rest is drawn at about one over root width.

    Stock initialisation would leave biases zero, and attention next to uniform at these sizes.
    """
    # A tied weight has two names under some heads: the one in the backbone comes last and counts.
    names = {weight: name for part in (model, model.base_model) for name, weight in part.named_parameters()}
    generator = torch.Generator()
    with torch.no_grad():
        for weight, name in names.items():
            generator.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            # In double precision: among as many single ones a draw of exactly zero does occur.
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(weight + 0.1 * noise if weight.dim() < 2 else 0.2 * noise)


_MODEL = (tf.AutoModel, tf.MODEL_MAPPING)
_TEXT_CLASSIFIER = (tf.AutoModelForSequenceClassification, tf.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
_HEADS: dict[tuple[Kind, Head], tuple[Any, Any]] = {
    ("encoder", "base"): _MODEL,
    ("encoder", "classify"): _TEXT_CLASSIFIER,
    ("encoder", "lm"): (tf.AutoModelForMaskedLM, tf.MODEL_FOR_MASKED_LM_MAPPING),
    ("decoder", "base"): _MODEL,
    ("decoder", "classify"): _TEXT_CLASSIFIER,
    ("decoder", "lm"): (tf.AutoModelForCausalLM, tf.MODEL_FOR_CAUSAL_LM_MAPPING),
    ("encoder-decoder", "base"): _MODEL,
    ("encoder-decoder", "classify"): _TEXT_CLASSIFIER,
    ("encoder-decoder", "lm"): (tf.AutoModelForSeq2SeqLM, tf.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    ("vision", "base"): _MODEL,
    ("vision", "classify"): (tf.AutoModelForImageClassification, tf.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
}


# The fields most families share. A family that names them otherwise has a set of its own.
_IDS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = _IDS | _SIZES | {"intermediate_size": 56, "max_position_embeddings": 64}
_GROUPED = _TEXT | {"num_key_value_heads": 2}
_GPT = _IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 56, "n_positions": 64}
_GPT_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4}
_OPT = _IDS | _SIZES | {"ffn_dim": 56, "max_position_embeddings": 64}
_MPT = _IDS | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
_FALCON = _IDS | _SIZES | {"ffn_hidden_size": 56, "max_position_embeddings": 64}
_FALCON_GROUPED = _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
_T5 = _IDS | {"d_model": 32, "d_kv": 12, "d_ff": 56, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD}
_BART = (
    _IDS
    | {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 56}
    | {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 56, "max_position_embeddings": 64}
    | {"decoder_start_token_id": EOS, "forced_eos_token_id": EOS}
)
_DEBERTA = _TEXT | {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_biased_input": False}
_DEBERTA_V3 = _DEBERTA | {"share_att_key": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}
_WINDOWS = {"head_dim": 12, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25}
_LATENT = (
    _TEXT
    | {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 10}
    | {"first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 24, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4}
)
_QWEN3_NEXT = (
    _GROUPED
    | {"head_dim": 12, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
    | {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
)

_Rows = dict[str, tuple[Callable[..., tf.PreTrainedConfig], dict[str, Any]]]

_ENCODERS: _Rows = {
    "bert": (tf.BertConfig, _TEXT),
    "roberta": (tf.RobertaConfig, _TEXT),
    "xlm-roberta": (tf.XLMRobertaConfig, _TEXT),
    "distilbert": (tf.DistilBertConfig, _IDS | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 56}),
    "electra": (tf.ElectraConfig, _TEXT | {"embedding_size": 20}),
    "albert": (tf.AlbertConfig, _TEXT | {"embedding_size": 20}),
    "albert-groups": (tf.AlbertConfig, _TEXT | {"embedding_size": 20, "num_hidden_groups": 2}),
    "deberta-v2": (tf.DebertaV2Config, _TEXT),
    "deberta-v2-relative": (tf.DebertaV2Config, _DEBERTA),
    "deberta-v2-conv": (tf.DebertaV2Config, _DEBERTA_V3 | {"conv_kernel_size": 3}),
    "deberta-v3": (tf.DebertaV2Config, _DEBERTA_V3),
    "mpnet": (tf.MPNetConfig, _TEXT),
    "modernbert": (
        tf.ModernBertConfig,
        _TEXT | {"num_hidden_layers": 3, "local_attention": 4, "cls_token_id": BOS, "sep_token_id": EOS},
    ),
    "longformer": (tf.LongformerConfig, _TEXT | {"attention_window": 4}),
}

_DECODERS: _Rows = {
    "opt": (tf.OPTConfig, _OPT),
    "opt-350m": (tf.OPTConfig, _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    "gpt2": (tf.GPT2Config, _GPT),
    "gpt_neo": (tf.GPTNeoConfig, _TEXT | _GPT_NEO),
    "gptj": (tf.GPTJConfig, _GPT | {"rotary_dim": 4}),
    # CodeGen: two heads in each of its four blocks; with one, the blocks would look like heads.
    "codegen": (tf.CodeGenConfig, _GPT | {"n_embd": 64, "n_head": 8, "rotary_dim": 4}),
    "gpt_neox": (tf.GPTNeoXConfig, _TEXT),
    "gpt_neox-sequential": (tf.GPTNeoXConfig, _TEXT | {"use_parallel_residual": False}),
    "gpt_bigcode": (tf.GPTBigCodeConfig, _GPT),
    "gpt_bigcode-mha": (tf.GPTBigCodeConfig, _GPT | {"multi_query": False}),
    "bloom": (tf.BloomConfig, _IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": (tf.MptConfig, _MPT),
    "mpt-clip": (tf.MptConfig, _MPT | {"attn_config": {"clip_qkv": 0.5}}),
    # Falcon: `multi_query` and `new_decoder_architecture` lay out the heads, the others the norms and the residual.
    "falcon-rw": (
        tf.FalconConfig,
        _FALCON | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "falcon-mha": (tf.FalconConfig, _FALCON | {"multi_query": False}),
    "falcon-7b": (tf.FalconConfig, _FALCON),
    "falcon-sequential": (tf.FalconConfig, _FALCON | {"parallel_attn": False}),
    "falcon-40b": (tf.FalconConfig, _FALCON_GROUPED),
    "falcon-11b": (tf.FalconConfig, _FALCON_GROUPED | {"num_ln_in_parallel_attn": 1}),
    "phi": (tf.PhiConfig, _TEXT),
    "phi3": (tf.Phi3Config, _GROUPED),
    "llama": (tf.LlamaConfig, _GROUPED),
    "mistral": (tf.MistralConfig, _GROUPED | {"head_dim": 12, "sliding_window": 4}),
    "mixtral": (tf.MixtralConfig, _GROUPED | _EXPERTS),
    "qwen2": (tf.Qwen2Config, _GROUPED),
    "qwen3": (tf.Qwen3Config, _GROUPED | {"head_dim": 12}),
    "qwen3_next": (tf.Qwen3NextConfig, _QWEN3_NEXT),
    "gemma": (tf.GemmaConfig, _GROUPED | {"head_dim": 12}),
    "gemma2": (tf.Gemma2Config, _GROUPED | _WINDOWS),
    "gemma3_text": (tf.Gemma3TextConfig, _GROUPED | _WINDOWS),
    "olmo": (tf.OlmoConfig, _GROUPED),
    "olmo-clip": (tf.OlmoConfig, _GROUPED | {"clip_qkv": 0.5}),
    "olmo2": (tf.Olmo2Config, _GROUPED),
    "stablelm": (tf.StableLmConfig, _GROUPED),
    "stablelm-parallel": (tf.StableLmConfig, _GROUPED | {"use_parallel_residual": True, "qk_layernorm": True}),
    "cohere": (tf.CohereConfig, _GROUPED | {"logit_scale": 0.5}),
    "smollm3": (tf.SmolLM3Config, _GROUPED | {"no_rope_layers": [1, 0]}),
    "granite": (tf.GraniteConfig, _GROUPED | _MULTIPLIERS | {"logits_scaling": 2.0}),
    "deepseek_v2": (tf.DeepseekV2Config, _LATENT),
    "deepseek_v2-lite": (tf.DeepseekV2Config, _LATENT | {"q_lora_rank": None}),
    "deepseek_v3": (tf.DeepseekV3Config, _LATENT),
    "deepseek_v3-lite": (tf.DeepseekV3Config, _LATENT | {"q_lora_rank": None}),
    "gpt_oss": (tf.GptOssConfig, _GROUPED | _EXPERTS | _WINDOWS | {"rope_parameters": {"rope_type": "default"}}),
    "mamba": (tf.MambaConfig, _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "xlnet": (tf.XLNetConfig, _IDS | {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 56}),
}

_ENCODER_DECODERS: _Rows = {
    "t5": (tf.T5Config, _T5),
    "t5-gated": (tf.T5Config, _T5 | {"feed_forward_proj": "gated-gelu"}),
    "bart": (tf.BartConfig, _BART),
}

_VISION: _Rows = {
    "vit": (tf.ViTConfig, _SIZES | {"intermediate_size": 56, "image_size": IMAGE, "patch_size": 4}),
    "convnext": (tf.ConvNextConfig, {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "image_size": IMAGE}),
}

_WHY_ODD = {
    "longformer": "projections are time-major",
    "xlnet": "projections are bare parameters",
    "mpt-clip": "values are clipped",
    "olmo-clip": "values are clipped",
    "gpt_oss": "attention sinks",
    "qwen3_next": "output gates, and a layer of linear attention",
    "mamba": "no attention",
    "convnext": "no attention",
}

_KINDS: dict[Kind, _Rows] = {
    "encoder": _ENCODERS,
    "decoder": _DECODERS,
    "encoder-decoder": _ENCODER_DECODERS,
    "vision": _VISION,
}

TINY: dict[str, Tiny] = {
    name: Tiny(name, kind, partial(config, **{"num_labels": LABELS} | fields), _WHY_ODD.get(name, ""))
    for kind, rows in _KINDS.items()
    for name, (config, fields) in rows.items()
}
REGULAR = [name for name, entry in TINY.items() if not entry.odd]
ODD = [name for name, entry in TINY.items() if entry.odd]
