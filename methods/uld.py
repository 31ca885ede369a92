"""Universal Logit Distillation (ULD): compare what both distributions look like, not which token is which.

Boizard et al., arXiv 2402.12030, section 3:   L = CE + w · mean_i Σ_k |p_(k)(i) - q_(k)(i)|
p, q: next-token distributions of student and teacher, each sorted in descending order, the smaller vocabulary padded
with zeros; responses are paired by position and cut to the shorter. The paper sets w = 1.5 beside a CE of weight 1.

``pairing: bytes`` is GOLD's extended form (methods/gold.py): groups that end on the same byte, their rows merged.

``released`` (the code of CDM, arXiv 2502.11104) compares the rows after a token is consumed, so that the rows that
predict the first response token are never used. It concerns pairing by position only.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.alignment import AlignedResponse, Groups, group_bytes, pair_positions
from methods.base import AlignedChunk, KDOptions, LossSums, Method, Rows, TeacherKind, register
from methods.divergences import sorted_l1
from methods.merging import Merge, merge


@register
class ULD(Method):
    name, paper, teacher = "uld", "arXiv 2402.12030", TeacherKind.CROSS_TOKENIZER
    summary = "L1 distance of sorted next-token distributions"
    fidelities_differ = True

    class Options(KDOptions):
        pairing: Literal["position", "bytes"] = Field(
            "position", description="the i-th tokens, as in the paper, or groups on shared byte boundaries"
        )
        merge: Merge = Field("bayesian", description="how the rows of a group become one, where pairing is bytes")

    @property
    def rows(self) -> Rows:
        options = self.options
        late = options.fidelity == "released" if options.pairing == "position" else options.merge == "observed"
        return Rows.AFTER if late else Rows.PREDICTING

    def align(self, response: AlignedResponse) -> Groups:
        if self.options.pairing == "bytes":
            return group_bytes(response.student_ends, response.teacher_ends)
        return pair_positions(response.student_ids.size, response.teacher_ids.size)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        p, q = (merge(side, chunk.groups, self.options.merge).exp() for side in (chunk.student, chunk.teacher))
        return LossSums(kd=sorted_l1(p, q).sum())
