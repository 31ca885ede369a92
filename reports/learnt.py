"""What each row learnt, beside its scores: of whom, how much of the way, and what moved besides."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from reports.analysis import INTERVAL
from reports.gap import Gap
from reports.table import DASH, Column, Group, Row, Table, TableCell

LEARNT_COLUMNS = ("row", "task", "measure", "value")
"""One line for each number beside the scores, its seeds averaged: `measure` is a heading, `value` text, as printed."""

EXPLAINED = (
    "Gap closed: (row - {base}) / (teacher - {base}), paired by seed, on the same items; 100 % is as good as the own "
    f"teacher (of two, the better one), 0 % no better than {{base}}. In brackets its {INTERVAL}, which counts training "
    f"again, other items, and that the gap is measured too. {DASH}: the teacher is not told from {{base}} as the "
    "better one. Since start: change from the row's own warm start, its mean over seeds, in the column's unit."
)


def empty_learnt() -> pd.DataFrame:
    return pd.DataFrame(columns=list(LEARNT_COLUMNS))


def learnt_tables(table: Table, measures: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(heading, what to know, frame) for each student and task with something to show.

    Args:
        measures: further numbers, see :data:`LEARNT_COLUMNS`.
    """
    several = len(table.students()) > 1
    made = []
    for student, groups in table.students():
        for task in dict.fromkeys(column.task for column in table.columns if not column.is_average):
            frame = _frame(table, groups, task, measures[measures["task"] == task])
            heading = f"What was learnt: {task}{f', {student}' if several else ''}"
            explained = EXPLAINED.format(base=table.baseline) if table.baseline else ""
            made.append((heading, explained, frame))
    return [part for part in made if not part[2].empty]


def _frame(table: Table, groups: Sequence[Group], task: str, measures: pd.DataFrame) -> pd.DataFrame:
    """A line for each student and teacher of which anything is known; columns that are empty are left out."""
    starts = {
        place: dict(row.cells[place].values)
        for group in groups
        for row in group.rows
        if (row.role, row.method) == ("reference", "warm start")
        for place, _ in _columns(table, task)
    }
    names = list(dict.fromkeys(measures["measure"]))
    lines = []
    for group in groups:
        for row in group.rows:
            line = {"row": row.label, "learns from": row.teacher if row.role == "student" else ""}
            if row.role == "student":
                line |= dict(_of_scores(table, task, row, starts))
            called = {row.label, row.method if row.role == "reference" else f"{row.label} {row.teacher}".strip()}
            own = measures[measures["row"].isin(called)]
            values = dict(zip(own["measure"], own["value"], strict=True))
            lines.append(line | {name: str(values.get(name, "")) for name in names})
    frame = pd.DataFrame(lines).fillna("")
    told = [name for name in frame.columns if name not in ("row", "learns from")]
    frame = frame[(frame[told] != "").any(axis=1)] if told else frame.iloc[:0]
    return frame[[name for name in frame.columns if name == "row" or (frame[name] != "").any()]].reset_index(drop=True)


def _columns(table: Table, task: str) -> list[tuple[int, Column]]:
    return [(place, one) for place, one in enumerate(table.columns) if one.task == task and not one.is_average]


def _of_scores(
    table: Table, task: str, row: Row, starts: Mapping[int, Mapping[int, float]]
) -> Iterator[tuple[str, str]]:
    for place, column in _columns(table, task):
        cell = row.cells[place]
        yield f"{column.label}: gap closed", "" if cell.gap is None else share(cell.gap)
        yield f"{column.label}: since start", _since(cell, starts.get(place, {}), column)


def share(gap: Gap) -> str:
    """Of a gap, as printed: "54 % (20 to 91)"."""
    if gap.share is None:
        return DASH
    interval = "" if gap.interval is None else " ({:.0f} to {:.0f})".format(*(100 * end for end in gap.interval))
    return f"{100 * gap.share:.0f} %{interval}"


def _since(cell: TableCell, start: Mapping[int, float], column: Column) -> str:
    changes = [value - start[seed] for seed, value in cell.values if seed in start]
    return f"{statistics.fmean(changes):+.{column.digits}f}" if changes else ""
