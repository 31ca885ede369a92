"""Ranks of masses on a CPU: a sort of values alone, and the sign at each mass looked up by the mass.

A sort that says where each value stood takes three times as long as one of values, which numpy does in the processor's
widest registers. Where a mass stands isn't asked for, though, but whether its rank's difference is positive, and that
is a function of the mass, constant over long runs of ranks: a table over the upper bits of a float, which order like an
integer where it is not negative, tells it for all but the few masses that share an entry with the end of a run. Those
are sorted with their places. Of tied masses the first column has the first rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK = 2**17
"""Masses that are worked on at once, so that they stay in a core's cache; a row at least, 16 at most."""
_DOUBT = 2  # where a sign would stand
_INTEGERS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float32): np.dtype(np.int32),
    np.dtype(np.float64): np.dtype(np.int64),
}


def compare_ranks(student: Array, teacher: Array) -> tuple[Array, Array]:
    """The sorted L1 distance of masses and its gradient, as divergences.sorted_l1 defines it.

    Args:
        student, teacher: masses [rows, V_s] and [rows, V_t], not negative, both float32 or both float64.

    Returns:
        Distance [rows]; [rows, V_s], at each mass the sign of the difference in its rank, 1 beyond the teacher's last
        rank. Both NaN for a row with a mass that is no number.
    """
    rows, columns = student.shape
    shared = min(columns, teacher.shape[1])
    distance, signs = np.empty(rows, student.dtype), np.empty(student.shape, student.dtype)
    step = max(BLOCK // max(columns, 2**13), 1)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        ours = np.ascontiguousarray(student[block])
        (p, left), (q, right) = _largest(ours, shared), _largest(teacher[block], shared)
        difference = p - q
        distance[block] = np.abs(difference).sum(-1) + left + right  # of which one is 0
        unknown = np.isnan(distance[block])[:, None]
        if unknown.any():  # bits of what is no number have no order
            ours, p = np.where(unknown, 0, ours), np.where(unknown, 0, p)
        by_rank = (difference > 0).view(np.int8) - (difference < 0).view(np.int8)
        _look_up(ours, p, by_rank, signs[block])
    signs[np.isnan(distance)] = np.nan
    return distance, signs


def _largest(values: Array, ranks: int) -> tuple[Array, Array]:
    """[rows, ranks], the largest of each row in ascending order, and, float64 [rows], the sum of the others."""
    first = values.shape[1] - ranks
    if first > ranks:  # else a sort of all is faster than setting few aside first
        values = np.partition(values, first)
        return np.sort(values[:, first:]), values[:, :first].sum(-1, dtype=np.float64)
    ordered = np.sort(values)
    return ordered[:, first:], ordered[:, :first].sum(-1, dtype=np.float64)


def _look_up(values: Array, top: Array, by_rank: Array, signs: Array) -> None:
    """Write the sign at each mass.

    Args:
        values: [rows, columns], masses, side by side in memory.
        top: [rows, ranks], the largest of each row, ascending.
        by_rank: int8 [rows, ranks], their signs; all others have 1.
        signs: [rows, columns], side by side in memory; written to.
    """
    entry = _upper_bits(values)
    low = entry.min()
    width = entry.max() + 1 - low
    starts = np.arange(len(values), dtype=entry.dtype) * width - low
    entry += starts[:, None]
    _table(top, by_rank, starts, width, signs.dtype).take(entry, out=signs, mode="clip")
    flat, masses, entries = signs.reshape(-1), values.reshape(-1), entry.reshape(-1)
    places = np.flatnonzero(flat == _DOUBT)
    places = places[_descending(places // values.shape[1], masses[places])]
    # All masses of an entry are among them. The first has as many ranks above it as its row has larger masses.
    firsts = np.flatnonzero(np.diff(entries[places], prepend=-1))
    row = places // values.shape[1]
    bounds = row[firsts].searchsorted(np.arange(len(values) + 1))
    larger = np.empty_like(firsts)
    for ordered, start, end in zip(top, bounds, bounds[1:], strict=False):
        larger[start:end] = ordered.size - ordered.searchsorted(masses[places[firsts[start:end]]], "right")
    rank = np.arange(places.size) + np.repeat(larger - firsts, np.diff(firsts, append=places.size))
    known = rank < top.shape[1]
    flat[places] = np.where(known, by_rank[row, np.where(known, -1 - rank, 0)], 1)


def _table(top: Array, by_rank: Array, starts: Array, width: int, dtype: npt.DTypeLike) -> Array:
    """[rows * width], the sign at masses by the upper bits, or :data:`_DOUBT`.

    A run of ranks with one sign holds from the upper bits of its least mass up to those of the next run's.

    Args:
        starts: [rows], what added to the upper bits gives a row's entries.
    """
    changes = by_rank[:, 1:] != by_rank[:, :-1]
    row, last = divmod(np.flatnonzero(changes), max(changes.shape[1], 1))
    before, after = (_upper_bits(top[row, rank]) + starts[row] for rank in (last, last + 1))
    rows, least = np.arange(len(top)), _upper_bits(top[:, 0]) + starts
    begins = np.concatenate([width * rows, least, after])
    runs = np.concatenate([np.ones_like(rows), by_rank[:, 0], by_rank[row, last + 1]]).astype(dtype)
    order = begins.argsort(kind="stable")
    table = np.repeat(runs[order], np.diff(begins[order], append=len(top) * width))
    table[before[before == after]] = _DOUBT
    table[least[by_rank[:, 0] != 1]] = _DOUBT
    return table


def _upper_bits(values: Array) -> Array:
    """The upper 16 bits of each float."""
    integer = _INTEGERS[values.dtype]
    return values.view(integer) >> (8 * integer.itemsize - 16)


def _descending(row: Array, values: Array) -> Array:
    """int64, an order by ascending rows, in each of which values fall and equal ones keep their order.

    Of float32, with row, bits and place in one int64, a sort of keys alone is three times as fast as one of places.
    """
    if values.dtype != np.float32:
        return np.lexsort((-values, row))
    place = int(values.size).bit_length()
    keys = (row << 31 | (np.iinfo(np.int32).max - values.view(np.int32))) << place
    keys |= np.arange(values.size)
    keys.sort()
    return keys & ((1 << place) - 1)
