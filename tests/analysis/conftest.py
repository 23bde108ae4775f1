"""Saved tiny bases, and adapters of all terms on them."""

from pathlib import Path

import pytest

from bases import bert, llama
from beft.report import plots
from toys import fast, toy_task
from training.common import learn

__all__ = ["bert", "llama"]


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "available", lambda: False)


@pytest.fixture
def pictures() -> None:
    """For tests that want the pictures drawn."""


def _tuned(base: Path, out: Path) -> Path:
    available, plots.available = plots.available, lambda: False
    try:
        learn(base, toy_task(), fast(terms="all", lr=0.05), out)
    finally:
        plots.available = available
    return out


@pytest.fixture(scope="session")
def tuned_bert(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished adapter of all terms on the tiny BERT, trained on the toy task; for reading only."""
    return _tuned(bert, tmp_path_factory.mktemp("tuned") / "bert")


@pytest.fixture(scope="session")
def tuned_llama(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on a model without biases."""
    return _tuned(llama, tmp_path_factory.mktemp("tuned") / "llama")
