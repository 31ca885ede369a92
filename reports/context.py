"""What a report says besides its numbers: title, protocols, settings, notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from reports.analysis import INTERVAL
from reports.counts import empty_outcomes, outcome_tables, verdict_lines
from reports.learnt import empty_learnt
from reports.published import PaperComparison
from reports.table import DASH, Table
from reports.training_costs import EXPLAINED, cost_table, empty_costs, shared_device
from reports.tuning import empty_tuning, tuning_tables


@dataclass(frozen=True)
class ReportContext:
    """Everything a report prints that is not in the frame of results. All of it is plain text, not Markdown."""

    title: str
    recipe: str
    protocol: Mapping[str, Sequence[str]]  # task -> how its numbers were made; required for every task
    settings: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    appendix: pd.DataFrame | None = field(default=None, compare=False)  # diagnostics per method; any columns
    paper: str = ""  # the pair of `reports.published` whose numbers stand beside ours; "" for none
    recipe_values: Mapping[str, Any] = field(default_factory=dict)  # the recipe's fields, to hold to the paper's
    command: str = ""  # that made the run, to type again
    references: Sequence[str] = ()  # BibTeX entries of the methods
    outcomes: pd.DataFrame = field(default_factory=empty_outcomes, compare=False)  # `reports.counts.OUTCOME_COLUMNS`
    costs: pd.DataFrame = field(default_factory=empty_costs, compare=False)  # `training_costs.COST_COLUMNS`
    tuning: pd.DataFrame = field(default_factory=empty_tuning, compare=False)  # `reports.tuning.TUNING_COLUMNS`
    learnt: pd.DataFrame = field(default_factory=empty_learnt, compare=False)  # `reports.learnt.LEARNT_COLUMNS`


def counted_tables(context: ReportContext) -> list[tuple[str, str, pd.DataFrame]]:
    """(heading, what to know, frame) of what was counted: outcomes, and what trainings cost."""
    costs = cost_table(context.costs)
    device = shared_device(context.costs)
    said = f"{EXPLAINED} Device: {device}." if device else EXPLAINED
    return [
        *tuning_tables(context.tuning),
        *outcome_tables(context.outcomes),
        *([("Costs of training", said, costs)] if not costs.empty else []),
    ]


def protocols(table: Table, context: ReportContext) -> list[tuple[str, list[str]]]:
    """Each task of the table with its protocol lines, items of each metric, and what became of programs.

    Raises ValueError naming a task without protocol lines: a number is not shown without its protocol.
    """
    columns = [column for column in (*table.columns, *table.hidden) if not column.is_average]
    listed = []
    for task in dict.fromkeys(column.task for column in columns):
        lines = list(context.protocol.get(task, ()))
        if not lines:
            raise ValueError(f"task {task!r} has no protocol lines, and a number is not shown without its protocol")
        lines += [*(_items_line(items) for items in _items_of(task, table)), *verdict_lines(context.outcomes, task)]
        listed.append((task, lines))
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


PAPER_HEADER = ("column", "row", "ours", INTERVAL, "theirs", "difference", "inside")


def paper_grid(comparison: PaperComparison) -> list[tuple[str, ...]]:
    """The rows under `PAPER_HEADER`, as text; rows of several students are told apart."""
    several = len({beside.group.student for beside in comparison.rows}) > 1
    lines: list[tuple[str, ...]] = []
    for b in comparison.rows:
        digits = b.column.digits
        std = "" if b.ours.std is None else f" {b.ours.spread}"
        lines.append(
            (
                b.column.full_label,
                b.row.label + (f", {b.group.student}" if several else ""),
                b.ours.number + std,
                DASH if b.ours.interval is None else "{:.{d}f}–{:.{d}f}".format(*b.ours.interval, d=digits),
                f"{b.theirs:.{digits}f}",
                f"{b.difference:+.{digits}f}",
                {None: DASH, True: "yes", False: "no"}[b.inside],
            )
        )
    return lines
