"""`beft.load` gives back what training measured, in order, whatever the size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import beft
from beft.errors import DataError, StoreError
from beft.tasks.task import Example
from beft.training import predictor as module
from toys import COLOURS, fast, save_base, texts, toy_task
from training.common import learn


@pytest.fixture(scope="module")
def predictor(trained: beft.Result) -> beft.Predictor:
    assert trained.directory is not None
    return beft.load(trained.directory)


@pytest.fixture
def copy(trained: beft.Result, tmp_path: Path) -> Path:
    assert trained.directory is not None
    return Path(shutil.copytree(trained.directory, tmp_path / "copy"))


def test_predictions_equal_the_files(trained: beft.Result, predictor: beft.Predictor) -> None:
    (part,) = trained.task.evaluation.values()
    words = [row.texts[0] for row in part]
    rows = [json.loads(line) for line in (predictor.directory / "predictions.jsonl").read_text().splitlines()]
    assert predictor.predict(words) == [row["prediction"] for row in rows]
    expected = [[row["scores"][label] for label in COLOURS] for row in rows]
    assert np.allclose(predictor.predict_proba(words), expected, atol=2e-6)
    assert predictor.labels == COLOURS


def test_the_precision_of_training_is_kept(predictor: beft.Predictor) -> None:
    assert predictor.choices.dtype == "fp32"


def test_a_stream_keeps_its_order_across_chunks(predictor: beft.Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(n, (text,)) for n, (text, _) in enumerate(texts(50, seed=9))]
    whole = list(predictor.stream(examples))
    monkeypatch.setattr(module, "CHUNK", 7)
    parts = list(predictor.stream(iter(examples)))
    assert [example.id for example, *_ in parts] == list(range(50))
    assert [p for _, p, _ in parts] == [p for _, p, _ in whole]
    assert np.allclose([s for *_, s in parts], [s for *_, s in whole], atol=1e-6)


def test_a_stream_reads_one_chunk_ahead_at_most(predictor: beft.Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)
    read: list[int] = []

    def source() -> object:
        for number in range(20):
            read.append(number)
            yield Example(number, ("red",))

    next(predictor.stream(source()))  # type: ignore[arg-type]
    assert len(read) == 5


def test_no_texts_give_no_predictions(predictor: beft.Predictor) -> None:
    assert predictor.predict([]) == []
    assert len(predictor.predict_proba([])) == 0


def test_what_is_no_text_is_refused(predictor: beft.Predictor) -> None:
    with pytest.raises(DataError, match="texts: expected a list of texts, found one text"):
        predictor.predict("red")
    with pytest.raises(DataError, match="text 1: expected a text, found 3"):
        predictor.predict(["red", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="text 0: expected a text"):
        predictor.predict([("red", "green")])


def test_pairs_are_taken_where_training_had_pairs(bert: Path, tmp_path: Path) -> None:
    result = learn(bert, toy_task(pairs=True), fast(), tmp_path / "out")
    (part,) = result.task.evaluation.values()
    pairs = beft.load(tmp_path / "out")
    assert np.allclose(pairs.predict_proba([row.texts for row in part]), result.probabilities["evaluation"], atol=1e-5)
    with pytest.raises(DataError, match="text 0: expected 2 texts"):
        pairs.predict(["red"])


class TestRefused:
    def test_no_folder_and_no_adapter(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="expected an adapter folder, found no such folder"):
            beft.load(tmp_path / "nowhere")
        with pytest.raises(StoreError, match=r"found no beft\.json"):
            beft.load(tmp_path)

    def test_an_unfinished_run(self, copy: Path) -> None:
        (copy / "beft.json").unlink()
        with pytest.raises(StoreError, match="found an unfinished run"):
            beft.load(copy)

    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
    def test_cut_short_tampered_or_missing_tensors(self, copy: Path, name: str) -> None:
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-16])
        with pytest.raises(StoreError, match=name.replace(".", r"\.")):
            beft.load(copy)
        (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StoreError, match=rf"{name}.*checksum differs"):
            beft.load(copy)
        (copy / name).unlink()
        with pytest.raises(StoreError, match=name.replace(".", r"\.")):
            beft.load(copy)

    @pytest.mark.parametrize(
        "content", ['{"format": 1, "ta', "[]", "{}", '{"format": 9, "task": 1, "head": 2, "base": 3}']
    )
    def test_a_broken_manifest(self, copy: Path, content: str) -> None:
        (copy / "beft.json").write_text(content)
        with pytest.raises(StoreError):
            beft.load(copy)

    def test_another_base_of_another_size_or_other_weights(self, copy: Path, tmp_path: Path, llama: Path) -> None:
        with pytest.raises(StoreError, match=r"expected a base with model_type 'bert'.*found 'llama'"):
            beft.load(copy, model=str(llama))
        wide = save_base(tmp_path / "wide", hidden_size=64)
        with pytest.raises(StoreError, match=r"expected a base with hidden_size 32.*found 64"):
            beft.load(copy, model=str(wide))
        other = save_base(tmp_path / "other", seed=5)
        with pytest.raises(StoreError, match="found other weights of the same shape"):
            beft.load(copy, model=str(other))

    def test_the_same_base_elsewhere_is_welcome(self, copy: Path, tmp_path: Path, bert: Path) -> None:
        moved = shutil.copytree(bert, tmp_path / "moved")
        assert beft.load(copy, model=str(moved)).predict(["red"])[0] in COLOURS
