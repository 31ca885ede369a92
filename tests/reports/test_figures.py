"""Figures: where bars, lines and points stand, measured in the SVG; and that a page can hold many of them."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from reports import figures

SVG = "{http://www.w3.org/2000/svg}"
LOOKS = figures.styles(["a", "b"])


def paths(svg: str, stroke: str | None = None, fill: str | None = None) -> list[np.ndarray]:
    """Points of each path with that colour: [points, 2], in the figure's units, y downwards."""
    found = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if (stroke is None or element.get("stroke") == stroke) and (fill is None or element.get("fill") == fill):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", element.get("d", ""))]
            found.append(np.asarray(numbers).reshape(-1, 2))
    return found


def bars(**more: object) -> pd.DataFrame:
    values = {"row": ["a", "b"], "mean": [2.0, 6.0], "low": [math.nan, 5.0], "high": [math.nan, 8.0]}
    return pd.DataFrame(values | {"seeds": [(2.0,), (5.5, 6.5)]} | more)


def curve_frame(rows: list[tuple[str, int, int, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["row", "seed", "step", "loss"])


def test_bars_are_as_long_as_their_means_and_whiskers_end_where_the_interval_does() -> None:
    svg = figures.score_bars(bars(), LOOKS, name="f", label="EM")
    (a,), (b,) = (paths(svg, fill=LOOKS[row].colour) for row in "ab")
    zero = a[:, 0].min()
    assert b[:, 0].min() == pytest.approx(zero, abs=1e-3)
    unit = (a[:, 0].max() - zero) / 2
    assert b[:, 0].max() - zero == pytest.approx(6 * unit, rel=1e-4)
    assert a[:, 1].mean() < b[:, 1].mean()  # the first row is on top
    middle = b[:, 1].mean()
    whiskers = [p for p in paths(svg, stroke="currentColor") if len(p) == 2 and np.allclose(p[:, 1], middle, atol=0.5)]
    (whisker,) = [p for p in whiskers if p[0, 0] != p[1, 0]]
    assert sorted((whisker[:, 0] - zero) / unit) == pytest.approx([5, 8], rel=1e-3)


def test_differences_stand_round_zero_with_their_intervals_and_are_filled_where_they_were_found() -> None:
    values = {"row": ["a", "b"], "difference": [-2.0, 1.0], "low": [-3.0, math.nan], "high": [-1.0, math.nan]}
    svg = figures.forest(
        pd.DataFrame(values | {"found": [True, False]}), LOOKS, name="f", label="EM: row minus control"
    )
    (interval,) = [p for p in paths(svg, stroke=LOOKS["a"].colour) if len(p) == 2]
    at = {
        row: (float(use.get("x", "")), use.get("fill-opacity", "1"))
        for use in ElementTree.fromstring(svg).iter(f"{SVG}use")
        for row in "ab"
        if use.get("stroke") == LOOKS[row].colour
    }
    unit = (interval[:, 0].max() - interval[:, 0].min()) / 2
    assert at["a"][0] == pytest.approx(interval[:, 0].mean(), abs=0.01)
    assert at["b"][0] - at["a"][0] == pytest.approx(3 * unit, rel=1e-3)
    zeros = [
        p for p in paths(svg, stroke="currentColor") if len(p) == 2 and np.ptp(p[:, 0]) == 0 and np.ptp(p[:, 1]) > 20
    ]
    assert any(p[0, 0] == pytest.approx(at["a"][0] + 2 * unit, abs=0.01) for p in zeros)
    assert (at["a"][1], at["b"][1]) == ("1", "0")


def test_lines_are_means_over_seeds() -> None:
    rows = [
        ("a", seed, step, value)
        for seed, values in enumerate([(1, 2, 9), (3, 6, 3)])
        for step, value in zip((1, 2, 3), values, strict=True)
    ]
    svg = figures.curves(curve_frame(rows), ["loss"], LOOKS, name="f", label="loss")
    assert svg is not None
    (line,) = paths(svg, stroke=LOOKS["a"].colour)
    x, y = line.T
    assert np.diff(x)[0] == pytest.approx(np.diff(x)[1], rel=1e-4)  # steps 1, 2, 3
    assert (y[0] - y[1]) / (y[0] - y[2]) == pytest.approx((4 - 2) / (6 - 2), rel=1e-4)  # means 2, 4, 6


def test_long_lines_are_thinned_to_means_of_neighbours() -> None:
    rows = [("a", 0, step, 1e5 + step + (500 if step % 2 else -500)) for step in range(3000)]
    svg = figures.curves(curve_frame(rows), ["loss"], LOOKS, name="f", label="loss")
    assert svg is not None
    (line,) = paths(svg, stroke=LOOKS["a"].colour)
    assert len(line) <= figures.POINTS
    x, y = line.T
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    assert y == pytest.approx(y[0] + slope * (x - x[0]), abs=0.1)  # the zigzag is gone, the trend is not


def test_points_stand_at_their_seconds_and_scores() -> None:
    points = pd.DataFrame({"row": ["a", "b", "c"], "seconds": [10.0, 20.0, 40.0], "mean": [1.0, 2.0, 2.5]})
    looks = figures.styles("abc")
    svg = figures.speed_against_score(points.assign(low=math.nan, high=math.nan), looks, name="f", label="EM")
    at = {}
    for use in ElementTree.fromstring(svg).iter(f"{SVG}use"):
        for row, look in looks.items():
            if use.get("fill") == look.colour:
                at[row] = float(use.get("x", "")), float(use.get("y", ""))
    assert (at["b"][0] - at["a"][0]) / (at["c"][0] - at["a"][0]) == pytest.approx(1 / 3, rel=1e-4)
    assert (at["a"][1] - at["b"][1]) / (at["a"][1] - at["c"][1]) == pytest.approx(1 / 1.5, rel=1e-4)


def test_where_there_is_nothing_to_draw_there_is_no_figure() -> None:
    assert figures.curves(curve_frame([("a", 0, 1, math.nan)]), ["loss"], LOOKS, name="f", label="loss") is None


def test_numbers_far_apart_are_drawn_on_a_logarithmic_axis() -> None:
    rows = [("a", 0, step, 10.0**step) for step in (0, 1, 2)]
    svg = figures.curves(curve_frame(rows), ["loss"], LOOKS, name="f", label="loss")
    assert svg is not None
    (line,) = paths(svg, stroke=LOOKS["a"].colour)
    steps = np.diff(line[:, 1])
    assert steps[0] == pytest.approx(steps[1], rel=1e-3)


def test_equal_frames_make_equal_text_and_names_keep_ids_apart() -> None:
    one, same = (figures.score_bars(bars(), LOOKS, name="one", label="EM") for _ in range(2))
    other = figures.score_bars(bars(), LOOKS, name="other", label="EM")
    assert one == same
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', one))
    assert used == ids[0]


def test_a_figure_has_no_colour_of_a_page_no_style_and_no_address() -> None:
    svg = figures.score_bars(
        bars(row=["<b>", r"$\x$"]), figures.styles(["<b>", r"$\x$"]), name="f", label="50 % & more"
    )
    assert "style" not in svg
    assert [address for address in re.findall(r"https?://[^\"]+", svg) if "www.w3.org" not in address] == []
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg))
    assert colours <= {"currentColor", "none", *figures.COLOURS}
    assert figures.GREY not in figures.COLOURS
    assert "&lt;b&gt;" in svg
    assert r"$\x$" in svg
    assert ElementTree.fromstring(svg).get("aria-label") == "Bars: 50 % & more"


def test_every_row_has_a_look_of_its_own() -> None:
    looks = figures.styles(map(str, range(28)))
    assert len(set(looks.values())) == 28
    assert list(looks) == [str(row) for row in range(28)]


def test_no_two_of_fourteen_bars_share_a_hue_and_more_are_hatched() -> None:
    names = [str(number) for number in range(16)]
    frame = pd.DataFrame({"row": names, "mean": 1.0, "low": math.nan, "high": math.nan, "seeds": [(1.0,)] * 16})
    looks = figures.styles(names)
    assert len({look.colour for look in list(looks.values())[:14]}) == 14
    svg = figures.score_bars(frame, looks, name="f", label="EM")
    patterns = re.findall(r'fill="url\(#([^)]+)\)"', svg)
    assert len(patterns) == 2  # of the rows whose colours are those of the first two
    assert set(patterns) <= set(re.findall(r'id="([^"]+)"', svg))


def test_what_has_no_look_is_grey() -> None:
    svg = figures.score_bars(bars(row=["teacher big", "b"]), LOOKS, name="f", label="EM")
    (teacher,), (b,) = paths(svg, fill=figures.GREY), paths(svg, fill=LOOKS["b"].colour)
    assert 3 * np.ptp(teacher[:, 0]) == pytest.approx(np.ptp(b[:, 0]), rel=1e-4)


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_axes_that_would_be_empty_say_why(mean: float) -> None:
    frame = bars(mean=[0.0, mean], low=[math.nan] * 2, high=[math.nan] * 2, seeds=[(0.0,), (mean,)])
    points = frame.assign(seconds=[1.0, 2.0])
    for svg in (
        figures.score_bars(frame, LOOKS, name="f", label="EM"),
        figures.speed_against_score(points, LOOKS, name="f", label="EM"),
    ):
        assert ("every score is 0" in svg) == (mean == 0)
