"""Sequence-level distillation (seq_kd): learn what the teacher says, as if it were the reference.

Kim and Rush, arXiv 1606.07947, section 3.2:   L = -log p_S(ŷ | x),   ŷ the teacher's own answer to the prompt x

No distributions are compared, so that it needs no map between vocabularies and any teacher will do. There ŷ comes from
beam search; here it is the greedy answer, of at most the task's ``new_tokens``. As the other methods weigh references
and teacher, so does this one: kd_weight / (ce_weight + kd_weight) of the prompts, the same in every seed, carry the
teacher's answer, the others their reference. So does a prompt whose answer came to no end: a student would learn to
break off.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.base import NonNegative, register
from methods.sft import Control, SFTOptions


class SeqKDOptions(SFTOptions):
    ce_weight: NonNegative = Field(0.0, description="weight of the cross-entropy on references")
    kd_weight: NonNegative = Field(1.0, description="weight of the cross-entropy on the teacher's answers")
    answers_of: Literal["same", "cross"] = Field("cross", description="the teacher that is asked, by its role")


@register
class SeqKD(Control):
    name, paper = "seq_kd", "arXiv 1606.07947"
    summary = "cross-entropy on the teacher's own answers: needs no map between vocabularies"
    options: SeqKDOptions
    Options = SeqKDOptions

    @property
    def answers_of(self) -> str:
        return self.options.answers_of
