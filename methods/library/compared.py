"""What kernels that compare groups of rows take and give, on whatever they run (comparison.py, comparison_cpu.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from methods.library.maps import UNMAPPED


class Sums(NamedTuple):
    """Sums over the groups of a chunk, scalars.

    Attributes:
        value: of the distances.
        bound: the most by which ``value`` is too small; None: it is exact.
        covered: the teacher's probability on shared columns.
        squared_norm: of the gradient at the student's logits.
    """

    value: Tensor
    bound: Tensor | None
    covered: Tensor
    squared_norm: Tensor


class Columns(NamedTuple):
    """Which columns of the logits are compared with which, for logits of given widths. All int64.

    Attributes:
        student_of_teacher: [V_teacher], partner of each of the teacher's columns, -1 where there is none.
        student_matched, teacher_matched: [matched], pairs in the order of the student's ids.
        student_rest, teacher_rest: the columns without a partner, padding among them.
    """

    student_of_teacher: Tensor
    student_matched: Tensor
    teacher_matched: Tensor
    student_rest: Tensor
    teacher_rest: Tensor

    def partners(self, missing: int) -> Tensor:
        """int32 [V_student], the teacher's column of each of the student's, ``missing`` where it has none."""
        size = self.student_matched.numel() + self.student_rest.numel()
        partner = torch.full((size,), missing, dtype=torch.int32, device=self.student_matched.device)
        partner[self.student_matched] = self.teacher_matched.int()
        return partner

    @classmethod
    def of(cls, student_of_teacher: Tensor, student_width: int, teacher_width: int) -> Columns:
        """Split the columns of logits by a map of the vocabularies, which may be wider or narrower than they are."""
        partner = torch.full((teacher_width,), UNMAPPED, device=student_of_teacher.device)
        known = student_of_teacher[:teacher_width]
        partner[: known.numel()] = known.where(known < student_width, UNMAPPED)
        teacher_matched = (partner != UNMAPPED).nonzero().squeeze(1)
        student_matched, order = partner[teacher_matched].sort()
        alone = torch.ones(student_width, dtype=torch.bool, device=partner.device).index_fill(0, student_matched, False)
        teacher_rest = (partner == UNMAPPED).nonzero().squeeze(1)
        student_rest = alone.nonzero().squeeze(1)
        return cls(partner, student_matched, teacher_matched[order], student_rest, teacher_rest)
