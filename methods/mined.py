"""Minimum edit distance (MinED): the teacher's distribution where both sides have the same token, else the gold token.

Wan et al., arXiv 2401.10491 (FuseLLM), token alignment; as a loss in Zhang et al., arXiv 2406.17328 (DSKD):
L = CE + w · mean_i KL(p(i) || p_S(i)),   both softened at τ, over the student's vocabulary, without a factor τ²

Two maps by edit distance: time warping links the tokens of the responses, and each teacher token t is mapped to the
student token M(t) at the minimum edit distance (``nearest_map`` of methods/library/maps.py). Let student token y_i have
one link, to teacher token x_j, which may have others. Where M(x_j) = y_i, the target p(i) is the teacher's distribution
in the row that predicts x_j, mapped: a student token has the logit of the teacher token that reaches it, the softmax
runs over the student tokens that any reaches, and the others have probability 0. At every other i the target is the
gold token: KL = -log p_S(y_i), softened too.

Whose code was followed in what: the link of y_i alone counts, as in FuseLLM and DSKD. Of several teacher tokens that
reach one student token the one that spells it counts, else the likeliest (FuseLLM walks the teacher's tokens from the
likeliest down), so that p(i) gives y_i the teacher's own logit, and a piece of byte fallback, ``<0x30>``, reaches
nothing that another piece spells. ``collisions: dskd`` is DSKD's choice: the first of its file, over the pieces as they
are written. The dense loss with gold tokens is DSKD's, but that its code asks all this of the token before, in the rows
that consume it.

``released`` (the code of CDM, arXiv 2502.11104) is a control: both sides of its KD term are tensors of the teacher, so
that no gradient reaches the student. Path, rows and means are those of CDM's released form. Let z be the teacher's
mean logits at a position and A_t = z_M(t): a student token's id is taken for a column of the teacher's. The term is
the mean over positions and tokens t of P_t (τ² log P_t - Q_t), P = softmax(z), Q = log softmax(A / τ). Tokens whose
partner is id 0, which means unmapped, or no column of the teacher's at all, where the code would fail, are masked in A.
The value is no more than a number in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from methods.base import AlignedChunk, Held, LossSums, Method, Need, Rows, SoftenedOptions, TeacherKind, register
from methods.library.alignment import AlignedResponse, Groups, IntArray
from methods.library.cdm_released import released_divergence, released_groups
from methods.library.contextual import MASKED
from methods.library.kernels import divergence_for
from methods.library.maps import UNMAPPED, Tables, exact_map, stored_map
from methods.library.vocabulary import TokenizerPair
from methods.library.warping import EditCosts, path_notes, warp_all

_ROWS_AT_ONCE = 32


class MinEDOptions(SoftenedOptions):
    collisions: Literal["max", "dskd"] = Field(
        "max",
        description="of several teacher tokens that are mapped to one student token the one that spells it counts, "
        "else the largest logit; dskd: the first, by a map over the pieces as they are written (described)",
    )
    normalize: Literal["tokens", "samples"] = Field(  # every response token carries KD
        "tokens", description="what the KD sum is divided by: the student's response tokens, or the responses"
    )


@register
class MinED(Method[MinEDOptions]):
    name, paper, teacher = "mined", "arXiv 2401.10491", TeacherKind.CROSS_TOKENIZER
    summary = "forward KL to the teacher's distribution mapped by edit distance, the gold token where tokens differ"
    fidelities_differ = True
    released_rows, released_normalize = Rows.AFTER, "samples"
    Options = MinEDOptions

    @property
    def align_seconds(self) -> float:
        return 2e-5  # benchmarks/alignment.py

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.ONE_RESPONSE, Need.ENTROPY} if self._released else ())

    @property
    def held(self) -> Held:
        return Held(0.1, 7.1) if self._released else Held(2.6, 0.6, 3e4)

    @property
    def held_into(self) -> Held | None:
        return None if self._released else Held(0, 1)

    @property
    def reads_ids(self) -> str:
        if self._released:
            return "reads the teacher's columns at the student's ids"
        return "maps to the lowest id at the minimum distance"

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
        dskd = self.options.collisions == "dskd" and not self._released
        student_of_teacher = stored_map("pieces" if dskd else "nearest", pair.teacher, pair.student, pair.maps)
        self.costs = EditCosts(pair.student, pair.teacher)
        self.student_of_teacher = torch.from_numpy(student_of_teacher)
        counted = student_of_teacher.copy()  # the tokens of the teacher whose logit may count for the one they reach
        if dskd:
            reached = np.flatnonzero(counted != UNMAPPED)
            _, first = np.unique(counted[reached], return_index=True)
            counted[np.delete(reached, first)] = UNMAPPED
        else:
            exact = exact_map(pair.teacher, pair.student)
            counted[(exact == UNMAPPED) & np.isin(counted, exact[exact != UNMAPPED])] = UNMAPPED
        reaching = np.flatnonzero(counted != UNMAPPED)
        columns, place = np.unique(counted[reaching], return_inverse=True)
        self.tables = Tables(
            student_of_teacher=self.student_of_teacher,
            columns=torch.from_numpy(columns),  # student tokens that are reached, ascending
            reaching=torch.from_numpy(reaching),  # teacher tokens that may count,
            place=torch.from_numpy(place),  # and the place of the one that each reaches in `columns`
        )
        self.sources = Tables(**_sources(columns, reaching, place, len(pair.student)))

    def align(self, response: AlignedResponse) -> Groups:
        """Every student token with the teacher tokens that it is linked to: one link is a group of two members."""
        return self.align_all([response])[0]

    def align_all(self, responses: Sequence[AlignedResponse]) -> list[Groups]:
        """All paths of the batch are searched at once."""
        if self._released:
            return released_groups(self.costs, responses)
        paths = warp_all([self.costs.costs(one.student_ids, one.teacher_ids) for one in responses])
        return [
            _of_each_token(teacher, student, response)
            for (teacher, student), response in zip(paths, responses, strict=True)
        ]

    def loss(self, chunk: AlignedChunk) -> LossSums:
        return self._released_loss(chunk) if self._released else self._described_loss(chunk)

    def _described_loss(self, chunk: AlignedChunk) -> LossSums:
        tau, student, teacher = self.options.temperature, chunk.student, chunk.teacher
        columns = self.tables.on(student.logits.device)["columns"]
        ours, theirs, same = self._same_tokens(chunk)
        mapped = self._mapped(teacher.logits, teacher.index[theirs])
        log_p = (mapped / tau).log_softmax(-1).to(student.logits.dtype)
        # A group without a target of the teacher's has weight 0, rather than no row: to leave it out, the host would
        # have to wait for its number.
        p = log_p.exp() * same[:, None]
        gold = torch.ones_like(student.tokens, dtype=p.dtype).index_add(0, ours, -same.to(p.dtype))
        index = None if student.in_order else student.index
        kd = _CrossEntropy.apply(student.logits, index, student.tokens, gold, ours, p, columns, tau)  # type: ignore[no-untyped-call]
        kd = kd + torch.where(p > 0, p * log_p, 0).sum()
        kept = same.sum().to(p.dtype)
        # some rows at a time: on a CPU new memory is slow
        whole = [rows.logsumexp(-1) for rows in torch.split(teacher.logits, _ROWS_AT_ONCE)]
        share = (mapped.logsumexp(-1) - torch.cat(whole)[teacher.index[theirs]]).exp()
        mass = (share * same).sum()
        return LossSums(kd, {"targets from the teacher": (kept, None), "teacher mass covered": (mass, kept)})

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        kernels = divergence_for(upstream, chunk.teacher.logits)
        if kernels is None or self.held_into is None:
            return None
        tau, student, teacher = self.options.temperature, chunk.student, chunk.teacher
        first, theirs, same = self._same_tokens(chunk)  # a group has one student token, and each token is in one
        ours, theirs, sources = student.index[first], teacher.index[theirs], self.sources.on(upstream.device)
        mapped = kernels.mapped(teacher.logits, theirs, sources["starts"], sources["tokens"])
        whole = kernels.softened(teacher.logits, theirs, 1.0)
        every = torch.arange(len(mapped), device=mapped.device)
        target = kernels.softened(mapped, every, tau)
        plain = target if tau == 1.0 else kernels.softened(mapped, every, 1.0)
        value, norm = kernels.add_kl(
            kernels.softened(student.logits, ours, tau, lse=lse[ours] if tau == 1.0 else None),
            target,
            tau,
            "forward",
            upstream,
            scale,
            kernels.Partners(sources["partners"], False),
            kernels.Gold(student.tokens[first], same.int()),
        )
        kept, mass = same.sum().to(lse.dtype), ((plain.lse - whole.lse).exp() * same).sum()
        diagnostics = {"targets from the teacher": (kept, None), "teacher mass covered": (mass, kept)}
        return LossSums(value, diagnostics, squared_norm=norm)

    def _same_tokens(self, chunk: AlignedChunk) -> tuple[Tensor, Tensor, Tensor]:
        """For each group its first member on either side, int64 [groups], and whether the two are its only ones and
        one token by the map, bool [groups].
        """
        student, teacher = chunk.student, chunk.teacher
        number = torch.arange(chunk.groups + 1, device=student.group.device)
        bounds = [torch.searchsorted(side.group.contiguous(), number) for side in (student, teacher)]
        ours, theirs = (bound[:-1] for bound in bounds)
        alone = (bounds[0].diff() == 1) & (bounds[1].diff() == 1)
        named = self.tables.on(theirs.device)["student_of_teacher"][teacher.tokens[theirs]]
        return ours, theirs, alone & (named == student.tokens[ours])

    def _mapped(self, logits: Tensor, rows: Tensor) -> Tensor:
        """[rows, columns]: for each student token that is reached, the logit of the teacher token that counts."""
        tables = self.tables.on(logits.device)
        reaching = logits.index_select(1, tables["reaching"]).index_select(0, rows)
        place = tables["place"].expand_as(reaching)
        return reaching.new_full((len(rows), len(tables["columns"])), -torch.inf).scatter_reduce(
            1, place, reaching, "amax"
        )

    def _released_loss(self, chunk: AlignedChunk) -> LossSums:
        z = chunk.teacher.mean_logits(chunk.groups)
        partners = self.tables.on(z.device)["student_of_teacher"][: z.shape[-1]]
        z = z[:, : len(partners)]
        mapped = (partners > 0) & (partners < len(partners))
        a = z.index_select(1, partners.clamp(0, len(partners) - 1)).masked_fill(~mapped, MASKED)
        positions = z.new_full((), len(z))
        return LossSums(
            released_divergence(z, a, self.options.temperature, chunk.response_groups),
            diagnostics={
                "columns masked": (positions * (~mapped).sum(), positions * len(partners)),
                "teacher mass covered": ((z.softmax(-1) * mapped).sum(), positions),
            },
        )


def _sources(columns: IntArray, reaching: IntArray, place: IntArray, size: int) -> dict[str, Tensor]:
    """For kernels: the teacher's tokens of each student token that is reached, those with as many side by side.

    Args:
        columns, reaching, place: as in ``tables``.
        size: of the student's vocabulary.

    Returns:
        int32: ``tokens``; ``starts``, where each student token's begin; ``partners`` [size], its number there, or -1.
    """
    counts = np.bincount(place, minlength=columns.size)
    order = np.argsort(counts, kind="stable")
    number = np.empty_like(order)
    number[order] = np.arange(order.size)
    partners = np.full(size, UNMAPPED)
    partners[columns] = number
    starts = np.concatenate([[0], np.cumsum(counts[order])])
    tokens = reaching[np.argsort(number[place], kind="stable")]
    found = {"tokens": tokens, "starts": starts, "partners": partners}
    return {name: torch.from_numpy(made).int() for name, made in found.items()}


def _of_each_token(teacher: IntArray, student: IntArray, response: AlignedResponse) -> Groups:
    """Groups of a path's links by student token; a teacher token may be in several."""
    count = response.student_ids.size if student.size else 0
    every = np.arange(count)
    return Groups(every, every, teacher, student, count, notes=path_notes(teacher, student, response))


class _CrossEntropy(torch.autograd.Function):
    """Sum of -target · log softmax(z / τ), whose gradient is made with the value, in the one copy of the rows.

    A member's target, whose sum is 1, is ``gold`` on its token, and ``p`` over columns where a group points to it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        index: Tensor | None,
        tokens: Tensor,
        gold: Tensor,
        ours: Tensor,
        p: Tensor,
        columns: Tensor,
        tau: float,
    ) -> Tensor:
        """See :meth:`MinED._described_loss`.

        Args:
            logits: [rows, vocabulary].
            index: int64 [members], row of each; None where members are the rows.
            tokens, gold: [members], token of each and its weight.
            ours: int64 [groups], ascending, member of each row of ``p``.
            p: [groups, columns], probabilities, or zeros.
            columns: int64, of the vocabulary.
        """
        log_q = (logits if index is None else logits.index_select(0, index)).div(tau).log_softmax(-1)
        picked = log_q.gather(1, tokens[:, None]).squeeze(1)
        value = -(gold * picked).sum() - (p * log_q.index_select(1, columns).index_select(0, ours)).sum()
        if ctx.needs_input_grad[0]:
            rows = log_q.exp_()
            reached = rows.index_select(1, columns).index_add_(0, ours, p, alpha=-1)
            rows.index_copy_(1, columns, reached)
            rows.scatter_add_(1, tokens[:, None], -gold[:, None])
            rows.div_(tau)
            ctx.rows, ctx.index = len(logits), index
            ctx.save_for_backward(rows)
        return value

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        (members,) = ctx.saved_tensors
        gradient = members * scale
        if ctx.index is not None:
            gradient = gradient.new_zeros(ctx.rows, gradient.shape[-1]).index_add_(0, ctx.index, gradient)
        return gradient, *[None] * 7
