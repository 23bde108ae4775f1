"""Questions whose prompts begin alike share rows: the same scores from fewer tokens."""

import random

import pytest
import torch

import beft
from beft.objectives import sharing
from beft.objectives.choose import Scorer
from beft.objectives.packing import pack
from beft.objectives.prompt_tokens import EncodedQuestions
from beft.objectives.sharing import common, groups
from beft.objectives.tree import plant
from tiny import FIRST_TOKEN, VOCAB, build

from .common import LIMIT, agree, fill, plain_scores


def passages(count: int = 3, each: int = 3, single: bool = False) -> EncodedQuestions:
    """Questions on passages of 20 tokens, out of order; one question twice."""
    draw = random.Random(7)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(FIRST_TOKEN, VOCAB) for _ in range(length)]

    prompts, candidates = [], []
    for _ in range(count):
        passage = tokens(20)
        for number in range(each):
            prompts.append(passage + tokens(number))  # the first asks nothing more: its prompt begins the others'
            candidates.append([tokens(1 if single else draw.randint(1, 4)) for _ in range(3)])
    prompts.append(prompts[1])
    candidates.append(candidates[1])
    order = list(range(len(prompts)))
    draw.shuffle(order)
    prompts, candidates = [prompts[n] for n in order], [candidates[n] for n in order]
    return EncodedQuestions(prompts, candidates, [(0,)] * len(order), 0, LIMIT, 0)


@pytest.fixture(autouse=True)
def _short_passages_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LEAST_PREFIX", 8)


@pytest.mark.parametrize("single", [True, False], ids=["one", "long"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "mistral", "gpt_neo"])
def test_scores_are_those_of_one_forward_per_candidate(name: str, single: bool) -> None:
    model = build(name, "lm")
    scorer, some = Scorer(model), passages(single=single)
    counted: list[int] = []
    want_scores = plain_scores(model, some)
    scorer.evaluate(some)  # tries what holds here
    model.get_input_embeddings().register_forward_hook(lambda m, args, out: counted.append(args[0].numel()))
    agree(scorer.evaluate(some), want_scores)
    apart = sum(len(plant(*each)) for each in zip(some.prompts, some.candidates, strict=True))
    assert (sum(counted) < 0.75 * apart) == (name != "gpt_neo")  # it looks back by place: nothing is shared


def test_no_two_adapters_share_a_row() -> None:
    model = build("llama", "lm")
    bank = fill(beft.attach(model, names=["a", "b"]))
    some = passages()
    names = ["a" if number % 2 else None for number in range(len(some))]
    together = Scorer(model, bank=bank).evaluate(some, name=names)
    for name in ("a", None):
        with bank.route(name), torch.no_grad():
            want = plain_scores(model, some)
        agree(*([each[n] for n in range(len(some)) if names[n] == name] for each in (together, want)))


def test_groups_hold_every_prompt_once_and_what_it_begins_with() -> None:
    some = passages(4, 5)
    found = groups(some.prompts, [3] * len(some), 1000)
    assert sorted(number for members, _ in found for number in members) == list(range(len(some)))
    assert len(found) == 4
    for members, shared in found:
        assert shared == 20
        assert len({tuple(some.prompts[number][:shared]) for number in members}) == 1


@pytest.mark.parametrize(
    ("prompts", "branches", "most"),
    [
        ([[1] * 7 + [2], [1] * 7 + [3]], 1, 1000),  # too little in common
        ([[1] * 40 + [2] * 200, [1] * 40 + [3] * 200], 1, 1000),  # too much besides
        ([[1] * 40 + [2], [1] * 40 + [3]], 4, 49),  # more tokens than a batch may hold
    ],
)
def test_rows_that_are_not_worth_it(prompts: list[list[int]], branches: int, most: int) -> None:
    assert [len(members) for members, _ in groups(prompts, [branches] * 2, most)] == [1, 1]


def test_what_prompts_have_in_common() -> None:
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([1, 2], [1, 2, 4]) == 2
    assert common([5], [6]) == 0


def test_a_batch_that_is_large_enough_takes_no_much_shorter_rows() -> None:
    lengths = [10] * 4 + [9] * 2 + [5] * 6
    assert [len(piece) for piece in pack(lengths, 1000)] == [12]
    assert [len(piece) for piece in pack(lengths, 1000, enough=40)] == [6, 6]
    assert [len(piece) for piece in pack(lengths, 1000, enough=70)] == [7, 5]
