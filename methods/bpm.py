"""Byte-Prefix Marginalization (BPM): the teacher's whole mass, given to student tokens that begin the teacher's.

arXiv 2607.22334:   L = CE + w · Σ_g KL(t_g || p_S(g)),   t_g(u) = Σ_{φ(v) = u} p_T(v | g)

g: places where a token of the student and one of the teacher begin on the same byte. φ(v): the longest student token
whose bytes begin the teacher's token v. Mass of tokens that none begins is left over, and nothing is renormalised.
Where the student's own token y covers several of the teacher's, t_g(y) is the product of the probabilities of those
inside of y, times the mass of all that begin with what remains of y: a lower bound, exact elsewhere (``spanning``).
Rows whose token is all spaces or tabs are withheld: without that, a run of the paper's lost most of its accuracy on
code (``whitespace``).

Neither the divergence's direction nor what becomes of the mass left over is in what could be read of the paper, and its
code was not found: KL(t || p_S), to which what is left over adds a constant that is left out, is ours. So the value may
be negative. The paper learns from the student's own responses: set ``rollout_share``.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from methods.base import AlignedChunk, Held, LossSums, Method, OnPolicyOptions, TeacherKind, register
from methods.library.alignment import AlignedResponse, Groups, first_members, group_bytes
from methods.library.beginnings import Beginnings
from methods.library.maps import Tables, mapped_columns, stored_map
from methods.library.merging import first_places
from methods.library.vocabulary import TokenizerPair


class BPMOptions(OnPolicyOptions):
    whitespace: bool = Field(False, description="compare rows whose token is all spaces or tabs too")
    spanning: bool = Field(True, description="correct the mass of a student token that covers several of the teacher's")


@register
class BPM(Method[BPMOptions]):
    name, paper, teacher = "bpm", "arXiv 2607.22334", TeacherKind.CROSS_TOKENIZER
    summary = "forward KL to the teacher's whole distribution, mapped to the longest tokens that begin its own"
    Options = BPMOptions

    @property
    def held(self) -> Held:
        return Held(3, 1.8)

    def prepare(self, pair: TokenizerPair) -> None:
        self.tables = Tables(**mapped_columns(stored_map("prefix", pair.teacher, pair.student, pair.maps)))
        texts = pair.student.token_bytes
        blank = np.fromiter((not text.strip(b" \t") for text in texts), dtype=bool, count=len(texts))
        self._withheld = blank & (pair.student.widths > 0) & (not self.options.whitespace)
        self._pair, self._beginnings = pair, Beginnings(pair.teacher)

    def align(self, response: AlignedResponse) -> Groups:
        """Groups of one token of the student and those of the teacher that begin in it, the first where it does."""
        groups = group_bytes(response.student_ends, response.teacher_ends)
        ours = first_members(groups.student_index, groups.student_group)
        ends = response.student_ends[ours]
        starts = np.append(0, response.teacher_ends)[groups.teacher_index]
        inside = (starts < ends[groups.teacher_group]) | (np.diff(groups.teacher_group, prepend=-1) > 0)
        kept = ~self._withheld[response.student_ids[ours]]
        number, inside = np.cumsum(kept) - 1, inside & kept[groups.teacher_group]
        theirs, of_group = groups.teacher_index[inside], number[groups.teacher_group[inside]]
        return Groups(ours[kept], np.arange(kept.sum()), theirs, of_group, int(kept.sum()))

    def loss(self, chunk: AlignedChunk) -> LossSums:
        student, teacher, logits = chunk.student, chunk.teacher, chunk.student.logits
        tables = self.tables.on(logits.device)
        first = first_places(teacher.group, chunk.groups)
        with torch.no_grad():
            log_p = student.paired_logits().log_softmax(-1)
            q = teacher.logits.index_select(0, teacher.index[first]).softmax(-1).index_select(1, tables["theirs"])
            target = torch.zeros_like(log_p).index_add_(1, tables["ours"], q)
            covered, spanning = target.sum(), target.new_zeros(())
            if self.options.spanning:
                spanning += self._correct(target, chunk)
            value = torch.xlogy(target, target).addcmul_(target, log_p, value=-1).sum()
            gradient = log_p.exp_().mul_(target.sum(-1, keepdim=True)).sub_(target)
        groups = logits.new_full((), chunk.groups)
        diagnostics = {"teacher mass covered": (covered, groups), "spanning tokens": (spanning, groups)}
        return LossSums.closed(logits, value, student.spread(gradient), diagnostics)

    def _correct(self, target: Tensor, chunk: AlignedChunk) -> int:
        """Set t(y) where y covers several tokens of the teacher; how many such y there are.

        Args:
            target: [groups, student vocabulary], changed in place.
        """
        student, teacher = self._pair.student.token_bytes, self._pair.teacher.token_bytes
        theirs, own = chunk.teacher.tokens.tolist(), chunk.student.tokens.tolist()
        bounds = np.searchsorted(chunk.teacher.group.cpu().numpy(), np.arange(chunk.groups + 1)).tolist()
        corrected = 0
        for group, (start, stop) in enumerate(pairwise(bounds)):
            text, before = student[own[group]], b"".join(teacher[token] for token in theirs[start : stop - 1])
            if stop - start < 2 or not text.startswith(before):  # a space that one tokenizer put there by itself
                continue
            rest = text[len(before) :]
            exact = rest == teacher[theirs[stop - 1]]
            last = theirs[stop - 1 : stop] if exact else self._beginnings.of(rest).tolist()
            rows = chunk.teacher.logits.index_select(0, chunk.teacher.index[start:stop]).log_softmax(-1)
            mass = rows[-1, last].logsumexp(0)
            for row, token in zip(rows[:-1], theirs[start : stop - 1], strict=True):
                mass = mass + row[token]
            target[group, own[group]] = mass.exp()
            corrected += 1
        return corrected
