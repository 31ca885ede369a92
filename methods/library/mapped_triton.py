# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written large
"""CDM's divergences over the columns that were mapped at each position, in Triton.

Plainly these are the sums of methods/cdm.py, their gradient by autograd and its scatter: some eighty small operations a
chunk, which took a host longer to launch than a GPU to compute. A position is a program; a row of the student's is in
one position at most.

:func:`methods.library.kernels.mapped_for` says where they run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.library.comparison import log_sum_exp


@triton.jit
def _columns(likeliest, partners, position, k, at):
    """Which of a position's places there are, the ids at them, and the other side's, -1 for none."""
    inside, start = at < k, position * k
    column = tl.load(likeliest + start + at, mask=inside, other=0)
    return inside, column, tl.load(partners + start + at, mask=inside, other=-1)


@triton.jit
def _log_softmax(row, ids, known, inside, sharpness, masked):
    """Of some columns of a row, those that are not known at a logit of ``masked``; -inf where there is no column."""
    z = tl.where(known, tl.load(row + ids, mask=known, other=0.0).to(tl.float32), masked)
    z = tl.where(inside, z * sharpness, -float("inf"))
    most = tl.max(z, 0)
    return z - most - tl.log(tl.sum(tl.exp(z - most), 0))


@triton.jit
def _add(row, ids, known, gradient, scale):
    before = tl.load(row + ids, mask=known, other=0.0).to(tl.float32)
    tl.store(row + ids, (before + scale * gradient).to(row.dtype.element_ty), mask=known)


@triton.jit
def mapped_kernel(
    student, teacher, rows, other_rows, teacher_lse, theirs, to_student, ours, to_teacher, upstream, own, sums,
    positions, their_k, our_k, stride_s, stride_t, stride_u, sharpness, temperature, masked, scale, WIDE: tl.constexpr,
):  # fmt: skip
    """Both divergences of a position, added to ``upstream`` with their gradient: KL over the teacher's k, reverse over
    the student's.

    Args:
        own: float32 [positions, our_k], for the gradient at the student's own k.
        sums: [4, positions], value, squared norm of the gradient, the teacher's mass on what is mapped, and how many
            columns are not.
    """
    position = tl.program_id(0).to(tl.int64)
    row, other_row = tl.load(rows + position), tl.load(other_rows + position)
    student, teacher, upstream = student + row * stride_s, teacher + other_row * stride_t, upstream + row * stride_u
    at = tl.arange(0, WIDE)
    inside, column, partner = _columns(theirs, to_student, position, their_k, at)
    known = partner >= 0
    log_p = _log_softmax(student, partner, known, inside, sharpness, masked)
    log_q = _log_softmax(teacher, column, known, inside, sharpness, masked)
    q = tl.exp(log_q)
    value = tl.sum(tl.where(inside, q * (log_q - log_p), 0.0), 0)
    first = tl.where(known, temperature * (tl.exp(log_p) - q), 0.0)
    likely = tl.load(teacher + column, mask=known, other=-float("inf")).to(tl.float32)
    mass = tl.sum(tl.where(known, tl.exp(likely - tl.load(teacher_lse + other_row)), 0.0), 0)
    missing = tl.sum((inside & (partner < 0)).to(tl.float32), 0)

    inside, column, mapped = _columns(ours, to_teacher, position, our_k, at)
    counted = mapped >= 0
    log_p = _log_softmax(student, column, counted, inside, sharpness, masked)
    log_q = _log_softmax(teacher, mapped, counted, inside, sharpness, masked)
    apart = tl.where(inside, log_p - log_q, 0.0)
    p = tl.exp(log_p)
    reverse = tl.sum(p * apart, 0)
    second = tl.where(counted, temperature * p * (apart - reverse), 0.0)
    tl.store(own + position * our_k + at, second, mask=inside)
    missing += tl.sum((inside & (mapped < 0)).to(tl.float32), 0)

    _add(upstream, partner, known, first, scale)
    tl.debug_barrier()
    _add(upstream, column, counted, second, scale)
    squares = first * first + second * second
    looked = our_k * tl.max(known.to(tl.int32), 0)  # at nothing where no column has a partner
    for number in range(looked):  # a column may be a partner and one of the student's own k
        both = known & (partner == tl.load(ours + position * our_k + number))
        squares += tl.where(both, 2.0 * first * tl.load(own + position * our_k + number), 0.0)
    tl.store(sums + position, temperature * temperature * (value + reverse))
    tl.store(sums + positions + position, tl.sum(squares, 0))
    tl.store(sums + 2 * positions + position, mass)
    tl.store(sums + 3 * positions + position, missing)


class MappedSums(NamedTuple):
    """Sums over positions, float32 scalars.

    Attributes:
        value: of the divergences, times τ².
        squared_norm: of their gradient at the student's logits.
        mass: the teacher's probability on those of its k that are mapped.
        masked: columns that are not.
    """

    value: Tensor
    squared_norm: Tensor
    mass: Tensor
    masked: Tensor


class MappedSide(NamedTuple):
    """One side of the positions.

    Attributes:
        logits: [rows, vocabulary], float32 or lower, columns side by side.
        rows: int64 [positions].
        likeliest, partners: int64 [positions, k], ids of this side and of the other one, -1 for none.
    """

    logits: Tensor
    rows: Tensor
    likeliest: Tensor
    partners: Tensor


def add_mapped(
    student: MappedSide, teacher: MappedSide, temperature: float, masked: float, upstream: Tensor, scale: float
) -> MappedSums:
    """Both divergences; ``scale`` times their gradient is added to ``upstream``, [rows, vocabulary] of the student.

    Args:
        masked: the logit of a column that is not mapped.
    """
    positions, device = len(student.rows), upstream.device
    sides = teacher.likeliest, teacher.partners, student.likeliest, student.partners
    our_k, their_k = student.likeliest.shape[1], teacher.likeliest.shape[1]
    own = torch.empty(positions, our_k, dtype=torch.float32, device=device)
    sums = torch.empty(4, positions, dtype=torch.float32, device=device)
    if positions:
        lse = log_sum_exp(teacher.logits)
        mapped_kernel[(positions,)](
            student.logits, teacher.logits, student.rows, teacher.rows, lse, *sides, upstream, own, sums, positions,
            their_k, our_k, student.logits.stride(0), teacher.logits.stride(0), upstream.stride(0), 1 / temperature,
            temperature, masked, scale, WIDE=triton.next_power_of_2(max(our_k, their_k)), num_warps=4,
        )  # fmt: skip
    return MappedSums(*sums.sum(-1).unbind())
