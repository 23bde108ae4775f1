"""Pictures of a run, as PNG files: learning curve, confusion matrix, scatter. Needs matplotlib (`beft[plots]`)."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from .names import metric_name

INK, GRID, BLUE, ORANGE, GREY = "#22313f", "#d9dee3", "#1f6f8b", "#d9822b", "#8795a1"


_unseen: ContextVar[bool] = ContextVar("beft_unseen", default=False)


def available() -> bool:
    """Whether pictures are to be drawn: matplotlib is installed, and somebody will look at them."""
    return installed() and not _unseen.get()


def installed() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def unseen() -> Iterator[None]:
    """Inside the block nothing is drawn: for runs whose folders are thrown away, where it took a second each."""
    token = _unseen.set(True)
    try:
        yield
    finally:
        _unseen.reset(token)


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes in the house's style; sizes in inches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), dpi=130, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG and let go of it."""
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # labels in scripts that the font lacks
        figure.savefig(path, format="png")
    plt.close(figure)


def learning_curve(
    history: Sequence[dict[str, Any]],
    metric: str,
    path: Path,
    title: str,
    chosen: int | None = None,
    start: float | None = None,
) -> None:
    """Training loss (left axis) and dev score (right axis) over the epochs of each phase, the chosen epoch marked.

    `start` is the score before the first epoch, shown if that was chosen.
    """
    figure, axes = new_figure(7.2, 3.8)
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    styles = {"select": ("-", "training loss"), "refit": (":", "training loss, refit on all rows")}
    for phase, (style, label) in styles.items():
        rows = [row for row in history if row["phase"] == phase]
        if rows:
            axes.plot([r["epoch"] for r in rows], [r["train_loss"] for r in rows], style, color=ORANGE, label=label)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("loss", color=ORANGE)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    scored = [row for row in history if f"dev_{metric}" in row]
    handles, labels = axes.get_legend_handles_labels()
    if scored:
        right = axes.twinx()
        right.spines[["top", "left"]].set_visible(False)
        right.spines["right"].set_color(GREY)
        right.tick_params(colors=INK, labelsize=9)
        values = [row[f"dev_{metric}"] for row in scored]
        name = f"dev {metric_name(metric)}"
        right.plot([row["epoch"] for row in scored], values, color=BLUE, marker="o", ms=3, label=name)
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 6), "ha": "center"}
        for row, value in zip(scored, values, strict=True):
            if row["epoch"] == chosen:
                right.annotate(f"chosen: {value:.3f}", (chosen, value), fontsize=9, color=BLUE, **place)
        if chosen == 0 and start is not None:
            right.plot([0], [start], color=BLUE, marker="o", ms=5)
            right.annotate(
                f"chosen: the start, {start:.3f}", (0, start), fontsize=9, color=BLUE, **{**place, "ha": "left"}
            )
        right.set_ylabel(name, color=BLUE)
        right.margins(y=0.15)
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)


def confusion_matrix(
    gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str], path: Path, title: str
) -> None:
    """True classes down, predicted across; shaded by the share of the row, counts written in if they fit."""
    count = len(labels)
    matrix = np.zeros((count, count), dtype=int)
    np.add.at(matrix, (np.asarray(gold, dtype=int), np.asarray(predicted, dtype=int)), 1)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    longest = max(map(len, labels))
    cell = 0.62 if count <= 12 else 0.34 if count <= 30 else 0.2
    side = max(3.2, cell * count) + 0.075 * min(longest, 34)
    figure, axes = new_figure(side + 0.7, side)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    small = 9 if count <= 12 else 7 if count <= 30 else 5
    names = [label if len(label) <= 34 else label[:33] + "…" for label in labels]
    axes.set_xticks(
        range(count),
        names,
        rotation=45 if longest > 3 else 0,
        ha="right" if longest > 3 else "center",
        fontsize=small,
        parse_math=False,
    )
    axes.set_yticks(range(count), names, fontsize=small, parse_math=False)
    axes.spines[:].set_visible(False)
    if count <= 30:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=small, color=color)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the true class")
    bar.outline.set_visible(False)
    save_figure(figure, path)


def scatter(gold: Sequence[float], predicted: Sequence[float], path: Path, title: str) -> None:
    """Predicted against true numbers, with the diagonal."""
    figure, axes = new_figure(5.2, 4.8)
    low, high = min(*gold, *predicted), max(*gold, *predicted)
    axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--")
    axes.scatter(gold, predicted, s=12, alpha=0.45, color=BLUE, linewidths=0)
    axes.set_xlabel("true", color=INK)
    axes.set_ylabel("predicted", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    save_figure(figure, path)
