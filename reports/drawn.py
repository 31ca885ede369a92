"""Which figures a report has: scores, training curves, speed against score; drawn once for the page and for files."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from reports import figures
from reports.analysis import INTERVAL
from reports.exhibits import Evidence
from reports.table import Column, Row, Table, TableCell

PAGE_INK = "#767676"  # of letters and lines in a file, which has no page round it: reads on white and on black


class DrawnPart(NamedTuple):
    """Figures under one heading.

    Attributes:
        heading: such as "Scores".
        text: what to know to read them.
        figures: caption and SVG element of each.
    """

    heading: str
    text: str
    figures: list[tuple[str, str]]


def looks(table: Table) -> dict[str, figures.Style]:
    """Colour, dash and marker of each method of the table."""
    return figures.styles([row.label for group in table.groups for row in group.rows if row.role == "student"])


def files(parts: Sequence[DrawnPart]) -> dict[str, str]:
    """The figures as SVG files of their own, by name: for papers and web pages."""
    return {file_name(part, caption): _alone(svg) for part in parts for caption, svg in part.figures}


def file_name(part: DrawnPart, caption: str) -> str:
    """Of a figure's file."""
    return f"{_slug(f'{part.heading} {caption}')}.svg"


def _slug(text: str) -> str:
    """A file's name from a heading and a caption, without the caption's hint for readers."""
    named = re.sub(r": (higher|lower) is better$", "", text)
    return re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")


def _alone(svg: str) -> str:
    return svg.replace("<svg ", '<svg font-family="sans-serif" ', 1).replace("currentColor", PAGE_INK)


def draw(table: Table, evidence: Evidence, costs: pd.DataFrame) -> list[DrawnPart]:
    """The parts of a report's figures, without those that have nothing to show."""
    look_of = looks(table)
    several = len(table.students()) > 1
    scores = score_frame(table)
    known = [
        (DIFFERENCES, _DIFFERENCES_TEXT, _difference_figures(table, look_of, several)),
        (GAPS, _GAPS_TEXT, _gap_figures(table, look_of, several)),
        (
            "Scores",
            f"{SPREAD} Dots: single seeds, where there are several. Grey: teachers and references.",
            _score_figures(scores, table.columns, look_of, several),
        ),
        (
            "Training",
            "Means over seeds. Losses are in nats a token; a dual teacher's cross-tokenizer term is the thinner line. "
            "KD/CE: the norm of the distillation term's gradient at the student's logits over that of the "
            "cross-entropy, before weights; far from 1, one of the two decides alone.",
            _training_figures(evidence.steps, look_of),
        ),
        (
            "Speed against score",
            "Seconds that the training of a student took, without loading and storing; teachers and their rows, which "
            "all methods share, are left out. Means over seeds. They are wall-clock times of the machine of this run, "
            "which may have had other work at the same time: compare them with care, and not with those of other runs.",
            _speed_figures(scores, costs, table.columns, look_of),
        ),
    ]
    return [DrawnPart(heading, text, shown) for heading, text, shown in known if shown]


DIFFERENCES = "Differences"
_DIFFERENCES_TEXT = (
    f"Points: differences from the baseline, paired by seed; lines: their {INTERVAL}, over trainings and test items, "
    "not corrected for the number of rows. Filled: found after the correction; hollow: not."
)
GAPS = "Gap closed"
_GAPS_TEXT = (
    "How much of the way from the baseline to its own teacher each row went: 0 % is no better than a student without a "
    f"teacher, 100 % as good as the teacher. Lines: {INTERVAL}. Filled: the interval leaves out 0."
)
SPREAD = (
    f"Lines: {INTERVAL} of the mean, by bootstrap over test items; without item-level scores one sample standard "
    "deviation over seeds."
)


def score_frame(table: Table) -> pd.DataFrame:
    """Every number of the table: student, column (its key), row, mean, low, high, seeds (their values)."""
    rows = []
    for group in table.groups:
        for row in group.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.mean is not None:
                    low, high = _interval(cell)
                    seeds = tuple(value for _, value in cell.values)
                    rows.append((group.student, column.key, _name(row), cell.mean, low, high, seeds))
    return pd.DataFrame(rows, columns=["student", "column", "row", "mean", "low", "high", "seeds"])


def _name(row: Row) -> str:
    """The row's label, which for teachers does not tell one from another outside their group."""
    return f"teacher {row.teacher}" if row.role == "teacher" and row.teacher else row.label


def _interval(cell: TableCell) -> tuple[float, float]:
    if cell.interval is not None:
        return cell.interval
    if cell.mean is None or cell.std is None:
        return math.nan, math.nan
    return cell.mean - cell.std, cell.mean + cell.std


def _axis(column: Column) -> str:
    return column.full_label if column.unit == column.label else f"{column.full_label}, {column.unit}"


def _caption(column: Column) -> str:
    return f"{column.full_label}: {'higher' if column.higher_is_better else 'lower'} is better"


def _score_figures(
    scores: pd.DataFrame, columns: Sequence[Column], looks: Mapping[str, figures.Style], several: bool
) -> list[tuple[str, str]]:
    drawn: list[tuple[str, str]] = []
    for column in columns:
        for student, part in scores[scores["column"] == column.key].groupby("student", sort=False):
            name = f"f-score-{len(drawn)}"
            caption = f"{student}, {_caption(column)}" if several else _caption(column)
            drawn.append((caption, figures.score_bars(part, looks, name=name, label=_axis(column))))
    return drawn


def _difference_figures(table: Table, looks: Mapping[str, figures.Style], several: bool) -> list[tuple[str, str]]:
    """Of the tested columns, where seeds give differences an interval."""
    drawn: list[tuple[str, str]] = []
    for one in table.pairwise:
        rows = [
            (label, made.difference, *(made.interval or (math.nan, math.nan)), made.found)
            for label, made in one.against.items()
        ]
        if one.column.key in table.named and any(math.isfinite(low) for _, _, low, _, _ in rows):
            frame = pd.DataFrame(rows, columns=["row", "difference", "low", "high", "found"])
            label = f"{_axis(one.column)}: row minus {one.base}"
            caption = f"{one.student}, {_caption(one.column)}" if several else _caption(one.column)
            drawn.append((caption, figures.forest(frame, looks, name=f"f-forest-{len(drawn)}", label=label)))
    return drawn


def _gap_figures(table: Table, looks: Mapping[str, figures.Style], several: bool) -> list[tuple[str, str]]:
    """Of the tested columns in which a teacher leads and seeds give shares an interval."""
    drawn: list[tuple[str, str]] = []
    for one in table.pairwise:
        rows = [
            (
                label,
                100 * gap.share,
                100 * gap.interval[0],
                100 * gap.interval[1],
                gap.interval[0] * gap.interval[1] > 0,
            )
            for label, gap in one.gaps.items()
            if gap.share is not None and gap.interval is not None
        ]
        if one.column.key in table.named and rows:
            frame = pd.DataFrame(rows, columns=["row", "difference", "low", "high", "found"])
            caption = f"{one.student}, {one.column.full_label}" if several else one.column.full_label
            label = f"{one.column.full_label}: % of the gap to the own teacher closed"
            drawn.append((caption, figures.forest(frame, looks, name=f"f-gap-{len(drawn)}", label=label)))
    return drawn


def _training_figures(steps: pd.DataFrame, looks: Mapping[str, figures.Style]) -> list[tuple[str, str]]:
    known = [
        (["loss"], "total loss"),
        (["ce"], "cross-entropy"),
        (["kd", "second kd"], "distillation term (KD)"),
        (["ratio", "second ratio"], "KD/CE gradient norm"),
    ]
    drawn: list[tuple[str, str]] = []
    steps = steps[steps["row"].isin(list(looks))]
    for task, part in steps.groupby("task", sort=False):
        for number, (columns, label) in enumerate(known):
            name = f"f-steps-{len(drawn)}-{number}"
            svg = figures.curves(part, columns, looks, name=name, label=label)
            if svg is not None:
                drawn.append((f"{task}: {label}", svg))
    return drawn


def _speed_figures(
    scores: pd.DataFrame, costs: pd.DataFrame, columns: Sequence[Column], looks: Mapping[str, figures.Style]
) -> list[tuple[str, str]]:
    drawn: list[tuple[str, str]] = []
    seconds = costs.groupby(["task", "row"], sort=False)["seconds"].mean().reset_index()
    for column in columns:
        points = scores[scores["column"] == column.key].merge(seconds[seconds["task"] == column.task], on="row")
        if not points.empty:
            name = f"f-speed-{len(drawn)}"
            svg = figures.speed_against_score(points, looks, name=name, label=_axis(column))
            drawn.append((_caption(column), svg))
    return drawn
