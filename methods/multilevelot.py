"""Multi-Level Optimal Transport (MultiLevelOT): the likeliest tokens of a whole response, paired once for all of it.

Cui et al., arXiv 2412.14528:

    L = CE + w · [Σ_i Σ_k |t_k(i) - s_k(i)| - β Σ_i Σ_k t_k(i) log s_k(i) + γ Σ_ij P_ij C_ij]

Rows are paired by position. t_k: the k-th of the teacher's columns, ranked by their sums over the response; s_k: the
student's column that is assigned to it, by the least Σ_i |t_k(i) - s(i)| over all (``matching: optimal``). The first
``k`` count, and nothing is renormalised. C_ij = Σ_k |t_k(i) - s_k(j)| of masses softened at τ = 2, and P is what
Sinkhorn's steps make of exp(-C / λ): rows divided by their sums, then columns, N times.

``greedy``: each of the teacher's columns, by rank, takes the nearest that is free; ``rank``: ranks are paired, no cost
is asked. Ranks alone can give several times the value. Ours: both sides are cut to the shorter; ranks and assignment
are those at τ = 1 for all three parts; the assignment is of the first k, since one of all columns would take too long;
the paper's α is ``kd_weight``.

``released`` (github.com/2018cx/Multi-Level-OT, at 712cfb4): each row of logits is divided by its standard deviation;
ranks are paired; the second part has the sides exchanged and takes a softmax of masses, so that the student is drawn to
its own choice; the third, another softmax of masses at τ = 2, runs 10 steps and counts 0.001 times; the student's last
token is left out; means over positions, and over responses. The code ranks over its whole batch, this over a response.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import (
    AlignedChunk,
    KDOptions,
    LossSums,
    Method,
    Need,
    NonNegative,
    Positive,
    TeacherKind,
    register,
)
from methods.library.alignment import AlignedResponse, Groups, pair_positions
from methods.library.assignment import cheapest, greedy

_SOFTER = 2.0  # τ of the third part
_RELEASED_STEPS = 10
_RELEASED_SHARE = 1e-3


class MultiLevelOTOptions(KDOptions):
    k: int = Field(50, ge=1, description="columns that count, the teacher's likeliest over the response")
    matching: Literal["rank", "greedy", "optimal"] = Field(
        "optimal", description="which columns of the student stand for them (described); released: rank"
    )
    logarithmic_weight: NonNegative = Field(0.1, description="β, of the cross-entropy over the columns")
    sinkhorn_weight: NonNegative = Field(0.1, description="γ, of the transport between positions")
    sinkhorn_steps: int = Field(20, ge=1, description="N (described); released: 10")
    regularisation: Positive = Field(0.1, description="λ, divides the costs of Sinkhorn's steps")


@register
class MultiLevelOT(Method[MultiLevelOTOptions]):
    name, paper, teacher = "multilevelot", "arXiv 2412.14528", TeacherKind.CROSS_TOKENIZER
    summary = "L1, cross-entropy and transport over the likeliest tokens of a response, paired once for all of it"
    fidelities_differ = True
    released_normalize = "samples"
    Options = MultiLevelOTOptions
    zero_at_identity = False  # the cross-entropy over some columns draws mass to them, and transport is blurred

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.WHOLE_RESPONSE})

    def align(self, response: AlignedResponse) -> Groups:
        return pair_positions(response.student_ids.size - self._released, response.teacher_ids.size)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        student, teacher = chunk.student.paired_logits(), chunk.teacher.paired_logits()
        kd = self._released_loss(student, teacher) if self._released else self._described_loss(student, teacher)
        return LossSums(kd)

    def _described_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of one response's logits, [positions, vocabulary] each."""
        options = self.options
        s, t = student.softmax(-1), teacher.softmax(-1)
        with torch.no_grad():
            theirs = _ranked(t, options.k)
            ours = self._columns(s, t.index_select(1, theirs))
        s, t = _chosen(s, ours), t.index_select(1, theirs)
        distance = (t - s).abs().sum()
        entropy = -(t * _chosen(student.log_softmax(-1), ours)).sum()
        softer = _chosen((student / _SOFTER).softmax(-1), ours), (teacher / _SOFTER).softmax(-1).index_select(1, theirs)
        transport = _sinkhorn(*softer, options.regularisation, options.sinkhorn_steps)
        return distance + options.logarithmic_weight * entropy + options.sinkhorn_weight * transport

    def _columns(self, s: Tensor, t: Tensor) -> Tensor:
        """int64 [k]: the student's column that stands for each of the teacher's, -1 for none."""
        if self.options.matching == "rank":
            ranked = _ranked(s, t.shape[1])
            return nn.functional.pad(ranked, (0, t.shape[1] - len(ranked)), value=-1)
        cost = torch.cdist(t.T.contiguous(), s.T.contiguous(), p=1)
        alone = t.sum(0)[:, None].expand(-1, t.shape[1])  # from columns of zeros, of which there are enough
        every = torch.cat([cost, alone], 1).double().cpu().numpy()
        found = torch.from_numpy((cheapest if self.options.matching == "optimal" else greedy)(every))
        return torch.where(found < s.shape[1], found, -1).to(s.device)

    def _released_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        k, positions = self.options.k, max(len(student), 1)
        s, t = ((side / (side.std(-1, keepdim=True) + 1e-4)).softmax(-1) for side in (student, teacher))
        width = min(k, max(s.shape[1], t.shape[1]))
        s, t = (_padded(side.index_select(1, _ranked(side.detach(), width)), width) for side in (s, t))
        distance = (t - s).abs().sum() / positions
        exchanged = -(s.softmax(-1) * t.log_softmax(-1)).sum() / positions
        transport = _sinkhorn(
            (s / _SOFTER).softmax(-1), (t / _SOFTER).softmax(-1), self.options.regularisation, _RELEASED_STEPS
        )
        weights = self.options.logarithmic_weight, self.options.sinkhorn_weight
        return distance + weights[0] * exchanged + weights[1] * _RELEASED_SHARE * transport


def _ranked(masses: Tensor, k: int) -> Tensor:
    """int64 [at most k]: columns by their sums, largest first, the lower id of equals."""
    return masses.sum(0).sort(descending=True, stable=True).indices[:k]


def _chosen(values: Tensor, columns: Tensor) -> Tensor:
    """[positions, k]: the columns, 0 where there is none."""
    return values.index_select(1, columns.clamp_min(0)).masked_fill(columns < 0, 0.0)


def _padded(masses: Tensor, width: int) -> Tensor:
    return nn.functional.pad(masses, (0, width - masses.shape[1]))


def _sinkhorn(student: Tensor, teacher: Tensor, regularisation: float, steps: int) -> Tensor:
    """Σ P C of two sequences of rows, [positions, k] each."""
    cost = (teacher[:, None] - student[None]).abs().sum(-1)
    plan = (-cost / regularisation).exp()
    for _ in range(steps):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum()
