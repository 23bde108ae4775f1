"""A bank on quantised bases: same sites, right gradients, files that fit the plain base, and no merging."""

from pathlib import Path
from typing import Any

import pytest
import torch

import beft
from beft.core.fingerprint import fingerprint
from beft.core.quantized import first_quantized, is_quantized
from beft.core.ship import merge_checkpoint
from beft.errors import BankError
from core.common import close, fill, states
from core.quantized_bases import QUANTIZED, TRAINABLE, dequantized, plain
from tiny import REGULAR, batch, build

CASES = [(name, kind) for kind in QUANTIZED for name in ("bert", "llama")] + [("gpt2", "8bit"), ("gpt2", "4bit")]
each_case = pytest.mark.parametrize(("name", "kind"), CASES)
NEAR = {"8bit": 0.15, "4bit": 0.7, "torchao": 0.05, "dynamic": 0.35}
"""Bounds of what quantising changes of an adapter's effect on these random models, relative to the effect."""
ROUTE = ["a", "b", None]


def quantized(name: str, kind: str, folder: Path) -> Any:
    return QUANTIZED[kind](name, folder).eval()


def gradients(bank: beft.Bank, name: str, route: Any = ROUTE) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """States of a batch, and the gradient of a loss on them by leaf."""
    for _, leaf in bank.named_parameters():
        leaf.grad = None
    with bank.route(route):
        output = states(bank.model, batch(name))
    output.square().mean().backward()
    return output.detach(), {key: leaf.grad.clone() for key, leaf in bank.named_parameters() if leaf.grad is not None}


def dropout_off(model: Any) -> Any:
    """Training mode without dropout."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for attribute in ("dropout_prob", "attention_dropout"):
            if hasattr(module, attribute):
                setattr(module, attribute, 0.0)
    return model.train()


@each_case
class TestEveryKind:
    def test_sites_are_those_of_the_plain_model(self, name: str, kind: str, tmp_path: Path) -> None:
        model = quantized(name, kind, tmp_path)
        path = first_quantized(model)
        assert path is not None
        for terms in ("value", "query+key", "all"):
            assert beft.find_sites(model, terms) == beft.find_sites(plain(name), terms)
        sites = [beft.find_sites(model, "value")[0].module, beft.find_sites(model, "value")[0].output]
        assert all(is_quantized(model.get_submodule(site)) for site in sites)

    def test_they_are_proven(self, name: str, kind: str, tmp_path: Path) -> None:
        model = quantized(name, kind, tmp_path)
        verified = beft.verify_sites(model)
        assert verified.ok, [str(proof) for proof in verified.failures]
        assert verified.inert_key_layers == beft.verify_sites(plain(name)).inert_key_layers
        values = [proof for proof in verified.proofs if proof.site.term.name == "value"]
        assert all(proof.effect > 0.1 for proof in values)

    def test_a_wrong_site_is_still_found_out(self, name: str, kind: str, tmp_path: Path) -> None:
        model = quantized(name, kind, tmp_path)
        site = beft.find_sites(model, "query")[0]
        pattern = site.module if site.whole else f"{site.module}[{site.rows[0][0]}:{site.rows[0][1]}]"
        assert not beft.verify_sites(model, "value", sites={"value": pattern}).ok

    def test_files_go_to_the_plain_base_and_back(self, name: str, kind: str, tmp_path: Path) -> None:
        bank = fill(beft.attach(quantized(name, kind, tmp_path / "base")))
        assert fingerprint(bank.model) is None
        assert bank.base_description()["fingerprint"] is None
        bank.save("default", tmp_path / "adapter")
        other = beft.attach(plain(name), names=[])
        other.load(tmp_path / "adapter", name="x")
        other.save("x", tmp_path / "back")  # with the plain base's fingerprint
        bank.load(tmp_path / "back", name="y")
        for adapter in (other["x"], bank["y"]):
            assert adapter.sites == bank["default"].sites
            for (_, given), (_, read) in zip(bank["default"].items(), adapter.items(), strict=True):
                assert torch.equal(given, read)

    def test_an_adapter_acts_as_on_the_plain_base(self, name: str, kind: str, tmp_path: Path) -> None:
        banks = [fill(beft.attach(model)) for model in (quantized(name, kind, tmp_path), plain(name))]
        moved = []
        with torch.no_grad():
            for bank in banks:
                with bank.route(None):
                    before = states(bank.model, batch(name))
                moved.append(states(bank.model, batch(name)) - before)
        near = (moved[0] - moved[1]).norm() / moved[1].norm()
        assert near < NEAR[kind], float(near)

    def test_detaching_leaves_it_as_it_was(self, name: str, kind: str, tmp_path: Path) -> None:
        model = quantized(name, kind, tmp_path)
        attributes = {path: sorted(module.__dict__) for path, module in model.named_modules()}
        flags = {p: getattr(m, "support_avx512bf16_for_cpu", None) for p, m in model.named_modules()}
        beft.attach(model).detach()
        assert {path: sorted(module.__dict__) for path, module in model.named_modules()} == attributes
        assert {p: getattr(m, "support_avx512bf16_for_cpu", None) for p, m in model.named_modules()} == flags

    def test_merging_is_refused(self, name: str, kind: str, tmp_path: Path) -> None:
        fill(beft.attach(plain(name))).save("default", tmp_path / "adapter")
        model = quantized(name, kind, tmp_path / "base")
        with pytest.raises(
            BankError, match=r"a base in plain weights, found .*, a quantised \w+. Merge into the unquant"
        ):
            beft.merge(model, tmp_path / "adapter")
        assert not hasattr(model, "beft")
        if kind in ("8bit", "4bit"):
            model.save_pretrained(tmp_path / "saved")
            with pytest.raises(BankError, match="expected a checkpoint in plain weights, found a quantised one"):
                merge_checkpoint(tmp_path / "saved", tmp_path / "adapter", tmp_path / "merged")
            assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] in TRAINABLE])
class TestTraining:
    def test_gradients_are_those_of_the_values_the_weights_stand_for(
        self, name: str, kind: str, tmp_path: Path
    ) -> None:
        model = quantized(name, kind, tmp_path)
        same = dequantized(model, name)
        banks = [fill(beft.attach(dropout_off(each), names=["a", "b"])) for each in (model, same)]
        (output, grads), (expected, expected_grads) = (gradients(bank, name) for bank in banks)
        close(output, expected, 1e-5)
        assert grads.keys() == expected_grads.keys() == dict(banks[0].named_parameters()).keys()
        for key, gradient in grads.items():
            assert gradient.abs().max() > 1e-6
            assert (gradient - expected_grads[key]).abs().max() < 1e-4 * expected_grads[key].abs().max(), key

    def test_an_evaluation_in_between_changes_nothing(self, name: str, kind: str, tmp_path: Path) -> None:
        model = quantized(name, kind, tmp_path)
        with torch.no_grad():
            if name != "gpt2":
                model(**batch(name))  # before the bank is attached: some 4-bit layers pack their weights now
        bank = fill(beft.attach(dropout_off(model), names=["a", "b"]))
        first, grads = gradients(bank, name)
        model.eval()
        with torch.no_grad(), bank.route(ROUTE):
            states(model, batch(name))
        model.train()
        second, again = gradients(bank, name)
        assert torch.equal(first, second)
        assert all(torch.equal(grads[key], again[key]) for key in dict(bank.named_parameters()))

    def test_some_steps_go_where_the_plain_base_goes(self, name: str, kind: str, tmp_path: Path) -> None:
        losses, outputs = [], []
        target = torch.randn(64, generator=torch.Generator().manual_seed(3))
        for model in (quantized(name, kind, tmp_path), plain(name)):
            bank = beft.attach(dropout_off(model))
            optimiser = torch.optim.AdamW(bank.parameters("default"), lr=0.03)
            course = []
            for _ in range(12):
                optimiser.zero_grad()
                output = states(model, batch(name))
                loss = (output.mean((0, 1)) - target).square().mean()
                loss.backward()
                optimiser.step()
                course.append(float(loss.detach()))
            losses.append(course)
            outputs.append(output.detach())
        assert losses[0][-1] < 0.9 * losses[0][0]
        gain = [course[0] - course[-1] for course in losses]
        assert abs(gain[0] - gain[1]) < NEAR[kind] * gain[1], gain


@pytest.mark.parametrize("kind", ["4bit", "torchao"])
def test_rows_of_a_batch_do_not_see_each_other_where_weights_alone_are_rounded(kind: str, tmp_path: Path) -> None:
    bank = fill(beft.attach(quantized("bert", kind, tmp_path), names=["a", "b"]))
    inputs = batch("bert")
    with torch.no_grad():
        with bank.route(ROUTE):
            together = states(bank.model, inputs)
        for number, name in enumerate(ROUTE):
            with bank.route(name):
                alone = states(bank.model, {key: value[number : number + 1] for key, value in inputs.items()})
            close(together[number : number + 1], alone, 1e-6)


@pytest.mark.parametrize("name", REGULAR)
def test_plain_models_are_not_quantised(name: str) -> None:
    model = build(name)
    beft.attach(model, names=["a"]).set_head("a", beft.LinearHead(32, 2))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert first_quantized(model.to(dtype)) is None
