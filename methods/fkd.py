"""Forward-KL distillation (FKD) from a teacher with the student's tokenizer.

Hinton et al., arXiv 1503.02531, section 2:   L = CE + w · mean_i τ² · KL(p_T(i) || p_S(i)),   both softened at τ

``released`` (the code of CDM, arXiv 2502.11104): the sum runs over all tokens, the prompt too, and is divided by the
number of sequences.
"""

from __future__ import annotations

from typing import Literal

from methods.base import AlignedChunk, LossSums, Method, Rows, SoftenedOptions, TeacherKind, register
from methods.library.alignment import AlignedResponse, Groups, pair_identical
from methods.library.closed_form import kl


@register
class FKD(Method[SoftenedOptions]):
    name, paper, teacher = "fkd", "arXiv 1503.02531", TeacherKind.SAME_TOKENIZER
    summary = "forward KL to a teacher with the same tokenizer"
    Options = SoftenedOptions
    fidelities_differ = True
    released_rows, released_normalize = Rows.ALL, "samples"

    def align(self, response: AlignedResponse) -> Groups:
        return pair_identical(response, prompt=self.rows is Rows.ALL)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        return self._kl(chunk, "forward")

    def _kl(self, chunk: AlignedChunk, direction: Literal["forward", "reverse"]) -> LossSums:
        value, gradient = kl(*chunk.paired_logits_over_shared_columns(), self.options.temperature, direction)
        return LossSums.closed(chunk.student.logits, value, chunk.student.spread(gradient))
