"""Universal Logit Distillation (ULD): compare what both distributions look like, not which token is which.

Boizard et al., arXiv 2402.12030, section 3:   L = CE + w · mean_i Σ_k |p_(k)(i) - q_(k)(i)|
p, q: next-token distributions of student and teacher, each sorted in descending order, the smaller vocabulary padded
with zeros; responses are paired by position and cut to the shorter. The paper sets w = 1.5 beside a CE of weight 1.

``released`` (the code of CDM, arXiv 2502.11104) compares the rows after a token is consumed, so that the rows that
predict the first response token are never used.
"""

from __future__ import annotations

from methods.alignment import AlignedResponse, Groups, pair_positions
from methods.base import AlignedChunk, LossSums, Method, Rows, TeacherKind, register
from methods.divergences import sorted_l1


@register
class ULD(Method):
    name, paper, teacher = "uld", "arXiv 2402.12030", TeacherKind.CROSS_TOKENIZER
    summary = "L1 distance of sorted next-token distributions"
    fidelities_differ = True

    @property
    def rows(self) -> Rows:
        return Rows.AFTER if self.options.fidelity == "released" else Rows.PREDICTING

    def align(self, response: AlignedResponse) -> Groups:
        return pair_positions(response.student_ids.size, response.teacher_ids.size)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        p, q = chunk.student.paired_log_probs().exp(), chunk.teacher.paired_log_probs().exp()
        return LossSums(kd=sorted_l1(p, q).sum())
