"""One compiled graph serves every route."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import beft
from tiny import batch, build

from .common import close, fill, states

ROUTES = [["a", "b", None], ["b", "b", "a"], [None, "a", "a"], ["b", "b", "b"]]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "terms"), [("bert", "all"), ("llama", "value")])
def test_a_new_route_needs_no_new_graph(name, terms):
    model = build(name)
    inputs = batch(name)
    bank = fill(beft.attach(model, terms, names=["a", "b"]))
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for route in ROUTES:
            with bank.route(route):
                close(states(compiled, inputs), states(model, inputs))
        assert counter.frame_count == 1
        for each in ("a", "b", None):
            with bank.route(each):
                close(states(compiled, inputs), states(model, inputs))


def test_heads_of_the_model_need_no_new_graph_either():
    model = build("bert", "classify")
    inputs = {key: value[:1].expand(4, -1) for key, value in batch("bert").items()}
    bank = fill(beft.attach(model, names=["a", "b"]))
    for name in "ab":
        bank.set_head(name, beft.ModelHead(model, ["classifier"]))
        torch.nn.init.normal_(bank[name].head.module("classifier").weight)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    counts = []
    with torch.no_grad():
        for route in ("aaab", "abbb", "bbba", "abab", "baab", "bbab", "aabb", "baaa"):
            with bank.route(list(route)):
                close(compiled(**inputs).logits, model(**inputs).logits)
            counts.append(counter.frame_count)
    assert len(set(counts)) == 1


def test_gradients_of_a_compiled_model():
    model = build("bert")
    inputs = batch("bert")
    bank = fill(beft.attach(model, names=["a", "b"]))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    wants = []
    for run in (model, compiled):
        with bank.route(["a", None, "b"]):
            states(run, inputs).pow(3).sum().backward()
        wants.append([p.grad.clone() for _, p in bank.named_parameters()])
        for _, p in bank.named_parameters():
            p.grad = None
    for eager, graph in zip(*wants, strict=True):
        close(graph, eager)


def test_a_wrong_length_raises_in_a_compiled_model_too():
    model = build("bert")
    bank = fill(beft.attach(model, names=["a", "b"]))
    compiled = torch.compile(model, backend="eager")
    with bank.route(["a", "b"]), pytest.raises(Exception, match="expected a batch of 2 rows"):
        compiled(**batch("bert"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_inductor():
    model = build("bert", num_hidden_layers=1)
    inputs = batch("bert")
    bank = fill(beft.attach(model, names=["a", "b"]))
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        for route in ROUTES[:2]:
            with bank.route(route):
                close(states(compiled, inputs), states(model, inputs), 2e-6)
