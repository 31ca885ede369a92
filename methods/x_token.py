"""X-Token (P-KL): KL over the teacher's vocabulary, to which a sparse matrix takes the student's distribution.

Sreenivas et al., arXiv 2605.21699:   L = CE + w · τ² Σ_g KL(p_T(g) || W^T p_S(g)),   both softened at τ

g: groups of tokens that end on the same byte. W: which of the teacher's tokens a student's token is written in, in rows
that add up to 1 (methods/library/projection.py). p(g): the group's distribution by the chain rule, which is taken for
``bayesian`` merging here (methods/library/merging.py): how the paper makes one is not in what could be read, nor is its
own text; formulas are from a description of it. The sum runs over the teacher's likeliest ``columns`` of each group
(which the paper leaves open), and nothing is renormalised, so that it may be negative where groups have several tokens.
W gives a token that stands for several of the teacher's its mass on the first of them mostly, while the chain rule asks
for the last: such groups pull at the wrong token.

``projection: learnt`` trains W with the student, as the paper does, at a learning rate of its own; here what is trained
are logs, of which a token's softmax is its row of W, gradients are clipped with the student's, and W is in checkpoints
but not stored with the student: how the paper keeps rows at a sum of 1 was not found, and it doesn't clip. The paper
weights KD by CE / KD of the same step; ``kd_scale: match_ce`` takes the ratio of the step before. Its other loss, H-KL,
is GOLD's with ``match: weight`` and ``merge: mean_log``.

``released`` (NVIDIA-NeMo/RL, at 7ea279a): the student's rows of a group are averaged as probabilities and renormalised
over the columns, the teacher's as logs of its softmax over the columns, which is not; the columns are those with the
largest logit anywhere in the response (in the code: in the micro-batch); means over a response's groups, and over
responses. What the code's script adds to W (a second pass, likeness of special tokens, a rescaling) is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import (
    AlignedChunk,
    Held,
    KDOptions,
    LossSums,
    Method,
    Need,
    OutputHead,
    Positive,
    Side,
    TeacherKind,
    register,
)
from methods.library.alignment import AlignedResponse, Groups, group_bytes
from methods.library.divergences import forward_kl
from methods.library.maps import Tables
from methods.library.merging import group_sizes, merge
from methods.library.projection import LearntWeights, SpreadMasses, projection
from methods.library.vocabulary import TokenizerPair

_LEAST = 1e-10  # of a probability that a logarithm is taken of


class XTokenOptions(KDOptions):
    temperature: Positive = Field(1.0, description="τ, divides the logits of both sides")
    columns: int = Field(8192, ge=1, description="columns of the teacher that are compared")
    projection: Literal["fixed", "learnt"] = Field("fixed", description="W as tokens are written, or learnt from there")
    projection_learning_rate: Positive | None = Field(0.01, description="of a learnt W; none: as the student's")


@register
class XToken(Method[XTokenOptions]):
    name, paper, teacher = "x_token", "arXiv 2605.21699", TeacherKind.CROSS_TOKENIZER
    summary = "forward KL over the teacher's vocabulary, the student's tokens spread over those that write them"
    fidelities_differ = True
    released_normalize = "samples"
    Options = XTokenOptions

    learnt: LearntWeights | None = None

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.ONE_RESPONSE, Need.SURVEY} if self._released else ())

    @property
    def held(self) -> Held:
        if self._released:
            return Held(5.8, 4.6)
        return Held(4.2 if self.options.projection == "learnt" else 3.2, 7.8)

    @property
    def zero_at_identity(self) -> bool:
        return not self._released  # two constants of 1e-10 are added

    def prepare(self, pair: TokenizerPair) -> None:
        made = projection(pair)
        self.tables = Tables(student=made.student, teacher=made.teacher, weight=made.weight)
        self.learnt = LearntWeights(made) if self.options.projection == "learnt" else None

    def build(self, student: OutputHead, teacher: OutputHead) -> None:
        """W as it begins, where it is trained."""
        if self.learnt is not None:
            weight = student.weight
            self.learnt.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
            nn.init.zeros_(self.learnt.added)

    def trainable(self) -> nn.Module | None:
        return self.learnt

    @property
    def own_learning_rate(self) -> float | None:
        return self.options.projection_learning_rate

    def align(self, response: AlignedResponse) -> Groups:
        return group_bytes(response.student_ends, response.teacher_ends)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        p, q = self._released_rows(chunk) if self._released else self._described_rows(chunk)
        kd = self.options.temperature**2 * forward_kl(p, q).sum()
        groups = kd.new_full((), chunk.groups)
        covered = (q.exp() * (p.exp() > _LEAST)).sum().detach()
        kd = kd / chunk.response_groups if self._released else kd
        return LossSums(kd, {"teacher mass covered": (covered, groups)})

    def survey(self, chunk: AlignedChunk) -> Tensor:
        """[vocabulary], the largest logit of each of the teacher's columns."""
        return chunk.teacher.paired_logits().amax(0)

    def conclude(self, surveys: Sequence[Tensor]) -> Tensor:
        """int64 [columns], those with the largest logit anywhere in the response."""
        largest = torch.stack([*surveys]).amax(0)
        return largest.topk(min(self.options.columns, len(largest))).indices

    def _described_rows(self, chunk: AlignedChunk) -> tuple[Tensor, Tensor]:
        """Log-masses [groups, columns] of student and teacher, over each group's own columns."""
        tau = self.options.temperature
        theirs = merge(chunk.teacher, chunk.groups, "bayesian", tau)
        columns = theirs.topk(min(self.options.columns, theirs.shape[-1]), -1).indices
        ours = self._projected(merge(chunk.student, chunk.groups, "bayesian", tau).exp(), theirs.shape[-1])
        p, q = ours.gather(-1, columns), theirs.gather(-1, columns).exp()
        return p.clamp_min(_LEAST).log(), q.clamp_min(_LEAST).log()

    def _released_rows(self, chunk: AlignedChunk) -> tuple[Tensor, Tensor]:
        """The same over one set of columns for the whole response; the teacher's are means of logs."""
        tau, teacher, width = self.options.temperature, chunk.teacher, chunk.teacher.logits.shape[-1]
        columns = self.known(chunk)
        ours = self._projected(_means(chunk.student, chunk.student.log_probs(tau).exp(), chunk.groups), width)
        ours = ours.index_select(1, columns)
        p = (ours / (ours.sum(-1, keepdim=True) + _LEAST) + _LEAST).log()
        return p, _means(teacher, teacher.over_columns(columns).log_probs(tau), chunk.groups)

    def _projected(self, masses: Tensor, width: int) -> Tensor:
        """[groups, width]: masses of the student's vocabulary, by W as those of the teacher's."""
        tables = self.tables.on(masses.device)
        weight = (tables["weight"] if self.learnt is None else self.learnt()).to(masses.dtype)
        made: Tensor = SpreadMasses.apply(masses, weight, tables["student"], tables["teacher"], width)  # type: ignore[no-untyped-call]
        return made


def _means(side: Side, rows: Tensor, groups: int) -> Tensor:
    """[groups, columns]: means over the members of each group."""
    sizes = group_sizes(side.group, groups)
    members = rows.index_select(0, side.index).div_(sizes[side.group, None])
    return rows.new_zeros(groups, rows.shape[-1]).index_add(0, side.group, members)
