"""Pictures of studies: heatmaps, critical differences, scores against cost; in light and dark. Needs matplotlib."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Theme:
    """Colours of a picture."""

    paper: str
    ink: str
    muted: str
    grid: str
    accent: str
    second: str
    colormap: str


LIGHT = Theme("#ffffff", "#22313f", "#8795a1", "#d9dee3", "#1f6f8b", "#d9822b", "Blues")
DARK = Theme("#171b20", "#e3e7eb", "#8f9aa5", "#343b43", "#5cb6d3", "#eda45c", "Blues_r")
THEMES = {"light": LIGHT, "dark": DARK}


@dataclass(frozen=True)
class Point:
    """One method in `cost_plot`: trained parameters, mean score, and the bounds of the bar through it."""

    name: str
    parameters: int
    score: float
    low: float
    high: float


def heatmap(
    matrix: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    label: str,
    theme: Theme = LIGHT,
) -> bytes:
    """A PNG of `matrix` (rows, columns), values written in; None is a hatched cell.

    The colour is linear, or logarithmic where the largest value is more than 30 times the median.
    """
    values = np.array([[math.nan if value is None else value for value in row] for row in matrix], dtype=float)
    known = values[np.isfinite(values)]
    spread = len(known) and known.max() > 30 * max(float(np.median(known)), 0.0) and known.min() >= 0
    positive = known[known > 0]
    shades = values
    if spread and len(positive):
        floor = max(float(positive.min()), float(known.max()) * 1e-6)
        shades = np.log10(np.clip(values, floor, None))
    width, height = 1.6 + 0.78 * len(columns), 1.5 + 0.36 * len(rows)
    figure, axes = _figure(width + 0.8, height, theme)
    axes.set_facecolor(theme.grid)
    picture = axes.imshow(np.ma.masked_invalid(shades), cmap=theme.colormap, aspect="auto")
    low, high = picture.get_clim()
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        if not math.isfinite(value):
            axes.add_patch(_hatched(column, row, theme))
        elif len(rows) <= 32:
            share = (shades[row, column] - low) / (high - low) if high > low else 0.0
            dark_cell = (share > 0.55) if theme is LIGHT else (share < 0.45)
            color = "#ffffff" if dark_cell else "#14202b"
            axes.text(column, row, _short(float(value)), ha="center", va="center", fontsize=7.5, color=color)
    axes.set_xticks(range(len(columns)), columns, fontsize=10)
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("layer", color=theme.ink)
    axes.set_title(title, loc="left", fontsize=11, color=theme.ink, parse_math=False)
    bar = figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label(f"log10 {label}" if shades is not values else label, color=theme.ink, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.ink, labelsize=8)
    return _png(figure)


def critical_difference(
    average_ranks: Mapping[str, float], difference: float, title: str, theme: Theme = LIGHT
) -> bytes:
    """A PNG of average ranks (1 is best, left); a bar joins methods within one critical difference of each other."""
    order = sorted(average_ranks, key=lambda name: average_ranks[name])
    count = len(order)
    half = (count + 1) // 2
    groups = _groups([average_ranks[name] for name in order], difference)
    depth = 0.34 * len(groups) + 0.5
    figure, axes = _figure(7.6, 1.3 + 0.33 * half + 0.22 * len(groups), theme)
    axes.set_axis_off()
    low, high = 1, count
    margin = (high - low) * 0.42
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(depth + half + 0.2, -1.9)
    axes.plot([low, high], [0, 0], color=theme.ink, linewidth=1.2)
    for tick in range(low, high + 1):
        axes.plot([tick, tick], [0, -0.16], color=theme.ink, linewidth=1)
        axes.text(tick, -0.28, str(tick), ha="center", va="bottom", fontsize=8.5, color=theme.ink)
    shown = min(difference, high - low)
    axes.plot([low, low + shown], [-1.25, -1.25], color=theme.second, linewidth=2.2, solid_capstyle="butt")
    for end in (low, low + shown):
        axes.plot([end, end], [-1.36, -1.14], color=theme.second, linewidth=1.2)
    wide = " (wider than the axis)" if difference > high - low else ""
    axes.text(low, -1.42, f"critical difference {difference:.2f}{wide}", va="bottom", fontsize=8.5, color=theme.second)
    for place, name in enumerate(order):
        rank, left = average_ranks[name], place < half
        line = depth + (place if left else count - 1 - place)
        end = low - 0.06 * margin if left else high + 0.06 * margin
        axes.plot([rank, rank, end], [0, line, line], color=theme.muted, linewidth=0.9)
        text = f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}"
        side = "right" if left else "left"
        axes.text(
            end + (-0.03 if left else 0.03) * margin, line, text, ha=side, va="center", fontsize=9, color=theme.ink
        )
    for number, (first, last) in enumerate(groups):
        level = 0.3 + 0.34 * number
        pad = 0.012 * (high - low)
        axes.plot([first - pad, last + pad], [level, level], color=theme.accent, linewidth=4, solid_capstyle="round")
    axes.set_title(title, loc="left", fontsize=11, color=theme.ink, parse_math=False)
    return _png(figure)


def cost_plot(points: Sequence[Point], title: str, metric: str, theme: Theme = LIGHT) -> bytes:
    """A PNG of scores against trained parameters (a logarithmic axis), with a bar through each mean."""
    figure, axes = _figure(7.4, 4.2, theme)
    shown = sorted(points, key=lambda point: (point.parameters, point.score))
    sizes = _apart([max(point.parameters, 1) for point in shown])
    axes.set_xscale("log")
    axes.errorbar(
        sizes,
        [point.score for point in shown],
        yerr=[[point.score - point.low for point in shown], [point.high - point.score for point in shown]],
        fmt="o",
        color=theme.accent,
        ecolor=theme.muted,
        elinewidth=1.1,
        capsize=2.5,
        markersize=6,
    )
    axes.set_xlim(min(sizes) / 3, max(sizes) * 12)
    axes.margins(y=0.16)
    figure.draw_without_rendering()
    for point, size, offset in zip(shown, sizes, _label_offsets(shown, sizes, axes), strict=True):
        axes.annotate(
            point.name,
            (size, point.score),
            textcoords="offset points",
            xytext=(9, offset),
            fontsize=8.5,
            color=theme.ink,
            va="center",
        )
    axes.set_xlabel("trained parameters", color=theme.ink)
    axes.set_ylabel(metric, color=theme.ink)
    axes.grid(axis="y", color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=11, color=theme.ink, parse_math=False)
    return _png(figure)


# ---- inside ----------------------------------------------------------------------------------------------------------


def _apart(sizes: Sequence[int]) -> list[float]:
    """Ascending sizes, those of one value drawn side by side so that their bars do not hide one another."""
    result: list[float] = []
    for place, size in enumerate(sizes):
        before = sum(1 for other in sizes[:place] if other == size)
        result.append(size * 1.17 ** (before - (sizes.count(size) - 1) / 2))
    return result


def _label_offsets(points: Sequence[Point], sizes: Sequence[float], axes: Any) -> list[float]:
    """Vertical offsets in points that keep names off each other and off the dots."""
    scale = axes.figure.dpi / 72
    places = [axes.transData.transform((size, point.score)) / scale for size, point in zip(sizes, points, strict=True)]
    # left, right, height of what a name must not cover, in points: the dots, then the names placed
    taken: list[tuple[float, float, float]] = [(x - 5, x + 5, y) for x, y in places]
    offsets = [0.0] * len(points)
    for number in sorted(range(len(points)), key=lambda each: places[each][1]):
        left, height = places[number][0] + 9, places[number][1]
        right, wanted = left + 5.2 * len(points[number].name), height
        for other_left, other_right, other in sorted(taken, key=lambda each: each[2]):
            if left < other_right and other_left < right and abs(wanted - other) < 11:
                wanted = other + 11
        taken.append((left, right, wanted))
        offsets[number] = wanted - height
    return offsets


def _groups(ranks: Sequence[float], difference: float) -> list[tuple[float, float]]:
    """Spans of ascending ranks that lie within the difference, none inside another, none of one method."""
    spans: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(place for place, other in enumerate(ranks) if other - rank <= difference)
        if last > first and (not spans or last > spans[-1][1]):
            spans.append((first, last))
    return [(ranks[first], ranks[last]) for first, last in spans]


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e4:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def _hatched(column: int, row: int, theme: Theme) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, hatch="////", facecolor=theme.grid, edgecolor=theme.muted, linewidth=0
    )


def _figure(width: float, height: float, theme: Theme) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), dpi=130, layout="constrained", facecolor=theme.paper)
    axes.set_facecolor(theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.muted)
    axes.tick_params(colors=theme.ink, labelsize=9, which="both")
    return figure, axes


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # labels in scripts that the font lacks
        figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    plt.close(figure)
    return buffer.getvalue()
