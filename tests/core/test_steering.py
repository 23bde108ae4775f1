"""Steering vectors: a stock model with plain hooks gives the attached model's outputs, and what cannot is refused."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

import beft
import real
from beft.core.steering import export_steering, steering, steering_vectors
from beft.errors import BankError, StoreError
from examples import FOLDER, load_example
from tiny import REGULAR, batch, build

from .common import close, fill, states

INEXACT = {"gpt_oss": "sinks", "qwen3_next": "gate", "mpt-clip": "clipped", "olmo-clip": "clipped"}


def headed(name: str) -> nn.Module:
    for head in ("lm", "classify", "base"):
        try:
            return build(name, head)  # type: ignore[arg-type]
        except LookupError:
            continue
    raise AssertionError(name)


@torch.no_grad()
def output(model: nn.Module, name: str) -> Tensor:
    return states(model, batch(name, ragged=True))


def saved(model: nn.Module, folder: Path, **where: Any) -> Path:
    """A folder with an adapter of random numbers; the model is plain again."""
    bank = beft.attach(model, "none", names=[])
    bank.add("own", **{"terms": "value", **where})
    fill(bank)
    bank.save("own", folder)
    bank.detach()
    return folder


def header(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        value: dict[str, Any] = json.loads(opened.metadata()["steering"])
    return value


def attached_output(model: nn.Module, folder: Path, name: str) -> Tensor:
    bank = beft.attach(model, "none", names=[])
    bank.active = bank.load(folder).name
    found = output(model, name)
    bank.detach()
    return found


# ---- the example on stock models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGULAR)
def test_the_example_gives_the_attached_models_outputs(name: str, tmp_path: Path) -> None:
    model = headed(name)
    folder = saved(model, tmp_path / "a")
    result = export_steering(model, folder, tmp_path / "s.safetensors")
    assert not result.inexact
    plain, expected = output(model, name), attached_output(model, folder, name)
    handles = load_example("steering").steer(model, str(tmp_path / "s.safetensors"))
    steered = output(model, name)
    close(steered, expected, 1e-5)
    assert float((expected - plain).abs().max()) > 1e-2 * float(plain.abs().max())
    for handle in handles:
        handle.remove()
    assert torch.equal(output(model, name), plain)


def test_the_example_imports_no_beft_and_is_short() -> None:
    tree = ast.parse((FOLDER / "steering.py").read_text())
    names = {each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    names |= {alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names}
    assert names == {"typing", "safetensors.torch", "torch"}
    assert isinstance(tree.body[-1], ast.FunctionDef)
    assert len(ast.unparse(tree).splitlines()) < 20


def test_a_pretrained_llama_writes_on_as_the_attached_one_does(tmp_path: Path) -> None:
    where = real.model("stories260k-llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    model: Any = transformers.LlamaForCausalLM.from_pretrained(where).eval()
    folder = saved(model, tmp_path / "a")
    vectors = export_steering(model, folder, tmp_path / "s.safetensors").vectors
    assert list(vectors) == [f"layers.{layer}.self_attn.o_proj" for layer in range(5)]
    inputs = tokenizer("Once upon a time, there was a little", return_tensors="pt")
    bank = beft.attach(model, "none", names=[])
    bank.active = bank.load(folder).name
    with torch.no_grad():
        expected = model(**inputs).logits
    written = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    bank.detach()
    stock: Any = transformers.AutoModelForCausalLM.from_pretrained(where).eval()
    plain = stock.generate(**inputs, max_new_tokens=20, do_sample=False)
    load_example("steering").steer(stock, str(tmp_path / "s.safetensors"))
    with torch.no_grad():
        close(stock(**inputs).logits, expected, 1e-5)
    assert torch.equal(stock.generate(**inputs, max_new_tokens=20, do_sample=False), written)
    assert not torch.equal(plain, written)


def test_vectors_of_a_headed_class_fit_the_bare_one_and_the_other_way_round(tmp_path: Path) -> None:
    for first, second in (("classify", "base"), ("base", "lm")):
        file = tmp_path / f"{first}.safetensors"
        folder = saved(source := build("bert", first), tmp_path / first)  # type: ignore[arg-type]
        export_steering(source, folder, file)
        other = build("bert", second)  # type: ignore[arg-type]
        expected = attached_output(other, folder, "bert")
        load_example("steering").steer(other, str(file))
        close(output(other, "bert"), expected, 1e-5)


# ---- what is in the file ---------------------------------------------------------------------------------------------


def test_the_header_says_where_each_vector_belongs_and_of_which_base(tmp_path: Path) -> None:
    model = build("bart", "lm")
    model.config._name_or_path = "some/base"
    folder = saved(model, tmp_path / "a")
    result = export_steering(model, folder, tmp_path / "s.safetensors")
    found = header(tmp_path / "s.safetensors")
    assert found == json.loads(json.dumps(result.metadata))
    assert list(found["vectors"]) == list(result.vectors)
    assert [(each["stack"], each["attention"], each["layer"]) for each in found["vectors"].values()] == [
        *(("encoder", "self", layer) for layer in range(2)),
        *(("decoder", kind, layer) for layer in range(2) for kind in ("self", "cross")),
    ]
    for key, each in found["vectors"].items():
        assert each["after"] == f"model.{key}"
        assert model.get_submodule(each["after"]) is model.base_model.get_submodule(key)
        assert each["exact"]
        assert each["error"] < 1e-4
    assert found["base"]["name"] == "some/base"
    assert found["base"]["class"] == "BartForConditionalGeneration"
    assert found["base"]["fingerprint"] == json.loads((folder / "beft.json").read_text())["base"]["fingerprint"]
    assert found["head"] is None
    assert all(vector.dtype == torch.float32 and vector.shape == (32,) for vector in result.vectors.values())


def test_a_shared_layer_has_one_vector_that_counts_in_every_pass(tmp_path: Path) -> None:
    model = build("albert")
    folder = saved(model, tmp_path / "a")
    export_steering(model, folder, tmp_path / "s.safetensors")
    (about,) = header(tmp_path / "s.safetensors")["vectors"].values()
    assert about["layers_sharing_it"] == 2


def test_a_head_is_named_and_left_out(tmp_path: Path) -> None:
    model = build("bert", "classify")
    folder = saved(model, tmp_path / "a", head=beft.ModelHead(model, ["classifier"], ["a", "b", "c"]))
    result = steering(model, folder)
    assert result.metadata["head"] == "model, 3 outputs: not in here"
    assert set(result.vectors) == {f"encoder.layer.{n}.attention.output.dense" for n in range(2)}
    described = json.loads((folder / "beft.json").read_text())["base"]
    assert result.metadata["base"]["fingerprint"] == described["fingerprint"]


# ---- scale, layers, several adapters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_scale_and_layers_count_in_memory_and_from_files(name: str, tmp_path: Path) -> None:
    model = build(name, "lm")
    bank = beft.attach(model, "none", names=[])
    bank.add("own", terms="value", layers=[1], scale=0.25)
    fill(bank)
    bank.active = "own"
    expected = output(model, name)
    bank.save("own", tmp_path / "a")
    in_memory = steering_vectors(model, bank["own"])  # of an attached model
    bank.detach()
    from_files = steering_vectors(model, tmp_path / "a")
    assert list(in_memory) == list(from_files)
    assert len(in_memory) == 1
    for key, vector in in_memory.items():
        close(vector, from_files[key])
    export_steering(model, tmp_path / "a", tmp_path / "s.safetensors")
    load_example("steering").steer(model, str(tmp_path / "s.safetensors"))
    close(output(model, name), expected, 1e-5)


def test_several_adapters_with_weights_are_the_weighted_sum(tmp_path: Path) -> None:
    model = build("llama", "lm")
    first, second = saved(model, tmp_path / "a"), saved(model, tmp_path / "b", layers=[0])
    apart = [steering_vectors(model, each) for each in (first, second)]
    both = steering_vectors(model, {first: 0.5, second: 2.0})
    for key, vector in both.items():
        close(vector, 0.5 * apart[0][key] + (2.0 * apart[1][key] if key in apart[1] else 0.0))


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = build("llama", "lm")
    folder = saved(model, tmp_path / "a")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    steering_vectors(model, folder)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bf16_weights_give_vectors_in_fp32(tmp_path: Path) -> None:
    model = build("llama", "lm").to(torch.bfloat16)
    folder = saved(model, tmp_path / "a")
    in_half = steering_vectors(model, folder)
    in_full = steering_vectors(model.float(), folder)
    for key, vector in in_half.items():
        assert vector.dtype == torch.float32
        assert torch.equal(vector, in_full[key])


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INEXACT)
def test_where_the_identity_does_not_hold_it_is_refused_or_marked(name: str, tmp_path: Path) -> None:
    model = build(name, "lm")
    bank = beft.attach(model, "value", names=["own"])
    fill(bank, scale=3.0)
    bank.save("own", tmp_path / "a")
    bank.detach()
    with pytest.raises(BankError, match=INEXACT[name]):
        export_steering(model, tmp_path / "a", tmp_path / "s.safetensors")
    assert not (tmp_path / "s.safetensors").exists()
    result = export_steering(model, tmp_path / "a", tmp_path / "s.safetensors", approximate=True)
    assert set(result.inexact) == set(result.vectors)
    marked = header(tmp_path / "s.safetensors")["vectors"].values()
    assert all(not each["exact"] and INEXACT[name] in each["reason"] and each["error"] > 1e-4 for each in marked)


def test_other_terms_are_refused_unless_they_are_zero(tmp_path: Path) -> None:
    model = build("bert")
    folder = saved(model, tmp_path / "a", terms="query+value+output")
    with pytest.raises(BankError, match=r"found query \(b_q\), output \(b_m3\) too"):
        steering_vectors(model, folder)
    with pytest.raises(BankError, match=r"found key \(b_k\)"):
        steering_vectors(model, saved(model, tmp_path / "b", terms="key"))
    bank = beft.attach(model, "query+value", names=["own"])
    with torch.no_grad():
        for site, vector in bank["own"].items():
            vector.fill_(float(site.term.name == "value"))
    assert len(steering_vectors(model, bank["own"])) == 2


def test_sites_named_by_hand_off_the_attention_are_refused(tmp_path: Path) -> None:
    model = build("llama")
    folder = saved(model, tmp_path / "a", terms="value", sites={"value": "layers.*.mlp.up_proj"})
    with pytest.raises(BankError, match="named by hand"):
        steering_vectors(model, folder)


def test_an_adapter_of_another_model_and_a_file_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    folder = saved(build("llama"), tmp_path / "a")
    with pytest.raises(StoreError, match="other weights"):
        steering_vectors(build("llama", seed=1), folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can be written"):
        export_steering(build("llama"), folder, tmp_path / "file" / "s.safetensors")


def test_a_weight_that_is_no_float_is_refused(tmp_path: Path) -> None:
    model = build("bert")
    bank = fill(beft.attach(model, names=["own"]))
    projection = model.get_submodule("encoder.layer.1.attention.output.dense")
    packed = nn.Linear(32, 32)
    whole = projection.weight.detach().clone()
    packed.weight = nn.Parameter(whole.mul(20).round().to(torch.int8), requires_grad=False)  # type: ignore[assignment]
    packed.bias = projection.bias
    packed.forward = lambda x: nn.functional.linear(x, packed.weight.float() / 20, packed.bias)  # type: ignore[method-assign]
    model.set_submodule("encoder.layer.1.attention.output.dense", packed)
    with pytest.raises(BankError, match=r"encoder\.layer\.1.*quantised"):
        steering_vectors(model, bank["own"])
