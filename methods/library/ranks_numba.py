"""What ranks.py does with rows of masses, compiled by numba.

Both sides are treated alike: a mass's sign is that of its difference from the other side's mass of its rank. One row's
bins and lists exist at a time, so that they stay in a core's cache. Loops are short and apart, and bins are uint16, so
that all but two of them handle many masses at once.
"""

from __future__ import annotations

import numpy as np

from methods.library.jit import Array, compiled, part, part_in_any_order

_OPEN = 0.0
"""Stands for the sign of a bin whose masses may have either."""
_DIGIT = 8
"""Bits that a pass of a sort orders by."""
_LOWEST = (1 << _DIGIT) - 1
_FEW = 32
"""Masses that are put in order one after the other."""
_AT_ONCE = 64
"""Signs that are looked through without a branch."""


@compiled("void(T[:, ::1], T[:, ::1], B[:, ::1], B[:, ::1], f8[::1], T[:, ::1], i8, i8)")
def compare(
    p: Array, q: Array, bits_p: Array, bits_q: Array, distance: Array, signs: Array, least: int, bins: int
) -> None:
    """The distance and the signs at p of each row; see ranks.py.

    Args:
        p, q: masses [rows, V_s] and [rows, V_t].
        bits_p, bits_q: the same as integers.
        distance: float64 [rows], written.
        signs: like p, written.
        least: bits that those of smaller masses count as.
        bins: the most that a row's bits are shared out among, 2**16 at most.
    """
    space = space_of_rows(p, q, bins)
    for row in range(len(p)):
        distance[row] = compare_row(p[row], q[row], bits_p[row], bits_q[row], signs[row], space, least)


@part
def space_of_rows(p: Array, q: Array, bins: int) -> tuple[Array, ...]:
    """What :func:`compare_row` needs for such rows: counts and signs of bins, the bin of each mass, signs at q."""
    held, ahead, sign_of = np.zeros((2, bins), np.int32), np.empty(bins, np.int32), np.empty((2, bins), p.dtype)
    ours, theirs = p.shape[-1], q.shape[-1]
    return held, ahead, sign_of, np.empty(ours, np.uint16), np.empty(theirs, np.uint16), np.empty(theirs, q.dtype)


@part
def compare_row(
    p: Array, q: Array, bits_p: Array, bits_q: Array, signs: Array, space: tuple[Array, ...], least: int
) -> float:
    """Write the signs at p; the distance."""
    held, ahead, sign_of, bins_p, bins_q, signs_q = space
    high = _count(bits_p, bits_q, least, bins_p, bins_q, held)
    _decide(held, ahead, sign_of)
    in_doubt = _open(sign_of[0])
    total = _look_up(bins_p, sign_of[0], p, signs) + _look_up(bins_q, sign_of[1], q, signs_q)
    if np.isnan(total):
        signs[:] = np.nan
    elif len(in_doubt) > 0:
        keys_p, order_p = _descending(bits_p, _open(signs), high)
        keys_q, order_q = _descending(bits_q, _open(signs_q), high)
        total += _settle(p, keys_p, order_p, keys_q, held, ahead, in_doubt, 1, signs)
        total += _settle(q, keys_q, order_q, keys_p, held[::-1], ahead, in_doubt, -1, signs_q)
    return total


@part
def _count(bits_p: Array, bits_q: Array, least: int, bins_p: Array, bins_q: Array, held: Array) -> int:
    """Write the bin of each mass of a row, and how many each bin holds of either side; returns the highest bits."""
    (low_p, high_p), (low_q, high_q) = _ends(bits_p), _ends(bits_q)
    low, high = max(min(low_p, low_q), least), max(high_p, high_q)
    shift = 0
    while (max(high, low) >> shift) - (low >> shift) >= held.shape[1]:
        shift += 1
    _place(bits_p, low, shift, bins_p)
    _place(bits_q, low, shift, bins_q)
    held[:] = 0
    _add(bins_p, held[0])
    _add(bins_q, held[1])
    return high


@part
def _ends(bits: Array) -> tuple[int, int]:
    """The lowest and the highest, 0 at least."""
    low, high = np.iinfo(bits.dtype).max, 0
    for k in range(len(bits)):
        low, high = min(low, bits[k]), max(high, bits[k])
    return low, high


@part
def _place(bits: Array, low: int, shift: int, bins: Array) -> None:
    first = low >> shift
    for k in range(len(bits)):
        bins[k] = (max(bits[k], low) >> shift) - first


@part
def _add(bins: Array, held: Array) -> None:
    for k in range(len(bins)):
        held[bins[k]] += 1


@part
def _decide(held: Array, ahead: Array, sign_of: Array) -> None:
    """Write how many more of p than of q lie above each bin, and the signs of what it holds, of both sides."""
    more = 0
    for k in range(held.shape[1] - 1, -1, -1):
        ahead[k] = more
        more += held[0, k] - held[1, k]
    for k in range(len(ahead)):  # no branch: which way it goes nobody can tell
        above, below = ahead[k] >= held[1, k], ahead[k] + held[0, k] <= 0
        sign = np.float32(above) - np.float32(below & (not above))
        sign_of[0, k], sign_of[1, k] = sign, -sign


@part_in_any_order
def _look_up(bins: Array, sign_of: Array, masses: Array, signs: Array) -> float:
    """Write the sign of each mass; the sum of both's products, which are exact."""
    for k in range(len(bins)):
        signs[k] = sign_of[bins[k]]
    total = 0.0
    for k in range(len(bins)):
        total += np.float64(signs[k]) * np.float64(masses[k])
    return total


@part
def _open(signs: Array) -> Array:
    """int32, those that have no sign."""
    found, count, whole = np.empty(len(signs), np.int32), 0, len(signs) // _AT_ONCE * _AT_ONCE
    for start in range(0, whole, _AT_ONCE):
        some = np.int32(0)
        for k in range(_AT_ONCE):  # no branch: few have none
            some |= np.int32(signs[start + k] == _OPEN)
        if some:
            count = _append_open(signs, start, start + _AT_ONCE, found, count)
    count = _append_open(signs, whole, len(signs), found, count)
    return found[:count]


@part
def _append_open(signs: Array, start: int, stop: int, found: Array, count: int) -> int:
    for column in range(start, stop):
        if signs[column] == _OPEN:
            found[count] = column
            count += 1
    return count


@part
def _descending(bits: Array, columns: Array, high: int) -> tuple[Array, Array]:
    """Keys that rise as the masses of these columns fall, in order, and the columns so; of ties the first leads."""
    keys, order = np.empty(len(columns), bits.dtype), columns
    for k in range(len(columns)):
        keys[k] = high - max(bits[columns[k]], 0)  # of a zero without a sign
    if len(keys) <= _FEW:
        _insert(keys, order)
        return keys, order
    starts, digit = np.empty((1 << _DIGIT) + 1, np.int32), 0
    other_keys, other_order = np.empty_like(keys), np.empty_like(order)
    while digit < 63 and (high >> digit) > 0:
        starts[:] = 0
        for key in keys:
            starts[((key >> digit) & _LOWEST) + 1] += 1
        for k in range(1 << _DIGIT):
            starts[k + 1] += starts[k]
        for k in range(len(keys)):
            at = (keys[k] >> digit) & _LOWEST
            other_keys[starts[at]], other_order[starts[at]] = keys[k], order[k]
            starts[at] += 1
        keys, other_keys, order, other_order = other_keys, keys, other_order, order
        digit += _DIGIT
    return keys, order


@part
def _insert(keys: Array, order: Array) -> None:
    """Put keys in order, and with them the columns: one after the other, which is the fastest for a few."""
    for k in range(1, len(keys)):
        key, column, at = keys[k], order[k], k
        while at > 0 and keys[at - 1] > key:
            keys[at], order[at] = keys[at - 1], order[at - 1]
            at -= 1
        keys[at], order[at] = key, column


@part
def _settle(
    masses: Array,
    keys: Array,
    order: Array,
    other_keys: Array,
    held: Array,
    ahead: Array,
    in_doubt: Array,
    way: int,
    signs: Array,
) -> float:
    """Give a side's masses in doubt their signs; the sum of both's products.

    Args:
        masses: of the row.
        keys, order: of those in doubt, see :func:`_descending`.
        other_keys: the other side's.
        held: masses of each bin, of this side and of the other.
        ahead: so many more of p lie above each bin.
        in_doubt: bins without a sign.
        way: 1 for p, -1 for q.
        signs: of the row, written.
    """
    total, first, first_other = 0.0, 0, 0
    for k in in_doubt[::-1]:
        ours, others = held[0, k], held[1, k]
        for place in range(ours):
            rank = way * ahead[k] + place  # among the other side's of this bin
            sign = 1.0 if rank >= others else -1.0
            if 0 <= rank < others:
                key, other = keys[first + place], other_keys[first_other + rank]
                sign = 1.0 if other > key else -1.0 if other < key else 0.0
            column = order[first + place]
            signs[column] = sign
            total += sign * np.float64(masses[column])
        first, first_other = first + ours, first_other + others
    return total
