"""Routed generation equals each row alone, with a KV cache and without."""

import threading

import pytest
import torch

import beft
from beft.errors import RouteError
from tiny import TINY, batch, build

from .common import EXPERTS, WITH_SITES, close, fill, row, states

NAMES = [name for name in WITH_SITES if TINY[name].kind in ("decoder", "encoder-decoder")]
ROUTE = ["a", None, "b"]
NEW = 5
BEAMS_ALL = ("llama", "gpt2", "t5", "bart")  # what is asked for of beams makes no difference to the route
WAYS = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "beams-all": {"do_sample": False, "num_beams": 3, "num_return_sequences": 3},
}


def routed(name, **overrides):
    model = build(name, "lm", **overrides)
    return model, fill(beft.attach(model, names=["a", "b"]), scale=0.6)


def prompts(name, rows=3):
    given = batch(name, rows=rows, length=6, seed=3)
    return {key: given[key] for key in ("input_ids", "attention_mask")}


def generate(model, inputs, **kwargs):
    """Tokens of exactly NEW steps, so that rows compare."""
    return model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, **kwargs)


@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name in NAMES for way in WAYS if way != "beams-all" or name in BEAMS_ALL]
)
def test_each_row_generates_what_it_does_alone(name, way):
    model, bank = routed(name)
    inputs = prompts(name)
    with bank.route(ROUTE):
        mixed = generate(model, inputs, **WAYS[way])
    count = len(mixed) // 3
    outputs = []
    for number, each in enumerate(ROUTE):
        with bank.route(each):
            alone = generate(model, row(inputs, number), **WAYS[way])
            assert torch.equal(mixed[number * count : (number + 1) * count], alone)
            if way == "greedy":
                outputs.append(generate(model, inputs, **WAYS[way]))
                assert torch.equal(alone, generate(model, row(inputs, number), use_cache=False, **WAYS[way]))
    if way == "greedy":
        assert not torch.equal(outputs[0], outputs[2]), "the adapters generate different text"


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart", "bloom", "falcon-40b"])
def test_sampled_sequences(name):
    """A seed gives a batch the draws it gives the same batch of rows repeated by hand."""
    model, bank = routed(name)
    inputs = prompts(name)
    torch.manual_seed(0)
    with bank.route(ROUTE):
        two = generate(model, inputs, do_sample=True, num_return_sequences=2)
    torch.manual_seed(0)
    with bank.route([each for each in ROUTE for _ in range(2)]):
        repeated = {key: value.repeat_interleave(2, 0) for key, value in inputs.items()}
        assert torch.equal(two, generate(model, repeated, do_sample=True))


@pytest.mark.parametrize("name", NAMES)
def test_logits_with_a_cache_equal_those_without(name):
    if TINY[name].kind != "decoder":
        pytest.skip("covered by generating without a cache")
    model, bank = routed(name)
    inputs = prompts(name)
    ids = inputs["input_ids"]
    with torch.no_grad(), bank.route(ROUTE):
        whole = states(model, {"input_ids": ids})
        start = model(input_ids=ids[:, :4], use_cache=True)
        rest = model(input_ids=ids[:, 4:], past_key_values=start.past_key_values, use_cache=True).logits
    close(rest, whole[:, 4:], 5e-6 if name in EXPERTS else 2e-6)


def test_active_adapter_generates():
    model, bank = routed("llama")
    inputs = prompts("llama")
    bank.active = "a"
    one = generate(model, inputs, do_sample=False, num_beams=2)
    with bank.route(["a"] * 3):
        assert torch.equal(one, generate(model, inputs, do_sample=False, num_beams=2))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_repeated_rows_are_refused_outside_generate(name):
    model, bank = routed(name)
    inputs = prompts(name)
    route = bank.make_route(ROUTE)
    with bank._using(route):
        generate(model, inputs, do_sample=False, num_beams=3)
        with pytest.raises(RouteError, match="route over 3 rows"):
            model(**batch(name, rows=9))
        with pytest.raises(RouteError), torch.no_grad():
            generate(model, prompts(name, rows=9), do_sample=False)
        generate(model, inputs, do_sample=False)


def test_one_route_generates_in_two_threads_with_different_repeats():
    model, bank = routed("llama")
    inputs = prompts("llama")
    route = bank.make_route(ROUTE)
    ways = [{"num_beams": 2}, {"num_beams": 3}]
    with bank._using(route):
        want = [generate(model, inputs, do_sample=False, **way) for way in ways]
    got = [None, None]

    def work(number):
        with bank._using(route):
            for _ in range(3):
                got[number] = generate(model, inputs, do_sample=False, **ways[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_detach_gives_the_stock_generate_back():
    model = build("llama", "lm")
    generate_of_class = model.generate
    bank = beft.attach(model)
    bank.detach()
    assert model.generate == generate_of_class
    assert "generate" not in model.__dict__
