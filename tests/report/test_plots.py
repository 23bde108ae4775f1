"""Pictures of awkward results are drawn, and labels are taken as they are."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beft.report import plots

HISTORY = [
    {"phase": "select", "epoch": 1, "train_loss": 1.0, "dev_accuracy": 0.5},
    {"phase": "select", "epoch": 2, "train_loss": 0.7, "dev_accuracy": 0.8},
    {"phase": "refit", "epoch": 1, "train_loss": 0.9},
]


def colours(path: Path) -> int:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return len(set(picture.convert("RGB").get_flattened_data()))


@pytest.mark.parametrize("count", [2, 20, 77])
def test_a_confusion_matrix_of_any_size(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(0)
    gold, guess = random.integers(0, count, 300).tolist(), random.integers(0, count, 300).tolist()
    plots.confusion_matrix(gold, guess, [f"label {n}" for n in range(count)], tmp_path / "p.png", "title")
    assert colours(tmp_path / "p.png") > 20


def test_dollars_underscores_and_other_scripts_in_labels(tmp_path: Path) -> None:
    labels = ["$5 refund$", "a_b^{", "退款", "x" * 90]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.confusion_matrix([0, 1, 2, 3], [0, 1, 3, 3], labels, tmp_path / "p.png", "costs $a_$ and $")
        plots.learning_curve(HISTORY, "accuracy", tmp_path / "c.png", "costs $a_$ and $")
        plots.scatter([0.0], [0.0], tmp_path / "s.png", "$x_{$")
    assert all(colours(tmp_path / name) > 5 for name in ("p.png", "c.png", "s.png"))


def test_a_learning_curve_without_dev_rows(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "dev_accuracy"} for row in HISTORY]
    plots.learning_curve(rows, "accuracy", tmp_path / "p.png", "title")
    assert colours(tmp_path / "p.png") > 5
