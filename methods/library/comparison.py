# mypy: ignore-errors
"""What the losses do with Triton's kernels: log-sum-exp, cross-entropy, and the comparison of groups of rows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from methods.library import counted_triton as kernel
from methods.library import counting_triton as counting
from methods.library import groups_triton as grouping
from methods.library.chunk import Members
from methods.library.compared import Columns, Sums
from methods.library.counted import edges
from methods.library.counting_triton import BINS, PARTS, SLOTS
from methods.library.maps import UNMAPPED
from methods.library.merging import Merge

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


def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As closed_form.cross_entropy, with :func:`log_sum_exp` last, of logits as the head gives them.

    The gradient has their dtype.

    Args:
        logits: [rows, vocabulary], float32 or lower, columns side by side.
        targets: int64 [rows], -100 where a row has none.
        scale: float32 scalar, on the device.
    """
    (rows, columns), lse = logits.shape, log_sum_exp(logits)
    upstream = torch.empty(rows, columns, dtype=logits.dtype, device=logits.device)
    found = torch.empty(2, rows, dtype=torch.float32, device=logits.device)
    if rows:
        kernel.cross_entropy_kernel[(rows,)](
            logits, lse, targets, scale.float(), upstream, found[0], found[1], columns, logits.stride(0), BLOCK,
            num_warps=WARPS,
        )  # fmt: skip
    value, norm = found.sum(-1)
    return value, norm, upstream, lse


class Raw(NamedTuple):
    """One side's rows of a chunk, without gradient, and their groups; as :class:`methods.base.Members`.

    Attributes:
        lse: float32 [rows], log of the sum of each row's exponentials.
    """

    logits: Tensor
    row: Tensor
    group: Tensor
    tokens: Tensor
    lse: Tensor


class Kept(NamedTuple):
    """One side's groups: which row each keeps, and the log-probability of what came before or after it.

    Attributes:
        logits: [rows, vocabulary], float32 or lower.
        lse: float32 [rows].
        rows: int64 [groups].
        joint: float32 [groups], 0 for a group of one.
        member_rows, member_tokens: int64 [members].
        realised: float32 [members], log-probability of each member's own token.
        starts: int32 [groups], the first member of each.
        keeps_first: whether a group keeps its first member's row, or its last one's.
    """

    logits: Tensor
    lse: Tensor
    rows: Tensor
    joint: Tensor
    member_rows: Tensor
    member_tokens: Tensor
    realised: Tensor
    starts: Tensor
    keeps_first: bool


def keep(student: Raw, teacher: Raw, groups: int, how: Merge) -> tuple[Kept, Kept]:
    """What ``merging.Merged`` keeps of both sides' groups, each of which has a member of either."""
    sides, device, keeps_first = (student, teacher), student.row.device, how == "observed"
    members = student.row.numel(), teacher.row.numel()
    apart = groups + -groups % 4  # so that both sides' numbers begin where kernels like it
    rows = torch.empty(2, apart, dtype=torch.int64, device=device)
    starts = torch.empty(2, apart, dtype=torch.int32, device=device)
    joint = torch.empty(2, apart, dtype=torch.float32, device=device)
    realised = torch.empty(sum(members), dtype=torch.float32, device=device).split(members)
    given = (
        both for name in ("logits", "lse", "row", "group", "tokens") for both in (getattr(side, name) for side in sides)
    )
    grouping.kept_kernel[groups, 2](
        *given, *members, student.logits.stride(0), teacher.logits.stride(0), starts, rows, joint, *realised, apart,
        FIRST=keeps_first, num_warps=1,
    )  # fmt: skip
    of_groups = (each[:, :groups] for each in (rows, joint, starts))
    return tuple(
        Kept(side.logits, side.lse, row, log, side.row, side.tokens, logs, start, keeps_first)
        for side, row, log, start, logs in zip(sides, *of_groups, realised, strict=True)
    )


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


def takes(exact: bool, beta: float = 0.0) -> bool:
    """Whether :func:`compare_into` has such distances, and shared columns with this β of the GJSD: all of them."""
    return True


def hybrid_of(columns: Columns, weights: tuple[float, float], beta: float) -> Hybrid:
    """What is compared column by column: GOLD's parts, with their weights."""
    rest = columns.student_rest.numel(), columns.teacher_rest.numel()
    return Hybrid(columns.partners(UNMAPPED), columns.student_of_teacher.int(), rest, weights, beta)


def compare_into(
    student: Members,
    teacher: Members,
    lse: Tensor,
    groups: int,
    how: Merge,
    hybrid: Hybrid | None,
    upstream: Tensor,
    scale: float,
    exact: bool = False,
) -> Sums:
    """Counted distance of merged groups, and GOLD's matched part; its gradient is added to ``upstream``.

    Args:
        lse: float32 [rows], of the student's, as :func:`cross_entropy` gives it.
        how: "bayesian" or "observed", see merging.py.
        hybrid: columns that are compared one by one, or None.
        upstream: [rows, vocabulary], at the student's logits.
        scale: factor of the gradient.
        exact: whether what counting leaves in doubt is counted again, by all bits of the masses.
    """
    sides = Raw(*student[:4], lse), Raw(*teacher[:4], log_sum_exp(teacher.logits))
    made = GroupComparison(*keep(*sides, groups, how), hybrid, exact)
    value, bound, covered = made.values()
    return Sums(value, bound, covered, made.add_gradient(upstream, scale))


class GroupComparison:
    """The counted distance of groups, and the generalised JSD over shared columns where there are any.

    Args:
        exact: count what is in doubt again, by all bits of the masses.
    """

    def __init__(self, student: Kept, teacher: Kept, hybrid: Hybrid | None = None, exact: bool = False) -> None:
        self.student, self.teacher = student, teacher
        self.groups, self.device = len(student.rows), student.logits.device
        columns = student.logits.shape[1], teacher.logits.shape[1]
        nothing = student.starts  # is not read
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
        made = torch.empty if counted else torch.zeros  # here and below: what kernels write is not filled before
        self.total = torch.empty(self.groups, dtype=torch.float32, device=self.device)
        self.area, self.bound = made(2, self.groups, dtype=torch.float64, device=self.device)
        self.slots = self.slope = self.part_slope = self.number_slope = torch.empty(0, device=self.device)
        if counted:
            self._count(rest, exact)

    def _count(self, rest: tuple[int, int], exact: bool) -> None:
        """Slopes of the groups' bins, and of the parts of those in doubt, with what edges give to the distance."""
        ends = edges(torch.float32, self.device)
        self.slope = torch.empty(self.groups, BINS, device=self.device)
        shape = (2, self.groups if exact else 0, 3, SLOTS)
        self.slots, next_slots = torch.empty(shape, dtype=torch.int32, device=self.device)
        counting.slopes_kernel[(self.groups,)](
            *self._counts(), ends, self.slope, self.area, self.bound, self.slots, *rest, BINS, EXACT=exact, BLOCK=1024,
            num_warps=WARPS,
        )  # fmt: skip
        if not exact:
            return
        # Half precision holds signs and slots' numbers; of the numbers themselves slopes come where they were counted.
        self.part_slope = torch.empty(self.groups, SLOTS * PARTS, dtype=torch.float16, device=self.device)
        parts = torch.zeros(2, self.groups, SLOTS * PARTS, dtype=torch.int32, device=self.device)
        self.number_slope = parts[0].view(torch.float32)
        cut, lower_cut = counting.CUT.value, counting.PART_CUT.value
        for given, of_next, numbers, made in (
            (self.slots, next_slots, False, self.part_slope), (next_slots, self.slots, True, self.number_slope)
        ):  # fmt: skip
            counting.count_parts_kernel[self.groups, self.programs, 2](
                *self._both(parts), given, self.slope, self.part_slope, RESTRICTED=self.flags["HYBRID"],
                NUMBERS=numbers, BLOCK=BLOCK // 2, num_warps=WARPS,
            )  # fmt: skip
            counting.part_slopes_kernel[(self.groups,)](
                parts[0], parts[1], given, made, self.area, self.bound, of_next,
                CUT_ABOVE=lower_cut if numbers else cut, LOWEST=0 if numbers else lower_cut, LAST=numbers, num_warps=4,
            )  # fmt: skip

    def _counts(self) -> Tensor:
        """int32 [2, groups, bins] of student and teacher, without the lowest bin."""
        made = torch.empty if shared_memory() else torch.zeros
        counts = made(2, self.groups, BINS, dtype=torch.int32, device=self.device)
        restricted = self.flags["HYBRID"]
        if shared_memory():
            counting.count_shared_kernel[self.groups, 2](
                *self._both(counts), RESTRICTED=restricted, BLOCK=BLOCK // 2, LANES=32 * WARPS, RESERVE=RESERVE,
                num_warps=WARPS,
            )  # fmt: skip
        else:
            columns = max(self.student.logits.shape[1], self.teacher.logits.shape[1])
            grid = self.groups, max(1, min(4, columns // (4 * BLOCK))), 2
            counting.count_kernel[grid](*self._both(counts), RESTRICTED=restricted, BLOCK=BLOCK, num_warps=WARPS)
        return counts

    def _both(self, counts: Tensor) -> Iterator[Any]:
        """What kernels that count take first, of student and teacher in turns; ``counts``: of both."""
        sides = self.student, self.teacher
        for name in ("logits", "rows", "lse", "joint"):
            yield from (getattr(side, name) for side in sides)
        yield from (self.partner, self.teacher_partner, *counts)
        yield from (side.logits.shape[1] for side in sides)
        yield from (side.logits.stride(0) for side in sides)
        yield BINS

    def values(self) -> Tensor:
        """float64 [3]: sums of weighted distances, of the most by which they are too small, and of coverage.

        Coverage is the teacher's probability on columns with a partner; 0 without such.
        """
        student, teacher = self.student, self.teacher
        sums = torch.empty(5, self.programs, self.groups, dtype=torch.float32, device=self.device)
        kernel.values_kernel[self.groups, self.programs](
            student.logits, teacher.logits, student.rows, teacher.rows, student.lse, teacher.lse, student.joint,
            teacher.joint, self.partner, self.teacher_partner, self.slots, self.slope, self.part_slope,
            self.number_slope, sums, student.logits.shape[1], teacher.logits.shape[1], student.logits.stride(0),
            teacher.logits.stride(0), BINS, *self.weights, **self.flags,
        )  # fmt: skip
        found = torch.empty(3, dtype=torch.float64, device=self.device)
        grouping.finish_kernel[(1,)](
            sums, self.area, self.bound, self.weights[1], self.total, found, self.programs, self.groups,
            BLOCK=512, num_warps=4,
        )  # fmt: skip
        return found

    def add_gradient(self, upstream: Tensor, scale: float) -> Tensor:
        """After :meth:`values`: add ``scale`` times the gradient to ``upstream``; its squared norm, unscaled.

        Args:
            upstream: [rows, vocabulary], at the student's logits, columns side by side.
        """
        student, teacher, count = self.student, self.teacher, len(self.student.logits)
        of_rows = torch.zeros(4, count, dtype=torch.int32, device=self.device)  # and float32, whose 0 has the same bits
        group, own, passed, of_token = of_rows[0], of_rows[1], *of_rows[2:].view(torch.float32)
        grouping.through_kernel[(self.groups,)](
            student.member_rows, student.member_tokens, student.realised, student.starts, self.total, group, passed,
            own, of_token, len(student.member_rows), self.groups, FIRST=student.keeps_first, num_warps=1,
        )  # fmt: skip
        norm = torch.empty(self.programs, count, dtype=torch.float32, device=self.device)
        kernel.gradient_kernel[count, self.programs](
            student.logits, teacher.logits, group, teacher.rows, student.lse, teacher.lse, student.joint,
            teacher.joint, self.partner, self.slots, self.slope, self.part_slope, self.number_slope, passed, own,
            of_token, upstream, norm, student.logits.shape[1], student.logits.stride(0), teacher.logits.stride(0), BINS,
            *self.weights, scale, **self.flags,
        )  # fmt: skip
        return norm.sum()
