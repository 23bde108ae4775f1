"""Real data and models, in the folders BEFT_DATA and BEFT_MODELS. Without them a test is skipped; in CI it fails."""

import os
from pathlib import Path

import pytest


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if value and Path(value).is_dir():
        return Path(value)
    reason = f"{variable} names no folder"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def data() -> Path:
    """The folder of benchmark data, one folder a task."""
    return _folder("BEFT_DATA")


def model(name: str) -> Path:
    """The folder of a small pretrained model."""
    return _folder("BEFT_MODELS") / name
