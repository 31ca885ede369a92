"""Strict 1:1 distillation: only where both tokenizers cut the same token, over the tokens that both have.

arXiv 2610.08448:   L = CE + w · mean_g KL(p_S(g) || p_T(g)),   g: alignment groups of one token on each side,
both distributions restricted to the shared vocabulary and renormalised, or further to the student's k likeliest tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from methods.base import AlignedChunk, Held, KDOptions, LossSums, Method, Positive, TeacherKind, register
from methods.library.alignment import AlignedResponse, Groups, group_bytes
from methods.library.closed_form import kl
from methods.library.divergences import reverse_kl
from methods.library.kernels import divergence_for
from methods.library.maps import UNMAPPED, Tables, exact_map, mapped_columns
from methods.library.vocabulary import TokenizerPair


class OneToOneOptions(KDOptions):
    temperature: Positive = Field(1.0, description="divides the logits of both sides")
    top_k: int | None = Field(None, ge=2, description="compare the student's k likeliest shared tokens (paper: 16)")


@register
class OneToOne(Method[OneToOneOptions]):
    name, paper, teacher = "one_to_one", "arXiv 2610.08448", TeacherKind.CROSS_TOKENIZER
    summary = "reverse KL over the shared vocabulary, at tokens that both tokenizers cut alike"
    Options = OneToOneOptions

    @property
    def held(self) -> Held:
        return Held(1.8, 0.6, 4e4)

    @property
    def held_into(self) -> Held | None:
        return Held(0, 0) if self.options.top_k is None else None

    def prepare(self, pair: TokenizerPair) -> None:
        columns = mapped_columns(exact_map(pair.teacher, pair.student))
        ours, theirs = columns["ours"], columns["theirs"]
        self.shared = Tables(**columns)
        self.partners = Tables(
            ours=_partners(ours, theirs, len(pair.student)), theirs=_partners(theirs, ours, len(pair.teacher))
        )

    def align(self, response: AlignedResponse) -> Groups:
        return group_bytes(response.student_ends, response.teacher_ends).only_one_to_one()

    def loss(self, chunk: AlignedChunk) -> LossSums:
        tau, logits = self.options.temperature, chunk.student.logits
        shared = self.shared.on(logits.device)
        student, teacher = chunk.student.over_columns(shared["ours"]), chunk.teacher.over_columns(shared["theirs"])
        mass = (teacher.logits.logsumexp(-1) - chunk.teacher.logits.logsumexp(-1)).exp()
        diagnostics = self._diagnostics(chunk, mass[chunk.teacher.index].sum())
        if self.options.top_k is None:
            value, at_shared = kl(student.paired_logits().detach(), teacher.paired_logits(), tau, "reverse")
            gradient = torch.zeros_like(logits).index_copy_(1, shared["ours"], student.spread(at_shared))
            return LossSums.closed(logits, value, gradient, diagnostics)
        p, q = student.paired_log_probs(tau), teacher.paired_log_probs(tau)
        likeliest = p.topk(min(self.options.top_k, p.shape[-1])).indices
        p, q = (side.gather(-1, likeliest).log_softmax(-1) for side in (p, q))
        return LossSums(kd=tau**2 * reverse_kl(p, q).sum(), diagnostics=diagnostics)

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        kernels = divergence_for(upstream, chunk.teacher.logits)
        if kernels is None or self.held_into is None:
            return None
        tau, (ours, theirs), partners = self.options.temperature, chunk.members(), self.partners.on(upstream.device)
        student = kernels.softened(ours.logits, ours.row, tau, known=partners["ours"])
        teacher = kernels.softened(theirs.logits, theirs.row, tau, known=partners["theirs"])
        whole = kernels.softened(theirs.logits, theirs.row, 1.0)
        shared = teacher if tau == 1.0 else kernels.softened(theirs.logits, theirs.row, 1.0, known=partners["theirs"])
        value, norm = kernels.add_kl(
            student, teacher, tau, "reverse", upstream, tau**2 * scale, kernels.Partners(partners["ours"], True)
        )
        diagnostics = self._diagnostics(chunk, (shared.lse - whole.lse).exp().sum())
        return LossSums(tau**2 * value, diagnostics, squared_norm=tau**4 * norm)

    def _diagnostics(self, chunk: AlignedChunk, covered: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        pairs = covered.new_full((), chunk.groups)
        return {"aligned 1-1": (pairs, None), "teacher mass covered": (covered, pairs)}


def _partners(columns: Tensor, others: Tensor, size: int) -> Tensor:
    """int32 [size]: which of the others each column has, or -1."""
    return torch.full((size,), UNMAPPED, dtype=torch.int32).index_copy(0, columns, others.int())
