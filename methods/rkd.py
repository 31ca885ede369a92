"""Reverse-KL distillation (RKD) from a teacher with the student's tokenizer.

Gu et al., arXiv 2306.08543, section 2.1:   L = CE + w · mean_i τ² · KL(p_S(i) || p_T(i)),   both softened at τ

``released`` (the code of CDM, arXiv 2502.11104) is a control: its file for RKD computes the forward KL of FKD.
"""

from __future__ import annotations

from methods.base import AlignedChunk, LossSums, register
from methods.fkd import FKD


@register
class RKD(FKD):
    name, paper = "rkd", "arXiv 2306.08543"
    summary = "reverse KL to a teacher with the same tokenizer"

    def loss(self, chunk: AlignedChunk) -> LossSums:
        if self.options.fidelity == "released":
            return super().loss(chunk)
        return self._kl(chunk, "reverse")
