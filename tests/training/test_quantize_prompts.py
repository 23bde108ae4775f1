"""Questions put to a language model that is quantised, or spread over devices and the disk."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import beft
from beft.core.quantized import is_quantized, rounds_inputs
from beft.core.store import MANIFEST
from beft.errors import RecipeError
from beft.objectives.choose import score_candidates
from beft.training import language
from beft.training.language import load_language_model
from beft.training.machine import choose
from beft.training.prompt_predictor import PromptPredictor
from core.quantized_bases import WIDE, library
from toys import save_base
from training.test_prompts import choosing, learn, writing

NEAR = {"8bit": 0.15, "4bit": 0.7}
"""Bounds of the mean difference of log-probabilities, of a tiny random model, to the plain base's."""
DISK = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"} | {
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
each_kind = pytest.mark.parametrize("kind", ["8bit", "4bit"])
long_or_not = pytest.mark.parametrize("long", [False, True], ids=["one", "long"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose layers are as wide as quantisation's blocks, its head untied."""
    folder = tmp_path_factory.mktemp("base") / "llama"
    return save_base(folder, "llama", head="lm", special=False, tie_word_embeddings=False, **WIDE["llama"])


def scores(base: Path, long: bool, **options: Any) -> torch.Tensor:
    loaded = load_language_model(str(base), choose("cpu", "fp32"), **options)
    questions = choosing(6, 0, long=long).train
    return torch.tensor(score_candidates(loaded.model, loaded.tokenizer, questions))


@long_or_not
@each_kind
def test_scores_come_near_the_plain_bases(base: Path, kind: str, long: bool) -> None:
    library("bitsandbytes")
    plain = scores(base, long)
    apart = (scores(base, long, quantize=kind) - plain).abs().mean()
    assert 1e-4 < apart < NEAR[kind]
    assert plain.std() > 2 * apart


@each_kind
def test_a_run_evaluates_and_predicts_as_it_was_trained(base: Path, kind: str, tmp_path: Path) -> None:
    library("bitsandbytes")
    task = choosing(18, 6, long=True)
    result = learn(base, task, tmp_path / "out", quantize=kind, with_baselines=False)
    assert result.history[-1]["train_loss"] < math.log(3) + 1
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["task"]["quantize"] == kind
    assert manifest["base"]["fingerprint"] is None
    predictor = beft.load(tmp_path / "out", dtype="fp32")
    assert isinstance(predictor, PromptPredictor)
    assert predictor.choices.quantize == kind
    head = predictor.bank.model.get_output_embeddings()
    assert not is_quantized(head)
    assert is_quantized(predictor.bank.model.get_submodule(predictor.bank[predictor.name].sites[0].module))
    assert rounds_inputs(predictor.bank.model) == (kind == "8bit")
    if kind == "4bit":  # weights alone are rounded, and rows are independent
        assert predictor.judge(task)["evaluation"] == result.evaluation
    assert beft.load(tmp_path / "out", quantize="none").choices.quantize is None


def test_gradients_reach_the_first_layer_of_a_quantised_base(base: Path) -> None:
    library("bitsandbytes")
    result = learn(base, choosing(18, 3), quantize="4bit", gradient_checkpointing=True)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


@pytest.mark.parametrize("place", ["cpu", "auto", DISK], ids=["cpu", "auto", "disk"])
def test_a_device_map_changes_no_result(base: Path, tmp_path: Path, place: Any) -> None:
    task = choosing(12, 6, long=True)
    plain = learn(base, task)
    result = learn(base, task, tmp_path / "out", device_map=place)
    assert result.probabilities == plain.probabilities
    predictor = beft.load(tmp_path / "out", device_map=place)
    assert any(p.is_meta for p in predictor.bank.model.parameters()) == (place is DISK)
    assert predictor.judge(task)["evaluation"] == result.evaluation  # type: ignore[union-attr]


def test_scores_where_the_embeddings_lie_on_disk(base: Path) -> None:
    place = {key: "disk" if key == "model.embed_tokens" else "cpu" for key in DISK}
    assert torch.equal(scores(base, True, device_map=place), scores(base, True))


def test_answers_are_written_by_a_quantised_base(base: Path, tmp_path: Path) -> None:
    library("bitsandbytes")
    task = writing(12, 3)
    result = learn(base, task, tmp_path / "out", quantize="4bit", with_baselines=False)
    assert beft.load(tmp_path / "out").judge(task)["evaluation"] == result.evaluation  # type: ignore[union-attr]


@pytest.mark.parametrize("given", [{"quantize": "4bit"}, {"device_map": "auto"}], ids=["quantize", "device-map"])
def test_a_gguf_file_is_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> None:
    monkeypatch.setattr(language, "_place", lambda name: ("somewhere", "model.gguf"))
    with pytest.raises(RecipeError, match=r"expected a base in safetensors, found the GGUF file model\.gguf"):
        load_language_model("any", choose("cpu", "fp32"), **given)


def test_a_base_that_is_quantised_already(base: Path, tmp_path: Path) -> None:
    library("bitsandbytes")
    load_language_model(str(base), choose("cpu", "fp32"), quantize="8bit").model.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="quantised already"):
        load_language_model(str(tmp_path), choose("cpu", "fp32"), quantize="4bit")
