"""Merging on disk: stock checkpoints, whole or in shards, with the attached model's outputs, and the way back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import beft
import real
import tiny
from beft.core import shards, ship
from beft.core.merge import AnyAdapter
from beft.core.shards import Checkpoint, same_bits
from beft.core.ship import merge_as, merge_checkpoint, unmerge_checkpoint
from beft.core.shipped import KEPT, RECORD, Shipped
from beft.errors import BankError, StoreError
from core.test_merge import HOMELESS, WAYS, built, difference, outputs, saved

RENAMED = ("vit",)  # transformers gives their weights other names in memory than on disk


def checkpoint(tmp_path: Path, name: str, **options: Any) -> tuple[nn.Module, Path]:
    """A tiny model of a family, saved."""
    model: Any = built(name)
    model.save_pretrained(tmp_path / "base", **options)
    return model, tmp_path / "base"


def adapter(model: nn.Module, folder: Path, **options: Any) -> Path:
    folder, bank = saved(model, folder, **options)
    bank.detach()
    return folder


def same_tensors(a: Path, b: Path) -> bool:
    one, two = Checkpoint(a), Checkpoint(b)
    return set(one.home) == set(two.home) and all(same_bits(one.read(key), two.read(key)) for key in one.home)


@pytest.mark.parametrize("name", [name for name in tiny.REGULAR if name not in HOMELESS])
def test_merged_on_disk_and_restored_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, base = checkpoint(tmp_path, name)
    folder, bank = saved(model, tmp_path / "a")
    expected = outputs(model, name)
    bank.detach()
    shipped = merge_checkpoint(base, folder, tmp_path / "m")
    assert set(shipped.ways.values()) == {WAYS.get(name, "bias")}
    assert shipped.error is not None
    assert shipped.error < 1e-5
    stock = getattr(transformers, shipped.architecture).from_pretrained(tmp_path / "m").eval()
    assert not hasattr(stock, "beft")
    assert difference(outputs(stock, name), expected) < 1e-5
    if name not in RENAMED:
        unmerge_checkpoint(tmp_path / "m", tmp_path / "b")
        assert same_tensors(base, tmp_path / "b")
        assert (base / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


@pytest.mark.parametrize("name", HOMELESS)
def test_an_architecture_without_a_place_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    model, base = checkpoint(tmp_path, name)
    with pytest.raises(BankError, match="expected a place for the vector of"):
        merge_checkpoint(base, adapter(model, tmp_path / "a"), tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]


@pytest.mark.parametrize(
    ("name", "architecture", "changes"),
    [("mistral", "qwen2", {}), ("mistral", "llama", {"sliding_window": None}), ("phi3", "llama", {})],
)
@pytest.mark.parametrize("head", ["lm", "base", "classify"])
def test_the_same_weights_as_a_sibling(
    name: str, architecture: str, changes: dict[str, Any], head: Any, tmp_path: Path
) -> None:
    model: Any = tiny.build(name, head=head, **changes)
    model.save_pretrained(tmp_path / "base")
    folder, bank = saved(model, tmp_path / "a", terms="value+query")
    expected = outputs(model, name)
    bank.detach()
    shipped = merge_as(tmp_path / "base", folder, tmp_path / "m", architecture)
    assert shipped.architecture.lower().startswith(architecture)
    stock = getattr(transformers, shipped.architecture).from_pretrained(tmp_path / "m").eval()
    assert difference(outputs(stock, name), expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "architecture", "message"),
    [("mistral", "llama", "a sliding window of 4 tokens"), ("llama", "qwen2", "none is known")],
)
def test_a_sibling_that_computes_otherwise_is_refused(
    name: str, architecture: str, message: str, tmp_path: Path
) -> None:
    model, base = checkpoint(tmp_path, name)
    with pytest.raises(BankError, match=message):
        merge_as(base, adapter(model, tmp_path / "a"), tmp_path / "m", architecture)


def test_shards_are_streamed_and_the_index_names_the_new_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, base = checkpoint(tmp_path, "llama", max_shard_size="20KB")
    assert len(Checkpoint(base).shards) > 3
    folder = adapter(model, tmp_path / "a")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a whole model was loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    steps: list[tuple[int, int]] = []
    shipped = merge_checkpoint(
        base, folder, tmp_path / "m", verify="tensors", progress=lambda *each: steps.append(each)
    )
    assert shipped.error is None
    assert len(steps) == len(Checkpoint(base).shards)
    assert steps[-1][0] == steps[-1][1] == Checkpoint(base).total_bytes
    monkeypatch.undo()
    index = json.loads((tmp_path / "m" / shards.INDEX).read_text())
    assert sum(key.endswith("proj.bias") for key in index["weight_map"]) == 8
    assert index["metadata"]["total_size"] > json.loads((base / shards.INDEX).read_text())["metadata"]["total_size"]
    stock = type(model).from_pretrained(tmp_path / "m").eval()  # type: ignore[attr-defined]
    assert torch.equal(outputs(stock, "llama"), outputs(beft.merge(model, folder), "llama"))
    unmerge_checkpoint(tmp_path / "m", tmp_path / "b")
    for file in Checkpoint(base).shards:
        assert (base / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_bf16_checkpoint_stays_bf16_and_the_error_is_that_of_its_new_biases(tmp_path: Path) -> None:
    model: Any = built("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    folder = adapter(model, tmp_path / "a")
    shipped = merge_checkpoint(tmp_path / "base", folder, tmp_path / "m")
    assert {value.dtype for value in load_file(tmp_path / "m" / shards.SINGLE).values()} == {torch.bfloat16}
    assert shipped.error is not None
    assert 0 < shipped.error < 2e-2


def test_the_models_own_head_and_labels_go_along_and_come_off_again(tmp_path: Path) -> None:
    bare: Any = tiny.build("bert")
    bare.save_pretrained(tmp_path / "base")
    model: Any = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2).eval()
    head = beft.ModelHead(model, ["classifier"], ["no", "yes"])
    folder, bank = saved(model, tmp_path / "a", head=head)
    expected = outputs(model, "bert")
    bank.detach()
    merge_checkpoint(tmp_path / "base", folder, tmp_path / "m")
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert stock.config.id2label == {0: "no", 1: "yes"}
    assert difference(outputs(stock, "bert"), expected) < 1e-5
    unmerge_checkpoint(tmp_path / "m", tmp_path / "b")
    assert same_tensors(tmp_path / "base", tmp_path / "b")


def test_several_adapters_with_weights(tmp_path: Path) -> None:
    model, base = checkpoint(tmp_path, "gpt2")
    parts: AnyAdapter = {adapter(model, tmp_path / "a", seed=1): 0.25, adapter(model, tmp_path / "b", seed=2): 0.75}
    merge_checkpoint(base, parts, tmp_path / "m")
    stock = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m").eval()
    assert difference(outputs(stock, "gpt2"), outputs(beft.merge(model, parts), "gpt2")) < 1e-6


@pytest.mark.parametrize(("name", "bound"), [("minilm-l6-uncased", 2e-3), ("stories260k-llama", 1e-5)])
def test_a_real_model(name: str, bound: float, tmp_path: Path) -> None:
    """The encoder's weights are in fp16, and so are its new biases; the decoder's are in fp32."""
    base = real.model(name)
    kind = transformers.AutoModel if "minilm" in name else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(base, dtype=torch.float32).eval()
    folder, bank = saved(model, tmp_path / "a")
    tokens = transformers.AutoTokenizer.from_pretrained(base)("Once upon a time there was a cat.", return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens)[0]
    bank.detach()
    shipped = merge_checkpoint(base, folder, tmp_path / "m")
    assert shipped.fingerprint.startswith("the base is the adapter's own")
    with torch.no_grad():
        found = kind.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()(**tokens)[0]
    assert difference(found, expected) < bound
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "m" / file).read_bytes() == (base / file).read_bytes()
    unmerge_checkpoint(tmp_path / "m", tmp_path / "b")
    assert same_tensors(base, tmp_path / "b")


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_merging_twice_is_refused(tmp_path: Path) -> None:
    model, base = checkpoint(tmp_path, "bert")
    folder = adapter(model, tmp_path / "a")
    merge_checkpoint(base, folder, tmp_path / "m")
    with pytest.raises(BankError, match="merged in already"):
        merge_checkpoint(tmp_path / "m", folder, tmp_path / "again")


def test_other_weights_are_refused_by_their_fingerprint(tmp_path: Path) -> None:
    model, _ = checkpoint(tmp_path, "bert")
    other: Any = tiny.build("bert", head="lm", seed=5)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(StoreError, match="other weights of the same shape"):
        merge_checkpoint(tmp_path / "other", adapter(model, tmp_path / "a"), tmp_path / "m")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model, base = checkpoint(tmp_path, "llama", max_shard_size="20KB")
    folder = adapter(model, tmp_path / "a")
    gone = sorted(base.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(StoreError, match=f"1 missing: {gone.name}"):
        merge_checkpoint(base, folder, tmp_path / "m")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    model, base = checkpoint(tmp_path, "llama", max_shard_size="20KB")
    folder = adapter(model, tmp_path / "a")
    cut = sorted(base.glob("*.safetensors"))[1]
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(StoreError, match=cut.name):
        merge_checkpoint(base, folder, tmp_path / "m")


@pytest.mark.parametrize("fail_at", [0, 2])
def test_a_write_that_fails_midway_leaves_nothing(
    fail_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, base = checkpoint(tmp_path, "llama", max_shard_size="20KB")
    folder = adapter(model, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    count = 0

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        if count == fail_at:
            raise OSError(28, "No space left on device")
        count += 1
        save_file(*args, **kwargs)

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        merge_checkpoint(base, folder, tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_what_came_back_other_than_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = checkpoint(tmp_path, "bert")
    folder = adapter(model, tmp_path / "a")

    def flip(tensors: dict[str, torch.Tensor], path: Path, **kwargs: Any) -> None:
        key = next(key for key in tensors if key.endswith("query.weight"))
        save_file({**tensors, key: tensors[key] + 1}, path, **kwargs)

    monkeypatch.setattr(shards, "save_file", flip)
    with pytest.raises(StoreError, match="expected the tensors that were written"):
        merge_checkpoint(base, folder, tmp_path / "m", verify="tensors")


def test_outputs_that_differ_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = checkpoint(tmp_path, "llama")
    folder = adapter(model, tmp_path / "a")
    monkeypatch.setattr(ship, "fold", lambda plain, one, read: NothingDone(plain))
    with pytest.raises(BankError, match="expected the attached model's outputs"):
        merge_checkpoint(base, folder, tmp_path / "m")
    assert not (tmp_path / "m").exists()


class NothingDone:
    """A merge that did nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.ways, self.switched, self.head = model, {}, "", None


def test_nan_in_the_adapter_is_refused(tmp_path: Path) -> None:
    model, base = checkpoint(tmp_path, "bert")
    folder = adapter(model, tmp_path / "a")
    weights = load_file(folder / "adapter_model.safetensors")
    key = next(iter(weights))
    weights[key][0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(StoreError, match="NaN or infinity"):
        merge_checkpoint(base, folder, tmp_path / "m")


def test_a_folder_that_was_not_merged_cannot_be_unmerged(tmp_path: Path) -> None:
    _, base = checkpoint(tmp_path, "bert")
    with pytest.raises(StoreError, match="no record of a merge"):
        unmerge_checkpoint(base, tmp_path / "b")


def test_the_report_is_whole(tmp_path: Path) -> None:
    model, base = checkpoint(tmp_path, "llama")
    shipped = merge_checkpoint(base, adapter(model, tmp_path / "a"), tmp_path / "m")
    assert isinstance(shipped, Shipped)
    assert shipped.switched == "attention_bias"
    record = json.loads((tmp_path / "m" / KEPT / RECORD).read_text())
    assert record["ways"] == dict(shipped.ways)
    assert len(record["added"]) == 8
