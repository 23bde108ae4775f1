"""Candidates' scores and gradients equal those of one full forward per candidate, in every family and every way."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import beft
import real
import toys
from beft.errors import DataError, RecipeError
from beft.objectives import ways
from beft.objectives.choose import Scorer, choice_losses, score_candidates
from beft.objectives.logits_at import logits_at
from beft.objectives.packing import out_of_memory
from beft.objectives.prompt_tokens import EncodedQuestions, encode_answers, encode_questions
from beft.objectives.ways import Ways
from beft.tasks.question import Question
from tiny import TINY, batch, build

from .common import LIMIT, agree, encoded, fill, plain_scores, questions

DECODERS = [name for name, entry in TINY.items() if entry.kind == "decoder" and name != "xlnet"]
NO_TREE = {"gpt_neo", "bloom", "mpt", "mpt-clip", "falcon-rw", "qwen3_next", "mamba"}
"""Families that go by place, not by position ids, or see no mask."""
FORCED = {"tree": (), "cache": ("tree",), "rows": ("tree", "cache")}


@pytest.fixture(params=FORCED)
def way(request, monkeypatch):
    """Each way in turn, the better ones refused."""
    for refused in FORCED[request.param]:
        monkeypatch.setattr(Ways, refused, lambda self, length: False)
    return request.param


@pytest.mark.parametrize("name", DECODERS)
def test_scores_equal_one_full_forward_per_candidate(name):
    model = build(name, "lm")
    scorer = Scorer(model)
    for single in (True, False):
        some = encoded(single=single)
        with torch.no_grad():
            want = plain_scores(model, some)
        agree(scorer.evaluate(some, token_budget=60), want)
    assert scorer.ways.holds("tree", 32) == (name not in NO_TREE)
    assert scorer.ways.holds("cache", 32) == (name != "mamba")


@pytest.mark.parametrize(
    "name", ["opt-350m", "gptj", "codegen", "phi", "cohere", "granite", "gemma2", "mamba", "mpt", "gpt_bigcode"]
)
def test_logits_at_chosen_positions_are_the_models_own(name):
    model = build(name, "lm")
    ids = batch(name, rows=2, length=6)["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        some = logits_at(model, {"input_ids": ids}, torch.tensor([11, 0, 4]))
        again = model(input_ids=ids).logits
    assert some.shape == (3, whole.shape[-1])
    assert (some - torch.stack([whole[1, 5], whole[0, 0], whole[0, 4]])).abs().max() < 1e-5
    assert torch.equal(whole, again), "the head is left as it was"


@pytest.mark.parametrize("name", ["gemma2", "opt"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "calibrated"])
def test_every_way_and_reduction(name, reduction, way):
    model = build(name, "lm")
    scorer = Scorer(model, reduction=reduction)
    some = encoded(seed=3)
    with torch.no_grad():
        want = plain_scores(model, some, reduction)
        agree(scorer.evaluate(some, token_budget=80), want)
        padded = scorer.scores(some, [2, 0, 2])
    assert padded.shape == (3, max(len(some.candidates[row]) for row in (0, 2)))
    agree([own[: len(want[row])] for own, row in zip(padded, [2, 0, 2], strict=True)], [want[2], want[0], want[2]])
    assert (padded[0, len(want[2]) :] == -torch.inf).all()


def test_a_score_does_not_depend_on_its_batch(way):
    scorer = Scorer(build("llama", "lm"))
    some = encoded(6, seed=5)
    together = scorer.evaluate(some, token_budget=10_000)
    for budget in (1, 40, 90):
        agree(scorer.evaluate(some, token_budget=budget), together, 2e-6)
    agree([scorer.evaluate(some.take([row]))[0] for row in range(6)], together, 2e-6)


def test_branches_are_spread_over_rows_when_they_are_many(monkeypatch):
    monkeypatch.setattr("beft.objectives.sharing.LEAST_SHARE", 8)
    model = build("llama", "lm")
    scorer = Scorer(model)
    some = encoded(4, seed=1, longest=4)
    assert len(list(scorer._rows(some, range(4)))) > 4
    with torch.no_grad():
        agree(scorer.evaluate(some), plain_scores(model, some))


def test_longer_rows_are_tried_at_their_length():
    """Local attention that looks back by place is only found out beyond its window."""
    model = build("gpt_neo", "lm", window_size=40, max_position_embeddings=128)
    scorer = Scorer(model)
    assert scorer.ways.tree(32)
    assert not scorer.ways.tree(60)
    assert scorer.ways.cache(60)
    mistral = Scorer(build("mistral", "lm", sliding_window=40))
    assert mistral.ways.tree(60)


def test_rows_beyond_the_length_where_rotary_positions_change_stand_alone():
    """The longest row of a batch decides on the frequencies of all."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
    model = build("llama", "lm", rope_parameters=rope | {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4})
    some = encoded(6, seed=2, longest=44)
    lengths = [len(prompt) for prompt in some.prompts]
    assert min(lengths) < 26
    assert max(lengths) > 32
    with torch.no_grad():
        want = plain_scores(model, some)
        agree(Scorer(model).scores(some, range(6)).detach()[:, :2], torch.stack([each[:2] for each in want]))
    agree(Scorer(model).evaluate(some), want)


def test_prompts_that_share_a_batch_fit_the_model_padded():
    """GPT-Neo looks its mask up by place: padding counts."""
    model = build("gpt_neo", "lm")
    scorer = Scorer(model)
    assert scorer.ways.cache(LIMIT)
    some = encoded(2, seed=4)
    long = [list(range(4, 40)), list(range(4, 62))]
    longer = [[list(range(5, 30)), [7, 8]], [[9, 9], [4, 5]]]
    some = EncodedQuestions(long, longer, some.gold, 0, LIMIT, 0)
    with torch.no_grad():
        agree(scorer.evaluate(some), plain_scores(model, some))


@pytest.mark.parametrize("name", ["llama", "bloom", "mamba"])
def test_half_precision_takes_the_same_ways(name):
    full, half = build(name, "lm"), build(name, "lm").bfloat16()
    for each in ("tree", "cache"):
        assert getattr(Scorer(half).ways, each)(32) == getattr(Scorer(full).ways, each)(32)
    some = encoded()
    agree(Scorer(half).evaluate(some), Scorer(full).evaluate(some), 0.3)


def test_trials_are_made_once_a_model(monkeypatch):
    model = build("llama", "lm")
    Scorer(model).evaluate(encoded())
    monkeypatch.setattr(ways, "_TRIALS", {})
    agree(Scorer(model).evaluate(encoded()), Scorer(model).evaluate(encoded()))


def test_models_that_cannot_choose():
    with pytest.raises(RecipeError, match="expected a causal language model, found one whose states depend on later"):
        Scorer(build("xlnet", "lm"))
    with pytest.raises(RecipeError, match="found an encoder-decoder"):
        Scorer(build("t5", "lm"))
    with pytest.raises(RecipeError, match="with its head"):
        Scorer(build("llama"))
    with pytest.raises(RecipeError, match="reduction 'max'"):
        Scorer(build("llama", "lm"), reduction="max")
    with pytest.raises(DataError, match="blanks=True"):
        Scorer(build("llama", "lm"), reduction="calibrated").evaluate(encoded(blanks=False))


# ---- adapters --------------------------------------------------------------------------------------------------------


def banked(name="llama", **overrides):
    model = build(name, "lm", **overrides)
    return model, fill(beft.attach(model, names=["a", "b"]))


def test_one_adapter_or_one_a_question(way):
    model, bank = banked()
    scorer = Scorer(model, bank=bank)
    some = encoded()
    want = {}
    for each in ("a", "b", None):
        with bank.route(each), torch.no_grad():
            want[each] = plain_scores(model, some)
        agree(scorer.evaluate(some, name=each), want[each])
    assert (want["a"][0] - want["b"][0]).abs().max() > 1e-2
    names = ["b", None, "a", "b"]
    agree(scorer.evaluate(some, name=names), [want[each][row] for row, each in enumerate(names)])
    with pytest.raises(RecipeError, match="one a question"):
        scorer.evaluate(some, name=["a"])
    with pytest.raises(RecipeError, match="no bank"):
        Scorer(model).evaluate(some, name="a")


def leaves(bank):
    return [leaf for _, leaf in bank.named_parameters()]


def gradients(bank, loss):
    for leaf in leaves(bank):
        leaf.grad = None
    loss.backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves(bank)]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bloom"])
def test_gradients_equal_those_of_the_plain_way(name, checkpointed):
    still = {"gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"), "bloom": ("hidden_dropout", "attention_dropout")}
    model, bank = banked(name, **dict.fromkeys(still.get(name, ()), 0.0))
    some = encoded()
    rows = range(len(some))
    bank.active = "a"
    want_scores = plain_scores(model, some)
    want = torch.stack([-each.log_softmax(0)[gold] for each, (gold,) in zip(want_scores, some.gold, strict=True)])
    expected = gradients(bank, want.sum())
    scorer = Scorer(model, bank=bank)
    model.train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    with bank.route("a"):
        losses = choice_losses(scorer.scores(some, rows), some.gold)
    got = gradients(bank, losses.sum())
    agree([losses.detach()], [want])
    assert max(float(each.abs().max()) for each in expected) > 1e-2
    for own, other in zip(got, expected, strict=True):
        assert (own - other).abs().max() < 1e-5


def test_rows_of_several_adapters_train_together():
    model, bank = banked()
    some = encoded()
    scorer = Scorer(model, bank=bank)
    names = ["b", "a", "b", "a"]
    with bank.route(names):
        got = gradients(bank, choice_losses(scorer.scores(some, range(4)), some.gold).sum())
    want = None
    for row, name in enumerate(names):
        with bank.route(name):
            own = gradients(bank, choice_losses(scorer.scores(some, [row]), [some.gold[row]]).sum())
        want = own if want is None else [a + b for a, b in zip(want, own, strict=True)]
    for own, other in zip(got, want, strict=True):
        assert (own - other).abs().max() < 1e-5


def test_scores_keep_the_models_mode_and_draw_nothing():
    model, bank = banked()
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    Scorer(model, bank=bank).evaluate(encoded())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_lengths_are_the_tokens_of_a_forward():
    tree, rows = Scorer(build("llama", "lm")), Scorer(build("bloom", "lm"))
    some = encoded().take([1])
    prompt, candidates = some.prompts[0], some.candidates[0]
    assert tree.lengths(some) == [len(prompt) + sum(len(each) - 1 for each in candidates)]
    assert rows.lengths(some) == [sum(len(prompt) + len(each) - 1 for each in candidates)]


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_choice_losses():
    scores = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.5, 1.0]], requires_grad=True)
    got = choice_losses(scores, [(1,), (0, 2)])
    share = scores.detach().softmax(-1)
    assert torch.allclose(got, -torch.stack([share[0, 1], share[1, 0] + share[1, 2]]).log())
    got.sum().backward()
    assert scores.grad.isfinite().all()
    for gold in ((), (3,), (-1,)):
        with pytest.raises(DataError, match="row 0"):
            choice_losses(scores[:1], [gold])


def test_scores_of_answers_are_their_mean_log_likelihood():
    model, bank = banked()
    bank.active = "b"
    tokenizer = toys.tokenizer(special=False)
    asked = [Question(0, "w1 w2 w3", answers=("red good", "blue")), Question(1, "w4", (" good", " bad bad"), gold=(1,))]
    some = encode_answers(tokenizer, asked, stop=" !")
    want = []
    for prompt, answer in (("w1 w2 w3", "red good !"), ("w4", "bad bad")):
        prompt, answer = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        want.append(model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss)
    got = -Scorer(model, bank=bank).scores(some, [0, 1])[:, 0]
    agree([got], [torch.stack(want)])
    for own, other in zip(gradients(bank, got.sum()), gradients(bank, sum(want)), strict=True):
        assert (own - other).abs().max() < 1e-5


# ---- from texts ------------------------------------------------------------------------------------------------------


def test_score_candidates_from_texts():
    model, bank = banked()
    tokenizer = toys.tokenizer(special=False, pad=False)
    asked = questions()
    bank.active = "a"
    with torch.no_grad():
        want = plain_scores(model, encode_questions(tokenizer, asked, blanks=True), "calibrated")
    got = score_candidates(
        model, tokenizer, asked, bank=bank, name="a", reduction="calibrated", token_budget=50, device="cpu"
    )
    agree(got, want)
    assert score_candidates(model, tokenizer, []) == []


def test_a_real_model():
    folder = real.model("stories260k-llama")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [
        Question(0, "Once upon a time, there was a little", (" girl named Lily.", " of the which", " red ball")),
        Question(1, "Lily was very sad. She", (" smiled", " cried", "!")),
        Question(2, "Tom and his dog went to the", (" park.", " because.")),
    ]
    got = score_candidates(model, tokenizer, asked)
    want = []
    for question in asked:
        prompt, scores = tokenizer(question.prompt)["input_ids"], []
        for candidate in question.candidates:
            ids = tokenizer(question.prompt + candidate)["input_ids"]
            assert ids[: len(prompt)] == prompt
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            with torch.no_grad():
                scores.append(-model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        want.append(torch.stack(scores))
    agree(got, want)
    assert [row.index(max(row)) for row in got][::2] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert", "electra", "distilbert"])
def test_a_model_that_sees_later_tokens_is_refused_in_every_precision(name, dtype):
    model = build(name, "lm").to(dtype)
    with pytest.raises(RecipeError, match="one whose states depend on later tokens"):
        Scorer(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "bloom", "gpt_neo", "mamba", "gptj"])
def test_decoders_are_taken_in_bf16(name):
    Scorer(build(name, "lm").bfloat16())


def test_what_holds_in_long_rows_is_not_tried_in_shorter_ones():
    model = build("llama", "lm")
    known = Ways(model)
    assert known.tree(120)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert known.tree(60)
    assert not calls
    assert known.cache(60)
    assert calls


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("no more"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.02 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_short_is_known_by_its_words(error: Exception, short: bool) -> None:
    assert out_of_memory(error) == short
