"""The table as CSV for spreadsheets and plots: one line per row, numbers at full precision."""

import csv
import io

from reports.table import Cell, Table

PARTS = ("mean", "std", "n", "status", "low", "high", "mark")
TESTED = ("difference", "error", "df", "p", "p_corrected", "p_pooled", "p_welch")
OF_ITEMS = ("items_p", "items_p_corrected")


def csv_wide(table: Table) -> str:
    """Per column `PARTS`, `TESTED` and `OF_ITEMS`: the cell, and how it differs from the baseline.

    mean, std (over n seeds), low, high (95 % interval over items), difference and error (its standard error) are in
    the column's unit; `TESTED` are of methods, see `reports.analysis.Comparison`, `OF_ITEMS` of these students.
    What does not exist is empty; a status is one of `reports.table.CellStatus`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{column.key}.{part}" for column in table.columns for part in (*PARTS, *TESTED, *OF_ITEMS)]
    writer.writerow(["student", "teacher_kind", "teacher", "method", "fidelity", "role", "seeds", *parts])
    for group in table.groups:
        for row in group.rows:
            name = [group.student, group.teacher_kind, row.teacher, row.method, row.fidelity, row.role, row.n_seeds]
            writer.writerow([*name, *(value for cell in row.cells for value in _values(cell))])
    return text.getvalue()


def _values(cell: Cell) -> list[object]:
    low, high = cell.interval or (None, None)
    c = cell.comparison
    tests = [None if c is None else getattr(c, name) for name in TESTED]
    items = [None, None] if c is None or c.items is None else [c.items.p, c.items.p_corrected]
    return [cell.mean, cell.std, cell.n_seeds, cell.status, low, high, cell.mark, *tests, *items]
