# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written large
"""Kernels that read a row of logits where it lies and write its gradient once, in Triton.

Each has its plain definition elsewhere: cross-entropy in closed_form.py, counting in counted.py, merging in merging.py,
the generalised JSD in divergences.py; tests hold them equal, in Triton's interpreter where there is no GPU. No float32
copy of logits, no masses and no gradient of a term alone exist in memory. A row's columns are shared out among several
programs, whose sums are added afterwards: one each leaves a GPU half idle.

:mod:`methods.library.comparison` calls them; both are imported where Triton is, see
:func:`methods.library.kernels.kernels_for`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from methods.library.counting_triton import PARTS_, SLOTS_, has_slots, slope_of
from methods.library.groups_triton import LOG_FLOOR


@triton.jit
def log_sum_exp_kernel(logits, out, columns, stride, BLOCK: tl.constexpr):
    """One pass: every lane keeps its own maximum, and what it has added up below it."""
    row = tl.program_id(0).to(tl.int64)
    best = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(best, z)
        total = total * tl.exp(best - higher) + tl.exp(z - higher)
        best = higher
    most = tl.max(best, 0)
    tl.store(out + row, most + tl.log(tl.sum(total * tl.exp(best - most), 0)))


@triton.jit
def entropy_kernel(logits, out, columns, stride, BLOCK: tl.constexpr):
    """As above, with what each lane's logits weigh: the entropy is the log-sum-exp less their mean."""
    row = tl.program_id(0).to(tl.int64)
    best = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    weighed = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(best, z)
        kept, new = tl.exp(best - higher), tl.exp(z - higher)
        total = total * kept + new
        weighed = weighed * kept + tl.where(new > 0.0, new * z, 0.0)
        best = higher
    most = tl.max(best, 0)
    share = tl.exp(best - most)
    whole = tl.sum(total * share, 0)
    tl.store(out + row, most + tl.log(whole) - tl.sum(weighed * share, 0) / whole)


@triton.jit
def cross_entropy_kernel(logits, lse, targets, scale, upstream, value, norm, columns, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    known = target >= 0
    of_row = tl.load(lse + row)
    factor = tl.where(known, tl.load(scale), 0.0)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns
        z = tl.load(logits + row * stride + at, mask=inside, other=-float("inf")).to(tl.float32)
        gradient = tl.exp(z - of_row) - tl.where(at == target, 1.0, 0.0)
        squares += gradient * gradient
        tl.store(upstream + row * columns + at, (gradient * factor).to(upstream.dtype.element_ty), mask=inside)
    of_target = tl.load(logits + row * stride + tl.maximum(target, 0)).to(tl.float32)
    tl.store(value + row, tl.where(known, of_row - of_target, 0.0))
    tl.store(norm + row, tl.where(known, tl.sum(squares, 0), 0.0))


@triton.jit
def _jsd(s, t, BETA: tl.constexpr, LOG_OURS: tl.constexpr, LOG_THEIRS: tl.constexpr):
    """Generalised JSD of log-masses above the floor, and its gradient at s; as divergences.generalized_jsd_parts."""
    below = s < LOG_FLOOR
    s, t = tl.maximum(s, LOG_FLOOR), tl.maximum(t, LOG_FLOOR)
    ours, theirs = tl.exp(s), tl.exp(t)
    if BETA == 0.0:
        value = theirs * (t - s)
        gradient = -theirs
    elif BETA == 1.0:
        value = ours * (s - t)
        gradient = ours * (s - t + 1.0)
    else:
        a, b = s + LOG_OURS, t + LOG_THEIRS
        most = tl.maximum(a, b)
        mixture = most + tl.log(1.0 + tl.exp(tl.minimum(a, b) - most))
        gradient = (1.0 - BETA) * ours * (s - mixture)
        value = BETA * theirs * (t - mixture) + gradient
    return value, tl.where(below, 0.0, gradient)


@triton.jit
def _student_parts(
    z, at, inside, shift, teacher_row, teacher_shift, partner, slope_row, part_row, number_row, refined, matched_weight,
    rest_weight, HYBRID: tl.constexpr, COUNTED: tl.constexpr, EXACT: tl.constexpr, BETA: tl.constexpr, LOG_OURS:
    tl.constexpr, LOG_THEIRS: tl.constexpr,
):  # fmt: skip
    """Of some columns of a group, weighted: value of the matched part, and gradients at log-masses of either part."""
    log_mass = z + shift
    mass = tl.exp(log_mass)
    rest = inside
    value = tl.zeros_like(mass)
    at_matched = tl.zeros_like(mass)
    at_rest = tl.zeros_like(mass)
    if HYBRID:
        other = tl.load(partner + at, mask=inside, other=-1)
        rest = inside & (other < 0)
        matched = other >= 0
        t = tl.load(teacher_row + tl.maximum(other, 0), mask=matched, other=0.0).to(tl.float32) + teacher_shift
        of_jsd, at_jsd = _jsd(log_mass, t, BETA, LOG_OURS, LOG_THEIRS)
        value = tl.where(matched, matched_weight * of_jsd, 0.0)
        at_matched = tl.where(matched, matched_weight * at_jsd, 0.0)
    if COUNTED:
        found = slope_of(mass, slope_row, part_row, number_row, refined, rest, EXACT)
        at_rest = tl.where(rest, rest_weight * found * mass, 0.0)
    return value, at_matched, at_rest


@triton.jit
def values_kernel(
    student, teacher, student_rows, teacher_rows, student_lse, teacher_lse, student_joint, teacher_joint,
    partner, teacher_partner, slots, slope, part_slope, number_slope, sums, columns_s, columns_t, stride_s, stride_t,
    bins, matched_weight, rest_weight, HYBRID: tl.constexpr, COUNTED: tl.constexpr, EXACT: tl.constexpr, BETA:
    tl.constexpr, LOG_OURS: tl.constexpr, LOG_THEIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over some of a group's columns, to [5, programs, groups]: the matched value and its gradient, that of the
    rest, the teacher's share of the area, coverage."""
    group, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    groups, programs = tl.num_programs(0), tl.num_programs(1)
    row, other = tl.load(student_rows + group), tl.load(teacher_rows + group)
    shift = tl.load(student_joint + group) - tl.load(student_lse + row)
    of_other = tl.load(teacher_lse + other)
    teacher_shift = tl.load(teacher_joint + group) - of_other
    parts = group * (SLOTS_ * PARTS_)
    slope_row, part_row, number_row = slope + group * bins, part_slope + parts, number_slope + parts
    refined = has_slots(slots, group) if EXACT else False
    teacher_row = teacher + other * stride_t
    values = tl.zeros((BLOCK,), tl.float32)
    matched = tl.zeros((BLOCK,), tl.float32)
    counted = tl.zeros((BLOCK,), tl.float32)
    for start in range(program * BLOCK, columns_s, programs * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns_s
        z = tl.load(student + row * stride_s + at, mask=inside, other=-float("inf")).to(tl.float32)
        v, g, r = _student_parts(
            z, at, inside, shift, teacher_row, teacher_shift, partner, slope_row, part_row, number_row, refined,
            matched_weight, rest_weight, HYBRID, COUNTED, EXACT, BETA, LOG_OURS, LOG_THEIRS,
        )  # fmt: skip
        values += v
        matched += g
        counted += r
    place, apart = sums + program * groups + group, programs.to(tl.int64) * groups
    tl.store(place, tl.sum(values, 0))
    tl.store(place + apart, tl.sum(matched, 0))
    tl.store(place + 2 * apart, tl.sum(counted, 0))
    of_teacher = tl.zeros((BLOCK,), tl.float32)
    shares = tl.zeros((BLOCK,), tl.float32)
    for start in range(program * BLOCK, columns_t, programs * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns_t
        z = tl.load(teacher_row + at, mask=inside, other=-float("inf")).to(tl.float32)
        rest = inside
        if HYBRID:
            rest = inside & (tl.load(teacher_partner + at, mask=inside, other=0) < 0)
            shares += tl.where(inside & ~rest, tl.exp(z - of_other), 0.0)
        if COUNTED:
            mass = tl.exp(z + teacher_shift)
            of_teacher += tl.where(
                rest, rest_weight * mass * slope_of(mass, slope_row, part_row, number_row, refined, rest, EXACT), 0.0
            )
    tl.store(place + 3 * apart, tl.sum(of_teacher, 0))
    tl.store(place + 4 * apart, tl.sum(shares, 0))


@triton.jit
def gradient_kernel(
    student, teacher, group_of_row, teacher_rows, student_lse, teacher_lse, student_joint, teacher_joint,
    partner, slots, slope, part_slope, number_slope, of_row, tokens, of_token, upstream, norm, columns_s, stride_s,
    stride_t, bins, matched_weight, rest_weight, scale, HYBRID: tl.constexpr, COUNTED: tl.constexpr, EXACT:
    tl.constexpr, BETA: tl.constexpr, LOG_OURS: tl.constexpr, LOG_THEIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a row's gradient at some columns to what is there; its squared norm goes to [programs, rows].

    A row that its group keeps has the group's gradient at log-masses; every row gives back p times the sum of what
    passed through it; a row that is multiplied in has its own token's.
    """
    row, program = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs = tl.num_programs(1)
    back = tl.load(of_row + row)
    group = tl.load(group_of_row + row) - 1
    token, own = tl.load(tokens + row) - 1, tl.load(of_token + row)
    lse = tl.load(student_lse + row)
    kept = tl.maximum(group, 0).to(tl.int64)
    parts = kept * (SLOTS_ * PARTS_)
    refined = has_slots(slots, kept) if EXACT else False
    other = tl.load(teacher_rows + kept)
    shift = tl.load(student_joint + kept) - lse
    teacher_shift = tl.load(teacher_joint + kept) - tl.load(teacher_lse + other)
    squares = tl.zeros((BLOCK,), tl.float32)
    if (group >= 0) | (own != 0.0) | (back != 0.0):
        for start in range(program * BLOCK, columns_s, programs * BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < columns_s
            z = tl.load(student + row * stride_s + at, mask=inside, other=-float("inf")).to(tl.float32)
            gradient = tl.where(at == token, own, 0.0) - tl.exp(z - lse) * back
            if group >= 0:
                _, g, r = _student_parts(
                    z, at, inside, shift, teacher + other * stride_t, teacher_shift, partner, slope + kept * bins,
                    part_slope + parts, number_slope + parts, refined, matched_weight, rest_weight, HYBRID, COUNTED,
                    EXACT, BETA, LOG_OURS, LOG_THEIRS,
                )  # fmt: skip
                gradient += g + r
            squares += gradient * gradient
            place = upstream + row * columns_s + at
            known = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            tl.store(place, (known + scale * gradient).to(upstream.dtype.element_ty), mask=inside)
    tl.store(norm + program * tl.num_programs(0) + row, tl.sum(squares, 0))
