"""SimCT: one distribution over the shared tokens and the unit of text that both tokenizers cut at a place.

arXiv 2605.07711:   L = CE + w · Σ_g KL(P_S(g) || P_T(g)),   P(g) = softmax of the scores of U_g

g: units, the smallest parts of the response that both tokenizers end on the same byte. U_g: the tokens of both
vocabularies, and the unit itself where it is no such token. A token's score is its log-probability in the row that
predicts the unit's first token; the unit's is the mean of the log-probabilities of its own tokens, each in its own row.
Means of logs are no log-probabilities: the unit of several tokens counts for more than it is worth.

``released`` (github.com/sunjie279/SimCT-, at 4dae6fc): scores are logits, so that a constant added to a row behind the
first changes the loss; and a unit ends only with a token that both sides have and cut alike, so that it swallows the
next one of those, and what comes behind the last of them is in none. Both at temperature 1; the paper learns from the
student's own responses, without cross-entropy (``rollout_share``, ``ce_weight``).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from methods.base import AlignedChunk, Held, LossSums, Method, OnPolicyOptions, Side, TeacherKind, register
from methods.library.alignment import AlignedResponse, Groups, group_bytes
from methods.library.divergences import reverse_kl
from methods.library.maps import Tables, exact_map, mapped_columns
from methods.library.merging import first_places, group_sizes
from methods.library.reading import log_probs_at
from methods.library.vocabulary import TokenizerPair

_ABSENT = -1e4  # score of what is in no distribution


@register
class SimCT(Method[OnPolicyOptions]):
    name, paper, teacher = "simct", "arXiv 2605.07711", TeacherKind.CROSS_TOKENIZER
    summary = "reverse KL over the shared tokens and the unit of text that both tokenizers cut at a place"
    fidelities_differ = True
    Options = OnPolicyOptions

    @property
    def held(self) -> Held:
        return Held(1.6, 0.5, 2e4)

    def prepare(self, pair: TokenizerPair) -> None:
        self._student_of_teacher = exact_map(pair.teacher, pair.student)
        self.tables = Tables(
            **mapped_columns(self._student_of_teacher), student_of_teacher=torch.from_numpy(self._student_of_teacher)
        )

    def align(self, response: AlignedResponse) -> Groups:
        units = group_bytes(response.student_ends, response.teacher_ends)
        return self._joined(units, response) if self._released else units

    def _joined(self, units: Groups, response: AlignedResponse) -> Groups:
        """Units up to each that is one token of both vocabularies, as the released code's two pointers find them."""
        alone = units.only_one_to_one()
        same = self._student_of_teacher[response.teacher_ids[alone.teacher_index]]
        closing = alone.student_index[same == response.student_ids[alone.student_index]]
        closes = np.zeros(units.count, dtype=bool)
        closes[units.student_group[closing]] = True  # of partitions, a token's place is its member's
        number = np.cumsum(closes) - closes
        count = int(closes.sum())
        ours, theirs = (number[group] < count for group in (units.student_group, units.teacher_group))
        return Groups(
            units.student_index[ours],
            number[units.student_group[ours]],
            units.teacher_index[theirs],
            number[units.teacher_group[theirs]],
            count,
        )

    def loss(self, chunk: AlignedChunk) -> LossSums:
        tables, groups = self.tables.on(chunk.student.logits.device), chunk.groups
        (ours, unit), (theirs, other) = (
            _scores(side, groups, tables[columns], raw=self._released)
            for side, columns in ((chunk.student, "ours"), (chunk.teacher, "theirs"))
        )
        shared = _is_shared(chunk, tables["student_of_teacher"])
        p, q = (
            torch.cat([tokens, of_unit.masked_fill(shared, _ABSENT)[:, None]], -1).log_softmax(-1)
            for tokens, of_unit in ((ours, unit), (theirs, other))
        )
        count = p.new_full((), groups)
        return LossSums(reverse_kl(p, q).sum(), {"units of several tokens": ((~shared).sum().to(p.dtype), count)})


def _scores(side: Side, groups: int, columns: Tensor, raw: bool) -> tuple[Tensor, Tensor]:
    """Scores [groups, columns] of tokens in the first row of each unit, and [groups] of the units."""
    first = side.index[first_places(side.group, groups)]
    realised, tokens = log_probs_at(side.logits, (side.index, side.tokens), (first, columns), raw=raw)
    sizes = group_sizes(side.group, groups)
    return tokens, realised.new_zeros(groups).index_add(0, side.group, realised) / sizes


def _is_shared(chunk: AlignedChunk, student_of_teacher: Tensor) -> Tensor:
    """bool [groups]: the unit is one token, which both vocabularies have."""
    sides = chunk.student, chunk.teacher
    ours, theirs = (side.tokens[first_places(side.group, chunk.groups)] for side in sides)
    our_sizes, their_sizes = (group_sizes(side.group, chunk.groups) for side in sides)
    return (our_sizes == 1) & (their_sizes == 1) & (student_of_teacher[theirs] == ours)
