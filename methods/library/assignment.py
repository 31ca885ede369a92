"""Which columns of one matrix stand for which of another: the cheapest one-to-one assignment, or a greedy one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from methods.library.alignment import IntArray

FloatArray = npt.NDArray[np.float64]


def cheapest(cost: FloatArray) -> IntArray:
    """For each row a column of its own, so that the sum of the costs is the least there is; O(rows² · columns).

    Rows are added one by one, each along the path of least reduced cost (Kuhn 1955; Jonker and Volgenant 1987).

    Args:
        cost: float64 [rows, columns], at least as many columns as rows.
    """
    rows, columns = cost.shape
    price_of_row, price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for row in range(rows):
        distance, before, done = np.full(columns, np.inf), np.full(columns, -1), np.zeros(columns, dtype=bool)
        at, reached, walked = -1, 0.0, row
        while walked >= 0:  # until a free column is the nearest
            reduced = reached + cost[walked] - price_of_row[walked] - price
            better = ~done & (reduced < distance)
            distance[better], before[better] = reduced[better], at
            at = int(np.where(done, np.inf, distance).argmin())
            reached, walked, done[at] = float(distance[at]), int(owner[at]), True
        price_of_row[row] += reached
        earlier = done & (owner >= 0)
        price_of_row[owner[earlier]] += reached - distance[earlier]
        price[done] -= reached - distance[done]
        while at >= 0:
            previous = int(before[at])
            owner[at] = owner[previous] if previous >= 0 else row
            at = previous
    taken = np.empty(rows, dtype=np.int64)
    taken[owner[owner >= 0]] = np.flatnonzero(owner >= 0)
    return taken


def greedy(cost: FloatArray) -> IntArray:
    """For each row, in their order, the cheapest column that none before it has."""
    left, taken = cost.copy(), np.empty(len(cost), dtype=np.int64)
    for row in range(len(cost)):
        taken[row] = left[row].argmin()
        left[:, taken[row]] = np.inf
    return taken
