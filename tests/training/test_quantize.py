"""Training and predicting on a base that is quantised, or spread over devices and the disk."""

import functools
import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import beft
import real
from beft.core.quantized import is_quantized
from beft.core.store import MANIFEST
from beft.errors import RecipeError, StoreError
from beft.tasks.load import benchmark_task
from beft.training import quantize
from beft.training.base import add_adapter, load_base
from beft.training.machine import choose
from beft.training.quantize import chosen, loading_keywords, read_device_map
from core.quantized_bases import WIDE, library
from toys import fast, save_base, texts, toy_task
from training.common import After, learn

NEAR = {"8bit": 0.03, "4bit": 0.15}
"""Bounds of the mean difference of probabilities to those on the plain base, of tiny random models."""
NEAR_REAL = {"8bit": 0.03, "4bit": 0.1}
"""Bounds of the largest difference, of a pretrained encoder of 22 million weights."""
DISK = {"embed_tokens": "cpu", "layers.0": "disk", "layers.1": "cpu", "norm": "cpu", "rotary_emb": "cpu"}
each_kind = pytest.mark.parametrize("kind", ["8bit", "4bit"])
CPU = choose("cpu", "fp32")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(folder / family, family, **WIDE[family]) for family in ("bert", "llama")}


@pytest.fixture(scope="module")
def alone(bases: dict[str, Path]) -> dict[str, beft.Result]:
    """Runs on the plain bases."""
    return {family: learn(folder, toy_task(48, 24), fast(epochs=4, lr=0.03)) for family, folder in bases.items()}


@pytest.fixture(scope="module")
def on_the_real_one() -> Callable[..., beft.Result]:
    """Trains on a few rows of SST-2, on a pretrained encoder; once with the same options."""
    task = benchmark_task("sst2", real.data(), size="16", eval_size=16)
    recipe = beft.Recipe(epochs=3, batch_size=8, lr=1e-2, max_length=16, selection="none")

    @functools.cache
    def run(**options: Any) -> beft.Result:
        return learn(real.model("minilm-l6-uncased"), task, recipe, **options)

    return run


def probabilities(result: beft.Result) -> Any:
    (part,) = result.probabilities.values()
    return np.array(part)


def apart(a: Any, b: Any) -> float:
    """Mean difference of probabilities (rows, labels)."""
    return float(np.abs(a - b).mean())


@each_kind
class TestRuns:
    @pytest.mark.parametrize("family", ["bert", "llama"])
    def test_a_run_comes_near_the_one_on_the_plain_base(
        self, bases: dict[str, Path], alone: dict[str, beft.Result], family: str, kind: str, tmp_path: Path
    ) -> None:
        library("bitsandbytes")
        out = tmp_path / "out"
        result = learn(bases[family], toy_task(48, 24), fast(epochs=4, lr=0.03), out, quantize=kind)
        plain = probabilities(alone[family])
        assert np.ptp(plain, axis=0).max() > 0.5  # there is something to compare
        assert apart(probabilities(result), plain) < NEAR[kind]
        manifest = json.loads((out / MANIFEST).read_text())
        assert manifest["task"]["quantize"] == kind
        assert manifest["base"]["fingerprint"] is None
        assert json.loads((out / "run.json").read_text())["machine"]["quantize"] == kind

        words = [row.texts[0] for row in next(iter(result.task.evaluation.values()))]
        loaded = beft.load(out)
        assert loaded.choices.quantize == kind
        assert is_quantized(loaded.bank.model.get_submodule(loaded.bank[loaded.name].sites[0].module))
        bound = 1e-5 if kind == "4bit" else 0.01  # in 8 bit a row's rounding depends on the rows beside it
        assert np.abs(loaded.predict_proba(words) - probabilities(result)).max() < bound
        unquantized = beft.load(out, quantize="none")
        assert unquantized.choices.quantize is None
        assert 0 < apart(unquantized.predict_proba(words), probabilities(result)) < NEAR[kind]

    def test_an_adapter_of_the_plain_base_on_a_quantised_one(
        self, bases: dict[str, Path], kind: str, tmp_path: Path
    ) -> None:
        library("bitsandbytes")
        learn(bases["bert"], toy_task(48, 24), fast(), tmp_path)
        words = [text for text, _ in texts(20, seed=5)]
        plain, other = beft.load(tmp_path), beft.load(tmp_path, quantize=kind)
        assert plain.choices.quantize is None
        assert 0 < apart(plain.predict_proba(words), other.predict_proba(words)) < NEAR[kind]

    def test_on_a_real_encoder(self, on_the_real_one: Callable[..., beft.Result], kind: str) -> None:
        library("bitsandbytes")
        plain, other = on_the_real_one(), on_the_real_one(quantize=kind)
        assert np.ptp(probabilities(plain), axis=0).max() > NEAR_REAL[kind]
        assert np.abs(probabilities(plain) - probabilities(other)).max() < NEAR_REAL[kind]
        assert other.history[-1]["train_loss"] < other.history[0]["train_loss"]

    def test_heads_and_poolers_stay_as_they_are(self, kind: str, tmp_path: Path) -> None:
        library("bitsandbytes")
        for family in ("distilbert", "roberta", "bert"):
            folder = save_base(tmp_path / family, family, without=("pooler",))
            base = load_base(str(folder), choose("cpu", "fp32"), head="model", outputs=3, quantize=kind)
            model = base.model
            assert is_quantized(model.get_submodule(beft.find_sites(model)[0].module))
            bank = beft.attach(model, names=[])
            add_adapter(bank, base, "a", fast(head="model"), 3, ["x", "y", "z"])
            head = bank["a"].head
            assert isinstance(head, beft.ModelHead)
            for path in head.paths:
                assert not any(is_quantized(module) for module in model.get_submodule(path).modules())
                assert all(leaf.dtype == torch.float32 for leaf in head.module(path).parameters())

    def test_a_run_with_the_models_own_head(self, bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
        library("bitsandbytes")
        result = learn(bases["bert"], toy_task(), fast(head="model"), tmp_path, quantize=kind)
        words = [row.texts[0] for row in next(iter(result.task.evaluation.values()))]
        bound = 1e-5 if kind == "4bit" else 0.02
        assert np.abs(beft.load(tmp_path).predict_proba(words) - probabilities(result)).max() < bound

    def test_a_checkpoint_that_is_quantised_already(self, bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
        library("bitsandbytes")
        base = load_base(str(bases["bert"]), choose("cpu", "fp32"), quantize=kind)
        for part in (base.model, base.tokenizer):
            part.save_pretrained(tmp_path)
        again = load_base(str(tmp_path), choose("cpu", "fp32"))
        site = beft.find_sites(again.model)[0]
        assert is_quantized(again.model.get_submodule(site.module))
        assert site == beft.find_sites(base.model)[0]
        with pytest.raises(RecipeError, match=r"expected a base in plain weights, found one that is quantised already"):
            load_base(str(tmp_path), choose("cpu", "fp32"), quantize="4bit")


def test_a_resumed_run_stays_quantised(bases: dict[str, Path], tmp_path: Path) -> None:
    library("bitsandbytes")

    def stop() -> None:
        raise KeyboardInterrupt

    task, recipe = toy_task(48, 12), fast(epochs=4)
    whole = learn(bases["bert"], task, recipe, tmp_path / "whole", quantize="4bit")
    with pytest.raises(KeyboardInterrupt):
        learn(bases["bert"], task, recipe, tmp_path / "cut", quantize="4bit", listener=After(14, stop))
    resumed = learn(bases["bert"], task, recipe, tmp_path / "cut", resume=True)
    assert resumed.choices.quantize == "4bit"
    assert probabilities(resumed).tolist() == probabilities(whole).tolist()


class TestDeviceMaps:
    @pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}, DISK])
    def test_training_and_predicting_as_without(
        self, bases: dict[str, Path], alone: dict[str, beft.Result], tmp_path: Path, place: Any
    ) -> None:
        result = learn(bases["llama"], toy_task(48, 24), fast(epochs=4, lr=0.03), tmp_path, device_map=place)
        assert probabilities(result).tolist() == probabilities(alone["llama"]).tolist()
        words = [row.texts[0] for row in next(iter(result.task.evaluation.values()))]
        loaded = beft.load(tmp_path, device_map=place)
        assert any(p.is_meta for p in loaded.bank.model.parameters()) == (place is DISK)
        assert np.allclose(loaded.predict_proba(words), probabilities(result), atol=1e-6)

    def test_two_adapters_in_one_batch_beside_accelerates_hooks(self, bases: dict[str, Path]) -> None:
        """Both kinds of hooks run: an offloaded layer gets its weights, and every row its own vector."""
        outputs = []
        ids = torch.arange(4, 28).reshape(3, 8)
        for place in (None, DISK):
            model = load_base(str(bases["llama"]), choose("cpu", "fp32"), device_map=place).model
            bank = beft.attach(model, names=["a", "b"])
            with torch.no_grad():
                for number, (_, leaf) in enumerate(bank.named_parameters()):
                    leaf.fill_(0.1 * (number + 1))
                with bank.route(["a", None, "b"]):
                    outputs.append(model(input_ids=ids).last_hidden_state)
        assert torch.equal(*outputs)
        assert not torch.equal(outputs[0][0], outputs[0][2])

    def test_weights_put_on_disk_go_when_the_model_goes(
        self, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quantize.tempfile, "tempdir", str(tmp_path))
        base = load_base(str(bases["llama"]), choose("cpu", "fp32"), device_map=DISK)
        assert list(tmp_path.glob("beft-offload-*"))
        del base
        import gc

        gc.collect()
        assert not list(tmp_path.glob("beft-offload-*"))

    def test_a_head_on_disk_predicts_but_does_not_train(self, tmp_path: Path) -> None:
        folder = save_base(tmp_path / "base", "llama", head="classify")
        place = {"model": "cpu", "score": "disk"}
        result = learn(folder, toy_task(), fast(head="model"), tmp_path / "out")
        words = [row.texts[0] for row in next(iter(result.task.evaluation.values()))]
        loaded = beft.load(tmp_path / "out", device_map=place)
        assert np.allclose(loaded.predict_proba(words), probabilities(result), atol=1e-6)
        with pytest.raises(RecipeError, match=r"the modules of the head on devices: they are trained, found score on"):
            learn(folder, toy_task(), fast(head="model"), device_map=place)

    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("nowhere", "device_map 'nowhere': expected a device, disk, or one of auto"),
            ({"": "cuda:7"}, "device_map 'cuda:7': .* found no such device here"),
            ({"": 9}, "device_map 'cuda:9': .* found no such device here"),
            ({}, "expected module paths and devices"),
            ({0: "cpu"}, "expected module paths and devices"),
        ],
    )
    def test_refused(self, place: Any, message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            loading_keywords(None, place, CPU)

    def test_a_map_that_leaves_modules_out(self, bases: dict[str, Path]) -> None:
        with pytest.raises(StoreError, match=r"device_map"):
            load_base(str(bases["llama"]), choose("cpu", "fp32"), device_map={"layers.0": "disk"})

    @pytest.mark.parametrize(
        ("text", "value"),
        [(None, None), ("auto", "auto"), ("cuda:0", "cuda:0"), ('{"": "cpu", "a.0": 1}', {"": "cpu", "a.0": 1})],
    )
    def test_read_from_the_command_line(self, text: str | None, value: Any) -> None:
        assert read_device_map(text) == value

    @pytest.mark.parametrize("text", ['{"": ', "[1]", '"cpu"'])
    def test_text_that_is_none(self, text: str) -> None:
        with pytest.raises(RecipeError, match="device_map: expected"):
            read_device_map(text)


class TestRefused:
    def test_another_word(self) -> None:
        assert (chosen(None), chosen("none", "4bit"), chosen(None, "4bit"), chosen("8bit")) == (
            None,
            None,
            "4bit",
            "8bit",
        )
        with pytest.raises(RecipeError, match="quantize '2bit': expected 8bit, 4bit or none"):
            chosen("2bit")
        with pytest.raises(RecipeError, match="2bit"):
            loading_keywords("2bit", None, CPU)

    @pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
    def test_without_a_package(self, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
        if package == "accelerate":
            library("bitsandbytes")
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
        with pytest.raises(RecipeError, match=rf"expected the package {package}, found none. Install it: pip install"):
            loading_keywords("4bit", None, CPU)

    def test_a_device_that_bitsandbytes_does_not_know(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library("bitsandbytes")
        import bitsandbytes

        monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
        with pytest.raises(RecipeError, match=r"expected a device of bitsandbytes \(cuda\), found cpu"):
            loading_keywords("8bit", None, CPU)
        with pytest.raises(RecipeError, match=r"found cpu"):
            loading_keywords("8bit", {"": "cpu"}, CPU)

    def test_quantised_weights_on_disk(self) -> None:
        with pytest.raises(RecipeError, match="expected devices alone, for a quantised base, found 'disk'"):
            loading_keywords("4bit", {"a": "cpu", "b": "disk"}, CPU)

    def test_a_plain_base_needs_no_keywords(self) -> None:
        assert loading_keywords(None, None, CPU) == {}
        assert loading_keywords("none", None, CPU) == {}


def test_8bit_products_do_not_talk(bases: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    library("bitsandbytes")
    base = load_base(str(bases["bert"]), choose("cpu", "fp32"), quantize="8bit")
    with caplog.at_level(logging.WARNING):
        base.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert not [record for record in caplog.records if "cast" in record.getMessage()]
    assert isinstance(base.model, type(AutoModel.from_pretrained(bases["bert"])))
