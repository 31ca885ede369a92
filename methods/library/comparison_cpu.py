"""What GOLD and ULD do with loops that numba compiles for a CPU, in place of Triton's kernels (comparison.py).

Each row of logits is read where it lies and its gradient added to what is there, with no matrix of masses in between:
merging.py and divergences.py have the formulas. Distances by rank are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from methods.library.chunk import Members
from methods.library.compared import Columns, Sums
from methods.library.cpu_loops import in_threads, within
from methods.library.maps import UNMAPPED
from methods.library.merging import LOG_FLOOR, Merge, first_places
from methods.library.ranks import bins_of, least_bits


class SharedColumns(NamedTuple):
    """Columns that are compared one by one, and how.

    Attributes:
        shared: float32 [V_t], 1 for a column with a partner, else 0.
        partner: int32 [V_s], the teacher's column, or V_t.
        student_rest, teacher_rest: int32, columns that are compared by rank.
        weights: of the columns with a partner and of the others.
    """

    shared: Tensor
    partner: Tensor
    student_rest: Tensor
    teacher_rest: Tensor
    weights: tuple[float, float]


_NONE = torch.empty(0, dtype=torch.int32)
_BY_RANK = SharedColumns(torch.empty(0), _NONE, _NONE, _NONE, (0.0, 1.0))


def takes(exact: bool, beta: float = 0.0) -> bool:
    """Whether :func:`compare_into` has distances like these, and shared columns with this β of the GJSD."""
    return exact and beta == 0


def hybrid_of(columns: Columns, weights: tuple[float, float], beta: float) -> SharedColumns:
    """What is compared column by column: GOLD's parts, with their weights; of a weight 0 no rest."""
    known = columns.student_of_teacher
    rest = [columns.student_rest.int(), columns.teacher_rest.int()]
    if weights[1] == 0 or min(each.numel() for each in rest) == 0:
        rest = [each[:0] for each in rest]
    return SharedColumns((known != UNMAPPED).float(), columns.partners(known.numel()), rest[0], rest[1], weights)


def compare_into(
    student: Members,
    teacher: Members,
    lse: Tensor,
    groups: int,
    how: Merge,
    hybrid: SharedColumns | None,
    upstream: Tensor,
    scale: float,
    exact: bool = True,
) -> Sums:
    """The sorted distance of merged groups, and GOLD's KL of shared columns; its gradient is added to ``upstream``.

    Args:
        lse: float32 [rows], of the student's, as rows_cpu.py gives it.
        how: "bayesian" or "observed", see merging.py.
        hybrid: columns that are compared one by one; none: all by rank.
        upstream: float32 [rows, vocabulary], at the student's logits.
        scale: factor of the gradient.
        exact: as :func:`takes` asks for it.
    """
    from methods.library import comparison_numba  # compiles, which `harness plan` need not wait for

    *columns, weights = hybrid or _BY_RANK
    sizes = student.logits.shape[1], teacher.logits.shape[1]
    by_rank = sizes if hybrid is None else (len(columns[2]), len(columns[3]))
    sort = least_bits(torch.float32), bins_of(*by_rank)
    found, into = torch.empty(groups, 3, dtype=torch.float64), upstream.numpy()
    sides = _of(student, lse, groups), _of(teacher, torch.empty_like(teacher.logits[:, 0]), groups)
    parts, sums = (columns[0].numpy(), *(each.numpy().view(np.uint32) for each in columns[1:])), found.numpy()

    def of(part: slice) -> None:
        comparison_numba.compare(
            into,
            *sides,
            parts,
            weights,
            LOG_FLOOR,
            hybrid is None,
            how == "observed",
            scale,
            sort,
            sums[part],
            part.start,
        )

    in_threads(groups, sum(sizes), of)
    value, covered, norm = found.sum(0).to(upstream.dtype)
    return Sums(value, None, covered, norm)


def _of(side: Members, lse: Tensor, groups: int) -> tuple[object, ...]:
    """A side as loops take it, which do not look whether a row or a token is there."""
    within(side.row, len(side.logits), "rows")
    within(side.tokens.clamp_min(0), side.logits.shape[1], "tokens")
    starts = torch.cat([first_places(side.group, groups), side.group.new_tensor([side.group.numel()])])
    return tuple(each.contiguous().numpy() for each in (side.logits, lse, side.row, side.tokens, starts))
