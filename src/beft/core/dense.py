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
    """Make a model folder one that `SentenceTransformer(folder).encode(texts)` turns into logits, (texts, labels).

    They are fp32 for a model in fp32. sentence-transformers casts the head to a half-precision model's dtype; with
    `SentenceTransformer(folder, model_kwargs={"dtype": "float32"})` both are fp32. Two texts an example are given as a
    pair, `encode([(first, second)])`. Class names go to `labels` of `config_sentence_transformers.json`; a regression's
    output is in the labels' units. Rows are padded on the right, as in training.
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
    transformer = {"max_seq_length": max_length, "do_lower_case": False, "tokenizer_args": _padding(folder)}
    texts = {
        "modules.json": listed,
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": {"__version__": {"sentence_transformers": "2.2.0"}, "labels": labels},
        f"{POOLING}/config.json": pooling,
        f"{DENSE}/config.json": dense,
    }
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(to_json(content), encoding="utf-8")
    weights = {f"linear.{key}": state[key].detach().to(torch.float32).cpu().contiguous() for key in ("weight", "bias")}
    save_file(weights, folder / DENSE / "model.safetensors", metadata={"format": "pt"})


def _padding(folder: Path) -> dict[str, str]:
    """How the folder's tokenizer is to pad: on the right (GPT-2 counts positions from there), with some token."""
    from transformers import AutoTokenizer

    options = {"padding_side": "right"}
    if any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.pad_token is None:  # sentence-transformers could encode one text at a time only
            options["pad_token"] = str(tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0))
    return options
