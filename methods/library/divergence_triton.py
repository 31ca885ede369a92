# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written large
"""KL divergences of rows of logits, read where they lie in any float of up to 32 bits, in Triton.

The plain definitions are ``kl`` (closed_form.py) and, for a target that is mapped or one token, the loss of
methods/mined.py; tests hold them equal, in Triton's interpreter where there is no GPU. No float32 copy of logits, no
probabilities and no gradient of a term alone exist in memory. A row is shared out among several programs, each of which
leaves a sum of its own, so that the result does not depend on their order.

:func:`methods.library.kernels.divergence_for` says where they run.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Columns that a program reads at once."""
WARPS = 8
_PARTS = 8
"""The most programs that share a row: 512 rows alone would not fill a GPU evenly."""


@triton.jit
def log_sum_exp_kernel(
    logits, rows, partner, out, columns, stride, sharpness, MASKED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Of a part of a row's columns, of those that have a partner where MASKED."""
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = logits + tl.load(rows + pair) * stride
    best = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(part * BLOCK, columns, BLOCK * tl.num_programs(1)):
        at = start + tl.arange(0, BLOCK)
        known = at < columns
        if MASKED:
            known = tl.load(partner + at, mask=known, other=-1) >= 0
        z = tl.load(row + at, mask=known, other=-float("inf")).to(tl.float32) * sharpness
        higher = tl.maximum(best, z)
        total = total * tl.exp(best - higher) + tl.exp(z - higher)
        best = higher
    most = tl.max(best, 0)
    found = most + tl.log(tl.sum(total * tl.exp(best - most), 0))
    tl.store(out + pair * tl.num_programs(1) + part, found)


@triton.jit
def mapped_kernel(teacher, rows, starts, sources, out, columns, stride, BLOCK: tl.constexpr):
    """For each column the largest of the logits that its sources have in a row."""
    pair = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    row = teacher + tl.load(rows + pair) * stride
    first = tl.load(starts + at, mask=inside, other=0)
    count = tl.load(starts + at + 1, mask=inside, other=0) - first
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    for number in range(tl.max(count, 0)):
        known = number < count
        source = tl.load(sources + first + number, mask=known, other=0)
        best = tl.maximum(best, tl.load(row + source, mask=known, other=-float("inf")).to(tl.float32))
    tl.store(out + pair * columns + at, best.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _logs(
    student, teacher, at, inside, partner, partners, of_student, of_teacher, sharpness,
    MAPPED: tl.constexpr, RESTRICTED: tl.constexpr,
):  # fmt: skip
    """Log-probabilities of some columns on either side, -inf where a side has none."""
    log_p = tl.load(student + at, mask=inside, other=-float("inf")).to(tl.float32) * sharpness - of_student
    other, known = at, inside
    if MAPPED:
        other = tl.load(partner + at, mask=inside & (at < partners), other=-1)
        known = other >= 0
        other = tl.maximum(other, 0)
    log_q = tl.load(teacher + other, mask=known, other=-float("inf")).to(tl.float32) * sharpness - of_teacher
    if RESTRICTED:
        log_p = tl.where(known, log_p, -float("inf"))
    return log_p, log_q


@triton.jit
def reverse_kernel(
    student, teacher, rows, other_rows, lse, teacher_lse, partner, values, columns, partners, stride_s, stride_t,
    sharpness, MAPPED: tl.constexpr, RESTRICTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """KL(student || teacher), of a part of a row's columns."""
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ours = student + tl.load(rows + pair) * stride_s
    theirs = teacher + tl.load(other_rows + pair) * stride_t
    of_student, of_teacher = tl.load(lse + pair), tl.load(teacher_lse + pair)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(part * BLOCK, columns, BLOCK * tl.num_programs(1)):
        at = start + tl.arange(0, BLOCK)
        log_p, log_q = _logs(
            ours, theirs, at, at < columns, partner, partners, of_student, of_teacher, sharpness, MAPPED, RESTRICTED
        )
        p = tl.exp(log_p)
        total += tl.where(p > 0.0, p * (log_p - log_q), 0.0)
    tl.store(values + pair * tl.num_programs(1) + part, tl.sum(total, 0))


@triton.jit
def gradient_kernel(
    student, teacher, rows, other_rows, lse, teacher_lse, partner, tokens, taught, reverse, upstream, values, norms,
    columns, partners, stride_s, stride_t, stride_u, sharpness, scale, REVERSE: tl.constexpr, MAPPED: tl.constexpr,
    RESTRICTED: tl.constexpr, GOLD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a part of a row's gradient to what is there; its squared norm, and unless REVERSE the KL of the part.

    Forward p - q; reverse p (log p - log q - KL). Where GOLD, the target of a pair that is not taught is its token.
    """
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(rows + pair)
    ours, theirs = student + row * stride_s, teacher + tl.load(other_rows + pair) * stride_t
    of_student, of_teacher = tl.load(lse + pair), tl.load(teacher_lse + pair)
    token, of_row = -1, 0.0
    if GOLD:
        token = tl.where(tl.load(taught + pair) != 0, -1, tl.load(tokens + pair))
        partners = tl.where(token < 0, partners, 0)  # a teacher that does not count has no column to compare
    if REVERSE:
        of_row = tl.load(reverse + pair)
    total = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(part * BLOCK, columns, BLOCK * tl.num_programs(1)):
        at = start + tl.arange(0, BLOCK)
        inside = at < columns
        log_p, log_q = _logs(
            ours, theirs, at, inside, partner, partners, of_student, of_teacher, sharpness, MAPPED, RESTRICTED
        )
        p = tl.exp(log_p)
        if REVERSE:
            gradient = tl.where(p > 0.0, p * (log_p - log_q - of_row), 0.0)
        else:
            q = tl.exp(log_q)
            if GOLD:
                hit = at == token
                q, log_q = tl.where(hit, 1.0, q), tl.where(hit, 0.0, log_q)
            total += tl.where(q > 0.0, q * (log_q - log_p), 0.0)
            gradient = p - q
        squares += gradient * gradient
        place = upstream + row * stride_u + at
        before = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, (before + scale * gradient).to(upstream.dtype.element_ty), mask=inside)
    here = pair * tl.num_programs(1) + part
    tl.store(values + here, tl.sum(total, 0))
    tl.store(norms + here, tl.sum(squares, 0))


class Softened(NamedTuple):
    """One side's rows of logits, one a pair, at a temperature.

    Attributes:
        logits: [rows, columns], float32 or lower, columns side by side.
        rows: int64 [pairs].
        lse: float32 [pairs], log of the sum of the exponentials of ``logits / temperature``, over the columns compared.
    """

    logits: Tensor
    rows: Tensor
    lse: Tensor


class Partners(NamedTuple):
    """Which of the teacher's columns a student's is compared with.

    Attributes:
        columns: int32 [up to V_s], the teacher's column, or -1; a column beyond has none.
        restricted: whether the student's distribution is over the columns with a partner alone, else over all.
    """

    columns: Tensor
    restricted: bool


class Gold(NamedTuple):
    """Pairs whose target is a token in place of the teacher's distribution.

    Attributes:
        tokens: int64 [pairs].
        taught: int32 [pairs], 0 where the token is the target.
    """

    tokens: Tensor
    taught: Tensor


def softened(
    logits: Tensor,
    rows: Tensor,
    temperature: float,
    columns: int | None = None,
    known: Tensor | None = None,
    lse: Tensor | None = None,
) -> Softened:
    """Rows with their sums, each row read once.

    Args:
        logits: [rows, columns], as in :class:`Softened`.
        rows: int64 [pairs].
        columns: how many, the first ones; None: all.
        known: int32 [up to columns]: only columns where it is not negative count.
        lse: float32 [pairs], where the sums are there already.
    """
    if lse is not None:
        return Softened(logits, rows, lse)
    most = logits.shape[1] if known is None else len(known)
    columns = min(logits.shape[1], most if columns is None else columns)
    parts = _parts(columns)
    out = torch.empty(len(rows), parts, dtype=torch.float32, device=logits.device)
    if len(rows):
        log_sum_exp_kernel[(len(rows), parts)](
            logits, rows, rows if known is None else known, out, columns, logits.stride(0), 1 / temperature,
            MASKED=known is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return Softened(logits, rows, out.logsumexp(-1) if parts > 1 else out[:, 0])


def mapped(logits: Tensor, rows: Tensor, starts: Tensor, sources: Tensor) -> Tensor:
    """[pairs, columns], in the logits' dtype: for each column the largest logit of its sources.

    Args:
        logits: [rows, V_t].
        rows: int64 [pairs].
        starts: int32 [columns + 1], where each column's sources begin.
        sources: int32 [entries], columns of the logits.
    """
    columns, block = len(starts) - 1, min(BLOCK, 1024)
    out = torch.empty(len(rows), columns, dtype=logits.dtype, device=logits.device)
    if out.numel():
        mapped_kernel[(len(rows), triton.cdiv(columns, block))](
            logits, rows, starts, sources, out, columns, logits.stride(0), BLOCK=block, num_warps=WARPS
        )
    return out


def add_kl(
    student: Softened,
    teacher: Softened,
    temperature: float,
    direction: Literal["forward", "reverse"],
    upstream: Tensor,
    scale: float,
    partners: Partners | None = None,
    gold: Gold | None = None,
) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) of softened rows, or the reverse, without a factor τ².

    Args:
        student, teacher: pairs of rows; no row of the student's is in two of them.
        upstream: [rows, V_s], columns side by side, to which ``scale`` times the gradient is added.
        partners: None: the first columns of both are the same tokens, as many as the narrower side has.
        gold: of the forward direction; None: the teacher's distribution is every pair's target.

    Returns:
        Scalar sum, float64; squared norm of its gradient at the student's logits, float32.
    """
    widths = student.logits.shape[1], teacher.logits.shape[1]
    columns = min(widths) if partners is None else widths[0]
    if partners is not None and partners.restricted:
        columns = min(columns, len(partners.columns))
    pairs, parts = len(student.rows), _parts(columns)
    found = torch.zeros(3, pairs, parts, dtype=torch.float32, device=upstream.device)
    values, norms, reverse = found[0], found[1], found[2]
    sides = student.logits, teacher.logits, student.rows, teacher.rows, student.lse, teacher.lse
    nothing = student.rows
    table = nothing if partners is None else partners.columns
    sizes = columns, len(table), student.logits.stride(0), teacher.logits.stride(0)
    flags = {
        "MAPPED": partners is not None,
        "RESTRICTED": partners is not None and partners.restricted,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
    }
    if pairs and direction == "reverse":
        reverse_kernel[(pairs, parts)](*sides, table, reverse, *sizes, 1 / temperature, **flags)
    of_row = reverse.sum(-1)
    if pairs:
        gradient_kernel[(pairs, parts)](
            *sides, table, *(gold or (nothing, nothing)), of_row, upstream, values, norms, *sizes, upstream.stride(0),
            1 / temperature, scale / temperature, REVERSE=direction == "reverse", GOLD=gold is not None, **flags,
        )  # fmt: skip
    value = of_row if direction == "reverse" else values
    return value.sum(dtype=torch.float64), norms.sum() / temperature**2


def _parts(columns: int) -> int:
    return max(1, min(_PARTS, columns // (4 * BLOCK)))
