"""`beft merge` and `beft unmerge`: what they write, what they say, and bad input in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import beft
from beft.core.shards import Checkpoint, same_bits
from cli.conftest import Cli, call, fast_options
from toys import texts

TEXTS = [text for text, _ in texts(9, seed=4)]


def test_a_linear_head_is_what_sentence_transformers_loads(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    done = cli("merge", adapter, "--out", tmp_path / "m")
    assert done.code == 0, done.err
    assert "modules: bias" in done.err
    assert "largest difference from the attached model's outputs" in done.err
    assert "SentenceTransformer" in done.err
    logits = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(TEXTS)
    expected = beft.load(adapter).predict_proba(TEXTS)
    found = torch.tensor(logits).softmax(-1).numpy()
    assert np.abs(found - expected).max() < 1e-5
    labels = json.loads((tmp_path / "m" / "config_sentence_transformers.json").read_text())["labels"]
    assert labels == list(beft.load(adapter).labels or ())


def test_the_models_own_head_is_what_stock_transformers_loads(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert (
        call(
            "train",
            "--data",
            toy_csv,
            "--text",
            "text",
            "--label",
            "label",
            "-q",
            *fast_options(bert, run),
            "--head",
            "model",
        )
        == 0
    )
    assert cli("merge", run, "--out", tmp_path / "m", "-q").code == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "m")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**tokens).logits.softmax(-1).numpy()
    predictor = beft.load(run)
    assert np.abs(found - predictor.predict_proba(TEXTS)).max() < 1e-5
    assert list(model.config.id2label.values()) == list(predictor.labels or ())


def test_json_and_the_way_back(cli: Cli, adapter: Path, bert: Path, tmp_path: Path) -> None:
    done = cli("merge", adapter, "--out", tmp_path / "m", "--json")
    report = json.loads(done.out)
    assert report["error"] < 1e-5
    assert report["head"] == "linear"
    done = cli("unmerge", tmp_path / "m", "--out", tmp_path / "b")
    assert done.code == 0
    one, two = Checkpoint(bert), Checkpoint(tmp_path / "b")
    assert set(one.home) == set(two.home)
    assert all(same_bits(one.read(key), two.read(key)) for key in one.home)
    assert not (tmp_path / "b" / "modules.json").exists()
    assert not (tmp_path / "b" / "beft").exists()


def test_two_adapters_with_weights(cli: Cli, adapter: Path, bert: Path, toy_csv: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        call(
            "train",
            "--data",
            toy_csv,
            "--text",
            "text",
            "--label",
            "label",
            "-q",
            *fast_options(bert, run),
            "--seed",
            3,
        )
        == 0
    )
    done = cli("merge", adapter, run, "--weights", "0.5,0.5", "--out", tmp_path / "m", "--verify", "tensors")
    assert done.code == 0, done.err
    assert "outputs not compared" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "m"], "nowhere: expected an adapter folder, found no such folder."),
        (["ADAPTER", "--out", "FULL"], "expected a new or empty folder, found files there."),
        (["ADAPTER", "ADAPTER", "--out", "m"], "--weights: expected 2 numbers, one an adapter"),
        (["ADAPTER", "ADAPTER", "--weights", "0.5,x", "--out", "m"], "expected numbers with commas between"),
        (["ADAPTER", "ADAPTER", "--weights", "0.5,0.5", "--out", "m"], "adapters: expected each once"),
        (["ADAPTER", "--verify", "hope", "--out", "m"], "--verify hope: expected logits or tensors"),
        (["ADAPTER", "--architecture", "qwen2", "--out", "m"], "expected a sibling of bert: none is known"),
        (["ADAPTER", "--model", "nowhere/base", "--out", "m"], "model 'nowhere/base': expected a folder or a Hub"),
    ],
)
def test_bad_input(cli: Cli, adapter: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    names = {"ADAPTER": adapter, "m": tmp_path / "m", "FULL": tmp_path / "full"}
    done = cli("merge", *[names.get(each, each) for each in arguments])
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "m").exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def test_unmerging_what_was_not_merged(cli: Cli, bert: Path, tmp_path: Path) -> None:
    done = cli("unmerge", bert, "--out", tmp_path / "b")
    assert done.code == 2
    assert "no record of a merge" in done.err
