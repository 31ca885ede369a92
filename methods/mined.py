"""Minimum edit distance (MinED): the teacher's distribution where both sides have the same token, else the gold token.

Wan et al., arXiv 2401.10491 (FuseLLM), token alignment; as a loss in Zhang et al., arXiv 2406.17328 (DSKD):
L = CE + w · mean_i KL(p(i) || p_S(i)),   both softened at τ, over the student's vocabulary, without a factor τ²

Two maps by edit distance: time warping links the tokens of the responses, and each teacher token t is mapped to the
student token M(t) at the minimum edit distance (:func:`~methods.maps.nearest_map`). Let student token y_i be linked to
teacher token x_j, and neither to another. Where M(x_j) = y_i, the target p(i) is the teacher's distribution in the row
that predicts x_j, mapped: a student token has the logit of the teacher token that reaches it, the softmax runs over
the student tokens that any reaches, and the others have probability 0. Of several teacher tokens that reach one
student token the lowest id counts (DSKD), or the one with the largest logit. At every other i the target is the gold
token: KL = -log p_S(y_i), softened too. (DSKD's own code asks this of the token before, in the rows that consume it.)

``released`` (the code of CDM, arXiv 2502.11104) is a control: both sides of its KD term are tensors of the teacher, so
that no gradient reaches the student. Path, rows and means are those of CDM's released form. Let z be the teacher's
mean logits at a position and A_t = z_M(t): a student token's id is taken for a column of the teacher's. The term is
the mean over positions and tokens t of P_t (τ² log P_t - Q_t), P = softmax(z), Q = log softmax(A / τ). Tokens whose
partner is id 0, which means unmapped, or no column of the teacher's at all, where the code would fail, are masked in A.
The value is no more than a number in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from methods.alignment import AlignedResponse, Groups
from methods.base import AlignedChunk, LossSums, Method, Need, Rows, SoftenedOptions, TeacherKind, register
from methods.cdm import CDM, MASKED, released_divergence
from methods.maps import UNMAPPED, stored_map
from methods.vocabulary import TokenizerPair
from methods.warping import EditCosts, link_groups, path_notes, warp_all


@register
class MinED(Method):
    name, paper, teacher = "mined", "arXiv 2401.10491", TeacherKind.CROSS_TOKENIZER
    summary = "forward KL to the teacher's distribution mapped by edit distance, the gold token where tokens differ"
    fidelities_differ = True

    class Options(SoftenedOptions):
        collisions: Literal["lowest", "max"] = Field(
            "lowest",
            description="of several teacher tokens that are mapped to one student token the lowest id counts, as in "
            "DSKD, or the largest logit, which keeps more of the teacher's mass (described)",
        )
        normalize: Literal["tokens", "samples"] = Field(  # every response token carries KD
            "tokens", description="what the KD sum is divided by: the student's response tokens, or the responses"
        )

    @property
    def _released(self) -> bool:
        return bool(self.options.fidelity == "released")

    @cached_property
    def _cdm(self) -> CDM:
        """CDM's released form, for its alignment."""
        return CDM(fidelity="released")

    @property
    def needs(self) -> frozenset[Need]:
        return self._cdm.needs if self._released else frozenset()

    @property
    def rows(self) -> Rows:
        return self._cdm.rows if self._released else Rows.PREDICTING

    @property
    def normalize(self) -> str:
        return self._cdm.normalize if self._released else super().normalize

    @property
    def zero_at_identity(self) -> bool:
        return not self._released

    @property
    def caveat(self) -> str:
        if not self._released:
            return ""
        return (
            "both sides of the KD term are the teacher's, as in the authors' code, so it moves nothing: the row is a "
            f"control trained on {self.options.ce_weight:g} times the cross-entropy"
        )

    def prepare(self, pair: TokenizerPair) -> None:
        student_of_teacher = stored_map("nearest", pair.teacher, pair.student, pair.maps)
        if self._released:
            self._cdm.prepare(pair)
        self.costs = EditCosts(pair.student, pair.teacher)
        reaching = np.flatnonzero(student_of_teacher != UNMAPPED)
        columns, lowest, place = np.unique(student_of_teacher[reaching], return_index=True, return_inverse=True)
        self.student_of_teacher = torch.from_numpy(student_of_teacher)
        self.columns = torch.from_numpy(columns)  # student tokens that are reached, ascending
        self.lowest = torch.from_numpy(reaching[lowest])  # the first teacher token that reaches each
        self.reaching = torch.from_numpy(reaching)  # teacher tokens that reach one,
        self.place = torch.from_numpy(place)  # and its place in `columns`

    def align(self, response: AlignedResponse) -> Groups:
        """Pieces of the path, so that every student token is in one group: 1-1 links are those of two members."""
        return self.align_all([response])[0]

    def align_all(self, responses: Sequence[AlignedResponse]) -> list[Groups]:
        """All paths of the batch are searched at once."""
        if self._released:
            return self._cdm.align_all(responses)
        paths = warp_all([self.costs.costs(one.student_ids, one.teacher_ids) for one in responses])
        return [
            replace(link_groups(*path), notes=path_notes(*path, response))
            for path, response in zip(paths, responses, strict=True)
        ]

    def loss(self, chunk: AlignedChunk) -> LossSums:
        return self._released_loss(chunk) if self._released else self._described_loss(chunk)

    def _described_loss(self, chunk: AlignedChunk) -> LossSums:
        tau = self.options.temperature
        log_q = chunk.student.paired_log_probs(tau)
        ours, theirs = self._same_tokens(chunk)
        logits = chunk.teacher.logits.index_select(0, chunk.teacher.index[theirs])
        mapped = self._mapped(logits)
        soft = log_q.new_zeros(len(ours), log_q.shape[-1])
        soft.index_copy_(1, self.columns.to(log_q.device), (mapped / tau).softmax(-1).to(log_q.dtype))
        target = torch.zeros_like(log_q).scatter_(1, chunk.student.tokens[:, None], 1.0)
        target.index_copy_(0, ours, soft)
        kept = log_q.new_tensor(float(len(ours)))
        mass = (mapped.logsumexp(-1) - logits.logsumexp(-1)).exp().sum()
        return LossSums(
            kd=nn.functional.kl_div(log_q, target, reduction="sum"),
            diagnostics={"targets from the teacher": (kept, None), "teacher mass covered": (mass, kept)},
        )

    def _same_tokens(self, chunk: AlignedChunk) -> tuple[Tensor, Tensor]:
        """int64 [kept] each: members of both sides that are linked 1-1 and one token by the map."""
        student, teacher = chunk.student, chunk.teacher
        alone = [torch.bincount(side.group, minlength=chunk.groups) == 1 for side in (student, teacher)]
        pairs = alone[0] & alone[1]
        ours, theirs = (pairs[side.group].nonzero().squeeze(1) for side in (student, teacher))
        named = self.student_of_teacher.to(theirs.device)[teacher.tokens[theirs]]
        same = named == student.tokens[ours]
        return ours[same], theirs[same]

    def _mapped(self, logits: Tensor) -> Tensor:
        """[rows, columns]: for each student token that is reached, the logit of the teacher token that counts."""
        if self.options.collisions == "lowest":
            return logits.index_select(1, self.lowest.to(logits.device))
        reaching = logits.index_select(1, self.reaching.to(logits.device))
        place = self.place.to(logits.device).expand_as(reaching)
        return reaching.new_full((len(logits), len(self.columns)), -torch.inf).scatter_reduce(
            1, place, reaching, "amax"
        )

    def _released_loss(self, chunk: AlignedChunk) -> LossSums:
        z = chunk.teacher.mean_logits(chunk.groups)
        partners = self.student_of_teacher[: z.shape[-1]].to(z.device)
        z = z[:, : len(partners)]
        mapped = (partners > 0) & (partners < len(partners))
        a = z.index_select(1, partners.clamp(0, len(partners) - 1)).masked_fill(~mapped, MASKED)
        positions = z.new_tensor(float(len(z)))
        return LossSums(
            released_divergence(z, a, self.options.temperature),
            diagnostics={
                "columns masked": (positions * (~mapped).sum(), positions * len(partners)),
                "teacher mass covered": (z.softmax(-1)[:, mapped].sum(), positions),
            },
        )
