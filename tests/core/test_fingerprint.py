import pytest
import torch

import beft
from beft.core.fingerprint import describe_base, fingerprint
from tiny import build

FAMILIES = ["bert", "roberta", "distilbert", "albert", "gpt2", "llama", "gpt_neox", "t5", "bart", "vit", "bloom"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_under_every_head_and_in_bfloat16(name):
    want = fingerprint(build(name))
    assert want is not None
    assert len(want) == 32
    assert fingerprint(build(name, "classify")) == want
    assert fingerprint(build(name).to(torch.bfloat16)) == want
    assert fingerprint(build(name, seed=1)) != want


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_the_same_after_saving_and_loading(name, tmp_path):
    model = build(name, "classify")
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
        assert fingerprint(loaded) == fingerprint(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_weight_changes_it(name):
    model = build(name)
    want = fingerprint(model)
    parameters = [p for n, p in model.named_parameters() if "pooler" not in n]
    for parameter in (parameters[0], parameters[len(parameters) // 2], parameters[-1]):
        with torch.no_grad():
            flat = parameter.view(-1)
            old = float(flat[-1])
            flat[-1] = old + 0.1
            assert fingerprint(model) != want
            flat[-1] = old
    assert fingerprint(model) == want


def test_the_order_of_weights_counts():
    model = build("bert")
    want = fingerprint(model)
    weight = model.encoder.layer[0].intermediate.dense.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    assert fingerprint(model) != want


@pytest.mark.parametrize("head", ["base", "classify"])
def test_attaching_training_and_heads_do_not_change_it(head):
    model = build("bert", head)
    want = fingerprint(model)
    bank = beft.attach(model, "all")
    with torch.no_grad():
        for parameter in bank.parameters("default"):
            parameter.normal_()
        if head == "classify":
            model.classifier.weight.normal_()
    assert fingerprint(model) == want
    assert bank.base_description()["fingerprint"] == want


def test_weights_that_are_not_those_of_the_checkpoint_have_none():
    assert fingerprint(build("bert").half()) is None
    assert fingerprint(build("bert").to("meta")) is None


def test_description():
    described = describe_base(build("llama"))
    assert described["class"] == "LlamaModel"
    assert (described["model_type"], described["hidden_size"], described["layers"]) == ("llama", 32, 2)
