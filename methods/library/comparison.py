# mypy: ignore-errors
"""What the losses do with Triton's kernels: log-sum-exp, cross-entropy, and the comparison of groups of rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from methods.library import counted_triton as kernel
from methods.library.counted import edges

BLOCK = 4096
"""Columns that a program reads at once."""
WARPS = 8


def log_sum_exp(logits: Tensor) -> Tensor:
    """float32 [rows], of logits [rows, columns] in any float of up to 32 bits, read once."""
    out = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        kernel.log_sum_exp_kernel[(len(logits),)](
            logits, out, logits.shape[1], logits.stride(0), BLOCK, num_warps=WARPS
        )
    return out


def entropy(logits: Tensor) -> Tensor:
    """float32 [rows], in nats, of the distributions that logits stand for; as :func:`log_sum_exp`."""
    out = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        kernel.entropy_kernel[(len(logits),)](
            logits, out, logits.shape[1], logits.stride(0), BLOCK, num_warps=WARPS
        )  # fmt: skip
    return out


def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As closed_form.cross_entropy, of logits as the head gives them; the gradient has their dtype.

    Args:
        logits: [rows, vocabulary], float32 or lower, columns side by side.
        targets: int64 [rows], -100 where a row has none.
        scale: float32 scalar, on the device.
        lse: float32 [rows], :func:`log_sum_exp`.
    """
    rows, columns = logits.shape
    upstream = torch.empty(rows, columns, dtype=logits.dtype, device=logits.device)
    value, norm = torch.zeros(2, rows, dtype=torch.float32, device=logits.device)
    if rows:
        kernel.cross_entropy_kernel[(rows,)](
            logits, lse, targets, scale.float(), upstream, value, norm, columns, logits.stride(0), BLOCK,
            num_warps=WARPS,
        )  # fmt: skip
    return value.sum(), norm.sum(), upstream


class Kept(NamedTuple):
    """One side's groups: which row each keeps, and the log-probability of what came before or after it.

    Attributes:
        logits: [rows, vocabulary], float32 or lower.
        lse: float32 [rows].
        rows: int64 [groups].
        joint: float32 [groups], 0 for a group of one.
    """

    logits: Tensor
    lse: Tensor
    rows: Tensor
    joint: Tensor


class Hybrid(NamedTuple):
    """Columns that are compared one by one.

    Attributes:
        partner: int32 [V_s], the teacher's column, or -1.
        teacher_partner: int32 [V_t], below 0 for a column without one.
        rest: number of columns without a partner, of student and teacher.
        weights: of the matched part and of the rest.
        beta: of the generalised JSD.
    """

    partner: Tensor
    teacher_partner: Tensor
    rest: tuple[int, int]
    weights: tuple[float, float]
    beta: float


class Compared(NamedTuple):
    """What :meth:`GroupComparison.values` finds. [groups] each.

    Attributes:
        value: float64, weighted distances.
        total: float32, sums of the gradient at log-masses.
        bound: float64, the most by which ``value`` is too small.
        covered: float32, the teacher's probability on columns with a partner; 0 without such.
    """

    value: Tensor
    total: Tensor
    bound: Tensor
    covered: Tensor


class Through(NamedTuple):
    """How a gradient at groups' log-masses goes back to rows of logits. [rows] each.

    Attributes:
        group: int32, the group that keeps the row, or -1.
        sums: float32, what passed through the row.
        tokens: int64, the token whose probability the row gives to its group, or -1.
        of_token: float32, the gradient at its log-probability.
    """

    group: Tensor
    sums: Tensor
    tokens: Tensor
    of_token: Tensor


class GroupComparison:
    """The counted distance of groups, and the generalised JSD over shared columns where there are any."""

    def __init__(self, student: Kept, teacher: Kept, hybrid: Hybrid | None = None) -> None:
        self.student, self.teacher, self.hybrid = student, teacher, hybrid
        self.groups, device = len(student.rows), student.logits.device
        columns = student.logits.shape[1], teacher.logits.shape[1]
        nothing = torch.zeros(1, dtype=torch.int32, device=device)
        self.partner, self.teacher_partner = (hybrid.partner, hybrid.teacher_partner) if hybrid else (nothing, nothing)
        self.weights = hybrid.weights if hybrid else (0.0, 1.0)
        rest = hybrid.rest if hybrid else columns
        beta = hybrid.beta if hybrid else 0.0
        self.flags = {
            "HYBRID": hybrid is not None,
            "COUNTED": self.weights[1] != 0 and min(rest) > 0,
            "BETA": float(beta),
            "LOG_OURS": math.log1p(-beta) if beta < 1 else 0.0,
            "LOG_THEIRS": math.log(beta) if beta > 0 else 0.0,
            "BLOCK": BLOCK // 2 if hybrid else BLOCK,  # two rows beside one another fill the registers
            "num_warps": WARPS,
        }
        self.area = torch.zeros(self.groups, dtype=torch.float64, device=device)
        self.bound = torch.zeros_like(self.area)
        ends = edges(torch.float32, device)
        self.bins = len(ends) - 1
        self.slope = torch.empty(self.groups if self.flags["COUNTED"] else 0, self.bins, device=device)
        if self.flags["COUNTED"] and self.groups:
            counts = [self._counts(side, p) for side, p in ((student, self.partner), (teacher, self.teacher_partner))]
            kernel.slopes_kernel[(self.groups,)](
                *counts, ends, self.slope, self.area, self.bound, *rest, self.bins,
                BLOCK=1024, num_warps=4,
            )  # fmt: skip

    def _counts(self, side: Kept, partner: Tensor) -> Tensor:
        """int32 [groups, bins], without the lowest bin."""
        counts = torch.zeros(self.groups, self.bins, dtype=torch.int32, device=side.logits.device)
        columns = side.logits.shape[1]
        grid = self.groups, max(1, min(4, columns // (4 * BLOCK)))
        kernel.count_kernel[grid](
            side.logits, side.rows, side.lse, side.joint, partner, counts, columns, side.logits.stride(0), self.bins,
            RESTRICTED=self.hybrid is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        return counts

    def values(self) -> Compared:
        """Distances, and what goes back through them."""
        student, teacher = self.student, self.teacher
        made = torch.zeros(5, self.groups, dtype=torch.float32, device=student.logits.device)
        matched, at_matched, ours, theirs, covered = made
        if self.groups:
            kernel.values_kernel[(self.groups,)](
                student.logits, teacher.logits, student.rows, teacher.rows, student.lse, teacher.lse, student.joint,
                teacher.joint, self.partner, self.teacher_partner, self.slope, matched, at_matched, ours, theirs,
                covered, student.logits.shape[1], teacher.logits.shape[1], student.logits.stride(0),
                teacher.logits.stride(0), self.bins, *self.weights, **self.flags,
            )  # fmt: skip
        value = matched.double() + self.weights[1] * self.area + (ours.double() - theirs.double())
        return Compared(value, at_matched + ours, self.weights[1] * self.bound, covered)

    def add_gradient(self, through: Through, upstream: Tensor, scale: float) -> Tensor:
        """Add ``scale`` times the gradient at the student's logits to ``upstream``; its squared norm, unscaled.

        Args:
            upstream: [rows, vocabulary], columns side by side.
        """
        student, teacher = self.student, self.teacher
        norm = torch.zeros(len(student.logits), dtype=torch.float32, device=upstream.device)
        if self.groups:
            kernel.gradient_kernel[(len(student.logits),)](
                student.logits, teacher.logits, through.group, teacher.rows, student.lse, teacher.lse, student.joint,
                teacher.joint, self.partner, self.slope, through.sums, through.tokens, through.of_token, upstream, norm,
                student.logits.shape[1], student.logits.stride(0), teacher.logits.stride(0), self.bins, *self.weights,
                scale, **self.flags,
            )  # fmt: skip
        return norm.sum()
