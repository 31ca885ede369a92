"""Universal Logit Distillation (ULD): compare what both distributions look like, not which token is which.

Boizard et al., arXiv 2402.12030, section 3:   L = CE + w · mean_i Σ_k |p_(k)(i) - q_(k)(i)|
p, q: next-token distributions of student and teacher, each sorted in descending order, the smaller vocabulary padded
with zeros; responses are paired by position and cut to the shorter. The paper sets w = 1.5 beside a CE of weight 1, and
no temperature.

``pairing: bytes`` is GOLD's extended form (methods/gold.py): groups that end on the same byte, their rows merged.

``released`` (the code of CDM, arXiv 2502.11104) compares the rows after a token is consumed, so that the rows that
predict the first response token are never used. It concerns pairing by position only.

``sort: counted`` counts masses in bins instead of sorting them (methods/library/counted.py); ``top_k`` compares the
first ``top_k`` ranks one by one and the mass beyond them as one number (methods/library/divergences.py). How much
either can be wrong is a diagnostic.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from methods.base import (
    AlignedChunk,
    Held,
    KDOptions,
    LossSums,
    Members,
    Method,
    Rows,
    TeacherKind,
    TemperatureOptions,
    register,
)
from methods.library.alignment import AlignedResponse, Groups, group_bytes, pair_positions
from methods.library.closed_form import fused
from methods.library.divergences import Sort, SortOptions, distance_by, sort_error
from methods.library.kernels import comparison_for
from methods.library.merging import Merge, Merged


class ULDOptions(SortOptions, TemperatureOptions, KDOptions):
    pairing: Literal["position", "bytes"] = Field(
        "position", description="the i-th tokens, as in the paper, or groups on shared byte boundaries"
    )
    merge: Merge = Field("bayesian", description="how the rows of a group become one, where pairing is bytes")


@register
class ULD(Method[ULDOptions]):
    name, paper, teacher = "uld", "arXiv 2402.12030", TeacherKind.CROSS_TOKENIZER
    summary = "L1 distance of sorted next-token distributions"
    fidelities_differ = sorts = True
    Options = ULDOptions

    @property
    def rows(self) -> Rows:
        options = self.options
        late = options.fidelity == "released" if options.pairing == "position" else options.merge == "observed"
        return Rows.AFTER if late else Rows.PREDICTING

    @property
    def held(self) -> Held:
        if self.options.merge in ("product", "mean_log"):
            return Held(7.3, 4.6, 7.4e5) if self.options.counts else Held(5, 4.6, 2e4)
        if self.options.counts:
            return Held(5.4, 3.3, 7.4e5)
        return Held(3.1, 1.5, 2e4) if self.options.sort == "top_k" else Held(3.2, 4.6, 2e4)

    @property
    def held_into(self) -> Held | None:
        plain = self.options.temperatures == (1.0, 1.0) and self.options.merge in ("bayesian", "observed")
        return Held(0, 0, self.options.bytes_of_counts) if plain and self.options.sorts_by_kernels else None

    @property
    def held_by_loops(self) -> Held | None:
        return Held(0, 0) if self.held_into is not None and self.options.sorts_by_loops else None

    def align(self, response: AlignedResponse) -> Groups:
        if self.options.pairing == "bytes":
            return group_bytes(response.student_ends, response.teacher_ends)
        return pair_positions(response.student_ids.size, response.teacher_ids.size)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        sides, sort = chunk.members(), self.options.sort_of(chunk.student.logits)
        value, gradient, bound = _distance(*sides, chunk.groups, self.options.merge, self.options.temperatures, sort)
        return LossSums.closed(chunk.student.logits, value, gradient, sort_error(bound, chunk.groups, sort))

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        kernels, sort = comparison_for(upstream, chunk.teacher.logits), self.options.sort_of(upstream)
        if kernels is None or self.held_into is None or not kernels.takes(sort.is_exact):
            return None
        sums = kernels.compare_into(
            *chunk.members(), lse, chunk.groups, self.options.merge, None, upstream, scale, exact=sort.is_exact
        )
        return LossSums(
            sums.value, sort_error(sums.bound, chunk.groups, sort, by_kernels=True), squared_norm=sums.squared_norm
        )


@fused
def _distance(
    student: Members,
    teacher: Members,
    groups: int,
    how: Merge,
    temperatures: tuple[float, float],
    sort: Sort,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the sorted distances of all groups, its gradient at the student's logits, and the bound of its error."""
    ours = Merged(student, groups, how, temperatures[0])
    p, q = ours.masses(), Merged(teacher, groups, how, temperatures[1]).masses()
    distance, signs, bound = distance_by(sort, p, q)
    return distance.sum(), ours.at_logits((None, signs.mul_(p))), bound.sum()
