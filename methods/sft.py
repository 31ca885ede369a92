"""Supervised fine-tuning (SFT), and the control of every distillation run.

L = CE: the cross-entropy of the reference response and its EOS, without a teacher.

``sft`` trains from the pretrained student for as many steps as warm start and distillation together. ``control``
starts from the warm start like every distillation run and trains as long, without a KD term: what a method gains
over it is due to its teacher. ``control_smooth`` smooths its labels (Szegedy et al., arXiv 1512.00567, section 7): a
method that does not beat it may have gained by softer targets alone, whatever its teacher knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from methods.base import AlignedChunk, KDOptions, LossSums, Method, NonNegative, Share, Start, TeacherKind, register


class SFTOptions(KDOptions):
    ce_weight: NonNegative = Field(1.0, description="weight of the cross-entropy")
    kd_weight: NonNegative = Field(0.0, description="unused: there is no teacher")
    label_smoothing: Share = Field(
        0.0, description="ε: the target is (1 - ε) one-hot + ε / V (arXiv 1512.00567): what regularising alone gains"
    )


@register
class SFT(Method[SFTOptions]):
    name, paper, teacher = "sft", "cross-entropy on the reference", TeacherKind.NONE
    summary = "cross-entropy from the pretrained student, warm-start and KD steps together"
    start = Start.PRETRAINED
    Options = SFTOptions
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"rate": (0.5, 1.0, 2.0), "label_smoothing": (0.0, 0.1)}

    @property
    def label_smoothing(self) -> float:
        return self.options.label_smoothing

    def loss(self, chunk: AlignedChunk) -> LossSums:
        return LossSums(kd=chunk.student.logits.new_zeros(()))


@register
class Control(SFT):
    name = "control"
    summary = "cross-entropy continued from the warm start: a KD run whose KD weight is 0"
    start: ClassVar[Start] = Start.WARM_START


class SmoothOptions(SFTOptions):
    label_smoothing: Share = Field(0.1, description="ε: the target is (1 - ε) one-hot + ε / V")


@register
class ControlSmooth(Control):
    name, paper = "control_smooth", "arXiv 1512.00567"
    summary = "the control with smoothed labels: what softer targets gain without a teacher"
    options: SmoothOptions
    Options = SmoothOptions
