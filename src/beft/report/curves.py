"""Pictures of many runs: scores over learning rates and over training sizes, with bands. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .names import metric_name
from .plots import BLUE, GREY, GRID, INK, ORANGE, new_figure, save_figure

COLOURS = (BLUE, ORANGE, "#5b8c5a", "#8e5a9b", "#b0413e", "#6b6b6b")

Points = Sequence[tuple[float, float, float]]
"""(x, mean, standard deviation), by x."""


def rate_curve(
    lines: Mapping[str, Points],
    chosen: Mapping[str, Any],
    baseline: Mapping[str, float] | None,
    metric: str,
    path: Path,
    *,
    title: str,
    lines_are: str,
) -> None:
    """Mean score over the learning rate, a line a term with a band of one standard deviation.

    Args:
        chosen: `lr`, `mean`, `sd` and `label` of what was chosen, drawn as a point of its own.
        baseline: `mean` and `sd` of the frozen model on the folds of the chosen point, a dashed line.
        lines_are: what the lines were measured on, for the legend.
    """
    figure, axes = new_figure(7.2, 4.4)
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    for colour, (term, points) in zip(_cycle(len(lines)), lines.items(), strict=True):
        _band(axes, points, colour, f"{term} ({lines_are})")
    if baseline is not None:
        axes.axhline(baseline["mean"], color=GREY, linestyle="--", linewidth=1.2, label="frozen model, same folds as ★")
    axes.errorbar(
        [chosen["lr"]],
        [chosen["mean"]],
        yerr=[chosen["sd"]],
        fmt="*",
        ms=13,
        color=INK,
        capsize=3,
        linewidth=1.2,
        label=f"{chosen['label']} ({chosen['mean']:.3f} ± {chosen['sd']:.3f})",
        zorder=5,
    )
    axes.set_xscale("log")
    rates = sorted({point[0] for points in lines.values() for point in points} | {chosen["lr"]})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.set_xlabel("learning rate", color=INK)
    _finish(figure, axes, metric, path)


def size_curve(lines: Mapping[str, Points], metric: str, path: Path, *, title: str, dashed: Sequence[str] = ()) -> None:
    """Mean score over the number of training rows, a line a method with a band of one standard deviation."""
    figure, axes = new_figure(7.2, 4.2)
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    for colour, (name, points) in zip(_cycle(len(lines)), lines.items(), strict=True):
        _band(axes, points, GREY if name in dashed else colour, name, "--" if name in dashed else "-")
    axes.set_xscale("log", base=2)
    sizes = sorted({point[0] for points in lines.values() for point in points})
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("training rows", color=INK)
    _finish(figure, axes, metric, path)


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _band(axes: Any, points: Points, colour: str, label: str, style: str = "-") -> None:
    x, mean, sd = ([point[place] for point in points] for place in range(3))
    axes.plot(x, mean, style, color=colour, marker="o", ms=4, label=label)
    low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _finish(figure: Any, axes: Any, metric: str, path: Path) -> None:
    axes.set_ylabel(metric_name(metric), color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)
