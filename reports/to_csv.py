"""The table as CSV for spreadsheets and plots: one line per row, numbers at full precision."""

import csv
import io

from reports.table import Cell, Table

PARTS = ("mean", "std", "n", "status", "low", "high", "mark", "difference", "p", "p_corrected", "p_seeds")


def csv_wide(table: Table) -> str:
    """Per column of the table those of `PARTS`: the cell, its interval, and its comparison with the baseline.

    mean, std (over n seeds), low, high (95 % interval over items) and difference (from the baseline) are in the
    column's unit; p and p_corrected are over items, p_seeds over seeds: see `reports.analysis.Comparison`.
    What does not exist is empty; a status is one of `reports.table.CellStatus`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{column.key}.{part}" for column in table.columns for part in PARTS]
    writer.writerow(["student", "teacher_kind", "teacher", "method", "fidelity", "role", "seeds", *parts])
    for group in table.groups:
        for row in group.rows:
            name = [group.student, group.teacher_kind, row.teacher, row.method, row.fidelity, row.role, row.n_seeds]
            writer.writerow([*name, *(value for cell in row.cells for value in _values(cell))])
    return text.getvalue()


def _values(cell: Cell) -> list[object]:
    low, high = cell.interval or (None, None)
    c = cell.comparison
    tests = (None,) * 4 if c is None else (c.difference, c.p, c.p_corrected, c.p_seeds)
    return [cell.mean, cell.std, cell.n_seeds, cell.status, low, high, cell.mark, *tests]
