"""Figures as SVG text from data frames alone. Equal frames give equal text, and no figure has a colour of its own page.

Lines and letters take the colour of the text around them (``currentColor``), so that a figure reads in light and dark.
A row of the table has one colour, dash and marker in all figures; the first colours are Okabe and Ito's, which readers
who see no red or green tell apart, with a blue that is bright enough for a dark page. Any two of all colours are 16 or
more apart (CIEDE2000), and each stands out from white and from a dark page.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

COLOURS = (
    *("#1a80c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f17e6"),
    *("#b22d43", "#806a00", "#70b212", "#8f7ee6", "#207880", "#545a99", "#805946"),
)
GREY = "#8a8a8a"  # of what no method made: teachers and references
DASHES = ("", "6 2.5", "1.5 2", "7 2 1.5 2")  # after the colours are used up; in points
HATCHES = ("", "//", "..", "xx")  # of bars, one for each dash
MARKERS = "osD^vPX"
POINTS = 150  # of a line: more can not be told apart at this size
FAR_APART = 20  # largest over smallest number of an axis from which on it is logarithmic
LABELLED = 4  # points with their names beside them: more would lie over one another, and the legend names them
LABEL = 24  # characters of a row's label in a figure
ALL_ZERO = "every score is 0"
INCHES = 4.3  # wide: a phone shows the figure at its own size
INK = "#010203"  # stands for currentColor until the SVG is written
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

_SETTINGS: Any = {  # matplotlib types each name
    "svg.fonttype": "none",
    "svg.hashsalt": "reports",
    "font.size": 10,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "hatch.color": INK,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Style:
    """How a row of the table looks in every figure."""

    colour: str
    dash: str  # of SVG's stroke-dasharray; "" for a solid line
    marker: str  # matplotlib's


def styles(rows: Iterable[str]) -> dict[str, Style]:
    """A look for each row, in their order; more than 56 rows share some."""
    looks = itertools.cycle([Style(c, d, m) for d in DASHES for c, m in zip(COLOURS, 2 * MARKERS, strict=True)])
    return dict(zip(dict.fromkeys(rows), looks, strict=False))


def score_bars(scores: pd.DataFrame, looks: Mapping[str, Style], *, name: str, label: str) -> str:
    """Horizontal bars from zero with their intervals, and a dot for each seed where there are several.

    Args:
        scores: columns row, mean, low, high (NaN: no interval) and seeds (a sequence of values), from top to bottom.
        looks: see :func:`styles`; rows without one are grey. Bars of one colour differ in their hatching.
        name: of the figure; makes its ids unique on a page.
        label: of the axis, with the unit.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(0.55 + 0.27 * len(scores))
        for place, bar in enumerate(_records(scores)):
            look = looks.get(str(bar.row), Style(GREY, "", ""))
            hatch = HATCHES[DASHES.index(look.dash)]
            axes.barh(place, bar.mean, height=0.62, color=look.colour, alpha=0.85, linewidth=0, hatch=hatch)
            if math.isfinite(bar.low):
                axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt")
                for end in (bar.low, bar.high):
                    axes.plot([end, end], [place - 0.16, place + 0.16], color=INK, linewidth=1.4)
            if len(bar.seeds) > 1:
                axes.plot(bar.seeds, [place] * len(bar.seeds), "o", markersize=3, color=INK, alpha=0.6, linewidth=0)
        axes.set_yticks(range(len(scores)), [_short(str(row)) for row in scores["row"]])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(scores) - 0.4, -0.6)
        if float(scores["mean"].abs().max()) == 0:
            axes.set_xlim(0, 1)  # without a width to show the axis would centre on zero
            _say(axes, ALL_ZERO)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, name, f"Bars: {label}")


def forest(rows: pd.DataFrame, looks: Mapping[str, Style], *, name: str, label: str) -> str:
    """Differences as points with their intervals, round a line at zero; filled where the difference was found.

    Args:
        rows: columns row, difference, low, high (NaN: no interval) and found, from top to bottom.
        looks, name, label: as in :func:`score_bars`.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(0.55 + 0.27 * len(rows))
        axes.axvline(0, color=INK, linewidth=0.9)
        for place, one in enumerate(_records(rows)):
            look = looks.get(str(one.row), Style(GREY, "", "o"))
            if math.isfinite(one.low):
                axes.plot([one.low, one.high], [place, place], color=look.colour, linewidth=2, solid_capstyle="butt")
            face = look.colour if one.found else "none"
            axes.plot(one.difference, place, look.marker, color=look.colour, markerfacecolor=face, markersize=7)
        axes.set_yticks(range(len(rows)), [_short(str(row)) for row in rows["row"]])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, name, f"Intervals: {label}")


def curves(
    steps: pd.DataFrame, columns: Sequence[str], looks: Mapping[str, Style], *, name: str, label: str
) -> str | None:
    """Lines over optimiser steps, one a row, means over seeds; None where the columns hold no number.

    The vertical axis is logarithmic where the numbers are positive and far apart.

    Args:
        steps: columns row, seed, step and those named.
        columns: what is drawn; the second and later ones as thinner lines.
        looks, name, label: as in :func:`score_bars`.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(2.5)
        drawn: list[float] = []
        for row, part in steps.groupby("row", sort=False):
            for place, column in enumerate(columns):
                line = part.groupby("step")[column].mean().dropna()
                if line.empty:
                    continue
                x, y = _thinned(line.index.to_numpy(dtype=float), line.to_numpy(dtype=float))
                style = looks[str(row)]
                dash = (0, tuple(map(float, style.dash.split()))) if style.dash else "-"
                marker = style.marker if len(x) == 1 else ""
                axes.plot(x, y, color=style.colour, linestyle=dash, marker=marker, linewidth=0.9 if place else 1.7)
                drawn += y.tolist()
        if not drawn:
            return None
        low, high = min(drawn), max(drawn)
        if low > 0 and high / low > FAR_APART:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.grid()
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylabel(label)
        return _svg(figure, name, f"Lines over optimiser steps: {label}")


def speed_against_score(points: pd.DataFrame, looks: Mapping[str, Style], *, name: str, label: str) -> str:
    """A point for each row: seconds of training against a score, means over seeds.

    Args:
        points: columns row, seconds, mean, low and high (NaN: no interval).
        looks, name, label: as in :func:`score_bars`.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(2.5)
        for point in _records(points):
            style = looks[str(point.row)]
            if math.isfinite(point.low):
                axes.plot([point.seconds] * 2, [point.low, point.high], color=style.colour, linewidth=1.2, alpha=0.7)
            filled = style.colour if not style.dash else "none"
            axes.plot(point.seconds, point.mean, style.marker, color=style.colour, markerfacecolor=filled, markersize=7)
            if len(points) <= LABELLED:
                place = (point.seconds, point.mean)
                axes.annotate(_short(str(point.row)), place, xytext=(6, 4), textcoords="offset points", fontsize=8)
        axes.margins(x=0.22 if len(points) <= LABELLED else 0.08, y=0.15)
        if float(points["mean"].abs().max()) == 0:
            axes.set_ylim(-0.05, 1)
            _say(axes, ALL_ZERO)
        axes.grid()
        axes.set_xlabel("seconds of training")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(label)
        return _svg(figure, name, f"Points: {label} against seconds of training")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(INCHES, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _say(axes: Axes, text: str) -> None:
    """A sentence in the middle of axes that would be empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", style="italic")


def _records(frame: pd.DataFrame) -> list[Any]:
    """Rows whose values are attributes; pandas can not tell their types."""
    return list(frame.itertuples(index=False))


def _short(row: str) -> str:
    """The row's label, with room left for what the figure shows."""
    return row if len(row) <= LABEL else f"{row[: LABEL - 1]}…"


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over neighbouring steps where there are too many."""
    if len(x) <= POINTS:
        return x, y
    parts = [np.array_split(values, POINTS) for values in (x, y)]
    means = [np.asarray([part.mean() for part in split]) for split in parts]
    return means[0], means[1]


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as one element to put into a page: no header, no style of its own, ids that begin with its name."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(re.sub(r"\s*\n\s*", " ", text.getvalue()))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text.getvalue()))
    for element in root.iter():
        _tidy(element, name, used)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", title)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode").replace(INK, "currentColor")


def _tidy(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Styles become attributes, which a strict page allows; ids in use get the figure's name, others go."""
    for rule in element.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in rule.partition(":"))
        if key and key != "font-family":  # the page's own
            element.set(key, value)
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.attrib.pop(key)
            if value in used:
                element.set(key, f"{name}-{value}")
        elif key in (f"{{{XLINK}}}href", "href"):
            element.attrib.pop(key)
            element.set("href", f"#{name}-{value.removeprefix('#')}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
