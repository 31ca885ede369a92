"""Forward-KL distillation (FKD) from a teacher with the student's tokenizer.

Hinton et al., arXiv 1503.02531, section 2:   L = CE + w · mean_i τ² · KL(p_T(i) || p_S(i)),   both softened at τ

``released`` (the code of CDM, arXiv 2502.11104): the sum runs over all tokens, the prompt too, and is divided by the
number of sequences.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from methods.base import AlignedChunk, Held, LossSums, Method, Rows, SoftenedOptions, TeacherKind, register
from methods.library.alignment import AlignedResponse, Groups, pair_identical
from methods.library.closed_form import kl
from methods.library.kernels import divergence_for


@register
class FKD(Method[SoftenedOptions]):
    name, paper, teacher = "fkd", "arXiv 1503.02531", TeacherKind.SAME_TOKENIZER
    summary = "forward KL to a teacher with the same tokenizer"
    Options = SoftenedOptions
    fidelities_differ = True
    released_rows, released_normalize = Rows.ALL, "samples"

    @property
    def held(self) -> Held:
        return Held(2.1, 2.1)

    @property
    def held_into(self) -> Held:
        return Held(0, 0)

    def align(self, response: AlignedResponse) -> Groups:
        return pair_identical(response, prompt=self.rows is Rows.ALL)

    @property
    def direction(self) -> Literal["forward", "reverse"]:
        return "forward"

    def loss(self, chunk: AlignedChunk) -> LossSums:
        value, gradient = kl(*chunk.paired_logits_over_shared_columns(), self.options.temperature, self.direction)
        return LossSums.closed(chunk.student.logits, value, chunk.student.spread(gradient))

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        kernels = divergence_for(upstream, chunk.teacher.logits)
        if kernels is None:
            return None
        tau, (ours, theirs) = self.options.temperature, chunk.members()
        columns = min(ours.logits.shape[-1], theirs.logits.shape[-1])
        known = tau == 1.0 and columns == ours.logits.shape[-1]
        student = kernels.softened(ours.logits, ours.row, tau, columns, lse=lse[ours.row] if known else None)
        teacher = kernels.softened(theirs.logits, theirs.row, tau, columns)
        value, norm = kernels.add_kl(student, teacher, tau, self.direction, upstream, tau**2 * scale)
        return LossSums(tau**2 * value, squared_norm=tau**4 * norm)
