"""Sentence-transformers: every sentence with its own adapter gives what it gives alone; saved and merged models."""

import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW, Dense, Router, Transformer
from transformers import AutoModel, AutoTokenizer, DataCollatorWithFlattening

import beft
from beft.core.adapter import LinearHead, pool
from beft.errors import BankError, RouteError
from beft.interop.sentence import SentenceBank, attach_sentence_transformer, inner_model, merge_sentence_transformer
from interop.sentences import SENTENCES, fill, load_model, save_model

NAMES = ["a", "b", None, "b", "a", None, "a", "a", "b", None, "b"]


@pytest.fixture(scope="module", params=["bert", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("bert"))


def attached(folder: Path, *names: str) -> tuple[SentenceTransformer, SentenceBank]:
    st = load_model(folder)
    bank = attach_sentence_transformer(st, names=names or ("a", "b"))
    fill(bank)
    return st, bank


def same(a: Any, b: Any, bound: float = 1e-6) -> None:
    """Assert that two outputs of `encode`, of whatever kind, agree: to the bound, times their size where over 1."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key], bound)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other, bound)
    elif isinstance(a, (torch.Tensor, np.ndarray)):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        one, other = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        assert np.abs(one - other).max() <= bound * max(1.0, np.abs(other).max())
    else:
        assert a == b


def alone(st: SentenceTransformer, names: list[str | None], **options: Any) -> list[Any]:
    """Each sentence by itself."""
    return [st.encode([text], route=name, **options)[0] for text, name in zip(SENTENCES, names, strict=True)]


class TestRoutes:
    @pytest.mark.parametrize("batch_size", [1, 4, 32])
    def test_mixed_names_give_what_each_sentence_gives_alone(self, folder: Path, batch_size: int) -> None:
        st, _ = attached(folder)
        mixed = st.encode(SENTENCES, route=NAMES, batch_size=batch_size)
        same(list(mixed), alone(st, NAMES))
        others = alone(st, NAMES[1:] + NAMES[:1])
        wrong = [np.abs(a - b).max() for a, b in zip(mixed, others, strict=True)]
        changed = [a != b for a, b in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)]
        assert [difference > 1e-2 for difference in wrong] == changed

    @pytest.mark.parametrize(
        "options",
        [
            {"convert_to_tensor": True},
            {"convert_to_numpy": False},
            {"normalize_embeddings": True},
            {"prompt": "good bad "},
            {"prompt_name": "query"},
            {"truncate_dim": 7},
            {"output_value": "token_embeddings"},
            {"device": "cpu", "show_progress_bar": True},
        ],
    )
    def test_options_of_encode_mean_what_they_mean(self, bert: Path, options: dict[str, Any]) -> None:
        st, _ = attached(bert)
        mixed = st.encode(SENTENCES, route=NAMES, batch_size=4, **options)
        assert type(mixed) is type(st.encode(SENTENCES, route="a", **options))
        for row, one in enumerate(alone(st, NAMES, **options)):
            same(mixed[row], one)

    def test_a_dictionary_a_sentence_and_whole_numbers_come_as_ever(self, bert: Path) -> None:
        st, _ = attached(bert)
        mixed = st.encode(SENTENCES, route=NAMES, output_value=None)
        same(
            [each["sentence_embedding"] for each in mixed],
            list(st.encode(SENTENCES, route=NAMES, convert_to_numpy=False)),
        )
        binary = st.encode(SENTENCES, route=NAMES, precision="ubinary")
        assert binary.dtype == np.uint8
        assert np.array_equal(binary[:, 0] >> 7, (st.encode(SENTENCES, route=NAMES)[:, 0] > 0))

    def test_queries_and_documents_have_their_prompts(self, bert: Path) -> None:
        st, _ = attached(bert)
        for encode, prompt in ((st.encode_query, "good "), (st.encode_document, "bad bad ")):
            same(encode(SENTENCES, route=NAMES), st.encode([prompt + text for text in SENTENCES], route=NAMES))
            same(encode(SENTENCES, route="b"), st.encode([prompt + text for text in SENTENCES], route="b"))

    @pytest.mark.parametrize("kind", [np.array, tuple])
    def test_sentences_and_names_come_in_any_sequence(self, bert: Path, kind: Any) -> None:
        st, _ = attached(bert)
        same(st.encode(kind(SENTENCES), route=tuple(NAMES)), st.encode(SENTENCES, route=NAMES))

    def test_without_a_route_the_one_in_force_counts(self, bert: Path) -> None:
        st, bank = attached(bert)
        plain = load_model(bert).encode(SENTENCES)
        same(st.encode(SENTENCES), plain)
        same(st.encode(SENTENCES, route=None), plain)
        bank.active = "b"
        same(st.encode(SENTENCES), st.encode(SENTENCES, route="b"))
        same(st.encode(SENTENCES, route=None), plain)
        with bank.route("a"):
            same(st.encode(SENTENCES), st.encode(SENTENCES, route=["a"] * 11))
            same(st.encode(SENTENCES[0]), st.encode(SENTENCES, route="a")[0])
        with bank.route(NAMES):  # sorted by length inside: the names go with their sentences
            same(st.encode(SENTENCES), st.encode(SENTENCES, route=NAMES))
            with pytest.raises(RouteError, match="11 sentences: expected one name a sentence, found 4 sentences"):
                st.encode(SENTENCES[:4])

    def test_no_sentences_and_one_sentence(self, bert: Path) -> None:
        st, _ = attached(bert)
        assert st.encode([], route=[]).shape == (0,)
        same(st.encode(SENTENCES[:1], route=["a"])[0], st.encode(SENTENCES[0], route="a"))
        same(st.encode(sentences=SENTENCES, route="a"), st.encode(SENTENCES, route="a"))

    def test_threads_do_not_mix(self, bert: Path) -> None:
        st, _ = attached(bert)
        routes = [NAMES, NAMES[::-1], ["a"] * 11, [None, "b"] * 5 + ["a"]]
        expected = [st.encode(SENTENCES, route=route, batch_size=2) for route in routes]
        found: dict[int, Any] = {}

        def work(number: int) -> None:
            for _ in range(3):
                found[number] = st.encode(SENTENCES, route=routes[number], batch_size=2)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(routes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, one in enumerate(expected):
            same(found[number], one)

    def test_what_does_not_fit_is_refused(self, bert: Path) -> None:
        st, _ = attached(bert)
        with pytest.raises(RouteError, match="adapter 'c'"):
            st.encode(SENTENCES, route=[*NAMES[:-1], "c"])
        with pytest.raises(RouteError, match="adapter 'c'"):
            st.encode(SENTENCES, route="c")
        with pytest.raises(RouteError, match="expected one name a sentence, found 11 sentences"):
            st.encode(SENTENCES, route=NAMES[:-1])
        with pytest.raises(RouteError, match="Give the name alone"):
            st.encode(SENTENCES[0], route=["a"])
        with pytest.raises(RouteError, match="expected texts, found a tuple"):
            st.encode([("red", "w1"), "w2"], route=["a", "b"])

    def test_pairs_of_texts_take_one_name(self, bert: Path) -> None:
        st, _ = attached(bert)
        two = [("red w1", "good"), ("w2", "bad w3")]
        embedded = st.encode(two, route="a")
        same(embedded, st.encode(two, route=["a", "a"]))
        assert np.abs(embedded - st.encode(two, route="b")).max() > 1e-2

    def test_packed_rows_take_one_name(self, bert: Path) -> None:
        st, _ = attached(bert)
        transformer: Any = st[0]
        transformer.data_collator = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
        transformer._flatten_position_offset = 0
        transformer.can_flatten_inputs = True  # as with flash attention on a GPU
        with pytest.raises(RouteError, match=r"packed into one sequence.*unpad_inputs = False"):
            st.encode(SENTENCES, route=NAMES)
        single = np.stack([st.encode([text], route="a")[0] for text in SENTENCES])
        same(st.encode(SENTENCES, route=["a"] * 11, batch_size=1), single)

    def test_pools_of_processes_are_refused(self, bert: Path) -> None:
        st, _ = attached(bert)
        for call in (
            lambda: st.start_multi_process_pool(["cpu"]),
            lambda: st.encode(SENTENCES, route=NAMES, device=["cpu", "cpu"]),
            lambda: st.encode(SENTENCES, pool={"input": None}),
        ):
            with pytest.raises(BankError, match="merge_sentence_transformer"):
                call()


class TestAttaching:
    def test_a_new_bank_changes_nothing_and_detaching_leaves_nothing(self, folder: Path) -> None:
        st = load_model(folder)
        next(st[0].model.parameters()).requires_grad_(False)  # a state of its own to come back to
        before = {key: value.clone() for key, value in st.state_dict().items()}
        flags = [parameter.requires_grad for parameter in st.parameters()]
        attributes, plain = set(st.__dict__), st.encode(SENTENCES)
        bank = attach_sentence_transformer(st, names=["a", "b"])
        assert np.array_equal(st.encode(SENTENCES, route="a"), plain)
        fill(bank)
        assert np.abs(st.encode(SENTENCES, route="a") - plain).max() > 1e-2
        bank.detach()
        bank.detach()
        assert [parameter.requires_grad for parameter in st.parameters()] == flags
        assert set(st.__dict__) == attributes
        assert before.keys() == st.state_dict().keys()
        assert all(torch.equal(before[key], value) for key, value in st.state_dict().items())
        assert np.array_equal(st.encode(SENTENCES), plain)
        with pytest.raises((TypeError, ValueError), match="route"):
            st.encode(SENTENCES, route="a")

    def test_other_modules_are_frozen_too(self, bert: Path) -> None:
        st = load_model(bert)
        st.append(Dense(32, 8))
        bank = attach_sentence_transformer(st)
        own = {id(leaf) for leaf in bank.parameters("default")}
        assert {id(p) for p in st.parameters() if p.requires_grad} == own
        bank.detach()
        assert all(p.requires_grad for p in st.parameters())

    def test_embeddings_are_those_of_the_attached_transformers_model(self, bert: Path) -> None:
        st, _ = attached(bert)
        model, tokenizer = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
        fill(beft.attach(model, names=["a", "b"])).active = "b"
        batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
        with torch.no_grad():
            pooled = pool(model(**batch).last_hidden_state, batch["attention_mask"], "mean")
        expected = torch.nn.functional.normalize(pooled, dim=1)
        same(st.encode(SENTENCES, route="b", convert_to_tensor=True), expected)

    def test_models_that_cannot_be_attached_are_refused(self, bert: Path) -> None:
        st, bank = attached(bert)
        with pytest.raises(BankError, match="found one that has a bank"):
            attach_sentence_transformer(st)
        bank.detach()
        st.compile()
        with pytest.raises(BankError, match="Attach first, then compile"):
            attach_sentence_transformer(st)
        with pytest.raises(BankError, match="expected a SentenceTransformer"):
            attach_sentence_transformer(AutoModel.from_pretrained(bert))  # type: ignore[arg-type]
        bow = SentenceTransformer(modules=[BoW(["red", "blue"])], device="cpu")
        with pytest.raises(BankError, match=r"expected one transformers model in PyTorch inside, found none\.$"):
            attach_sentence_transformer(bow)

    def test_of_two_models_none_is_guessed(self, bert: Path) -> None:
        two = [Router.for_query_document([Transformer(str(bert))], [Transformer(str(bert))])]
        router = SentenceTransformer(modules=two, device="cpu")
        with pytest.raises(BankError, match="found BertModel, BertModel"):
            attach_sentence_transformer(router)

    def test_a_compiled_model_has_routes_too(self, bert: Path) -> None:
        st, _ = attached(bert)
        expected = st.encode(SENTENCES, route=NAMES)
        seen = []
        st.compile(backend=lambda graph, inputs: seen.append(graph) or graph.forward, dynamic=True)
        same(st.encode(SENTENCES, route=NAMES, batch_size=11), expected)
        same(st.encode(SENTENCES, route=NAMES[::-1], batch_size=11)[::-1], st.encode(SENTENCES[::-1], route=NAMES))
        assert seen


class TestFiles:
    @pytest.mark.filterwarnings("error::UserWarning")
    def test_a_saved_model_is_the_plain_one_with_the_adapters_beside_it(self, folder: Path, tmp_path: Path) -> None:
        plain = load_model(folder)
        plain.save(str(tmp_path / "plain"), create_model_card=False)
        st, _ = attached(folder, "a", "b/c")
        st.save(str(tmp_path / "st"), create_model_card=False)
        names = {path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*")}
        beside = {path.relative_to(tmp_path / "st") for path in (tmp_path / "st").rglob("*")} - names
        assert {path.parts[0] for path in beside} == {"beft"}
        for name in names:
            if (tmp_path / "plain" / name).is_file():
                assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "st" / name).read_bytes(), name
        again = load_model(tmp_path / "st")
        assert np.array_equal(again.encode(SENTENCES), plain.encode(SENTENCES))
        other = attach_sentence_transformer(again, names=[])
        for name, part in (("a", "a"), ("b/c", "b%2Fc")):
            assert other.load(tmp_path / "st" / "beft" / part).name == name
            assert np.array_equal(again.encode(SENTENCES, route=name), st.encode(SENTENCES, route=name))

    def test_an_adapter_folder_is_kilobytes_and_comes_back(self, folder: Path, tmp_path: Path) -> None:
        st, bank = attached(folder)
        bank.save("b", tmp_path / "b")
        assert sum(path.stat().st_size for path in (tmp_path / "b").iterdir()) < 10_000
        fresh = load_model(folder)
        loaded = attach_sentence_transformer(fresh, names=[])
        loaded.load(tmp_path / "b", name="mine")
        assert np.array_equal(fresh.encode(SENTENCES, route="mine"), st.encode(SENTENCES, route="b"))

    def test_a_merged_model_is_stock_and_gives_the_attached_embeddings(self, folder: Path, tmp_path: Path) -> None:
        st, bank = attached(folder)
        expected, plain = st.encode(SENTENCES, route="a"), st.encode(SENTENCES, route=None)
        bank.save("a", tmp_path / "a")
        with pytest.raises(BankError, match="without a bank"):
            merge_sentence_transformer(st, tmp_path / "a")
        bank.detach()
        merged = merge_sentence_transformer(st, tmp_path / "a")
        assert merged is not st
        assert merged.prompts == st.prompts
        same(merged.encode(SENTENCES), expected, 1e-5)
        assert np.array_equal(st.encode(SENTENCES), plain)
        merged.save(str(tmp_path / "m"))
        same(load_model(tmp_path / "m").encode(SENTENCES), expected, 1e-5)
        workers = pickle.loads(pickle.dumps(merged))  # what a pool sends to its processes
        same(workers.encode(SENTENCES), expected, 1e-5)

    def test_several_adapters_merge_at_once_and_heads_are_refused(self, bert: Path, tmp_path: Path) -> None:
        st, bank = attached(bert)
        bank.combine("ab", {"a": 0.5, "b": 0.5})
        expected = st.encode(SENTENCES, route="ab")
        bank.set_head("b", LinearHead(32, 2, ["x", "y"]))
        for name in ("a", "b", "ab"):
            bank.save(name, tmp_path / name)
        bank.set_head("b", None)
        bank.save("b", tmp_path / "bare")
        bank.detach()
        weighted = {str(tmp_path / "a"): 0.5, str(tmp_path / "bare"): 0.5}
        same(merge_sentence_transformer(st, weighted).encode(SENTENCES), expected, 1e-5)
        with pytest.raises(BankError, match="one with a linear head"):
            merge_sentence_transformer(st, tmp_path / "b")

    def test_the_folder_names_its_base(self, bert: Path, tmp_path: Path) -> None:
        _, bank = attached(bert)
        bank.save("a", tmp_path / "a")
        assert json.loads((tmp_path / "a" / "beft.json").read_text())["base"]["name"] == str(bert)
        assert inner_model(load_model(bert)).config.model_type == "bert"
