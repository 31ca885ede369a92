"""Common-Support Distillation (CSD): at every place what both vocabularies can say alike, and the rest as one mass.

arXiv 2610.28895:   L = CE + w · [Σ_{1:1} KL(T_g || S_g) + β Σ_{others} KL(T_g || S_g)]

g: groups of tokens that end on the same byte. S_g and T_g are distributions over the group's common support and what is
left of 1, so that a term is never negative, and 0 where the models agree. Of a group of one token on each side the
support are the tokens of both vocabularies. Where one side has several tokens, what precedes their last is held fixed,
and the support are the last tokens for which the other side has one that ends the same text; each has the mass of its
path, p(first) ... p(last but one) · p(last). Where both sides have several, it is the path of the text alone.

The paper weights the KD term by CE / KD of the same step; ``kd_scale: match_ce`` does by those of the step before.
Divergence and β are not in what could be read: forward KL and 1 are ours. What is left counts as 1e-7 at least, since
float32 tells less from 0 badly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from methods.base import AlignedChunk, Held, LossSums, Method, NonNegative, OnPolicyOptions, Side, TeacherKind, register
from methods.library.alignment import AlignedResponse, Groups, group_bytes
from methods.library.beginnings import Beginnings
from methods.library.divergences import forward_kl
from methods.library.maps import Tables, exact_map, mapped_columns, spellings
from methods.library.merging import group_sizes, kept_members
from methods.library.reading import by_rows, log_probs_at
from methods.library.vocabulary import TokenizerPair

_LEAST = 1e-7  # of a mass that is left


class CSDOptions(OnPolicyOptions):
    merged_weight: NonNegative = Field(1.0, description="β: weight of groups that are not one token on each side")


@register
class CSD(Method[CSDOptions]):
    name, paper, teacher = "csd", "arXiv 2610.28895", TeacherKind.CROSS_TOKENIZER
    summary = "forward KL over what both vocabularies can say at a place and the rest as one mass"
    Options = CSDOptions

    @property
    def held(self) -> Held:
        return Held(3.8, 0.3, 1e4)

    def prepare(self, pair: TokenizerPair) -> None:
        self.tables = Tables(**mapped_columns(exact_map(pair.teacher, pair.student)))
        self._equivalents = _Equivalents(pair)

    def align(self, response: AlignedResponse) -> Groups:
        return group_bytes(response.student_ends, response.teacher_ends)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        ours, theirs = _Last(chunk.student, chunk.groups), _Last(chunk.teacher, chunk.groups)
        alone = (ours.sizes == 1) & (theirs.sizes == 1)
        tables = self.tables.on(alone.device)
        single, merged = (which.nonzero().squeeze(1) for which in (alone, ~alone))
        s, t = ours.over(single, tables["ours"]), theirs.over(single, tables["theirs"])
        kd = forward_kl(s, t).sum()
        covered = t[:, :-1].exp().sum()
        if merged.numel():
            found = self._equivalents.of(ours.texts(merged), theirs.texts(merged))
            support = _Support(*(part.to(merged.device) for part in found))
            s, t = ours.along(merged, support.ours, support.group), theirs.along(merged, support.theirs, support.group)
            kd = kd + self.options.merged_weight * _sparse_kl(s, t, support.group, merged.numel())
            covered = covered + t.exp().sum()
        groups = kd.new_full((), chunk.groups)
        pairs = kd.new_full((), single.numel())
        return LossSums(kd, {"aligned 1-1": (pairs, None), "teacher mass covered": (covered.detach(), groups)})


class _Last:
    """One side's groups by their last members: the row of each, and the log-probability of the path to it."""

    def __init__(self, side: Side, groups: int) -> None:
        self.sizes = group_sizes(side.group, groups)  # int64 [groups]
        last = kept_members(side.group, groups, "bayesian")
        self._side, self._groups, self._last, self._row = side, groups, last, side.index[last]

    def over(self, groups: Tensor, columns: Tensor) -> Tensor:
        """[groups, columns + 1]: log-masses of tokens in the last row of some groups, and of all others together."""
        logits = self._side.logits
        others = torch.ones(logits.shape[-1], dtype=torch.bool, device=columns.device).index_fill(0, columns, False)
        other_columns = others.nonzero().squeeze(1)

        def masses(rows: Tensor, _: slice) -> Tensor:
            log_total = rows.logsumexp(-1, keepdim=True)
            rest = rows.index_select(1, other_columns).logsumexp(-1, keepdim=True) - log_total
            return torch.cat([rows.index_select(1, columns) - log_total, rest.clamp_min(math.log(_LEAST))], -1)

        return by_rows(masses, logits, self._row[groups])

    def along(self, groups: Tensor, columns: Tensor, number: Tensor) -> Tensor:
        """[entries]: log-masses of last tokens with the path to them; entry i is of group ``groups[number[i]]``."""
        side, group = self._side, groups[number]
        entries = torch.cat([side.index, self._row[group]]), torch.cat([side.tokens, columns])
        found, _ = log_probs_at(side.logits, entries, (group[:0], group[:0]))
        before = found[: side.index.numel()].index_fill(0, self._last, 0.0)
        path = found.new_zeros(self._groups).index_add(0, side.group, before)
        return path[group] + found[side.index.numel() :]

    def texts(self, groups: Tensor) -> list[list[int]]:
        """The tokens of some groups."""
        bounds = torch.cat([self.sizes.new_zeros(1), self.sizes.cumsum(0)]).tolist()
        tokens = self._side.tokens.tolist()
        return [tokens[bounds[group] : bounds[group + 1]] for group in groups.tolist()]


def _sparse_kl(student: Tensor, teacher: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sum over groups of KL(teacher || student) over their entries and what is left of 1.

    Args:
        student, teacher: [entries], log-masses.
        group: int64 [entries].
    """
    left = [
        (1 - side.new_zeros(groups).index_add(0, group, side.exp())).clamp_min(_LEAST).log()
        for side in (student, teacher)
    ]
    return (teacher.exp() * (teacher - student)).sum() + (left[1].exp() * (left[1] - left[0])).sum()


class _Support(NamedTuple):
    """Columns of either side that are compared, and the group of each. All int64 [entries]."""

    ours: Tensor
    theirs: Tensor
    group: Tensor


class _Equivalents:
    """Last tokens of a group that both sides can end with, on the same text.

    Args:
        pair: both vocabularies.
    """

    def __init__(self, pair: TokenizerPair) -> None:
        self._sides = pair.student, pair.teacher
        self._beginnings = Beginnings(pair.student), Beginnings(pair.teacher)
        self._spellings = spellings(pair.student), spellings(pair.teacher)
        self._known: dict[tuple[int, bytes], list[tuple[int, int]]] = {}

    def of(self, ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> _Support:
        """The support of groups of given tokens, on the CPU."""
        pairs: list[tuple[int, int]] = []
        group: list[int] = []
        for number, (student, teacher) in enumerate(zip(ours, theirs, strict=True)):
            found = self._pairs(student, teacher)
            pairs += found
            group += [number] * len(found)
        columns = torch.tensor(pairs).unbind(1)
        return _Support(columns[0], columns[1], torch.tensor(group))

    def _pairs(self, student: Sequence[int], teacher: Sequence[int]) -> list[tuple[int, int]]:
        own = student[-1], teacher[-1]
        if len(student) > 1 and len(teacher) > 1:
            return [own]
        whole = 0 if len(student) == 1 else 1  # the side that says the group in one token
        before = (teacher if whole == 0 else student)[:-1]
        prefix = b"".join(self._sides[1 - whole].token_bytes[token] for token in before)
        found = self._that_begin(whole, prefix) if prefix else []
        return found if own in found else [*found, own]  # a space that one tokenizer puts there itself is not spelled

    def _that_begin(self, whole: int, prefix: bytes) -> list[tuple[int, int]]:
        """Tokens of one side that begin with a prefix, with those of the other that are what remains of them."""
        if (whole, prefix) not in self._known:
            texts, others = self._sides[whole].token_bytes, self._spellings[1 - whole]
            found = [
                (token, others[texts[token][len(prefix) :]])
                for token in self._beginnings[whole].of(prefix).tolist()
                if texts[token][len(prefix) :] in others and self._spellings[whole][texts[token]] == token
            ]
            self._known[whole, prefix] = found if whole == 0 else [(other, token) for token, other in found]
        return self._known[whole, prefix]
