"""Session fixtures of saved tiny bases, for the conftest files that import them."""

from pathlib import Path

import pytest

from toys import save_base


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT encoder without a head, with its tokenizer."""
    return save_base(tmp_path_factory.mktemp("bert") / "tiny-bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with grouped keys and values, its tokenizer without special tokens."""
    return save_base(tmp_path_factory.mktemp("llama") / "tiny-llama", "llama", special=False)
