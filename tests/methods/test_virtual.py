"""Virtual tokens: equal to stock PEFT and to plain inputs, in heads, scored candidates and generated texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, DynamicCache

import beft
from beft.core.bank import attach
from beft.errors import RecipeError
from beft.methods.method import Options
from beft.methods.registry import find_method, load_method
from beft.methods.virtual import above_mask, before_mask
from methods.common import mean_of, method_run
from tiny import batch, build
from toys import fast, toy_task
from training.common import learn

peft = pytest.importorskip("peft")


def attached(family: str, name: str, head: Any = "base", tokens: int = 3) -> tuple[Any, Any, Any]:
    """A tiny model with virtual tokens of random weights: model, bank, method."""
    model = build(family, head, attn_implementation="eager")
    bank = attach(model, "none", names=["default"])
    method = find_method(name)(Options(virtual_tokens=tokens))
    leaves = method.attach(bank, "default")
    (leaf,) = leaves.values()
    with torch.no_grad():
        leaf.copy_(0.5 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1)))
    return model, bank, method


@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2", "opt"])
def test_a_prefix_is_stock_pefts_and_padding_changes_nothing(family: str) -> None:
    model, bank, method = attached(family, "prefix")
    inputs = batch(family, ragged=True)
    with torch.no_grad():
        ours = model(**inputs).last_hidden_state
        with bank.route(None):
            plain = model(**inputs).last_hidden_state
        alone = model(**{key: value[2:, :4] for key, value in inputs.items()}).last_hidden_state
    weights = method.state()["prompt_embeddings"].clone()
    method.detach()
    bank.detach()
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION")
    stock = peft.get_peft_model(build(family, attn_implementation="eager"), config)
    with torch.no_grad():
        stock.prompt_encoder["default"].embedding.weight.copy_(weights)
        theirs = stock(**inputs).last_hidden_state
    kept = inputs["attention_mask"].bool()
    assert (ours - theirs)[kept].abs().max() < 1e-5
    assert int(inputs["attention_mask"][2].sum()) == 5
    assert (ours - plain)[kept].abs().max() > 1e-2
    assert alone.shape[1] == 4


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "opt", "modernbert", "distilbert", "deberta-v3"])
def test_a_prompt_is_the_model_on_embeddings_with_the_tokens_in_front(family: str) -> None:
    model, bank, method = attached(family, "prompt")
    inputs = batch(family, ragged=True)
    tokens = method.state()["prompt_embeddings"].clone()
    with torch.no_grad():
        ours = model(**inputs).last_hidden_state
        method.detach()
        bank.detach()
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        mask = torch.cat([torch.ones(3, 3, dtype=torch.long), inputs["attention_mask"]], 1)
        whole = model(
            inputs_embeds=torch.cat([tokens.expand(3, -1, -1), embedded], 1), attention_mask=mask
        ).last_hidden_state
    assert ours.shape == (3, 7, 32)
    kept = inputs["attention_mask"].bool()
    assert (ours - whole[:, 3:])[kept].abs().max() < 1e-5


@pytest.mark.parametrize("name", ["prefix", "prompt"])
@pytest.mark.parametrize("base", ["bert", "llama"])
def test_linear_heads_pool_the_text_alone(request: pytest.FixtureRequest, base: str, name: str) -> None:
    run, _ = method_run(request.getfixturevalue(base), toy_task(12), fast(method=name, virtual_tokens=3))
    head = run.bank["default"].head
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))  # type: ignore[union-attr]
        inputs = run.parts["select"].encoded.batch(range(5))
        ours = run.bank.logits(**inputs)
        for row in range(5):
            own = inputs["attention_mask"][row].bool()
            alone = {key: value[row : row + 1, own] for key, value in inputs.items()}
            states = run.bank.model(**alone).last_hidden_state
            assert states.shape[1] == int(own.sum())
            pooled = mean_of(states, None) if base == "bert" else states[:, -1]
            assert (head(pooled) - ours[row]).abs().max() < 1e-5  # type: ignore[misc]


def test_a_prefix_starts_from_real_activations(llama: Path) -> None:
    run, method = method_run(llama, toy_task(8), fast(method="prefix"))
    packed = method.state()["prompt_embeddings"].view(5, 4, 2, 8)  # type: ignore[attr-defined] # tokens, k and v, heads
    ids = torch.randint(97, (1, 5), generator=torch.Generator().manual_seed(0))
    cache: Any = DynamicCache()
    with run.bank.route(None), torch.no_grad():
        run.bank.model(input_ids=ids, past_key_values=cache)
    for number, layer in enumerate(cache.layers):
        assert (packed[:, 2 * number].transpose(0, 1) - layer.keys[0]).abs().max() < 1e-6
        assert (packed[:, 2 * number + 1].transpose(0, 1) - layer.values[0]).abs().max() < 1e-6


def test_stock_peft_loads_a_prefix(headed: Path, tmp_path: Path) -> None:
    learn(headed, toy_task(24, 12), fast(method="prefix", head="model", epochs=1, lr=0.05), tmp_path / "out")
    run, _ = method_run(headed, toy_task(24, 12), fast(method="frozen", head="model"))
    run.bank.remove("default")
    run.bank.active = load_method(run.bank, tmp_path / "out")[0].name
    inputs = run.parts["select"].encoded.batch(range(6))
    stock = AutoModelForSequenceClassification.from_pretrained(
        headed, dtype=torch.float32, attn_implementation="eager", num_labels=3
    )
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(stock, str(tmp_path / "out")).eval()(**inputs).logits
        assert (run.bank.logits(**inputs) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_generated_texts_are_those_of_whole_forwards(family: str, name: str) -> None:
    model, bank, _ = attached(family, name, "lm")
    ids = torch.tensor([[7, 9, 11, 13], [1, 1, 8, 10]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    cached = model.generate(input_ids=ids, attention_mask=mask, **settings)
    whole = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
    beams = model.generate(input_ids=ids, attention_mask=mask, num_beams=2, **settings)
    with bank.route(None):
        plain = model.generate(input_ids=ids, attention_mask=mask, **settings)
    for row, prompt in enumerate(([7, 9, 11, 13], [8, 10])):
        text = torch.tensor([prompt])
        for _ in range(6):
            with torch.no_grad():
                text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(-1)], 1)
        assert cached[row, 4:].tolist() == whole[row, 4:].tolist() == text[0, len(prompt) :].tolist()
    assert beams.shape == cached.shape
    assert not torch.equal(cached, plain)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_candidates_score_alike_in_every_way(name: str) -> None:
    from beft.objectives.choose import Scorer
    from beft.objectives.prompt_tokens import encode_questions
    from toys import tokenizer
    from training.test_prompts import questions

    model, bank, _ = attached("llama", name, "lm")
    encoded = encode_questions(tokenizer(special=False), questions(4, long=True), 60)
    scorer = Scorer(model, bank=bank)
    with torch.no_grad(), bank.route("default"):
        tree = scorer.scores(encoded, range(4))
    cached = torch.tensor(scorer.evaluate(encoded, name="default"))
    rows: list[list[float]] = []
    for prompt, candidates in zip(encoded.prompts, encoded.candidates, strict=True):
        rows.append([])
        for candidate in candidates:
            ids = torch.tensor([[*prompt, *candidate]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            rows[-1].append(float(logits[range(len(candidate)), candidate].mean()))
    assert (tree - torch.tensor(rows)).abs().max() < 1e-5
    assert (cached - torch.tensor(rows)).abs().max() < 1e-5
    with bank.route(None), torch.no_grad():
        assert (scorer.scores(encoded, range(4)) - torch.tensor(rows)).abs().max() > 1e-3


def test_masks_let_all_see_the_virtual_tokens() -> None:
    two = torch.tensor([[1, 1, 0]])
    assert before_mask(two, 2, 1, 3, 0, two.device).tolist() == [[1, 1, 1, 1, 0]]
    assert before_mask(None, 2, 1, 3, 1, two.device).tolist() == [[1, 1, 1, 1, 1, 1]]
    seen = torch.tensor([[[[True, False], [True, True]]]])
    wide = before_mask(seen, 1, 1, 2, 0, two.device)
    assert wide.tolist() == [[[[True, True, False], [True, True, True]]]]
    assert above_mask(wide, 1).tolist() == [[[[True, False, False], [True, True, False], [True, True, True]]]]
    added = torch.zeros(1, 1, 2, 2).masked_fill(~seen, torch.finfo(torch.float32).min)
    assert torch.equal(above_mask(before_mask(added, 1, 1, 2, 0, two.device), 1) == 0, above_mask(wide, 1))


def test_models_without_a_way_in_are_refused(tmp_path: Path) -> None:
    for family, name, words in (("modernbert", "prefix", "past keys"), ("t5", "prompt", "an encoder or a causal")):
        bank = attach(build(family), "none", names=["default"])
        with pytest.raises(RecipeError, match=words):
            find_method(name)().attach(bank, "default")


def test_positions_are_kept_for_virtual_tokens(bert: Path, tmp_path: Path) -> None:
    recipe = fast(method="prefix", virtual_tokens=60, max_length=64, epochs=1)  # of the 64 positions
    result = learn(bert, toy_task(12, 6), recipe, tmp_path / "out")
    assert any("cut to 4 tokens" in notice for notice in result.notices)
    assert beft.load(tmp_path / "out").max_length == 4
