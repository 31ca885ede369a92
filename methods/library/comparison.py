# mypy: ignore-errors
"""What the losses do with Triton's kernels: log-sum-exp, cross-entropy, and the comparison of groups of rows."""

from __future__ import annotations

import math
import os
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from methods.library import counted_triton as kernel
from methods.library import counting_triton as counting
from methods.library.counted import edges
from methods.library.counting_triton import BINS, PARTS, SLOTS

BLOCK = 4096
"""Columns that a program reads at once."""
WARPS = 8
RESERVE = f"{{ .shared .align 4 .b32 bins[{BINS}]; mov.u32 $0, bins; }}"


@cache
def shared_memory() -> bool:
    """Whether masses are counted in shared memory: PTX is NVIDIA's, and the interpreter has none."""
    return torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET") != "1"


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
    value, norm = torch.empty(2, rows, dtype=torch.float32, device=logits.device)
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
    """The counted distance of groups, and the generalised JSD over shared columns where there are any.

    Args:
        exact: count what is in doubt again, by all bits of the masses.
    """

    def __init__(self, student: Kept, teacher: Kept, hybrid: Hybrid | None = None, exact: bool = False) -> None:
        self.student, self.teacher = student, teacher
        self.groups, self.device = len(student.rows), student.logits.device
        columns = student.logits.shape[1], teacher.logits.shape[1]
        nothing = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.partner, self.teacher_partner = (hybrid.partner, hybrid.teacher_partner) if hybrid else (nothing, nothing)
        self.weights = hybrid.weights if hybrid else (0.0, 1.0)
        rest = hybrid.rest if hybrid else columns
        beta = hybrid.beta if hybrid else 0.0
        counted = self.weights[1] != 0 and min(rest) > 0
        block = BLOCK // 4 if hybrid else BLOCK // 2  # so that registers leave room for several programs
        self.flags = {
            "HYBRID": hybrid is not None,
            "COUNTED": counted,
            "EXACT": counted and exact,
            "BETA": float(beta),
            "LOG_OURS": math.log1p(-beta) if beta < 1 else 0.0,
            "LOG_THEIRS": math.log(beta) if beta > 0 else 0.0,
            "BLOCK": block,
            "num_warps": WARPS,
        }
        self.programs = max(1, min(8, columns[0] // (4 * block)))
        made = torch.empty if counted else torch.zeros  # here and below: kernels write all of it, and a launch is saved
        self.area, self.bound = made(2, self.groups, dtype=torch.float64, device=self.device)
        self.slope = self.part_slope = self.number_slope = torch.empty(0, device=self.device)
        if counted and self.groups:
            self._count(rest, exact)

    def _count(self, rest: tuple[int, int], exact: bool) -> None:
        """Slopes of the groups' bins, and of the parts of those in doubt, with what edges give to the distance."""
        ends = edges(torch.float32, self.device)
        self.slope = torch.empty(self.groups, BINS, device=self.device)
        slots, next_slots = torch.full((2, self.groups, 3, SLOTS), -1, dtype=torch.int32, device=self.device)
        sides = (self.student, self.partner), (self.teacher, self.teacher_partner)
        counting.slopes_kernel[(self.groups,)](
            *(self._counts(*side) for side in sides), ends, self.slope, self.area, self.bound, slots, *rest, BINS,
            EXACT=exact, BLOCK=1024, num_warps=WARPS,
        )  # fmt: skip
        if not exact:
            return
        self.part_slope, self.number_slope = torch.empty(2, self.groups, SLOTS * PARTS, device=self.device)
        cut, lower_cut = counting.CUT.value, counting.PART_CUT.value
        for given, of_next, numbers, made in (
            (slots, next_slots, False, self.part_slope), (next_slots, slots, True, self.number_slope)
        ):  # fmt: skip
            counting.part_slopes_kernel[(self.groups,)](
                *(self._part_counts(*side, numbers) for side in sides), given, made, self.area, self.bound, of_next,
                CUT_ABOVE=lower_cut if numbers else cut, LOWEST=0 if numbers else lower_cut, LAST=numbers, num_warps=4,
            )  # fmt: skip

    def _counts(self, side: Kept, partner: Tensor) -> Tensor:
        """int32 [groups, bins], without the lowest bin."""
        columns, restricted = side.logits.shape[1], self.flags["HYBRID"]
        made = torch.empty if shared_memory() else torch.zeros
        counts = made(self.groups, BINS, dtype=torch.int32, device=self.device)
        given = (side.logits, side.rows, side.lse, side.joint, partner, counts, columns, side.logits.stride(0), BINS)
        if shared_memory():
            counting.count_shared_kernel[(self.groups,)](
                *given, RESTRICTED=restricted, BLOCK=BLOCK // 2, LANES=32 * WARPS, RESERVE=RESERVE, num_warps=WARPS
            )
        else:
            grid = self.groups, max(1, min(4, columns // (4 * BLOCK)))
            counting.count_kernel[grid](*given, RESTRICTED=restricted, BLOCK=BLOCK, num_warps=WARPS)
        return counts

    def _part_counts(self, side: Kept, partner: Tensor, numbers: bool) -> Tensor:
        """int32 [groups, slots times parts]."""
        counts = torch.zeros(self.groups, SLOTS * PARTS, dtype=torch.int32, device=self.device)
        counting.count_parts_kernel[self.groups, self.programs](
            side.logits, side.rows, side.lse, side.joint, partner, self.slope, self.part_slope, counts,
            side.logits.shape[1], side.logits.stride(0), BINS, RESTRICTED=self.flags["HYBRID"], NUMBERS=numbers,
            BLOCK=BLOCK // 2, num_warps=WARPS,
        )  # fmt: skip
        return counts

    def values(self) -> Compared:
        """Distances, and what goes back through them."""
        student, teacher = self.student, self.teacher
        sums = torch.empty(5, self.programs, self.groups, dtype=torch.float32, device=self.device)
        if self.groups:
            kernel.values_kernel[self.groups, self.programs](
                student.logits, teacher.logits, student.rows, teacher.rows, student.lse, teacher.lse, student.joint,
                teacher.joint, self.partner, self.teacher_partner, self.slope, self.part_slope,
                self.number_slope, sums, student.logits.shape[1], teacher.logits.shape[1], student.logits.stride(0),
                teacher.logits.stride(0), BINS, *self.weights, **self.flags,
            )  # fmt: skip
        matched, at_matched, ours, theirs, covered = sums.sum(1)
        value = matched.double() + self.weights[1] * self.area + (ours.double() - theirs.double())
        return Compared(value, at_matched + ours, self.weights[1] * self.bound, covered)

    def add_gradient(self, through: Through, upstream: Tensor, scale: float) -> Tensor:
        """Add ``scale`` times the gradient at the student's logits to ``upstream``; its squared norm, unscaled.

        Args:
            upstream: [rows, vocabulary], columns side by side.
        """
        student, teacher = self.student, self.teacher
        made = torch.empty if self.groups else torch.zeros
        norm = made(self.programs, len(student.logits), dtype=torch.float32, device=self.device)
        if self.groups:
            kernel.gradient_kernel[len(student.logits), self.programs](
                student.logits, teacher.logits, through.group, teacher.rows, student.lse, teacher.lse, student.joint,
                teacher.joint, self.partner, self.slope, self.part_slope, self.number_slope, through.sums,
                through.tokens, through.of_token, upstream, norm, student.logits.shape[1], student.logits.stride(0),
                teacher.logits.stride(0), BINS, *self.weights, scale, **self.flags,
            )  # fmt: skip
        return norm.sum()
