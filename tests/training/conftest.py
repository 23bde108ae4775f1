"""Saved tiny bases, and runs without pictures: drawing takes longer than a toy run."""

from pathlib import Path

import pytest

import beft
from bases import bert, llama
from beft.report import plots
from toys import fast, toy_task
from training.common import learn

__all__ = ["bert", "llama"]


@pytest.fixture
def pictures() -> None:
    """For tests that want the pictures drawn."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "available", lambda: False)


@pytest.fixture(scope="session")
def trained(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> beft.Result:
    """A finished run on the toy task with everything in its folder; for reading only."""
    out = tmp_path_factory.mktemp("trained") / "out"
    available, plots.available = plots.available, lambda: True  # whichever test asks first
    try:
        return learn(bert, toy_task(60, 30), fast(epochs=3), out, with_baselines=True)
    finally:
        plots.available = available
