"""What a report says besides its numbers: title, protocols, settings, notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from reports.table import Table


@dataclass(frozen=True)
class ReportContext:
    """Everything a report prints that is not in the frame of results. All of it is plain text, not Markdown."""

    title: str
    recipe: str
    protocol: Mapping[str, Sequence[str]]  # task -> how its numbers were made; required for every task
    settings: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    appendix: pd.DataFrame | None = field(default=None, compare=False)  # diagnostics per method; any columns


def protocols(table: Table, context: ReportContext) -> list[tuple[str, list[str]]]:
    """Each task of the table with its protocol lines, then how many items each metric was scored on.

    Raises ValueError naming a task without protocol lines: a number is not shown without its protocol.
    """
    columns = [column for column in (*table.columns, *table.hidden) if not column.is_average]
    listed = []
    for task in dict.fromkeys(column.task for column in columns):
        lines = list(context.protocol.get(task, ()))
        if not lines:
            raise ValueError(f"task {task!r} has no protocol lines, and a number is not shown without its protocol")
        listed.append((task, lines + [_items_line(items) for items in _items_of(task, table)]))
    return listed


def _items_of(task: str, table: Table) -> list[tuple[str, tuple[int, ...]]]:
    """(metrics, distinct item counts) of a task's shown columns; metrics with the same counts share one entry."""
    by_counts: dict[tuple[int, ...], list[str]] = {}
    for column in table.columns:
        if column.task == task and not column.is_average:
            by_counts.setdefault(column.items, []).append(column.label)
    return [(", ".join(labels), counts) for counts, labels in by_counts.items() if counts]


def _items_line(items: tuple[str, tuple[int, ...]]) -> str:
    labels, counts = items
    if len(counts) == 1:
        return f"{labels}: {counts[0]} items"
    return f"{labels}: {counts[0]} to {counts[-1]} items, not the same number for every score"


LEGEND = (
    "Bold: the best of its column within a student, at the printed precision; teachers and references do not "
    "compete. ↑ higher is better, ↓ lower is better. ±: sample standard deviation over seeds."
)


def explanations(table: Table) -> list[str]:
    """The lines that say how to read the table; the same in every format."""
    lines = [LEGEND]
    averaged = [column.full_label for column in table.columns if column.in_average]
    if any(column.is_average for column in table.columns):
        lines.append(f"Average: of {', '.join(averaged)}, seed by seed, only where a row has them all.")
    if table.hidden:
        lines.append(f"Not printed, but in table.csv: {', '.join(column.full_label for column in table.hidden)}.")
    return lines
