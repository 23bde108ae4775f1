"""Tiny bases saved to a folder with a word tokenizer, and rows of toy texts to train on."""

import csv
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import beft
from beft.tasks.task import Example, Task
from tiny import PAD, VOCAB, build

COLOURS = ("red", "green", "blue")
FILLERS = tuple(f"w{number}" for number in range(40))
WORDS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", *COLOURS, "good", "bad", "!", *FILLERS)
FAST = {"epochs": 2, "batch_size": 8, "lr": 0.01, "max_length": 32}
"""Changes to a recipe that make a run a fraction of a second."""


def tokenizer(special: bool = True, pad: bool = True, limit: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: with `[CLS]` and `[SEP]` around texts, or bare; with or without a pad token."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    assert vocabulary["[PAD]"] == PAD
    assert len(WORDS) <= VOCAB
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names: dict[str, Any] = {"unk_token": "[UNK]"}
    if special:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "model_input_names": inputs}
    if pad:
        names["pad_token"] = "[PAD]"
    if limit:
        names["model_max_length"] = limit
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def save_base(
    folder: Path,
    family: str = "bert",
    *,
    head: str = "base",
    special: bool = True,
    pad: bool = True,
    without: tuple[str, ...] = (),
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Save a tiny model of a family and a tokenizer; `without`: words in names of parameters to leave out."""
    model = build(family, head, seed, **overrides)  # type: ignore[arg-type]
    state = {key: value for key, value in model.state_dict().items() if not any(word in key for word in without)}
    model.save_pretrained(folder, state_dict=state)
    tokenizer(special, pad).save_pretrained(folder)
    return folder


def texts(count: int, seed: int = 0, longest: int = 9) -> list[tuple[str, int]]:
    """Texts of 2 to `longest` words, each with one colour word, and the colour's number."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        colour = number % len(COLOURS)
        words = draw.choices(FILLERS, k=draw.randint(1, longest - 1))
        words.insert(draw.randint(0, len(words)), COLOURS[colour])
        rows.append((" ".join(words), colour))
    return rows


def toy_task(train: int = 36, evaluation: int = 12, *, pairs: bool = False, regression: bool = False) -> Task:
    """Colours to tell apart (`pairs`: two texts a row; `regression`: the number of words to predict)."""

    def examples(count: int, seed: int) -> list[Example]:
        rows = texts(count, seed)
        return [
            Example(
                number,
                (text, f"good {text}") if pairs else (text,),
                float(len(text.split())) / 2 if regression else colour,
            )
            for number, (text, colour) in enumerate(rows)
        ]

    return Task(
        name="toy",
        labels=None if regression else COLOURS,
        fields=("first", "second") if pairs else ("text",),
        metrics=("spearman", "pearson") if regression else ("accuracy", "f1_macro"),
        train=examples(train, 1),
        evaluation={"evaluation": examples(evaluation, 2)} if evaluation else {},
    )


def write_csv(
    path: Path, rows: list[tuple[Any, ...]] | None = None, header: tuple[str, ...] = ("text", "label")
) -> Path:
    """A CSV of toy rows, colours as words."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows if rows is not None else [(text, COLOURS[colour]) for text, colour in texts(36)])
    return path


def fast(**changes: Any) -> beft.Recipe:
    """A recipe that takes a fraction of a second."""
    return beft.Recipe(**{**FAST, **changes})


def adapter_files(folder: Path) -> dict[str, bytes]:
    """The bytes of an adapter's tensors."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], bound: float) -> None:
    """Assert that two sets of tensors agree in names and in values, within `bound` of 1 or of the largest value."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert (value - second[key]).abs().max() <= bound * max(1.0, float(value.abs().max())), key
