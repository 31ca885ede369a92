"""What columns.py does with matrices on a CPU, compiled by numba."""

from __future__ import annotations

from methods.library.jit import Array, compiled


@compiled("void(T[:, ::1], i8[::1], i8[::1], T[:, ::1])")
def take(matrix: Array, rows: Array, columns: Array, taken: Array) -> None:
    """Write ``matrix[rows][:, columns]``."""
    for k in range(len(rows)):
        row, into = matrix[rows[k]], taken[k]
        for column in range(len(columns)):
            into[column] = row[columns[column]]


@compiled("void(T[:, ::1], i8[::1], i8[::1], T[:, ::1])")
def add(matrix: Array, rows: Array, columns: Array, values: Array) -> None:
    """``matrix[rows][:, columns] += values``, where nothing is named twice."""
    for k in range(len(rows)):
        row, given = matrix[rows[k]], values[k]
        for column in range(len(columns)):
            row[columns[column]] += given[column]
