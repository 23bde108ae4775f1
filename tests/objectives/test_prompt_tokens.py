"""Prompts and candidates become the tokens the tokenizer makes of the whole text, split where they part."""

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import real
import toys
from beft.errors import DataError
from beft.objectives.prompt_tokens import (
    answer_text,
    context_limit,
    encode_answers,
    encode_prompts,
    encode_questions,
)
from beft.tasks.question import Question
from tiny import build

BOS, END = 0, 1
PIECES = {"<s>": BOS, "</s>": END, "a": 2, "b": 3, "c": 4, " ": 5, "ab": 6, " c": 7}


def bpe(start=True, end=False, around=("<s>", ""), limit=None):
    """Letters a, b, c and a space, merging to `ab` and ` c`; unknown letters vanish."""
    inner = Tokenizer(models.BPE(vocab=PIECES, merges=[("a", "b"), (" ", "c")]))
    special = [(word, PIECES[word]) for word in around if word]
    template = [f"{around[0]}:0"] * bool(around[0]) + ["$A:0"] + [f"{around[1]}:0"] * bool(around[1])
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"bos_token": "<s>"} if start else {}
    names |= {"eos_token": "</s>"} if end else {}
    names |= {"model_max_length": limit} if limit else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def ask(prompt, *candidates, **fields):
    return Question("q7", prompt, candidates, (0,), **fields)


def test_a_merge_over_the_border_belongs_to_every_candidate():
    got = encode_questions(bpe(), [ask("ca", "b", "c"), ask("ca", " c", "c")])
    assert got.prompts == [[BOS, 4], [BOS, 4, 2]]
    assert got.candidates == [[[6], [2, 4]], [[7], [4]]]
    assert got.gold == [(0,), (0,)]


def test_special_tokens_in_front_are_kept_and_those_behind_left_out():
    got = encode_questions(bpe(around=("<s>", "</s>")), [ask("a", "c", " c")])
    assert got.prompts == [[BOS, 2]]
    assert got.candidates == [[[4], [7]]]
    assert encode_questions(bpe(around=("", "")), [ask("a", "c", " c")]).prompts == [[2]]


@pytest.mark.parametrize(("tokenizer", "start"), [(bpe(around=("", "")), BOS), (bpe(False, True, ("", "")), END)])
def test_nothing_in_common_is_predicted_from_the_start_or_end_token(tokenizer, start):
    got = encode_questions(tokenizer, [ask("", "a", "c"), ask("a", "b", "bc")])
    assert got.prompts == [[start], [start]]
    assert got.candidates == [[[2], [4]], [[6], [6, 4]]]
    assert encode_prompts(tokenizer, [ask("")]).prompts == [[start]]


def test_nothing_to_predict_from():
    with pytest.raises(DataError, match=r"question q7.*start or end token"):
        encode_questions(bpe(start=False, around=("", "")), [ask("", "a", "c")])


def test_long_prompts_lose_tokens_on_the_left_but_neither_the_start_nor_the_candidate():
    tokenizer = bpe()
    got = encode_questions(tokenizer, [ask("cbcbc", "aaa", "b"), ask("c", "b", "c")], 6)
    assert got.prompts == [[BOS, 3, 4], [BOS, 4]]
    assert got.candidates[0] == [[2, 2, 2], [3]]
    assert (got.cut, got.limit) == (1, 6)
    assert encode_questions(bpe(limit=5), [ask("cbcbc", "aaa", "b")]).prompts == [[BOS, 4]]
    assert encode_questions(bpe(around=("", "")), [ask("cbcbc", "aaa", "b")], 4).prompts == [[4]]
    assert encode_prompts(tokenizer, [ask("cbcbc")], 3).prompts == [[BOS, 3, 4]]
    assert encode_prompts(tokenizer, [ask("cbcbc")], 3).cut == 1


def test_an_answer_longer_than_the_context():
    with pytest.raises(DataError, match=r"question q7.*an answer that fits 3 tokens.*found one of 3"):
        encode_questions(bpe(), [ask("cb", "aaa", "b")], 3)


def test_candidates_of_no_tokens_or_of_the_same():
    with pytest.raises(DataError, match="question q7, candidate '': expected at least one token"):
        encode_questions(bpe(), [ask("ca", "b", "")])
    with pytest.raises(DataError, match="question q7, candidate 'z'"):
        encode_questions(bpe(), [ask("ca", "b", "z")])
    with pytest.raises(DataError, match=r"candidate 'bz'.*those of 'b'"):
        encode_questions(bpe(), [ask("c", "b", "bz")])
    with pytest.raises(DataError, match="expected candidates, found none"):
        encode_questions(bpe(), [ask("c")])


def test_blanks():
    got = encode_questions(bpe(), [ask("ca", "b", "c", blank="b"), ask("cc", "b", "c")], blanks=True)
    assert got.blanks.prompts == [[BOS, 3], [BOS]]
    assert got.blanks.candidates == [[[3], [4]], [[3], [4]]]
    assert got.take([1]).blanks.prompts == [[BOS]]


def test_texts_to_learn():
    assert answer_text(Question(0, "Q:", answers=("two words", "x"))) == " two words\n"
    assert answer_text(Question(0, "Q:\n", answers=("two\n",)), stop=".") == "two."
    assert answer_text(Question(0, "Q:", ("a", "b"), gold=(1, 0))) == "b"
    for empty in (Question(3, "Q:"), Question(3, "Q:", ("a", "b"))):
        with pytest.raises(DataError, match="question 3: expected a right candidate or an answer"):
            answer_text(empty)
    got = encode_answers(bpe(), [Question(0, "a", answers=("c", "b")), ask("ca", "b", "c")], stop="a")
    assert got.prompts == [[BOS, 2], [BOS, 4]]
    assert got.candidates == [[[7, 2]], [[6]]]
    assert got.gold == [(0,), (0,)]


def test_a_real_tokenizer_and_one_without_special_tokens():
    tokenizer = AutoTokenizer.from_pretrained(real.model("stories260k-llama"))
    question = ask("Once upon a time, there was a", " little girl.", " big dog", " big")
    got = encode_questions(tokenizer, [question])
    for candidate, own in zip(question.candidates, got.candidates[0], strict=True):
        assert got.prompts[0] + own == tokenizer(question.prompt + candidate)["input_ids"]
    bare = encode_questions(toys.tokenizer(special=False, pad=False), [ask("w1 w2", " red", " good bad")])
    assert [len(bare.prompts[0]), *map(len, bare.candidates[0])] == [2, 1, 2]


def test_context_limit():
    assert context_limit(build("gpt2", "lm").config) == 64
    assert context_limit(build("mpt", "lm").config) == 64
    assert context_limit(build("llama", "lm").config, 20) == 20
    assert context_limit(build("bloom", "lm").config) > 10_000
