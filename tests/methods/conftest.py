"""Saved tiny bases, and runs without pictures."""

from pathlib import Path

import pytest

from bases import bert, llama
from toys import save_base
from training.conftest import _no_pictures

__all__ = ["_no_pictures", "bert", "llama"]


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its language-model head."""
    return save_base(tmp_path_factory.mktemp("decoder") / "tiny-llama", "llama", head="lm", special=False)


@pytest.fixture(scope="session")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a classification head."""
    return save_base(tmp_path_factory.mktemp("headed") / "tiny-bert", head="classify")
