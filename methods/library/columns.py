"""Some columns of some rows of a matrix: read, and added to. On a CPU at once, with no copy of whole rows between."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.library.cpu_loops import in_threads, run_on, within


def take(matrix: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
    """[rows, columns] of a matrix; the matrix itself where neither is given.

    Args:
        matrix: without gradient.
        rows, columns: int64, their numbers; None for all.

    Raises:
        IndexError: the matrix has no such row or column.
    """
    if columns is None:
        return matrix if rows is None else matrix.index_select(0, rows)
    if not run_on(matrix):
        taken = matrix.index_select(1, columns)
        return taken if rows is None else taken.index_select(0, rows)
    from methods.library import columns_numba  # compiles, which `harness plan` need not wait for

    rows, columns = _known(rows, len(matrix)), _known(columns, matrix.shape[1])
    taken = matrix.new_empty(len(rows), len(columns))
    source, row, column, made = (each.contiguous().numpy() for each in (matrix, rows, columns, taken))
    in_threads(len(row), len(column), lambda part: columns_numba.take(source, row[part], column, made[part]))
    return taken


def add(matrix: Tensor, rows: Tensor | None, columns: Tensor | None, values: Tensor) -> None:
    """``matrix[rows][:, columns] += values``.

    Args:
        matrix: without gradient, written.
        rows, columns: int64, their numbers, each once; None for all.
        values: [rows, columns].

    Raises:
        IndexError: the matrix has no such row or column.
    """
    if columns is None:
        matrix.add_(values) if rows is None else matrix.index_add_(0, rows, values)
    elif run_on(matrix) and matrix.is_contiguous():
        from methods.library import columns_numba  # compiles, which `harness plan` need not wait for

        rows, columns = _known(rows, len(matrix)), _known(columns, matrix.shape[1])
        into, row, column, given = (each.contiguous().numpy() for each in (matrix, rows, columns, values))
        in_threads(len(row), len(column), lambda part: columns_numba.add(into, row[part], column, given[part]))
    elif rows is None:
        matrix.index_add_(1, columns, values)
    else:
        matrix.index_add_(0, rows, values.new_zeros(len(rows), matrix.shape[1]).index_copy_(1, columns, values))


def _known(numbers: Tensor | None, size: int) -> Tensor:
    """The numbers, all where none are named."""
    if numbers is None:
        return torch.arange(size)
    within(numbers, size, "rows or columns")
    return numbers
