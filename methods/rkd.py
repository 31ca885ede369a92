"""Reverse-KL distillation (RKD) from a teacher with the student's tokenizer.

Gu et al., arXiv 2306.08543, section 2.1:   L = CE + w · mean_i τ² · KL(p_S(i) || p_T(i)),   both softened at τ

``released`` (the code of CDM, arXiv 2502.11104) is a control: its file for RKD computes the forward KL of FKD.
"""

from __future__ import annotations

from typing import Literal

from methods.base import register
from methods.fkd import FKD


@register
class RKD(FKD):
    name, paper = "rkd", "arXiv 2306.08543"
    summary = "reverse KL to a teacher with the same tokenizer"

    @property
    def direction(self) -> Literal["forward", "reverse"]:
        return "forward" if self._released else "reverse"
