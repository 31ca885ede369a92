"""Approximate Likelihood Matching (ALM): one number a chunk, how likely each model finds the chunk's text.

Minixhofer, Vulić, Ponti, arXiv 2503.20083, sections 3.1 and appendix A.2:

    L = CE + w · τ Σ_c [f(a || b) + f(1 - a || 1 - b)],   a = p_T(c)^(1/τ),  b = p_S(c)^(1/τ),  f(a || b) = a log(a / b)

c: chunks of the response that both tokenizers end on the same byte; p(c): the product of its tokens' probabilities,
times the mass B(c) of the tokens that begin with a space, a newline or a tab in the row behind the chunk, so that where
a tokenizer cuts says nothing of how the text goes on (``debiased``). Chunks whose mass B under the teacher is not above
γ are left out. ``divergence: tvd`` sets f = |a - b|. The EOS has no row behind it: its mass B is 1.

The factor τ is ours: the gradient of the formula falls as 1/τ, and the authors balance losses by the norms of their
gradients, where factors count for nothing. They take means over chunks (``normalize: rows`` divides by all of them).
The paper's loss of hidden states is not here. A log-probability above -1e-6, which float32 can't tell from 0, counts as
-1e-6.

``released`` (tokenkit, at bcacdef): binary cross-entropies -a log b - (1 - a) log(1 - b), both log-probabilities
lowered by 1e-6 after division by τ, whose floor is not 0; a chunk whose mass B is not above γ is joined with those
behind it, up to one whose is, and what remains at the end is kept; control tokens count in B too; means over what is
then left of a response, and over responses (the code takes the mean over a batch at once).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from methods.base import (
    AlignedChunk,
    Held,
    KDOptions,
    LossSums,
    Method,
    Need,
    Positive,
    Rows,
    Share,
    Side,
    TeacherKind,
    register,
)
from methods.library.alignment import AlignedResponse, Groups, group_bytes
from methods.library.maps import Tables
from methods.library.merging import kept_members
from methods.library.vocabulary import TokenizerPair, TokenKind, Vocabulary

_LARGEST = -1e-6  # of a chunk's log-probabilities
_RELEASED_EPSILON = 1e-6
_BOUNDARIES = (b" ", b"\n", b"\t")


class ALMOptions(KDOptions):
    temperature: Positive = Field(100.0, description="τ; the paper's runs have 100, its footnote finds 5 better")
    divergence: Literal["kl", "tvd"] = Field("kl", description="f: a log (a / b), or |a - b| (described)")
    debiased: bool = Field(True, description="multiply chunks by the mass of tokens that may begin behind them")
    threshold: Share = Field(
        0.1, description="γ: chunks whose mass behind them, under the teacher, is not above it are left out"
    )


@register
class ALM(Method[ALMOptions]):
    name, paper, teacher = "alm", "arXiv 2503.20083", TeacherKind.CROSS_TOKENIZER
    summary = "binary KL of the probabilities that both models give to chunks of the text"
    fidelities_differ = True
    released_normalize = "samples"
    Options = ALMOptions
    rows = Rows.AFTER  # so that the last token of a chunk has the row behind it

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | {Need.ROW_SCALARS}

    @property
    def held(self) -> Held:
        return Held(0.8, 0.8)

    @property
    def zero_at_identity(self) -> bool:
        return not self._released

    def prepare(self, pair: TokenizerPair) -> None:
        sides = {"student": pair.student, "teacher": pair.teacher}
        boundaries = {name: torch.from_numpy(_begins_a_word(side, self._released)) for name, side in sides.items()}
        ends = {f"{name}_ends": torch.from_numpy(side.kinds == TokenKind.SPECIAL) for name, side in sides.items()}
        self.tables = Tables(**boundaries, **ends)

    def align(self, response: AlignedResponse) -> Groups:
        return group_bytes(response.student_ends, response.teacher_ends)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        tables = self.tables.on(chunk.student.group.device)
        student, of_student = _likelihoods(chunk.student, chunk.groups, tables["student"], tables["student_ends"])
        teacher, of_teacher = _likelihoods(chunk.teacher, chunk.groups, tables["teacher"], tables["teacher_ends"])
        kd, kept = self.over_chunks(student, of_student, teacher, of_teacher)
        return LossSums(kd, {"chunks kept": (kept, torch.full_like(kept, chunk.groups))})

    def over_chunks(
        self, student: Tensor, of_student: Tensor, teacher: Tensor, of_teacher: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of a response's chunks.

        Args:
            student, teacher: [chunks], log-probabilities in nats.
            of_student, of_teacher: [chunks], logs of the masses B behind them.

        Returns:
            The sum over chunks, or their mean where released; and how many are compared. Scalars.
        """
        clear = of_teacher.exp() > self.options.threshold
        kept = clear if self.options.debiased else torch.ones_like(clear)
        if self._released:
            number, is_last = _joined(clear)
            kept = torch.zeros_like(clear).index_fill_(0, number, True)
            student, teacher = (_sums_by(number, side) for side in (student, teacher))
            of_student, of_teacher = (_sums_by(number, side * is_last) for side in (of_student, of_teacher))
        if self.options.debiased:
            student, teacher = student + of_student, teacher + of_teacher
        tau = self.options.temperature
        a, b = (side.clamp_max(_LARGEST) / tau for side in (teacher, student))
        values = _cross_entropies(a, b) if self._released else _divergences(a, b, self.options.divergence)
        kd, count = tau * values.masked_fill(~kept, 0.0).sum(), kept.sum().to(values.dtype)
        return kd / count.clamp_min(1) if self._released else kd, count


def _begins_a_word(side: Vocabulary, special: bool) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ids of the tokens that may stand behind a boundary."""
    begins = np.fromiter((spelling[:1] in _BOUNDARIES for spelling in side.token_bytes), dtype=bool, count=len(side))
    begins &= side.kinds <= TokenKind.FALLBACK
    return np.flatnonzero(begins | (side.kinds == TokenKind.SPECIAL) if special else begins)


def _likelihoods(side: Side, groups: int, boundaries: Tensor, is_end: Tensor) -> tuple[Tensor, Tensor]:
    """[groups] each: a chunk's log-probability, and the log of the mass B in the row behind it.

    Args:
        boundaries: int64, columns of the tokens that B counts.
        is_end: bool by id, tokens behind which there is nothing.
    """
    last, predicting = kept_members(side.group, groups, "bayesian"), side.index - 1
    predicted = torch.zeros_like(side.targets).index_copy_(0, predicting, side.tokens)

    def numbers(logits: Tensor, rows: slice) -> Tensor:
        log_probs = logits.log_softmax(-1)
        realised = log_probs.gather(1, predicted[rows, None])
        return torch.cat([realised, log_probs.index_select(1, boundaries).logsumexp(-1, keepdim=True)], 1)

    realised, begun = side.read(numbers).unbind(1)
    chunks = realised.new_zeros(groups).index_add(0, side.group, realised.index_select(0, predicting))
    behind = begun.index_select(0, side.index[last])
    return chunks, behind.masked_fill(is_end[side.tokens[last]], 0.0)


def _joined(clear: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the joined chunk that each chunk is in, int64 [groups], and whether it is the last one in it."""
    number = clear.cumsum(0) - clear.long()
    is_last = clear.clone()
    is_last[-1:].fill_(True)
    return number, is_last


def _sums_by(number: Tensor, values: Tensor) -> Tensor:
    """[groups]: sums of the joined chunks, 0 where there is none of that number."""
    return torch.zeros_like(values).index_add(0, number, values)


def _divergences(log_a: Tensor, log_b: Tensor, kind: Literal["kl", "tvd"]) -> Tensor:
    """f(a || b) + f(1 - a || 1 - b)."""
    a = log_a.exp()
    if kind == "tvd":
        return 2 * (a - log_b.exp()).abs()
    return a * (log_a - log_b) + (1 - a) * (_log1m(log_a) - _log1m(log_b))


def _cross_entropies(log_a: Tensor, log_b: Tensor) -> Tensor:
    """-a log b - (1 - a) log (1 - b), as in tokenkit's ``binary_ce``."""
    log_a, log_b = log_a - _RELEASED_EPSILON, log_b - _RELEASED_EPSILON
    a = log_a.exp()
    return -a * log_b - (1 - a) * _log1m(log_b)


def _log1m(log_p: Tensor) -> Tensor:
    """log (1 - p) of log p < 0."""
    return (-log_p.expm1()).log()
