"""Pushing to and loading from the Hub, over HTTP against a local stand-in."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants
from torch import nn
from transformers import AutoModel

import beft
from bases import bert
from beft.core.hub import adapter_folder, push_folder, push_to_hub
from beft.core.store import HEAD, MANIFEST, PEFT_CONFIG, WEIGHTS
from beft.errors import StoreError
from beft.report import plots
from beft.training.base import load_base
from beft.training.machine import choose
from core.fake_hub import READ_TOKEN, TOKEN, FakeHub
from tiny import batch, build
from toys import COLOURS, fast, texts, toy_task

__all__ = ["bert"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The stand-in, as the endpoint that huggingface_hub and transformers talk to; logged in, with an empty cache."""
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # it keeps the first endpoint it saw
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # files over plain LFS
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def trained(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> beft.Result:
    """A run on a base of a local folder."""
    out = tmp_path_factory.mktemp("trained") / "out"
    available, plots.available = plots.available, lambda: False
    try:
        return beft.train(str(bert), toy_task(30, 12), fast(), out, dtype="fp32", with_baselines=False)
    finally:
        plots.available = available


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def filled(folder: Path, seed: int = 0) -> beft.Bank:
    bank = beft.attach(AutoModel.from_pretrained(folder))
    with torch.no_grad():
        for _, vector in bank["default"].items():
            vector.copy_(torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed)))
    return bank


class TestPushedAndLoaded:
    def test_a_bank(self, hub: FakeHub, bert: Path) -> None:
        bank = filled(bert)
        address = bank.push_to_hub("user/adapter", base_model="user/base", commit_message="first")
        repository = hub.repositories["user/adapter"]
        assert address == f"{hub.url}/user/adapter/commit/{repository.branches['main']}"
        assert set(repository.files()) == {".gitattributes", WEIGHTS, PEFT_CONFIG, MANIFEST, "README.md"}
        assert repository.messages == ["initial", "first"]
        assert not repository.private
        with torch.no_grad():
            expected = bank.model(**batch("bert")).last_hidden_state
        other = beft.attach(AutoModel.from_pretrained(bert), names=[])
        other.active = other.load("user/adapter").name
        with torch.no_grad():
            assert torch.equal(other.model(**batch("bert")).last_hidden_state, expected)

    def test_a_run_with_its_base_by_one_name(self, hub: FakeHub, bert: Path, trained: beft.Result) -> None:
        assert trained.directory is not None
        before = files_of(trained.directory)
        hub.add("user/base", files_of(bert))
        push_folder(trained.directory, "user/colours", base_model="user/base", private=True)
        repository = hub.repositories["user/colours"]
        assert repository.private
        words = [text for text, _ in texts(12, seed=7)]
        loaded, local = beft.load("user/colours"), beft.load(trained.directory)
        assert loaded.model_name == "user/base"
        assert loaded.labels == COLOURS
        assert np.array_equal(loaded.predict_proba(words), local.predict_proba(words))
        assert files_of(trained.directory) == before
        fetched = {path.rpartition("/")[2] for method, path in hub.requests if "/user/colours/resolve/" in path}
        assert fetched == {WEIGHTS, HEAD, PEFT_CONFIG, MANIFEST}

    def test_no_rows_and_no_local_paths_leave_the_machine(self, hub: FakeHub, bert: Path, trained: beft.Result) -> None:
        assert trained.directory is not None
        push_folder(trained.directory, "user/colours", base_model="user/base")
        pushed = hub.repositories["user/colours"].files()
        expected = {WEIGHTS, HEAD, PEFT_CONFIG, MANIFEST, "README.md", "metrics.json", "history.csv", ".gitattributes"}
        assert set(pushed) == expected
        assert (trained.directory / "predictions.jsonl").exists()
        assert not [name for name, content in pushed.items() if str(bert).encode() in content]
        assert json.loads(pushed[PEFT_CONFIG])["base_model_name_or_path"] == "user/base"

    def test_the_card(self, hub: FakeHub, bert: Path, trained: beft.Result) -> None:
        assert trained.directory is not None
        push_folder(trained.directory, "user/run", base_model="user/base")
        push_to_hub(filled(bert), "user/bank", base_model="user/base")
        for name in ("user/run", "user/bank"):
            card = hub.repositories[name].files()["README.md"].decode()
            head = yaml.safe_load(card.split("---\n")[1])
            assert head["library_name"] == "beft"
            assert head["base_model"] == "user/base"
            assert f'load("{name}")' in card
            assert "path/to" not in card
        assert ("POST", "/api/validate-yaml") in hub.requests

    def test_the_card_says_that_stock_peft_will_refuse_it(self, hub: FakeHub, bert: Path) -> None:
        filled(bert).push_to_hub("user/adapter", base_model="user/base")
        beft.attach(build("gpt2")).push_to_hub("user/other", base_model="user/base")
        cards = [hub.repositories[f"user/{name}"].files()["README.md"].decode() for name in ("adapter", "other")]
        assert ["Stock PEFT will refuse it: h.0.attn.c_attn is a Conv1D" in card for card in cards] == [False, True]

    def test_revisions(self, hub: FakeHub, bert: Path) -> None:
        push_to_hub(filled(bert, seed=1), "user/adapter", base_model="user/base")
        push_to_hub(filled(bert, seed=2), "user/adapter", base_model="user/base", revision="better")
        first, better = adapter_folder("user/adapter"), adapter_folder("user/adapter", revision="better")
        assert (first / WEIGHTS).read_bytes() != (better / WEIGHTS).read_bytes()
        number = hub.repositories["user/adapter"].branches["main"]
        assert adapter_folder("user/adapter", revision=number) == first

    def test_once_fetched_it_is_there_offline(self, hub: FakeHub, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        push_to_hub(filled(bert), "user/adapter", base_model="user/base")
        folder = adapter_folder("user/adapter")
        assert (
            beft.attach(AutoModel.from_pretrained(bert), names=[]).load("user/adapter", revision="main").name
            == "default"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert adapter_folder("user/adapter") == folder
        assert adapter_folder(Path("user/adapter")) == folder

    def test_one_that_stock_peft_saved_is_named_after_its_repository(self, hub: FakeHub, bert: Path) -> None:
        bank = filled(bert)
        push_to_hub(bank, "user/foreign", base_model="user/base")
        files = hub.repositories["user/foreign"].files()
        hub.add("user/foreign", {name: files[name] for name in (WEIGHTS, PEFT_CONFIG)})
        other = beft.attach(AutoModel.from_pretrained(bert), names=[])
        assert other.load("user/foreign").name == "foreign"
        for (_, given), (_, read) in zip(bank["default"].items(), other["foreign"].items(), strict=True):
            assert torch.equal(given, read)


class TestFolders:
    def test_a_local_folder_comes_first(self, hub: FakeHub, tmp_path: Path) -> None:
        (tmp_path / "user/adapter").mkdir(parents=True)
        assert adapter_folder("user/adapter").resolve() == tmp_path / "user/adapter"
        assert hub.requests == []

    @pytest.mark.parametrize("name", ["runs/ticket", "./user/adapter", "/nowhere/adapter", "adapter", "a/b/c", "../x"])
    def test_what_looks_local_is_not_looked_for_elsewhere(self, hub: FakeHub, tmp_path: Path, name: str) -> None:
        (tmp_path / "runs").mkdir()
        with pytest.raises(StoreError, match="expected an adapter folder, found no such folder"):
            adapter_folder(name)
        assert hub.requests == []

    def test_a_revision_means_the_hub(self, hub: FakeHub, bert: Path, tmp_path: Path) -> None:
        push_to_hub(filled(bert), "user/adapter", base_model="user/base")
        (tmp_path / "user").mkdir()
        assert (adapter_folder("user/adapter", revision="main") / WEIGHTS).is_file()
        with pytest.raises(StoreError, match='expected a Hub repository "user/repo" for a revision'):
            adapter_folder(tmp_path, revision="main")


def missing(hub: FakeHub) -> None:
    hub.repositories.clear()


def hidden(hub: FakeHub) -> None:
    hub.repositories["user/adapter"].private = True
    os.environ["HF_TOKEN"] = ""


def gated(hub: FakeHub) -> None:
    hub.repositories["user/adapter"].gated = True


def broken(hub: FakeHub) -> None:
    hub.broken = True


def away(hub: FakeHub) -> None:
    hub.shutdown()
    hub.server_close()


def offline(hub: FakeHub) -> None:
    constants.HF_HUB_OFFLINE = True


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (missing, "found no such repository. Check the spelling; if it is private, log in with"),
            (hidden, "found no such repository. Check the spelling; if it is private, log in with"),
            (gated, "found a gated repository. Ask for access on its page"),
            (away, r"found no way to reach http://127\.0\.0\.1:\d+ \(ConnectError\). Check the connection"),
            (offline, "found none in the cache, and HF_HUB_OFFLINE is set. Unset it"),
        ],
    )
    def test_loading(self, hub: FakeHub, change: Callable[[FakeHub], None], message: str) -> None:
        hub.add("user/adapter", {WEIGHTS: b"", MANIFEST: b"{}"})
        change(hub)
        with pytest.raises(StoreError, match=message) as caught:
            adapter_folder("user/adapter")
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("Hub repository 'user/adapter': expected a folder here, or a repository")

    def test_a_revision_that_is_not_there(self, hub: FakeHub) -> None:
        hub.add("user/adapter", {WEIGHTS: b"", MANIFEST: b"{}"})
        with pytest.raises(StoreError, match="expected the revision 'v2', found none of it"):
            adapter_folder("user/adapter", revision="v2")

    def test_a_repository_without_an_adapter(self, hub: FakeHub, bert: Path) -> None:
        hub.add("user/base", files_of(bert))
        with pytest.raises(StoreError, match=r"expected an adapter .*found none of it\. If this is the base model"):
            adapter_folder("user/base")
        assert not [path for _, path in hub.requests if path.endswith("model.safetensors")]

    @pytest.mark.parametrize(
        ("token", "message"),
        [
            ("", "found no valid token. Log in with `hf auth login` or set HF_TOKEN, with a token that may write it"),
            ("hf_wrong", "found no valid token"),
            (READ_TOKEN, "found a token without the right to do this"),
        ],
    )
    def test_pushing_without_the_right(
        self, hub: FakeHub, bert: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(StoreError, match=message) as caught:
            push_to_hub(filled(bert), "user/adapter", base_model="user/base")
        assert "\n" not in str(caught.value)
        assert hub.repositories == {}

    def test_pushing_offline(self, hub: FakeHub, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set"):
            push_to_hub(filled(bert), "user/adapter", base_model="user/base")

    @pytest.mark.parametrize("name", ["no slash here", "a/b/c", "user/-x-"])
    def test_no_name_of_a_repository(self, hub: FakeHub, bert: Path, name: str) -> None:
        with pytest.raises(StoreError, match='expected a name "user/repo"'):
            push_to_hub(filled(bert), name, base_model="user/base")

    def test_a_base_that_others_cannot_load(self, hub: FakeHub, bert: Path, trained: beft.Result) -> None:
        assert trained.directory is not None
        with pytest.raises(StoreError, match=f"found the local folder {bert}. Give base_model="):
            push_to_hub(filled(bert), "user/adapter")
        with pytest.raises(StoreError, match="found the local folder"):
            push_folder(trained.directory, "user/adapter")
        assert hub.repositories == {}

    def test_a_folder_that_is_no_adapter(self, hub: FakeHub, bert: Path) -> None:
        with pytest.raises(StoreError, match=rf"expected an adapter folder of beft, found no {WEIGHTS}"):
            push_folder(bert, "user/adapter")

    def test_a_hub_that_is_broken(self, hub: FakeHub, bert: Path) -> None:
        hub.broken = True
        with pytest.raises(StoreError, match=r"found the answer 500 \(broken\). Try again later"):
            push_to_hub(filled(bert), "user/adapter", base_model="user/base")


CONFIG = """
from transformers import BertConfig

class OwnConfig(BertConfig):
    model_type = "own-bert"
"""
MODEL = """
from transformers import BertModel
from .configuration_own import OwnConfig

class OwnModel(BertModel):
    config_class = OwnConfig
"""


class TestCodeOfTheModel:
    @pytest.fixture
    def own(self, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A model folder that brings its own classes."""
        from transformers import dynamic_module_utils

        monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        folder = Path(shutil.copytree(bert, tmp_path / "own"))
        config = json.loads((folder / "config.json").read_text())
        names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
        config |= {"model_type": "own-bert", "auto_map": names, "architectures": ["OwnModel"]}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "configuration_own.py").write_text(CONFIG)
        (folder / "modeling_own.py").write_text(MODEL)
        return folder

    def test_it_does_not_run_unasked(self, own: Path, tmp_path: Path) -> None:
        (own / "configuration_own.py").write_text("raise SystemExit('it ran')")
        with pytest.raises(StoreError, match=r"custom code.*Read that code, then allow it with --trust-remote-code"):
            load_base(str(own), choose("cpu", "fp32"))
        assert not (tmp_path / "modules").exists()

    def test_it_runs_when_asked(self, own: Path, bert: Path) -> None:
        base = load_base(str(own), choose("cpu", "fp32"), trust_remote_code=True)
        assert type(base.model).__name__ == "OwnModel"
        assert isinstance(base.model, nn.Module)
        bank = beft.attach(base.model)
        assert [site.module for site in bank["default"].sites] == [
            s.module for s in beft.find_sites(filled(bert).model)
        ]

    def test_nor_from_the_hub(self, hub: FakeHub, own: Path) -> None:
        hub.add("user/own", files_of(own))
        with pytest.raises(StoreError, match="--trust-remote-code"):
            load_base("user/own", choose("cpu", "fp32"))
        assert not [path for _, path in hub.requests if path.endswith("modeling_own.py")]
        assert type(load_base("user/own", choose("cpu", "fp32"), trust_remote_code=True).model).__name__ == "OwnModel"
