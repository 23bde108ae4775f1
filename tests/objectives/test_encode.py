"""Texts to ids: padding, truncation that is counted, pairs, tokenizers without special tokens."""

import pytest
import torch

import real
from beft.errors import DataError
from beft.objectives.encode import encode, join
from beft.tasks.task import Example
from tiny import PAD
from toys import WORDS, tokenizer


def examples(*texts: str | tuple[str, ...]) -> list[Example]:
    return [Example(n, (text,) if isinstance(text, str) else text) for n, text in enumerate(texts)]


def ids(words: str) -> list[int]:
    return [WORDS.index(word) for word in words.split()]


def test_ids_equal_the_tokenizers_own() -> None:
    encoded = encode(tokenizer(), examples("red w1", "green"), 32)
    assert encoded.ids == [ids("[CLS] red w1 [SEP]"), ids("[CLS] green [SEP]")]
    assert encoded.lengths() == [4, 3]
    assert encoded.cut == 0


def test_a_batch_is_padded_to_its_longest_row_and_masked() -> None:
    encoded = encode(tokenizer(), examples("red w1 w2 w3", "green", "blue w1"), 32)
    batch = encoded.batch([1, 2])
    assert batch["input_ids"].tolist() == [[*ids("[CLS] green [SEP]"), PAD], ids("[CLS] blue w1 [SEP]")]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["input_ids"].dtype == torch.int64


def test_rows_of_one_length_need_no_mask() -> None:
    assert set(encode(tokenizer(), examples("red w1", "green w2"), 32).batch([0, 1])) == {"input_ids"}


def test_long_texts_are_cut_to_the_limit_and_counted() -> None:
    encoded = encode(tokenizer(), examples("red " * 50, "green", "w1 " * 9), 8)
    assert encoded.cut == 2
    assert encoded.lengths() == [8, 3, 8]
    assert encoded.ids[0] == ids("[CLS] red red red red red red [SEP]")


def test_the_tokenizers_own_limit_counts_too() -> None:
    encoded = encode(tokenizer(limit=6), examples("red " * 50), 128)
    assert (encoded.lengths(), encoded.cut) == ([6], 1)


def test_pairs_have_segments_and_lose_words_of_the_longer_text() -> None:
    encoded = encode(tokenizer(), examples(("red w1 w2 w3 w4 w5", "green w6"), ("blue", "w1")), 8)
    assert encoded.ids[0] == ids("[CLS] red w1 w2 [SEP] green w6 [SEP]")
    assert encoded.segments is not None
    assert encoded.segments[0] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert encoded.batch([0, 1])["token_type_ids"].tolist()[1] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert encoded.cut == 1


def test_pairs_of_a_tokenizer_without_special_tokens_are_kept_apart_by_a_line_break() -> None:
    class Recorder:
        pad_token_id, model_max_length = PAD, 64

        def __init__(self) -> None:
            self.first: list[str] = []

        def num_special_tokens_to_add(self, pair: bool) -> int:
            return 0

        def __call__(self, first: list[str], second: list[str] | None, **options: object) -> dict[str, list[list[int]]]:
            assert second is None
            self.first = first
            return {"input_ids": [[5] * len(text.split()) for text in first]}

    recorder = Recorder()
    encode(recorder, examples(("red w1", "green w2")), 32)
    assert recorder.first == ["red w1\ngreen w2"]


def test_a_text_that_becomes_no_token_is_named() -> None:
    with pytest.raises(DataError, match="row 1: expected a text of at least one token, found an empty one"):
        encode(tokenizer(special=False), examples("red", ""), 32)


def test_an_empty_text_is_special_tokens_where_there_are_some() -> None:
    assert encode(tokenizer(), examples(""), 32).ids == [ids("[CLS] [SEP]")]


def test_no_examples_give_no_rows() -> None:
    assert len(encode(tokenizer(), [], 32)) == 0


def test_equal_to_a_real_tokenizers_padding_and_truncation() -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(real.model("minilm-l6-uncased"))
    pairs = [("It was a good film. " * 9, "Was it good?"), ("Short.", "It was a good film. " * 9), ("A.", "B.")]
    encoded = encode(own, examples(*pairs), 24)
    batch = encoded.batch([0, 1, 2])
    expected = own(
        [a for a, _ in pairs], [b for _, b in pairs], padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], expected[name]), name
    assert encoded.cut == 2


def test_lengths_rounded_up_to_a_multiple_are_masked() -> None:
    long = " ".join(f"w{number % 9}" for number in range(33))
    encoded = encode(tokenizer(), examples(f"red {long}", f"green {long}"), 64)
    exact, rounded = encoded.batch([0, 1]), encoded.batch([0, 1], multiple=8)
    length = exact["input_ids"].shape[1]
    assert rounded["input_ids"].shape[1] == 40 > length > 32
    assert torch.equal(rounded["input_ids"][:, :length], exact["input_ids"])
    assert rounded["attention_mask"].sum(1).tolist() == [length, length]
    assert encode(tokenizer(), examples("red w1"), 5).batch([0], multiple=8)["input_ids"].shape[1] <= 5


def test_short_batches_are_rounded_to_a_quarter_of_the_multiple() -> None:
    encoded = encode(tokenizer(), examples("red", "red w1", "red w1 w2"), 32)
    lengths = [encoded.batch([row], multiple=8)["input_ids"].shape[1] for row in range(3)]
    assert lengths == [-(-length // 2) * 2 for length in encoded.lengths()]


def test_pairs_read_apart_are_two_inputs_a_row() -> None:
    rows = examples(("red w1 w2", "green"), ("blue", "w1 w2 w3 w4"), ("w5", ""))
    encoded = encode(tokenizer(), rows, 6, apart=True)
    alone = [encode(tokenizer(), examples(*(row.texts[place] for row in rows)), 6) for place in (0, 1)]
    assert (encoded.ids, encoded.second) == (alone[0].ids, alone[1].ids)
    assert encoded.lengths() == [8, 9, 5]
    batch = encoded.batch([1, 0])
    assert batch["input_ids"].tolist() == [[*ids("[CLS] blue [SEP]"), PAD, PAD], ids("[CLS] red w1 w2 [SEP]")]
    second = batch["second"]
    assert second["input_ids"].tolist() == [
        ids("[CLS] w1 w2 w3 w4 [SEP]"),
        [*ids("[CLS] green [SEP]"), PAD, PAD, PAD],
    ]
    assert (batch["attention_mask"].sum(1).tolist(), second["attention_mask"].sum(1).tolist()) == ([3, 5], [6, 3])
    assert "token_type_ids" not in batch
    again = join([(encoded.take([2, 1]), [1]), (encoded, [0])]).batch([0, 1])
    assert torch.equal(again["second"]["input_ids"], second["input_ids"])


def test_texts_read_apart_have_the_limit_each() -> None:
    encoded = encode(tokenizer(), examples(("red " * 9, "green " * 9), ("red", "blue")), 6, apart=True)
    assert (encoded.lengths(), encoded.cut) == ([12, 6], 2)
