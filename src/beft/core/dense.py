"""A linear head in the files of sentence-transformers: transformer, pooling and a dense layer that gives the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..files import to_json
from .adapter import LinearHead, plain_state

POOLING, DENSE = "beft/pooling", "beft/dense"
FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
"""Files of sentence-transformers beside the model that are written, in place of those that were there."""


def write_sentence_transformer(folder: Path, head: LinearHead, max_length: int | None) -> None:
    """Make a model folder one that `SentenceTransformer(folder).encode(texts)` turns into logits, (texts, labels) fp32.

    Class names go to `labels` of `config_sentence_transformers.json`; a regression's output is in the labels' units.
    """
    state = plain_state(head)
    outputs, hidden = state["weight"].shape
    modules = [("", "Transformer"), (POOLING, "Pooling"), (DENSE, "Dense")]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    mode = {"mean": "mean_tokens", "last": "lasttoken"}[head.pooling]
    pooling: dict[str, Any] = {"word_embedding_dimension": hidden}
    for each in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"):
        pooling[f"pooling_mode_{each}"] = each == mode
    dense = {
        "in_features": hidden,
        "out_features": outputs,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    labels = None if head.labels is None else list(head.labels)
    texts = {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"__version__": {"sentence_transformers": "2.2.0"}, "labels": labels},
        f"{POOLING}/config.json": pooling,
        f"{DENSE}/config.json": dense,
    }
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(to_json(content), encoding="utf-8")
    weights = {f"linear.{key}": state[key].detach().to(torch.float32).cpu().contiguous() for key in ("weight", "bias")}
    save_file(weights, folder / DENSE / "model.safetensors", metadata={"format": "pt"})
