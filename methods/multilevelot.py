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
    Held,
    KDOptions,
    LossSums,
    Method,
    Need,
    NonNegative,
    Positive,
    Side,
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
        return frozenset({Need.ROW_SCALARS})

    @property
    def held(self) -> Held:
        return Held(1.0, 1.0) if self._released else Held(0.8, 0.8)

    def align(self, response: AlignedResponse) -> Groups:
        return pair_positions(response.student_ids.size - self._released, response.teacher_ids.size)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        return LossSums(self._released_loss(chunk) if self._released else self._described_loss(chunk))

    def _described_loss(self, chunk: AlignedChunk) -> Tensor:
        """Of one response."""
        options, (student, teacher) = self.options, (chunk.student, chunk.teacher)
        theirs = _likeliest(teacher, options.k)
        t, _, softer_t = _masses(teacher, theirs)
        ours = self._columns(student, t)
        s, log_s, softer_s = _masses(student, ours)
        distance = (t - s).abs().sum()
        entropy = -(t * log_s).sum()
        transport = _sinkhorn(softer_s, softer_t, options.regularisation, options.sinkhorn_steps)
        return distance + options.logarithmic_weight * entropy + options.sinkhorn_weight * transport

    @torch.no_grad()
    def _columns(self, side: Side, t: Tensor) -> Tensor:
        """int64 [k]: the student's column that stands for each of the teacher's, -1 for none."""
        if self.options.matching == "rank":
            ranked = _likeliest(side, t.shape[1])
            return nn.functional.pad(ranked, (0, t.shape[1] - len(ranked)), value=-1)
        counted, theirs = _counted(side, t), t.new_zeros(len(side.targets), t.shape[1]).index_copy(0, side.index, t)

        def apart(logits: Tensor, rows: slice) -> Tensor:
            s = logits.softmax(-1) * counted[rows]
            return torch.cdist(theirs[rows].T.contiguous(), s.T.contiguous(), p=1)

        alone = t.sum(0)[:, None].expand(-1, t.shape[1])  # from columns of zeros, of which there are enough
        every = torch.cat([side.total(apart), alone], 1).cpu().double().numpy()
        found = torch.from_numpy((cheapest if self.options.matching == "optimal" else greedy)(every))
        return torch.where(found < side.logits.shape[1], found, -1).to(t.device)

    def _released_loss(self, chunk: AlignedChunk) -> Tensor:
        sides, positions = (chunk.student, chunk.teacher), max(len(chunk.student.index), 1)
        width = min(self.options.k, max(side.logits.shape[1] for side in sides))
        s, t = (_released_masses(side, width) for side in sides)
        distance = (t - s).abs().sum() / positions
        exchanged = -(s.softmax(-1) * t.log_softmax(-1)).sum() / positions
        transport = _sinkhorn(
            (s / _SOFTER).softmax(-1), (t / _SOFTER).softmax(-1), self.options.regularisation, _RELEASED_STEPS
        )
        weights = self.options.logarithmic_weight, self.options.sinkhorn_weight
        return distance + weights[0] * exchanged + weights[1] * _RELEASED_SHARE * transport


def _likeliest(side: Side, k: int, scaled: bool = False) -> Tensor:
    """int64 [at most k]: columns by the sums of their masses, largest first, the lower id of equals.

    Args:
        scaled: whether rows of logits are divided by their standard deviation.
    """
    counted = _counted(side, side.logits)
    sums = side.total(lambda logits, rows: ((_scaled(logits) if scaled else logits).softmax(-1) * counted[rows]).sum(0))
    return sums.sort(descending=True, stable=True).indices[:k]


def _counted(side: Side, like: Tensor) -> Tensor:
    """[rows, 1]: 1 for the rows of paired positions, 0 for others."""
    return like.new_zeros(len(side.targets), 1).index_fill(0, side.index, 1.0)


def _masses(side: Side, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[members, k] each: masses of the columns, their logs, and masses at τ = 2; 0 where there is no column."""
    missing, there = columns < 0, columns.clamp_min(0)

    def logs(logits: Tensor, rows: slice) -> Tensor:
        return torch.cat([(logits / tau).log_softmax(-1).index_select(1, there) for tau in (1.0, _SOFTER)], 1)

    log_s, softer = side.read(logs).index_select(0, side.index).chunk(2, dim=1)
    masses, softer = (each.exp().masked_fill(missing, 0.0) for each in (log_s, softer))
    return masses, log_s.masked_fill(missing, 0.0), softer


def _released_masses(side: Side, width: int) -> Tensor:
    """[members, width]: masses of rows at the likeliest columns, their logits divided by their standard deviation."""
    columns = _likeliest(side, width, scaled=True)
    masses = side.read(lambda logits, rows: _scaled(logits).softmax(-1).index_select(1, columns))
    return nn.functional.pad(masses.index_select(0, side.index), (0, width - len(columns)))


def _scaled(logits: Tensor) -> Tensor:
    return logits / (logits.std(-1, keepdim=True) + 1e-4)


def _sinkhorn(student: Tensor, teacher: Tensor, regularisation: float, steps: int) -> Tensor:
    """Σ P C of two sequences of rows, [positions, k] each."""
    cost = torch.cdist(teacher, student, p=1)
    plan = (-cost / regularisation).exp()
    for _ in range(steps):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum()
