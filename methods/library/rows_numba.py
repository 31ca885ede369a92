"""What rows_cpu.py does with rows of logits, compiled by numba: one row at a time, so that it stays in a cache.

Rows are float32. Of a row with an entry that is no number, nothing is a number, but for a row without a target, whose
gradient is 0. Nothing here looks whether it is within an array.
"""

from __future__ import annotations

import math

import numpy as np

from methods.library.jit import Array, Real, compiled, part, part_in_any_order

_ONE = np.float32(1)
_LOWEST = np.float32(-87)
"""What is below has this one's exponential, 2e-38: floats hold hardly any that are smaller."""
_WHOLE = np.float32(1.5 * 2**23)
"""Added to a float and taken from it again, it leaves a whole number."""
_BIAS, _MANTISSA = np.int32(127), np.int32(23)
"""Of 2^n, whose bits are n + 127 and 23 zeros."""
_TWOS = np.float32(1 / math.log(2))
_P1, _P2, _P3 = np.float32(0.6931472028554088), np.float32(0.24022647913610887), np.float32(0.05550332470313149)
_P4, _P5, _P6 = np.float32(0.00961843735710977), np.float32(0.001339887475599351), np.float32(0.00015353362895677723)
"""2^r = 1 + P1 r + ... + P6 r^6 to 2e-9 for |r| <= 1/2: least squares, weighted until the largest errors were level."""

BLOCK = 2048
"""Entries that are handled at once: what is made of them stays in the first cache."""


@compiled("void(T[:, ::1], i8[::1], f8, T[:, ::1], T[::1], f8[:, ::1])")
def cross_entropy(logits: Array, targets: Array, scale: float, upstream: Array, lse: Array, found: Array) -> None:
    """Write each row's cross-entropy with the squared norm of its gradient, and the gradient times ``scale``.

    Args:
        targets: below 0 where a row has none.
        upstream: [rows, vocabulary], written.
        lse: [rows], written.
        found: [rows, 2], written.
    """
    powers = np.empty(BLOCK, np.int32)
    for row in range(len(logits)):
        gradient, target, top = upstream[row], targets[row], largest(logits[row])
        total = exponentials(logits[row], top, gradient, powers)
        lse[row] = top + math.log(total)
        if target < 0:
            gradient[:] = 0
            found[row] = 0
            continue
        gradient[target] -= np.float32(total)  # before squares are added up, which would hide a small difference
        found[row, 0] = np.float64(top - logits[row, target]) + math.log(total)
        found[row, 1] = _scale(gradient, np.float32(scale / total)) / np.float64(total) ** 2


# --- entries of a row ------------------------------------------------------------------------------------------------


@part
def log_sum_exp(logits: Array, made: Array, powers: Array) -> Real:
    """Of a row.

    Args:
        made, powers: room for as many.
    """
    top = largest(logits)
    return top + math.log(exponentials(logits, top, made, powers))


@part
def largest(logits: Array) -> Real:
    """The largest of a row; no number where an entry is none, unless that has a sign, which the exponentials tell."""
    bits, most = logits.view(np.int32), np.int32(-(2**31))
    flipped = np.int32(2**31 - 1)
    for k in range(len(bits)):  # as whole numbers they are compared many at once; those below 0 run the other way
        most = max(most, np.int32(bits[k] ^ ((bits[k] >> np.int32(31)) & flipped)))
    found = np.empty(1, np.int32)
    found[0] = most ^ ((most >> np.int32(31)) & flipped)
    largest: Real = found.view(np.float32)[0]
    return largest


@part
def exponentials(logits: Array, less: Real, made: Array, powers: Array) -> Real:
    """Write exp(z - less), for z <= less up to rounding; their sum.

    Args:
        made: written.
        powers: int32, room for a block.
    """
    total = 0.0
    for start in range(0, len(logits), BLOCK):
        out = made[start : start + BLOCK]
        _mantissas(logits[start : start + BLOCK], less, out, powers)
        total += np.float64(scale_by(out, powers.view(np.float32), _ONE))
    return total


@part
def _mantissas(logits: Array, less: Real, made: Array, powers: Array) -> None:
    """Write exp(z - less) as products of two: 2^r, and 2^n as its bits."""
    for k in range(len(logits)):
        x = logits[k] - less
        x = _LOWEST if x < _LOWEST else x
        n = (x * _TWOS + _WHOLE) - _WHOLE
        r = x * _TWOS - n  # one instruction, which rounds once
        made[k] = ((((((_P6 * r + _P5) * r + _P4) * r + _P3) * r + _P2) * r + _P1) * r) + _ONE
        powers[k] = (np.int32(n) + _BIAS) << _MANTISSA


@part_in_any_order
def scale_by(values: Array, factors: Array, factor: Real) -> Real:
    """Multiply by a factor each and one for all; the sum."""
    total = np.float32(0)
    for k in range(len(values)):
        values[k] *= factors[k] * factor
        total += values[k]
    return total


@part_in_any_order
def _scale(values: Array, factor: Real) -> Real:
    """Multiply by a factor; the sum of the squares before."""
    total = np.float32(0)
    for k in range(len(values)):
        total += values[k] * values[k]
        values[k] *= factor
    return total
