"""The table as CSV for spreadsheets and plots: one line per row, numbers at full precision."""

import csv
import io
import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from reports.spreadsheets import guarded
from reports.table import Row, Table, TableCell
from reports.training_costs import PARTS as COSTS
from reports.training_costs import by_row

PARTS = ("mean", "std", "n", "status", "low", "high", "mark")
TESTED = ("difference", "error", "df", "p", "p_corrected", "p_pooled", "p_welch")
OF_ITEMS = ("items_p", "items_p_corrected")


def csv_wide(table: Table, costs: pd.DataFrame | None = None) -> str:
    """Per column `PARTS`, `TESTED` and `OF_ITEMS`: the cell, and how it differs from the baseline.

    mean, std (over n seeds), low, high (95 % interval over items), difference and error (its standard error) are in
    the column's unit; `TESTED` are of methods, see `reports.analysis.Comparison`, `OF_ITEMS` of these students.
    What does not exist is empty; a status is one of `reports.table.CellStatus`. With `costs` the `PARTS` of
    `reports.training_costs` follow for each task.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{column.key}.{part}" for column in table.columns for part in (*PARTS, *TESTED, *OF_ITEMS)]
    spent = {} if costs is None else {(c["row"], c["task"]): c for c in by_row(costs).to_dict("records")}
    tasks = list(dict.fromkeys(task for _, task in spent))
    parts += [f"{task}.{part}" for task in tasks for part in COSTS]
    writer.writerow(["student", "teacher_kind", "teacher", "method", "fidelity", "role", "seeds", *parts])
    for group in table.groups:
        for row in group.rows:
            name = [group.student, group.teacher_kind, row.teacher, row.method, row.fidelity, row.role, row.n_seeds]
            cells = [value for cell in row.cells for value in _values(cell)]
            cells += [_spent(spent, row, task, part) for task in tasks for part in COSTS]
            writer.writerow(map(guarded, [*name, *cells]))
    return text.getvalue()


def _spent(spent: Mapping[Any, Mapping[Hashable, Any]], row: Row, task: str, part: str) -> object:
    """A cost of a trained row; None where it is not known."""
    value = spent.get((row.label, task), {}).get(part) if row.role == "student" else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _values(cell: TableCell) -> list[object]:
    low, high = cell.interval or (None, None)
    c = cell.comparison
    tests = [None if c is None else getattr(c, name) for name in TESTED]
    items = [None, None] if c is None or c.items is None else [c.items.p, c.items.p_corrected]
    return [cell.mean, cell.std, cell.n_seeds, cell.status, low, high, cell.mark, *tests, *items]
