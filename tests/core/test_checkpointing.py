"""Recomputed layers keep the route of their forward: gradients equal those without checkpointing, however late."""

import threading

import pytest
import torch

import beft
from tiny import REGULAR, batch, build

from .common import close, fill, same_snapshot, snapshot, states

SUPPORTED = [name for name in REGULAR if build(name).supports_gradient_checkpointing]
FIRST, SECOND = ["a", None, "b"], ["b", "a", "a"]
REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not"])


def make(name, checkpointing=None, after=False):
    """A model in train mode without dropout, and its bank; `checkpointing` is None, or whether it is reentrant."""
    model = build(name)
    if name.startswith("t5"):  # its unscaled attention rounds by more than 1e-6 when run another way
        model.double()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for key, value in vars(module).items():
            if "drop" in key and isinstance(value, float):
                setattr(module, key, 0.0)

    def enable():
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            if checkpointing:  # else the first layer's inputs need no gradient, and reentrant checkpointing cuts there
                model.get_input_embeddings().register_forward_hook(lambda m, a, out: out.requires_grad_(True))

    if not after:
        enable()
    bank = fill(beft.attach(model, names=["a", "b"]))
    if after:
        enable()
    return model, bank


def loss(model, bank, route, inputs, target):
    with bank.route(route):
        return (states(model, inputs) * target).sum()


def gradients(bank):
    return {key: p.grad.clone() for key, p in bank.named_parameters()}


def plain_gradients(name, inputs, target, routes):
    model, bank = make(name)
    for route in routes:
        loss(model, bank, route, inputs, target).backward()
    return gradients(bank)


def counted(model):
    """How often the first value projection runs."""
    calls = []
    path = beft.find_sites(model)[0].module
    model.get_submodule(path).register_forward_hook(lambda *args: calls.append(1) and None)
    return calls


def setup(name):
    inputs = batch(name)
    with torch.no_grad():
        target = torch.randn(states(build(name), inputs).shape, generator=torch.Generator().manual_seed(5))
    return inputs, target


def same(bank, want):
    got = gradients(bank)
    assert set(got) == set(want)
    for key in want:
        close(got[key], want[key])
    assert max(float(each.abs().max()) for each in want.values()) > 1e-2


@REENTRANT
@pytest.mark.parametrize("name", SUPPORTED)
def test_gradients_are_those_without_checkpointing(name, reentrant):
    """Two forwards, then their backwards: after the routes' blocks, under yet another route, in another thread."""
    inputs, target = setup(name)
    want = plain_gradients(name, inputs, target, [FIRST, SECOND])
    model, bank = make(name, reentrant)
    calls = counted(model)
    one = loss(model, bank, FIRST, inputs, target)
    two = loss(model, bank, SECOND, inputs, target)
    forwards = len(calls)
    with bank.route("b"):
        one.backward()
    thread = threading.Thread(target=two.backward)
    thread.start()
    thread.join()
    assert len(calls) == 2 * forwards, "layers were recomputed"
    same(bank, want)


@REENTRANT
@pytest.mark.parametrize("after", [False, True], ids=["before-attach", "after-attach"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
def test_switched_on_before_or_after_attach(name, after, reentrant):
    inputs, target = setup(name)
    want = plain_gradients(name, inputs, target, [FIRST])
    model, bank = make(name, reentrant, after)
    loss(model, bank, FIRST, inputs, target).backward()
    same(bank, want)


@REENTRANT
def test_switched_off_and_on_again(reentrant):
    inputs, target = setup("bert")
    want = plain_gradients("bert", inputs, target, [FIRST])
    model, bank = make("bert", reentrant)
    model.gradient_checkpointing_disable()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss(model, bank, FIRST, inputs, target).backward()
    same(bank, want)


def test_switched_on_in_the_base_of_a_headed_model():
    inputs = batch("bert")
    outcome = []
    for on in (False, True):
        model = build("bert", "classify")
        bank = fill(beft.attach(model, names=["a", "b"]))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        if on:
            model.bert.gradient_checkpointing_enable({"use_reentrant": False})
        with bank.route(FIRST):
            total = states(model, inputs).pow(2).sum()
        total.backward()
        outcome.append(gradients(bank))
    for key in outcome[0]:
        close(outcome[1][key], outcome[0][key])


@REENTRANT
def test_the_active_adapter_may_change_before_backward(reentrant):
    inputs, target = setup("llama")
    model, bank = make("llama")
    bank.active = "a"
    (states(model, inputs) * target).sum().backward()
    want = {key: p.grad.clone() for key, p in bank.named_parameters() if p.grad is not None}
    model, bank = make("llama", reentrant)
    bank.active = "a"
    total = (states(model, inputs) * target).sum()
    bank.active = "b"
    total.backward()
    for key, p in bank.named_parameters():
        if key in want:
            close(p.grad, want[key])
        else:
            assert p.grad is None


@REENTRANT
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_detach_restores(name, reentrant):
    model = build(name)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    functions = {n: m.__dict__.get("_gradient_checkpointing_func") for n, m in model.named_modules()}
    before = snapshot(model)
    beft.attach(model).detach()
    same_snapshot(before, snapshot(model))
    assert functions == {n: m.__dict__.get("_gradient_checkpointing_func") for n, m in model.named_modules()}


def test_detach_leaves_checkpointing_on_that_was_switched_on_meanwhile():
    model = build("bert")
    bank = beft.attach(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    bank.detach()
    assert model.is_gradient_checkpointing
    functions = [m.__dict__["_gradient_checkpointing_func"] for m in model.encoder.layer]
    assert all(type(each).__module__ == "functools" for each in functions)
    assert "_set_gradient_checkpointing" not in model.__dict__
