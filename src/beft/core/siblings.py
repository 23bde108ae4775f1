"""The same weights as another architecture, one whose projections have biases: on request, where the two compute alike.

Mistral is Qwen2 (sliding window included), and Llama where no sliding window is in use; Phi-3 is Llama with its fused
projections split. What such a merge writes is loaded, and served, as the sibling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BankError
from .adapter import Adapter
from .sites import find_sites

SIBLINGS = {("mistral", "qwen2"): ("Mistral", "Qwen2"), ("mistral", "llama"): ("Mistral", "Llama")} | {
    ("phi3", "llama"): ("Phi3", "Llama")
}
"""(model type, sibling): what to replace in the class name, and by what."""
SHARED_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters", "attention_dropout"),
    *("dtype", "id2label", "label2id", "problem_type"),
)


def as_sibling(model: nn.Module, adapter: Adapter, architecture: str) -> tuple[nn.Module, Adapter]:
    """A model of another architecture with the same weights and outputs, and the adapter on it.

    Raises:
        BankError: the architectures do not compute alike.
    """
    import transformers

    config: Any = model.config
    kind = str(config.model_type)
    names = SIBLINGS.get((kind, architecture.lower()))
    if names is None:
        known = [to for own, to in SIBLINGS if own == kind]
        raise BankError(
            f"--architecture {architecture}",
            expected=f"a sibling of {kind}: {', '.join(known) or 'none is known'}",
            found=architecture,
        )
    _refuse_unlike(config, kind, architecture.lower())
    cls = getattr(transformers, type(model).__name__.replace(*names), None)
    if cls is None:
        raise BankError(f"--architecture {architecture}", expected=f"a sibling of {type(model).__name__}", found="none")
    plain = cls(_sibling_config(cls.config_class, config, architecture.lower()))
    plain = plain.to(dtype=next(model.parameters()).dtype, device=next(model.parameters()).device).eval()
    state = {key: value for name, tensor in model.state_dict().items() for key, value in _split(name, tensor, config)}
    missing, unexpected = plain.load_state_dict(state, strict=False)
    lost = [key for key in missing if not key.endswith("_proj.bias")] + list(unexpected)
    if lost:
        raise BankError(f"--architecture {architecture}", expected="the same weights", found=f"{lost[0]} has no place")
    with torch.no_grad():
        for key in missing:
            plain.get_parameter(key).zero_()
    return plain, _moved(adapter, plain)


def _refuse_unlike(config: Any, kind: str, architecture: str) -> None:
    window = getattr(config, "sliding_window", None)
    rope = getattr(config, "rope_parameters", None) or {}
    fault = ""
    if architecture == "llama" and window is not None and window < config.max_position_embeddings:
        fault = f"a sliding window of {window} tokens, which Llama has not"
    elif kind == "phi3" and (
        rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1
    ):
        fault = f"rotary positions of type {rope.get('rope_type')} on part of the features"
    if fault:
        raise BankError(
            f"--architecture {architecture}",
            expected="a model that computes alike",
            found=fault,
            remedy="--architecture qwen2 keeps a sliding window" if kind == "mistral" else "use the adapter attached",
        )


def _sibling_config(cls: type[Any], config: Any, architecture: str) -> Any:
    fields = {name: getattr(config, name) for name in SHARED_FIELDS if getattr(config, name, None) is not None}
    head = getattr(config, "head_dim", None)
    if head is not None:
        fields["head_dim"] = head
    if architecture == "qwen2":
        window = getattr(config, "sliding_window", None)
        fields |= {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": 0}
    else:
        fields["attention_bias"] = True
    result = cls(**fields)
    result._name_or_path = getattr(config, "_name_or_path", "")
    return result


def _split(name: str, tensor: Tensor, config: Any) -> list[tuple[str, Tensor]]:
    """A fused projection's parts under their own names; anything else as it is."""
    if ".qkv_proj." in name:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        query, key = config.num_attention_heads * head, config.num_key_value_heads * head
        parts = tensor.split([query, key, key])
        return [(name.replace("qkv_proj", f"{one}_proj"), part) for one, part in zip("qkv", parts, strict=True)]
    if ".gate_up_proj." in name:
        gate, up = tensor.chunk(2)
        return [(name.replace("gate_up_proj", "gate_proj"), gate), (name.replace("gate_up_proj", "up_proj"), up)]
    return [(name, tensor)]


def _moved(adapter: Adapter, plain: nn.Module) -> Adapter:
    """The adapter on the sibling: each vector at the site of the same term and layer."""
    sites = find_sites(plain, adapter.terms) if adapter.sites else []
    vectors = {(site.term.name, site.layer): vector for site, vector in adapter.items()}
    kept = [site for site in sites if (site.term.name, site.layer) in vectors]
    moved = Adapter(adapter.name, kept, plain, adapter.scale, adapter.head)
    with torch.no_grad():
        for site, vector in moved.items():
            vector.copy_(vectors[site.term.name, site.layer])
    return moved
