"""A tiny base, a folder of benchmark data with toy rows, and a study on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bases import bert, llama
from beft.report import plots
from beft.studies.study import Study, make_study
from toys import texts

__all__ = ["bert", "llama"]

StudyOf = Callable[..., Study]


def write_rows(folder: Path, train: int, validation: int) -> None:
    """Toy rows as sst2 lies in a data folder: the label says whether the colour is red."""
    folder.mkdir(parents=True)
    for split, count, seed in (("train", train, 1), ("validation", validation, 2)):
        rows = [
            {"sentence": text, "label": int(colour == 0), "idx": n}
            for n, (text, colour) in enumerate(texts(count, seed))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_choices(folder: Path, train: int, validation: int) -> None:
    """Toy rows as copa lies in a data folder: the sentence that goes on with the premise's colour is right."""
    folder.mkdir(parents=True)
    for split, count, seed in (("train", train, 1), ("validation", validation, 2)):
        rows = [
            {"premise": f"{text} .", "choice1": "red good", "choice2": "w1 bad", "question": "cause",
             "label": int(colour != 0), "idx": number}
            for number, (text, colour) in enumerate(texts(count, seed))
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with sst2 and copa, and nothing else."""
    folder = tmp_path_factory.mktemp("data")
    write_choices(folder / "copa", 12, 6)
    write_rows(folder / "sst2", 48, 20)
    return folder


@pytest.fixture(autouse=True)
def _here(toy_data: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("BEFT_DATA", str(toy_data))
    monkeypatch.delenv("BEFT_MODELS", raising=False)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "available", lambda: False)


@pytest.fixture
def pictures() -> None:
    """For tests that want the pictures drawn."""


@pytest.fixture
def toy_study(bert: Path) -> StudyOf:
    """A study of the tiny BERT on sst2 that takes a fraction of a second a cell."""

    def make(**changes: Any) -> Study:
        values = {
            "models": [str(bert)],
            "tasks": ["sst2"],
            "methods": ["value", "head", "probe"],
            "seeds": [0, 1],
            "train_size": 24,
            "changes": {"epochs": 2, "batch_size": 8, "max_length": 32},
        }
        return make_study({**values, **changes}, "toy", "toy.toml")

    return make
