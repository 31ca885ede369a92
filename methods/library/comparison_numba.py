"""What comparison_cpu.py does with groups of rows, compiled by numba: one row at a time, so that it stays in a cache.

Rows are float32. Of a row with an entry that is no number, nothing is a number. Nothing here looks whether it is within
an array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from methods.library.jit import Array, Real, compiled, part, part_in_any_order
from methods.library.ranks_numba import compare_row, space_of_rows
from methods.library.rows_numba import BLOCK, exponentials, largest, log_sum_exp, scale_by

_SIDE = "Tuple((T[:, ::1], T[::1], i8[::1], i8[::1], i8[::1]))"
"""Logits, their log-sum-exps, and of groups: the row and the token of each member, and where each group's begin."""


@compiled(
    f"void(T[:, ::1], {_SIDE}, {_SIDE}, Tuple((T[::1], u4[::1], u4[::1], u4[::1])), UniTuple(f8, 2), f8, b1, b1, "
    "f8, UniTuple(i8, 2), f8[:, ::1], i8)"
)
def compare(
    upstream: Array,
    ours: tuple[Array, ...],
    theirs: tuple[Array, ...],
    columns: tuple[Array, ...],
    weights: tuple[float, float],
    floor: float,
    all_by_rank: bool,
    keeps_first: bool,
    scale: float,
    sort: tuple[int, int],
    found: Array,
    first: int,
) -> None:
    """Compare groups, and add ``scale`` times the gradient at the student's logits to ``upstream``.

    Args:
        ours, theirs: see :data:`_SIDE`; of the teacher's log-sum-exps those that joint masses need are written.
        columns: 1 for each of the teacher's that has a partner, else 0; the partner of each of the student's, the
            number of the teacher's columns where it has none; those that are compared by rank, of either side. Whole
            numbers without a sign, for which numba does not look whether they count from the end.
        weights: of what is compared one by one and by rank.
        floor: see merging.py, ``LOG_FLOOR``.
        all_by_rank: in place of columns.
        keeps_first: whether a group keeps its first member's row, or its last one's.
        sort: the least bits and the bins, see ranks_numba.py.
        found: [groups, 3], written: distance, share of the teacher's mass on columns that are compared one by one, and
            squared norm of the gradient.
        first: the number of the first group.
    """
    logits, lse, rows, tokens, starts = ours
    other_logits, other_lse, other_rows, _, other_starts = theirs
    space = _space(logits.shape[1], other_logits.shape[1], columns, all_by_rank, sort[1])
    made, gradient, powers, reference = space[0], space[1], space[2], space[3]
    for number in range(len(found) - 1, -1, -1):  # the last rows may be in a cache yet
        start, stop = starts[first + number], starts[first + number + 1]
        kept = start if keeps_first else stop - 1
        other_start, other_stop = other_starts[first + number], other_starts[first + number + 1]
        other_kept = other_start if keeps_first else other_stop - 1
        for member in range(other_start, other_stop):
            if member != other_kept:
                other_lse[other_rows[member]] = log_sum_exp(other_logits[other_rows[member]], reference, powers)
        joints = _joint(ours, start, stop, kept, floor), _joint(theirs, other_start, other_stop, other_kept, floor)
        row, other = rows[kept], other_rows[other_kept]
        value, covered, passed, total = _compare_rows(
            logits[row], other_logits[other], joints, columns, weights, floor, all_by_rank, sort[0], space
        )
        squares = _add_centred(gradient, made, np.float32(passed / total), np.float32(scale), upstream[row])
        for member in range(start, stop):
            if member != kept:
                at = rows[member], max(tokens[member], 0)
                squares += _through_token(logits, lse, at, floor, passed, scale, made, powers, upstream)
        found[number, 0], found[number, 1], found[number, 2] = value, covered, squares


# --- groups ----------------------------------------------------------------------------------------------------------


@part
def _space(width: int, other_width: int, columns: tuple[Array, ...], all_by_rank: bool, bins: int) -> tuple[Any, ...]:
    """Of a row: the student's exponentials, the gradient at the logs of its masses, powers of two, the teacher's
    exponentials and shared masses; masses that are compared by rank, of either side, the signs, and what ranks need."""
    made, gradient, powers = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(BLOCK, np.int32)
    reference, masses = np.empty(other_width, np.float32), np.zeros(0 if all_by_rank else other_width + 1, np.float32)
    p = gradient if all_by_rank else np.empty(len(columns[2]), np.float32)
    q = np.empty(other_width if all_by_rank else len(columns[3]), np.float32)
    return made, gradient, powers, reference, masses, p, q, np.empty_like(p), space_of_rows(p, q, bins)


@part
def _compare_rows(
    logits: Array,
    others: Array,
    joints: tuple[Real, Real],
    columns: tuple[Array, ...],
    weights: tuple[Real, Real],
    floor: Real,
    all_by_rank: bool,
    least: int,
    space: tuple[Any, ...],
) -> tuple[Real, Real, Real, Real]:
    """The distance of two rows as groups keep them, the teacher's probability on shared columns, the gradient's sum,
    and the sum of the student's exponentials.

    These exponentials and the gradient at the logs of its masses are in ``space``. Both sides are treated alike, so
    that what is equal stays equal.

    Args:
        logits, others: of student and teacher.
        joints: the log-probability of what either's group has beside.
    """
    shared, partner, my_rest, its_rest = columns
    made, gradient, powers, reference, masses, p, q, signs, of_ranks = space
    top, other_top = largest(logits), largest(others)
    total, other_total = exponentials(logits, top, made, powers), exponentials(others, other_top, reference, powers)
    to_masses = np.float32(math.exp(joints[1]) / other_total)
    value: Real = 0.0
    covered: Real = 0.0
    passed: Real = 0.0
    if not all_by_rank:
        shift = joints[1] - other_top - math.log(other_total)
        on_shared, of_teacher = _shared_masses(others, shift, floor, reference, to_masses, shared, masses)
        _partners(masses, partner, gradient)
        shift = joints[0] - top - math.log(total)
        of_student, passed = _towards(logits, shift, floor, gradient, np.float32(weights[0]))
        value, covered = weights[0] * (of_teacher - of_student), on_shared / other_total
    if len(p) > 0:
        _pick(made, np.float32(math.exp(joints[0]) / total), my_rest, all_by_rank, p)
        _pick(reference, to_masses, its_rest, all_by_rank, q)
        value += weights[1] * compare_row(p, q, p.view(np.int32), q.view(np.int32), signs, of_ranks, least)
        passed += scale_by(p, signs, np.float32(weights[1]))
        if not all_by_rank:
            _scatter(p, my_rest, gradient)
    return value, covered, passed, total


@part
def _joint(side: tuple[Array, ...], start: int, stop: int, kept: int, floor: Real) -> Real:
    """The log-probability of the tokens of a group's other members, each at least the floor."""
    logits, lse, rows, tokens, _ = side
    total: Real = 0.0
    for member in range(start, stop):
        if member != kept:
            realised = logits[rows[member], max(tokens[member], 0)] - lse[rows[member]]
            total += floor if realised < floor else realised
    return total


@part
def _through_token(
    logits: Array,
    lse: Array,
    at: tuple[int, int],
    floor: Real,
    passed: Real,
    scale: Real,
    made: Array,
    powers: Array,
    upstream: Array,
) -> Real:
    """Add the gradient of a member whose row is not kept, which passes through its own token; its squared norm.

    Args:
        at: its row and its token.
        passed: the sum of the gradient at the logs of the group's masses.
    """
    row, token = at
    if logits[row, token] - lse[row] < floor:
        return 0.0
    total = exponentials(logits[row], largest(logits[row]), made, powers)
    made[token] -= np.float32(total)
    return _subtract(made, np.float32(passed / total), np.float32(scale), upstream[row])


@part_in_any_order
def _shared_masses(
    logits: Array, shift: Real, floor: Real, made: Array, factor: Real, shared: Array, masses: Array
) -> tuple[Real, Real]:
    """Write the teacher's masses of shared columns, 0 of others; their exponentials' sum, and Σ m log m.

    Args:
        shift: what makes logits logs of a group's masses.
        made: exponentials, which ``factor`` makes masses.
        shared: 1 for a column with a partner, else 0.
        masses: written, at least the floor; one entry more is left alone.
    """
    add, least_log, least = np.float32(shift), np.float32(floor), np.float32(math.exp(floor))
    covered, value = 0.0, 0.0
    for k in range(len(made)):
        mass, log = made[k] * factor, logits[k] + add
        mass = shared[k] * (least if mass < least else mass)
        masses[k] = mass
        covered += np.float64(shared[k] * made[k])
        value += np.float64(mass * (least_log if log < least_log else log))
    return covered, value


@part
def _partners(masses: Array, partner: Array, made: Array) -> None:
    """Write the mass of each column's partner; what has none names the last entry, which is 0."""
    for k in range(len(partner)):
        made[k] = masses[partner[k]]


@part_in_any_order
def _towards(logits: Array, shift: Real, floor: Real, masses: Array, weight: Real) -> tuple[Real, Real]:
    """What a student says of the masses of its columns' partners, Σ m log s; the gradient's sum.

    Args:
        shift: what makes logits logs of a group's masses.
        masses: overwritten by the gradient at those logs, with its weight.
    """
    add, least_log = np.float32(shift), np.float32(floor)
    value, total = 0.0, np.float32(0)
    for k in range(len(masses)):
        mass, log = masses[k], logits[k] + add
        value += np.float64(mass * (least_log if log < least_log else log))
        given = np.float32(0) if log < least_log else -weight * mass
        masses[k] = given
        total += given
    return value, np.float64(total)


# --- entries of a row ------------------------------------------------------------------------------------------------


@part_in_any_order
def _add_centred(gradient: Array, made: Array, factor: Real, scale: Real, upstream: Array) -> Real:
    """Add ``scale`` times the gradient at logits of one at log-probabilities; the sum of its squares, unscaled.

    Args:
        made: exponentials, which ``factor`` makes probabilities times the gradient's sum.
    """
    squares = np.float32(0)
    for k in range(len(gradient)):
        given = gradient[k] - factor * made[k]
        squares += given * given
        upstream[k] += scale * given
    return squares


@part_in_any_order
def _subtract(values: Array, factor: Real, scale: Real, upstream: Array) -> Real:
    """Subtract ``scale`` times values that have a factor; the sum of their squares, unscaled."""
    squares = np.float32(0)
    for k in range(len(values)):
        given = factor * values[k]
        squares += given * given
        upstream[k] -= scale * given
    return squares


@part
def _pick(values: Array, factor: Real, columns: Array, everything: bool, made: Array) -> None:
    """Write ``factor`` times the values of some columns."""
    if everything:
        for k in range(len(made)):
            made[k] = factor * values[k]
    else:
        for k in range(len(made)):
            made[k] = factor * values[columns[k]]


@part
def _scatter(values: Array, columns: Array, made: Array) -> None:
    """Add values at their columns."""
    for k in range(len(values)):
        made[columns[k]] += values[k]
