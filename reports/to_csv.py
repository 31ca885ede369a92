"""The table as CSV for spreadsheets and plots: one line per row, numbers at full precision."""

import csv
import io

from reports.table import Cell, Table


def csv_wide(table: Table) -> str:
    """Per column of the table four of the CSV: mean, std (both in the column's unit), n (seeds in them) and status.

    A mean or std that does not exist is empty; a status is one of `reports.table.CellStatus`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{column.key}.{part}" for column in table.columns for part in ("mean", "std", "n", "status")]
    writer.writerow(["student", "teacher_kind", "teacher", "method", "fidelity", "role", "seeds", *parts])
    for group in table.groups:
        for row in group.rows:
            name = [group.student, group.teacher_kind, row.teacher, row.method, row.fidelity, row.role, row.n_seeds]
            writer.writerow([*name, *(value for cell in row.cells for value in _values(cell))])
    return text.getvalue()


def _values(cell: Cell) -> list[object]:
    return [*("" if number is None else number for number in (cell.mean, cell.std)), cell.n_seeds, cell.status]
