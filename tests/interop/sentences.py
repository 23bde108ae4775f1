"""Tiny models of sentence-transformers, and pairs of toy texts to train them on."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from beft.core.bank import Bank
from toys import save_base, texts

POOLINGS = {"bert": "mean", "llama": "lasttoken"}
SENTENCES = [text for text, _ in texts(11, seed=3, longest=12)]


def save_model(folder: Path, family: str = "bert") -> Path:
    """A tiny encoder (mean of the tokens) or decoder (last token) without dropout, normalised, with prompts."""
    still = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0} if family == "bert" else {}
    base = save_base(folder / "base", family, special=family == "bert", **still)
    transformer = Transformer(str(base))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=POOLINGS[family])
    prompts = {"query": "good ", "document": "bad bad "}
    modules = [transformer, pooling, Normalize()]
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(folder / "st"))
    return folder / "st"


def load_model(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def fill(bank: Bank, scale: float = 0.5) -> Bank:
    """Random vectors; the same name gets the same numbers."""
    with torch.no_grad():
        for name in bank.names:
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            for leaf in bank.parameters(name):
                leaf.copy_(scale * torch.randn(leaf.shape, generator=generator))
    return bank


def leaves(bank: Bank, name: str = "default") -> dict[str, torch.Tensor]:
    return {key: leaf.detach().clone() for key, leaf in bank[name].leaves()}


def pairs(count: int = 24, scores: bool = False) -> Dataset:
    """Pairs of texts with the same colour word in them; or, with `scores`, half of them with another one."""
    first, second = texts(count, seed=1), texts(count, seed=2)
    columns: dict[str, Any] = {"anchor": [text for text, _ in first], "positive": [text for text, _ in second]}
    if scores:
        moved = [second[(row + row % 2) % count] for row in range(count)]
        columns["positive"] = [text for text, _ in moved]
        columns["score"] = [float(a == b) for (_, a), (_, b) in zip(first, moved, strict=True)]
    return Dataset.from_dict(columns)


def arguments(folder: Path, **options: Any) -> SentenceTransformerTrainingArguments:
    """Eight rows a step, a learning rate for biases, nothing reported, nothing saved unless asked for."""
    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_train_epochs": 2, "save_strategy": "no"}
    silent = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    return SentenceTransformerTrainingArguments(str(folder), **{**settings, **silent, **options})
