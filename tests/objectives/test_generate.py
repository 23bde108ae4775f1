"""Generated texts equal those of transformers' own `generate`, one prompt at a time."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import beft
import real
import toys
from beft.errors import RecipeError
from beft.objectives import generate
from beft.objectives.generate import generate_answers, generate_texts, read_text
from beft.tasks.question import Question
from tiny import BOS, EOS, PAD, build

from .common import fill, questions

STORIES = [
    "Once upon a time, there was a little",
    "Lily",
    "One day, a boy named Tim went to the park with his mom. He",
    "The big dog",
]
ASKED = [Question(number, text) for number, text in enumerate(STORIES)]


@pytest.fixture(scope="module")
def stories():
    folder = real.model("stories260k-llama")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def plainly(model, tokenizer, text, count=1, **settings):
    """Texts of one prompt by transformers alone, cut at the first line end."""
    inputs = tokenizer(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    ids = model.generate(**inputs, generation_config=GenerationConfig(**{"max_new_tokens": 50} | settings))
    new = ids[:, inputs["input_ids"].shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True).split("\n")[0].strip() for row in new][:count]


def test_greedy_texts_equal_stock_ones_and_do_not_depend_on_the_batch(stories):
    model, tokenizer = stories
    want = [plainly(model, tokenizer, text, do_sample=False)[0] for text in STORIES]
    assert want[0].startswith("girl named Lily.")
    for budget in (1, 150, 10_000):
        assert generate_answers(model, tokenizer, ASKED, token_budget=budget) == want


@pytest.mark.parametrize("returned", [1, 3])
def test_beams(stories, returned):
    model, tokenizer = stories
    settings = {"do_sample": False, "num_beams": 3, "num_return_sequences": returned, "max_new_tokens": 12}
    want = [plainly(model, tokenizer, text, returned, **settings) for text in STORIES]
    got = generate_texts(model, tokenizer, ASKED, config=GenerationConfig(**settings), stop=())
    assert got == want
    assert all(len(set(texts)) == returned for texts in got)


def test_sampled_texts_are_those_of_the_seed(stories):
    model, tokenizer = stories
    settings = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 8, "top_k": 20}
    torch.manual_seed(3)
    want = plainly(model, tokenizer, STORIES[0], 4, **settings)
    torch.manual_seed(3)
    assert generate_texts(model, tokenizer, ASKED[:1], config=GenerationConfig(**settings)) == [want]
    assert len(set(want)) > 1


def test_the_models_own_sampling_is_not_used_unless_asked_for(stories, monkeypatch):
    model, tokenizer = stories
    monkeypatch.setattr(model, "generation_config", GenerationConfig(do_sample=True, temperature=5.0, num_beams=2))
    want = plainly(model, tokenizer, STORIES[3], do_sample=False, num_beams=1)
    assert generate_answers(model, tokenizer, ASKED[3:]) == want


def test_texts_end_at_a_stop_string_and_no_more_is_generated(stories, monkeypatch):
    model, tokenizer = stories
    whole = generate_answers(model, tokenizer, ASKED)
    lengths = []

    def recorded(*args, **kwargs):
        ids = type(model).generate(model, *args, **kwargs)
        lengths.append(ids.shape[1] - kwargs["input_ids"].shape[1])
        return ids

    monkeypatch.setattr(model, "generate", recorded)
    got = generate_answers(model, tokenizer, ASKED, stop=(". ", "park", "."))
    assert got == [text.split(".")[0].split("park")[0].strip() for text in whole]
    assert 1 < lengths[0] < 50


class Counting(torch.nn.Module):
    """An output embedding that makes each token's next the one after it."""

    def forward(self, hidden):
        return torch.nn.functional.one_hot((hidden[..., 0] + 1).long() % 97, 97).float() * 9


def counting(monkeypatch, **overrides):
    model = build("llama", "lm", **overrides)
    embedding = torch.nn.Embedding(97, 32)
    embedding.weight.data[:] = torch.arange(97.0)[:, None]
    monkeypatch.setattr(model.model, "embed_tokens", embedding)
    monkeypatch.setattr(model.model, "layers", torch.nn.ModuleList())
    monkeypatch.setattr(model.model, "norm", torch.nn.Identity())
    monkeypatch.setattr(model, "lm_head", Counting())
    return model


def test_the_end_token_ends_a_text(monkeypatch):
    """`red green blue good bad !` are tokens 4 to 9."""
    model = counting(monkeypatch)
    tokenizer = toys.tokenizer(special=False, pad=False)
    asked = [Question(0, "red"), Question(1, "w1 w2 w3 blue")]
    some = GenerationConfig(eos_token_id=9, max_new_tokens=12)
    assert generate_answers(model, tokenizer, asked, config=some) == ["green blue good bad", "good bad"]
    several = GenerationConfig(eos_token_id=[7, 9], max_new_tokens=12)
    assert generate_answers(model, tokenizer, asked, config=several) == ["green blue", ""]
    short = GenerationConfig(eos_token_id=9, max_new_tokens=2)
    assert generate_answers(model, tokenizer, asked, config=short) == ["green blue", "good bad"]
    assert generate_answers(model, tokenizer, asked, config=some, stop=("good",)) == ["green blue", ""]


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "opt", "bloom", "mpt", "falcon-rw", "gpt_neo", "qwen3_next", "mamba"]
)
@pytest.mark.parametrize("special", [True, False])
def test_families_without_padding_start_or_end_tokens(name, special):
    tokens = {} if special else dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    model = build(name, "lm", **tokens)
    tokenizer = toys.tokenizer(special=False, pad=special)
    asked = questions(3)
    ends = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS} if special else {}
    want = [plainly(model, tokenizer, each.prompt, max_new_tokens=6, do_sample=False, **ends)[0] for each in asked]
    want = [text.removesuffix("[SEP]").strip() if special else text for text in want]  # the end token, a word here
    config = GenerationConfig(max_new_tokens=6, do_sample=False)
    assert generate_answers(model, tokenizer, asked, config=config) == want


def test_a_model_that_left_padding_harms_gets_prompts_of_one_length_at_a_time(monkeypatch):
    model, tokenizer = build("llama", "lm"), toys.tokenizer(special=False)
    asked = questions(5)
    want = generate_answers(model, tokenizer, asked)
    monkeypatch.setattr(generate.Scorer, "__init__", lambda self, model, bank: refusing(self, model))
    sizes = []
    assert generate_answers(model, tokenizer, asked, watch=lambda rows, left: sizes.append(rows)) == want
    lengths = [len(each.prompt.split()) for each in asked]
    assert sorted(sizes) == sorted(lengths.count(length) for length in set(lengths))


def refusing(scorer, model):
    scorer.model, scorer.bank, scorer.ways = model, None, Refusing


class Refusing:
    alone = None

    @staticmethod
    def holds(way, length):
        return False


@pytest.mark.parametrize("beams", [1, 2])
def test_adapters_write_what_they_do_alone(stories, beams):
    folder = real.model("stories260k-llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), stories[1]
    bank = fill(beft.attach(model, names=["a", "b"]), scale=0.2)
    config = GenerationConfig(do_sample=False, num_beams=beams, max_new_tokens=10)
    names = ["b", None, "a", "b"]
    want = []
    for question, name in zip(ASKED, names, strict=True):
        want += generate_answers(model, tokenizer, [question], bank=bank, name=name, config=config)
    assert generate_answers(model, tokenizer, ASKED, bank=bank, name=names, config=config) == want
    assert want != generate_answers(model, tokenizer, ASKED, bank=bank, config=config)


def test_long_prompts_are_cut_on_the_left_and_too_little_room_is_refused(stories):
    model, tokenizer = stories
    long = Question(0, "many words before. " * 60 + STORIES[0])
    ids = tokenizer(long.prompt)["input_ids"]
    kept = torch.tensor([ids[:1] + ids[-19:]])
    want = tokenizer.decode(model.generate(kept, max_new_tokens=50, do_sample=False)[0, 20:], skip_special_tokens=True)
    assert generate_answers(model, tokenizer, [long], max_length=70) == [want.split("\n")[0].strip()]
    with pytest.raises(RecipeError, match="max_new_tokens 50: expected fewer than the 50 tokens"):
        generate_answers(model, tokenizer, ASKED, max_length=50)
    assert generate_texts(model, tokenizer, []) == []


def test_reading_texts():
    tokenizer = toys.tokenizer(special=False)
    red, green, blue = 4, 5, 6
    assert read_text(tokenizer, [red, green, blue], [], []) == "red green blue"
    assert read_text(tokenizer, [red, green, blue], [blue], ["green"]) == "red"
    assert read_text(tokenizer, [red, EOS, blue], [EOS], []) == "red"
    assert read_text(tokenizer, [red, PAD, PAD], [], []) == "red"
