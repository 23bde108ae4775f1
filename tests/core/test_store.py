"""Files: what we write, we and stock PEFT read with the same outputs; what is damaged or does not fit is refused."""

import json
import os
import resource
import subprocess
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import beft
from beft.core.restore import load_adapter
from beft.core.sites import available_terms
from beft.core.store import peft_can_load, save_adapter
from beft.errors import BankError, StoreError
from tiny import TINY, batch, build

from .common import WITH_SITES, close, fill, states

WEIGHTS, MANIFEST, CONFIG = "adapter_model.safetensors", "beft.json", "adapter_config.json"
HEADS = ("pre_classifier", "classifier", "score", "classification_head")


def has_class(name, head):
    try:
        build(name, head)
    except LookupError:
        return False
    return True


CLASSIFY = [name for name in WITH_SITES if has_class(name, "classify")]


def head_of(model):
    return [name for name, _ in model.named_children() if name in HEADS]


def trained(name, head="base", terms="value", scale=1.0, seed=0):
    """A model with one adapter of random numbers, and what it gives for a batch."""
    model = build(name, head)
    bank = beft.attach(model, names=[])
    bank.add("own", terms, scale=scale)
    if head == "classify":
        bank.set_head("own", beft.ModelHead(model, head_of(model)))
    fill(bank, seed)
    bank.active = "own"
    return model, bank


@torch.no_grad()
def output(model, name):
    return states(model, batch(name))


def damage(folder, file, change):
    path = folder / file
    path.write_bytes(change(path.read_bytes()))


def rewrite(folder, change, forget_checksum=True):
    """Change the tensors of a folder, and by default take the checksum out so that the change itself is met."""
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    save_file(tensors, folder / WEIGHTS)
    if forget_checksum and (folder / MANIFEST).exists():
        edit(folder, lambda manifest: manifest.update(sha256={}))


def edit(folder, change, file=MANIFEST):
    value = json.loads((folder / file).read_text())
    change(value)
    (folder / file).write_text(json.dumps(value))


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_SITES)
def test_round_trip_of_every_term(name, tmp_path):
    terms = [term.name for term in available_terms(build(name))]
    model, bank = trained(name, terms=terms)
    want = output(model, name)
    bank.save("own", tmp_path)
    fresh = build(name)
    again = beft.attach(fresh, names=[])
    loaded = again.load(tmp_path)
    assert loaded.sites == bank["own"].sites
    for (_, a), (_, b) in zip(loaded.items(), bank["own"].items(), strict=True):
        assert torch.equal(a, b)
    again.active = "own"
    assert torch.equal(output(fresh, name), want)


def test_scale_is_folded_in(tmp_path):
    model, bank = trained("bert", scale=0.25)
    want = output(model, "bert")
    bank.save("own", tmp_path)
    other = beft.attach(build("bert"), names=[])
    loaded = other.load(tmp_path, name="x")
    assert loaded.scale == 1.0
    other.active = "x"
    close(output(other.model, "bert"), want)
    stored = load_file(tmp_path / WEIGHTS)
    assert sorted(stored) == [f"base_model.model.encoder.layer.{n}.attention.self.value.beft_bias" for n in range(2)]
    vector = bank["own"].vector(bank["own"].sites[0])
    assert torch.equal(stored[sorted(stored)[0]], 0.25 * vector.detach()[None])


def test_fused_projections_store_the_full_width(tmp_path):
    _, bank = trained("gpt_neox")
    bank.save("own", tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    site = bank["own"].sites[0]
    full = stored[f"base_model.model.{site.module}.beft_bias"]
    assert full.shape == (1, 96)
    assert int((full != 0).sum()) == site.width


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
@pytest.mark.parametrize("way", [("base", "lm"), ("base", "classify"), ("classify", "base"), ("lm", "classify")])
def test_paths_of_another_class(name, way, tmp_path):
    if "lm" in way and not has_class(name, "lm"):
        pytest.skip("no language model head")
    source = build(name, way[0])
    bank = fill(beft.attach(source))
    bank.save("default", tmp_path)
    target = beft.attach(build(name, way[1]), names=[])
    loaded = target.load(tmp_path)
    for (_, a), (_, b) in zip(loaded.items(), bank["default"].items(), strict=True):
        assert torch.equal(a, b)
    assert [s.module for s in loaded.sites] == [s.module for s in beft.find_sites(target.model)]


def test_by_hand_sites_come_back(tmp_path):
    sites = {"value": "layers.*.mlp.up_proj[3:9]"}
    bank = fill(beft.attach(build("llama"), sites=sites))
    bank.save("default", tmp_path)
    loaded = beft.attach(build("llama"), names=[]).load(tmp_path)
    assert [s.rows for s in loaded.sites] == [((3, 9),)] * 2
    for (_, a), (_, b) in zip(loaded.items(), bank["default"].items(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CLASSIFY)
def test_model_heads_come_back(name, tmp_path):
    model, bank = trained(name, "classify")
    want = output(model, name)
    bank.save("own", tmp_path)
    again = beft.attach(build(name, "classify"), names=[])
    again.load(tmp_path)
    again.active = "own"
    assert torch.equal(output(again.model, name), want)


def test_heads_of_all_kinds_with_their_labels_in_one_bank(tmp_path):
    model = build("bert", "classify")
    bank = beft.attach(model, names=["lin", "reg", "mod"])
    bank.set_head("lin", beft.LinearHead(32, 2, ["no", "yes"], "last"))
    bank.set_head("reg", beft.LinearHead(32, 1))
    bank.set_head("mod", beft.ModelHead(model, ["classifier"], ["x", "y", "z"]))
    fill(bank)
    bank["reg"].head.offset.fill_(3.0)
    other = beft.attach(build("bert", "classify"), names=[])
    inputs = batch("bert")
    for name in bank.names:
        bank.save(name, tmp_path / name)
        loaded = other.load(tmp_path / name)
        assert loaded.name == name
        assert loaded.head.kind == bank[name].head.kind
        assert loaded.head.labels == bank[name].head.labels
        with torch.no_grad(), bank.route(name), other.route(name):
            assert torch.equal(bank.logits(**inputs), other.logits(**inputs))
    assert other["lin"].head.pooling == "last"
    with pytest.raises(BankError, match="new name"):
        other.load(tmp_path / "lin")
    assert other.load(tmp_path / "lin", name="again").name == "again"


def test_a_head_with_another_number_of_labels(tmp_path):
    model = build("bert", "classify", num_labels=5)
    bank = beft.attach(model, names=["own"])
    bank.set_head("own", beft.ModelHead(model, ["classifier"], list("abcde")))
    fill(bank)
    bank.active = "own"
    want = output(model, "bert")
    bank.save("own", tmp_path)
    other = beft.attach(build("bert", "classify"), names=[])
    assert other.load(tmp_path).head.outputs == 5
    other.active = "own"
    close(output(other.model, "bert"), want)


def test_extra_is_kept(tmp_path):
    _, bank = trained("bert")
    save_adapter(bank, "own", tmp_path, {"fields": ["a", "b"]})
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["task"] == {"fields": ["a", "b"]}
    assert manifest["terms"] == ["value"]
    assert manifest["layers"] == [0, 1]


def test_an_old_linear_head_does_not_outlive_a_save(tmp_path):
    _, bank = trained("bert")
    bank.set_head("own", beft.LinearHead(32, 2, ["a", "b"]))
    bank.save("own", tmp_path)
    assert (tmp_path / "head.safetensors").exists()
    bank.set_head("own", None)
    bank.save("own", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([WEIGHTS, MANIFEST, CONFIG])


# ---- stock PEFT ------------------------------------------------------------------------------------------------------


def loads_in_peft(name, head, folder, want):
    model = peft.PeftModel.from_pretrained(build(name, head), folder)
    model.eval()
    close(output(model, name), want)
    return model


@pytest.mark.filterwarnings("error:Found missing adapter keys")
@pytest.mark.parametrize("name", WITH_SITES)
def test_stock_peft_loads_ours(name, tmp_path):
    model, bank = trained(name, terms="value+query+key")
    want = output(model, name)
    bank.save("own", tmp_path)
    refusal = json.loads((tmp_path / MANIFEST).read_text()).get("peft_refuses", "")
    assert refusal == peft_can_load(bank["own"], model)
    if refusal:
        assert name in ("gpt2", "gpt_bigcode", "gpt_bigcode-mha") or TINY[name].odd
        with pytest.raises(TypeError):
            loads_in_peft(name, "base", tmp_path, want)
    else:
        loads_in_peft(name, "base", tmp_path, want)


@pytest.mark.parametrize("name", CLASSIFY)
def test_stock_peft_loads_our_heads(name, tmp_path):
    terms = "value+pooler" if name == "bert" else "value"
    model, bank = trained(name, "classify", terms)
    want = output(model, name)
    bank.save("own", tmp_path)
    if peft_can_load(bank["own"], model):
        pytest.skip("no nn.Linear")
    loads_in_peft(name, "classify", tmp_path, want)
    if name == "bert":
        keys = set(load_file(tmp_path / WEIGHTS))
        assert "base_model.model.bert.pooler.dense.beft_bias" in keys
        assert "base_model.model.bert.pooler.dense.weight" not in keys


@pytest.mark.parametrize("terms", ["all", "all+pooler+embedding_norm", "attention_norm", "output_norm+attention_norm"])
@pytest.mark.parametrize("name", ["bert", "vit", "opt", "bart"])
def test_stock_peft_loads_norms(name, terms, tmp_path):
    if "pooler" in terms and name != "bert":
        pytest.skip("bert has them all")
    model, bank = trained(name, "classify", terms)
    want = output(model, name)
    bank.save("own", tmp_path)
    assert peft_can_load(bank["own"], model) == ""
    loads_in_peft(name, "classify", tmp_path, want)
    again = beft.attach(build(name, "classify"), names=[])
    again.load(tmp_path)
    again.active = "own"
    close(output(again.model, name), want)


def test_names_that_end_alike_confuse_peft(tmp_path):
    model, bank = trained("distilbert", "classify")
    bank.set_head("own", beft.ModelHead(model, ["classifier"]))
    assert "pre_classifier" in peft_can_load(bank["own"], model)
    bank.save("own", tmp_path)
    assert "pre_classifier" in json.loads((tmp_path / MANIFEST).read_text())["peft_refuses"]
    with pytest.raises(KeyError, match="pre_classifier"):
        peft.PeftModel.from_pretrained(build("distilbert", "classify"), tmp_path)


def test_a_linear_head_is_left_out_by_peft_and_nothing_is_refused(tmp_path):
    model, bank = trained("bert")
    want = output(model, "bert")
    bank.set_head("own", beft.LinearHead(32, 2, ["a", "b"]))
    bank.save("own", tmp_path)
    assert "linear layer of beft's" in peft_can_load(bank["own"], model)
    assert "peft_refuses" not in json.loads((tmp_path / MANIFEST).read_text())
    loads_in_peft("bert", "base", tmp_path, want)


def test_norms_without_a_bias_are_not_for_peft():
    for name in ("llama", "modernbert", "mpt"):
        model, bank = trained(name, terms="attention_norm")
        assert "nn.Linear only" in peft_can_load(bank["own"], model)


def peft_trained(name, head, **config):
    """A model that stock PEFT would have trained, with random numbers."""
    torch.manual_seed(0)
    model = peft.get_peft_model(build(name, head), peft.BeftConfig(**config))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "beft_bias" in key:
                parameter.normal_(std=0.3)
            elif "modules_to_save" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval()
    return model


@pytest.mark.parametrize(
    ("name", "head", "config"),
    [
        ("bert", "base", {"target_modules": ["value"]}),
        ("bert", "base", {"target_modules": ["query", "key", "value", "dense"]}),
        ("bert", "classify", {"target_modules": ["value"], "modules_to_save": ["classifier"]}),
        ("bert", "classify", {"target_modules": ["value"], "task_type": "SEQ_CLS"}),
        ("bert", "classify", {"target_modules": ["value"], "modules_to_save": ["pooler", "classifier"]}),
        ("roberta", "classify", {"target_modules": ["value"], "task_type": "SEQ_CLS"}),
        ("llama", "base", {"target_modules": ["v_proj", "up_proj"]}),
        ("llama", "lm", {"target_modules": ["v_proj"], "task_type": "CAUSAL_LM"}),
        ("llama", "classify", {"target_modules": ["v_proj"], "task_type": "SEQ_CLS"}),
        ("gpt_neox", "base", {"target_modules": ["query_key_value"]}),
        ("falcon-40b", "base", {"target_modules": ["query_key_value"]}),
        ("phi3", "base", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        ("deepseek_v3", "base", {"target_modules": ["kv_b_proj"]}),
        ("t5", "base", {"target_modules": ["v"]}),
        ("modernbert", "base", {"target_modules": ["Wqkv"]}),
    ],
)
def test_we_load_what_stock_peft_saved(name, head, config, tmp_path):
    theirs = peft_trained(name, head, **config)
    want = output(theirs, name)
    theirs.save_pretrained(tmp_path)
    bank = beft.attach(build(name, head), names=[])
    loaded = bank.load(tmp_path, name="theirs")
    bank.active = "theirs"
    close(output(bank.model, name), want)
    assert (loaded.head is not None) == ("modules_to_save" in config or config.get("task_type") == "SEQ_CLS")
    bank.save("theirs", tmp_path / "ours")
    again = beft.attach(build(name, head), names=[])
    again.load(tmp_path / "ours")
    again.active = "theirs"
    close(output(again.model, name), want)


@pytest.mark.parametrize(("source", "target"), [("base", "classify"), ("classify", "base")])
def test_what_stock_peft_saved_loads_on_another_class(source, target, tmp_path):
    theirs = peft_trained("bert", source, target_modules=["value"])
    theirs.save_pretrained(tmp_path)
    loaded = beft.attach(build("bert", target), names=[]).load(tmp_path, name="x")
    assert [s.term.name for s in loaded.sites] == ["value", "value"]


def test_modules_to_save_of_the_base_load_on_another_class(tmp_path):
    theirs = peft_trained("bert", "base", target_modules=["value"], modules_to_save=["pooler"])
    theirs.save_pretrained(tmp_path)
    loaded = beft.attach(build("bert", "classify"), names=[]).load(tmp_path, name="x")
    assert loaded.head.paths == ["bert.pooler"]


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    _, bank = trained("bert", "classify")
    bank.save("own", tmp_path / "own")
    return tmp_path / "own"


def refused(folder, match, name="bert", head="classify", **kwargs):
    model = build(name, head)
    bank = beft.attach(model, names=["there"])
    with pytest.raises(StoreError, match=match) as caught:
        load_adapter(bank, folder, **kwargs)
    assert bank.names == ["there"]
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_missing_files(folder, tmp_path):
    refused(tmp_path / "none", "no such folder")
    (folder / CONFIG).unlink()
    beft.attach(build("bert", "classify"), names=[]).load(folder)
    (folder / WEIGHTS).unlink()
    refused(folder, WEIGHTS)


@pytest.mark.parametrize("keep", [0, 4, 40, -8])
def test_truncated_weights(folder, keep):
    damage(folder, WEIGHTS, lambda data: data[:keep])
    refused(folder, "expected a whole safetensors file")


def test_one_flipped_bit(folder):
    damage(folder, WEIGHTS, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    refused(folder, "its checksum differs")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(folder, number):
    rewrite(folder, lambda tensors: next(iter(tensors.values())).view(-1)[0].fill_(number) and None)
    refused(folder, "NaN or infinity in base_model")


def test_a_vector_that_is_not_finite_is_not_saved(tmp_path):
    _, bank = trained("bert")
    with torch.no_grad():
        bank.parameters("own")[0][0] = float("nan")
    with pytest.raises(StoreError, match="NaN or infinity"):
        bank.save("own", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("key", ["encoder.layer.1.attention.self.value.beft_bias", "classifier.weight"])
def test_missing_key(folder, key):
    rewrite(folder, lambda tensors: {k: v for k, v in tensors.items() if not k.endswith(key)})
    refused(folder, f"expected the key base_model.model.*{key}")


def test_wrong_shapes(folder):
    def shorten(tensors):
        key = next(k for k in tensors if k.endswith("beft_bias"))
        tensors[key] = tensors[key][:, :7].contiguous()

    rewrite(folder, shorten)
    refused(folder, "expected 32 values for bert.encoder.layer.0.attention.self.value, found 7")


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_another_model_type(folder, name):
    refused(folder, "base with model_type 'bert'.*found", name=name)


def test_another_size(folder):
    model = build("bert", "classify", num_hidden_layers=3)
    with pytest.raises(StoreError, match="base with layers 2"):
        beft.attach(model, names=[]).load(folder)
    model = build("bert", "classify", hidden_size=40)
    with pytest.raises(StoreError, match="base with hidden_size 32"):
        beft.attach(model, names=[]).load(folder)


def test_other_weights(folder):
    model = build("bert", "classify", seed=1)
    bank = beft.attach(model, names=[])
    with pytest.raises(StoreError, match=r"trained on \(fingerprint .*check_base=False"):
        bank.load(folder)
    bank.load(folder, check_base=False)
    assert bank.names == ["own"]


def test_a_class_without_the_head(folder):
    assert "AutoModelForSequenceClassification" in refused(folder, "head module 'classifier'", head="base")


def test_a_linear_head_for_another_width(tmp_path):
    _, bank = trained("bert")
    bank.set_head("own", beft.LinearHead(32, 2, ["a", "b"]))
    bank.save("own", tmp_path)
    edit(tmp_path, lambda manifest: manifest.update(sha256={}))
    save_file({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, tmp_path / "head.safetensors")
    refused(tmp_path, "a head on 32 features, found one on 8")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(format=99), "expected format 1, found 99"),
        (lambda m: m.pop("sites"), "sites"),
        (lambda m: m["sites"][0].pop("rows"), "rows"),
        (lambda m: m["sites"][0].update(rows=[[0, 99]]), "rows"),
        (lambda m: m["sites"][0].update(rows=[[0, 30]]), "values of no site"),
        (lambda m: m["sites"].append(m["sites"][0]), "counted twice"),
        (lambda m: m.pop("base"), "beft.json, base: expected an object, found none"),
        (lambda m: m.update(sha256="q"), "beft.json, sha256: expected an object, found str"),
        (lambda m: m.pop("name"), "beft.json, name: expected text, found none"),
        (lambda m: m.update(head=7), "beft.json, head: expected an object, or null, found int"),
        (lambda m: m["head"].pop("kind"), "beft.json, head: expected its kind .* a fault at 'kind'"),
    ],
)
def test_manifests_that_do_not_fit(folder, change, match):
    edit(folder, change)
    refused(folder, match)


def test_a_manifest_that_is_no_json(folder):
    (folder / MANIFEST).write_text("{")
    refused(folder, "expected JSON")


def test_another_kind_of_peft_adapter(tmp_path):
    model = peft.get_peft_model(build("bert"), peft.LoraConfig(target_modules=["value"]))
    model.save_pretrained(tmp_path)
    refused(tmp_path, "expected peft_type 'BEFT', found 'LORA'", head="base")


def test_peft_modules_that_this_model_lacks(tmp_path):
    peft_trained("bert", "classify", target_modules=["value"], task_type="SEQ_CLS").save_pretrained(tmp_path)
    refused(tmp_path, "classifier.* belongs to none of BertModel", head="base")


# ---- writes that fail ------------------------------------------------------------------------------------------------


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_term_that_is_not_known_here_keeps_its_name(tmp_path):
    model, bank = trained("bert")
    want = output(model, "bert")
    bank.save("own", tmp_path / "a")
    written = json.loads((tmp_path / "a" / MANIFEST).read_text())
    for site in written["sites"]:
        site["term"] = "gate"
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(written))
    again = beft.attach(build("bert"), names=[])
    assert {site.term.name for site in again.load(tmp_path / "a", name="x").sites} == {"gate"}
    again.active = "x"
    close(output(again.model, "bert"), want)
    again.save("x", tmp_path / "b")
    assert [site["term"] for site in json.loads((tmp_path / "b" / MANIFEST).read_text())["sites"]] == ["gate", "gate"]


def test_no_folder_is_refused():
    _, bank = trained("bert")
    with pytest.raises(StoreError, match=r"save\('own'\): expected a folder, found an empty text"):
        bank.save("own", "")


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_write_that_fails_midway_keeps_the_old_adapter(folder, monkeypatch, which):
    before = files(folder)
    _, bank = trained("bert", "classify", seed=7)
    calls = []
    replace = os.replace

    def failing(source, target):
        calls.append(target)
        if len(calls) == which:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(StoreError, match="No space left on device"):
        bank.save("own", folder)
    assert files(folder) == before
    bank.save("own", folder)
    assert files(folder) != before


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from core.test_store import trained
from beft.errors import StoreError
_, bank = trained("bert", "classify", seed=7)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try:
    bank.save("own", {folder!r})
except StoreError as error:
    sys.exit(7)
"""


def test_a_file_that_cannot_grow_keeps_the_old_adapter(folder):
    assert resource.RLIMIT_FSIZE is not None
    before = files(folder)
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = FULL_DISK.format(tests=tests, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert files(folder) == before


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "own").write_text("in the way")
    _, bank = trained("bert")
    with pytest.raises(StoreError, match="expected a folder that can be written"):
        bank.save("own", tmp_path / "own")
    assert (tmp_path / "own").read_text() == "in the way"


def test_a_linear_head_fits_the_states_of_a_model_that_projects_them(tmp_path):
    model = build("opt-350m")
    width = model(**batch("opt-350m")).last_hidden_state.shape[-1]
    assert width != model.config.hidden_size
    bank = beft.attach(model, "value", names=["a"])
    bank.set_head("a", beft.LinearHead(width, 2, ["no", "yes"], "last"))
    bank.save("a", tmp_path)
    assert bank.load(tmp_path, name="b").head.outputs == 2
