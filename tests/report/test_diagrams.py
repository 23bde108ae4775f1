"""Pictures of studies are drawn for a light and a dark page, whatever the numbers are."""

from io import BytesIO

import pytest
from PIL import Image

from beft.report.diagrams import DARK, LIGHT, Point, Theme, _groups, cost_plot, critical_difference, heatmap


def corner(png: bytes) -> tuple[int, ...]:
    with Image.open(BytesIO(png)) as picture:
        assert picture.format == "PNG"
        assert len(set(picture.convert("RGB").get_flattened_data())) > 20
        return picture.convert("RGB").getpixel((0, 0))


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_pictures_have_their_themes_paper(theme: Theme) -> None:
    paper = tuple(bytes.fromhex(theme.paper[1:]))
    rows: list[list[float | None]] = [[0.1, None, 0.0], [2e-9, 5.0, 0.3]]
    assert corner(heatmap(rows, ["0", "cross $_ 1"], ["$b_v$", "b_k", "x"], "a_$ title", "score", theme)) == paper
    assert corner(critical_difference({"a": 1.2, "b": 2.0, "c_$": 2.8}, 0.9, "ranks", theme)) == paper
    points = [Point("value", 100, 0.8, 0.7, 0.9), Point("query", 100, 0.8, 0.8, 0.8), Point("icl", 0, 0.5, 0.5, 0.5)]
    assert corner(cost_plot(points, "cost", "accuracy", theme)) == paper


def test_a_heatmap_without_any_value() -> None:
    corner(heatmap([[None, None]], ["0"], ["a", "b"], "nothing", "score"))


def test_groups_are_the_widest_spans_within_the_difference() -> None:
    assert _groups([1.0, 1.5, 2.2, 4.0], 1.0) == [(1.0, 1.5), (1.5, 2.2)]
    assert _groups([1.0, 1.5, 2.0], 1.0) == [(1.0, 2.0)]
    assert _groups([1.0, 3.0], 1.0) == []
