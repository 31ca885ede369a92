"""The sorted L1 distance of masses on a CPU, exactly, by counting: only what counts leave open is sorted.

The distance (methods/library/divergences.py, ``sorted_l1``) needs no mass's rank, only whether the other side's mass of
that rank is smaller. With s_k the sign of p_(k) - q_(k),

    sum_k |p_(k) - q_(k)| = sum_k s_k p_(k) - sum_k s_k q_(k).

Let a bin hold c_p and c_q masses, and D more of p than of q lie above it. Its j-th mass of p has the rank of the
(D + j)-th mass of q counted from the bin's top: below the bin for every j where D >= c_q, above it where D + c_p <= 0.
So s is 1 at all that such a bin holds, of either side, or -1, and one look-up a mass finds it. The masses of the bins
that are neither are sorted: few, but of rows that are nearly equal, which are sorted whole. Of tied masses the first
column has the first rank.

Bins follow the bits of a float, which order like an integer where it is not negative, in equal steps between the least
and the largest mass. Unlike those of counted.py they need no edges: nothing is estimated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 2**17
"""The student's masses that are worked on at once, so that they stay in a core's cache; a row at least, 16 at most."""
LEAST = 2.0**-64
"""Smaller masses share a bin, or zeros would leave the others few."""
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_DOUBT = 2  # where a sign would stand
_FEW = 0.4  # of all masses; more take longer to settle than a sort of all

Array = npt.NDArray[Any]


def compare_ranks(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The sorted L1 distance of masses and its gradient, as divergences.sorted_l1 defines it.

    Args:
        student, teacher: masses [rows, V_s] and [rows, V_t], not negative, both float32 or both float64, on the CPU.

    Returns:
        Distance [rows]; [rows, V_s], at each mass the sign of the difference in its rank, 1 beyond the teacher's last
        rank. Both NaN for a row with a mass that is no number.
    """
    rows, ours = student.shape
    distance, signs = student.new_empty(rows), torch.empty(student.shape, dtype=student.dtype)
    step = max(BLOCK // max(ours, 2**13), 1)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        masses = torch.cat([student[block], teacher[block]], 1)
        unknown = masses.isnan().any(-1) if bool(masses.max().isnan()) else None
        if unknown is not None:  # bits of what is no number have no order
            masses[unknown] = 0.0
        found, at_masses = _compare(masses, ours)
        if unknown is not None:
            found[unknown] = at_masses[unknown] = torch.nan
        distance[block], signs[block] = found, at_masses[:, :ours]
    return distance, signs


def _compare(masses: Tensor, ours: int) -> tuple[Tensor, Tensor]:
    """The distances, float64 [rows], and their derivatives, shaped like the masses: at the student's s, then -s.

    Args:
        masses: [rows, V_s + V_t], both sides side by side.
        ours: V_s.
    """
    rows, columns = masses.shape
    places, bins = _places(masses, ours)
    held = torch.bincount(places.view(-1), minlength=2 * rows * bins).view(2, rows, bins)
    more = (held[1] - held[0]).cumsum(-1).add_(2 * ours - columns)
    are_smaller, may_be_smaller = more + held[0] <= 0, more < held[1]
    table = torch.empty(2, rows, bins, dtype=masses.dtype)
    torch.mul(are_smaller, 2.0, out=table[1]).sub_(1)
    torch.neg(table[1], out=table[0])
    is_open = may_be_smaller & ~are_smaller
    in_doubt = int(held.sum(0)[is_open].sum())
    if in_doubt > _FEW * masses.numel():
        return _by_sorting(masses, ours)
    table.masked_fill_(is_open, _DOUBT)
    signs = table.view(-1).index_select(0, places.view(-1)).view(masses.shape)
    if in_doubt:
        _settle(masses, places, signs, held, more)
    # products are exact; sums in double precision, since what they hold is far larger than a small distance
    return (signs * masses).sum(-1, dtype=torch.float64).clamp_min_(0), signs


def _places(masses: Tensor, ours: int) -> tuple[Tensor, int]:
    """The bin of each mass, shaped like them, and bins a row: side by side, row by row, in one count."""
    kind, (rows, columns) = _INTEGERS[masses.dtype], masses.shape
    low, high, least = torch.stack([*masses.aminmax(), masses.new_tensor(LEAST)]).view(kind).tolist()
    bits = masses.view(kind)
    if low < least:
        low, high, bits = least, max(high, least), bits.clamp_min(least)
    shift = max((high - low).bit_length() - max(columns, 2**14).bit_length() + 4, 0)
    first, last = low >> shift, high >> shift
    bins = last - first + 1
    places = bits >> shift
    starts = torch.arange(2 * rows, dtype=kind).mul_(bins).sub_(first).view(2, rows, 1)
    places[:, :ours] += starts[0]
    places[:, ours:] += starts[1]
    return places, bins


def _settle(masses: Tensor, places: Tensor, signs: Tensor, held: Tensor, more: Tensor) -> None:
    """Put signs where there is doubt, by a sort of the masses in question: side by side, row by row, falling."""
    flat, bins, at_masses = (each.view(-1).numpy() for each in (masses, places, signs))
    open_places = np.flatnonzero(at_masses == _DOUBT)
    line = bins[open_places].astype(np.int64) // held.shape[-1]
    open_places = open_places[_descending(line, flat[open_places])]
    values, own = flat[open_places], bins[open_places].astype(np.int64)
    firsts = np.flatnonzero(np.diff(own, prepend=-1))
    starts = np.zeros(held.numel(), np.int64)
    starts[own[firsts]] = firsts
    # Beside a mass stands the other side's of its rank, which may be above the other's bin, in it or below.
    other = np.where(own < more.numel(), own + more.numel(), own - more.numel())
    rank = np.arange(values.size) - starts[own] + torch.stack([more, -more]).view(-1).numpy()[own]
    is_in = (rank >= 0) & (rank < held.view(-1).numpy()[other])
    sign = np.where(rank < 0, -1, 1)
    sign[is_in] = _sign(values[is_in], values[starts[other[is_in]] + rank[is_in]])
    at_masses[open_places] = sign


def _by_sorting(masses: Tensor, ours: int) -> tuple[Tensor, Tensor]:
    """:func:`_compare` by a sort of all masses, those of the student with their places; at the teacher's stands 0."""
    rows, shared = len(masses), min(ours, masses.shape[1] - ours)
    p, q = np.ascontiguousarray(masses[:, :ours].numpy()).reshape(-1), np.sort(masses[:, ours:].numpy())[:, ::-1]
    places = _descending(np.repeat(np.arange(rows), ours), p).reshape(rows, ours)
    ordered, derivative = p[places], np.ones_like(p)
    derivative[places[:, :shared]] = _sign(ordered[:, :shared], q[:, :shared])
    distance = np.abs(ordered[:, :shared] - q[:, :shared]).sum(-1, dtype=np.float64)
    distance += ordered[:, shared:].sum(-1, dtype=np.float64) + q[:, shared:].sum(-1, dtype=np.float64)
    signs = torch.zeros_like(masses)
    signs[:, :ours] = torch.from_numpy(derivative).view(rows, ours)
    return torch.from_numpy(distance), signs


def _sign(values: Array, others: Array) -> Array:
    """int8, of the differences."""
    return (values > others).view(np.int8) - (values < others).view(np.int8)


def _descending(row: Array, values: Array) -> Array:
    """int64, an order by ascending rows, in each of which values fall and equal ones keep their order.

    Of float32, with row, bits and place in one int64, a sort of keys alone is three times as fast as one of places.
    """
    if values.dtype != np.float32:
        return np.lexsort((-values, row))
    place = int(values.size).bit_length()
    bits = (values + np.float32(0)).view(np.int32)  # of a zero without a sign
    keys = (row << 31 | (np.iinfo(np.int32).max - bits)) << place
    keys |= np.arange(values.size)
    keys.sort()
    return keys & ((1 << place) - 1)
