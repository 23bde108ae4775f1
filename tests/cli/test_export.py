"""`beft export`: a file of steering vectors, what is printed of it, and mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import beft
import real
from beft.core.steering import steering_vectors
from cli.conftest import Cli
from core.common import close, fill
from examples import load_example
from tiny import batch, build
from toys import save_base


def attached(folder: Path, kind: Any, out: Path, **where: Any) -> Any:
    """Save a random adapter of the base in `folder`; gives the model with it attached."""
    model = kind.from_pretrained(folder).eval()
    bank = beft.attach(model, "none", names=[])
    bank.add("own", **{"terms": "value", **where})
    fill(bank)
    bank.active = "own"
    bank.save("own", out)
    return model


def test_a_file_that_the_example_applies_to_a_stock_model(cli: Cli, tmp_path: Path) -> None:
    where = real.model("stories260k-llama")
    model = attached(where, AutoModelForCausalLM, tmp_path / "a")
    out = tmp_path / "deep" / "s.safetensors"
    done = cli("export", tmp_path / "a", "--format", "steering", "--out", out)
    assert done.code == 0, done.err
    assert done.out == ""
    assert "5 vectors of 64 numbers" in done.err
    assert "model.layers.4.self_attn.o_proj" in done.err
    stock: Any = AutoModelForCausalLM.from_pretrained(where).eval()
    load_example("steering").steer(stock, str(out))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        close(stock(ids).logits, model(ids).logits, 1e-5)


def test_a_trained_classifier_names_its_base_itself_and_its_head_is_left_out(
    cli: Cli, adapter: Path, bert: Path, tmp_path: Path
) -> None:
    done = cli("export", adapter, "--out", tmp_path / "s.safetensors")
    assert done.code == 0, done.err
    assert "head" in done.err
    found = load_file(tmp_path / "s.safetensors")
    expected = steering_vectors(AutoModel.from_pretrained(bert), adapter)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_an_adapter_with_the_architectures_own_head(cli: Cli, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")  # a checkpoint without a head
    model = build("bert", "classify", num_labels=5)
    bank = fill(beft.attach(model, names=["own"]))
    bank.set_head("own", beft.ModelHead(model, ["classifier"], list("abcde")))
    bank.save("own", tmp_path / "a")
    done = cli("export", tmp_path / "a", "--model", base, "--out", tmp_path / "s.safetensors")
    assert done.code == 0, done.err
    stock = AutoModel.from_pretrained(base).eval()
    load_example("steering").steer(stock, str(tmp_path / "s.safetensors"))
    with torch.no_grad():
        expected = model.base_model(**batch("bert")).last_hidden_state
        close(stock(**batch("bert")).last_hidden_state, expected, 1e-5)


def test_a_classifier_that_stock_peft_trained(cli: Cli, bert: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model: Any = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).eval()
    wrapped = peft.get_peft_model(model, beft.peft_config(model))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    wrapped.save_pretrained(str(tmp_path / "a"))
    done = cli("export", tmp_path / "a", "--out", tmp_path / "s.safetensors")
    assert done.code == 0, done.err
    assert "model, 3 outputs: not in here" in done.err
    stock = AutoModel.from_pretrained(bert).eval()
    load_example("steering").steer(stock, str(tmp_path / "s.safetensors"))
    with torch.no_grad():
        expected = model.base_model(**batch("bert")).last_hidden_state
        close(stock(**batch("bert")).last_hidden_state, expected, 1e-5)


def test_a_base_in_bf16_stays_in_bf16_and_gives_the_same_vectors(cli: Cli, tmp_path: Path) -> None:
    build("llama", "lm").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    attached(tmp_path / "base", AutoModelForCausalLM, tmp_path / "a")
    assert cli("export", tmp_path / "a", "--out", tmp_path / "s.safetensors", "-q").code == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    for key, vector in steering_vectors(whole, tmp_path / "a").items():
        assert torch.equal(load_file(tmp_path / "s.safetensors")[key], vector)


def test_json_is_the_files_header(cli: Cli, adapter: Path, bert: Path, tmp_path: Path) -> None:
    done = cli("export", adapter, "--out", tmp_path / "s.safetensors", "--json")
    assert done.err == ""
    found = json.loads(done.out)
    assert found["keys"] == [f"encoder.layer.{n}.attention.output.dense" for n in range(2)]
    assert found["base"]["name"] == str(bert)
    assert [each["exact"] for each in found["vectors"].values()] == [True, True]


def test_what_is_not_exact_is_refused_or_noted(cli: Cli, tmp_path: Path) -> None:
    build("gpt_oss", "lm").save_pretrained(tmp_path / "base")
    attached(tmp_path / "base", AutoModelForCausalLM, tmp_path / "a")
    arguments = ["export", tmp_path / "a", "--out", tmp_path / "s.safetensors"]
    done = cli(*arguments)
    assert done.code == 2
    assert "sinks" in done.err
    assert not (tmp_path / "s.safetensors").exists()
    done = cli(*arguments, "--approximate")
    assert done.code == 0
    assert done.err.count("not exact after") == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--format": "gguf"}, "expected steering"),
        ({"--out": "s.bin"}, "ending in .safetensors"),
        ({"--model": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_mistakes_are_named(
    cli: Cli, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--format": "steering", "--out": "s.safetensors", **changes}
    done = cli("export", adapter, *(word for pair in options.items() for word in pair))
    assert done.code == 2
    assert words in done.err
    assert not list(tmp_path.iterdir())


def test_another_term_and_a_folder_that_is_no_model_are_mistakes(cli: Cli, bert: Path, tmp_path: Path) -> None:
    attached(bert, AutoModel, tmp_path / "a", terms="key")
    done = cli("export", tmp_path / "a", "--out", tmp_path / "s.safetensors")
    assert done.code == 2
    assert "b_k" in done.err
    done = cli("export", tmp_path / "a", "--model", tmp_path, "--out", tmp_path / "s.safetensors")
    assert done.code == 2
    assert "expected a transformers model" in done.err
    assert cli("export", tmp_path / "none", "--out", tmp_path / "s.safetensors").code == 2
