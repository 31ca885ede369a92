"""What an objective compares in a few responses, token by token, for the report's viewer: tokens, groups, KD.

Made right after a student was trained, while it and its teachers' heads are in memory; a report then needs no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from harness.base.files import digest_of
from harness.data.batches import Batch, Collator
from harness.data.chunks import Layout
from harness.data.teacher_rows import StoredRows
from harness.data.templates import TextSide
from harness.data.terms import AlignedExample, Term, align, pairs
from harness.data.tokens import STUDENT, SideTokens, TokenizedExample, token_side
from harness.models.heads import Head, entropies, hidden_states
from harness.store.artefacts import Trace
from harness.training.chunk_walk import ChunkWalk
from harness.training.objective import Objective
from methods.base import Need, Rows
from methods.library.alignment import AlignedResponse, Groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRACED = 2  # responses of a task: a report shows how a row aligns them, and each takes a second of a CPU
LONGEST = 200  # tokens of a traced response on the longest side: more is not read, and its logits take memory


def chosen(examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """The first held-out responses that are short enough to look at."""
    short = (e for e in examples if max(side.response.size for side in e.sides.values()) <= LONGEST)
    # Teacher rows are shared by runs whose test items may differ: the name says which tokens the rows belong to.
    return [replace(example, id=f"{example.id}@{_digest(example)}") for example in islice(short, TRACED)]


def _digest(example: TokenizedExample) -> str:
    return digest_of({role: side.sequence.tolist() for role, side in sorted(example.sides.items())})[:12]


class Tracer:
    """Traces responses through trained models.

    Args:
        student: as trained, its adapters in place.
        live, heads, stored: the teachers by role: a live model, its head, or its stored rows.
        pad: padding token id by role.
        sides: tokenizers by role.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        live: Mapping[str, PreTrainedModel],
        heads: Mapping[str, Head],
        stored: Mapping[str, StoredRows],
        pad: Mapping[str, int],
        sides: Mapping[str, TextSide],
    ) -> None:
        self.student, self.live, self.stored, self.pad, self.sides = student, live, stored, pad, sides
        self.heads = {role: Head.of(model) for role, model in live.items()} | dict(heads)

    def trace(self, examples: Sequence[TokenizedExample], terms: Sequence[Term]) -> list[Trace]:
        """Every response through every term; without those whose teacher rows were stored by an other run."""
        return [
            self.trace_one(example, term)
            for example in examples
            for term in terms
            if term.teacher not in self.stored or example.id in self.stored[term.teacher].index
        ]

    @torch.no_grad()
    def trace_one(self, example: TokenizedExample, term: Term) -> Trace:
        """One response through one term."""
        collator = Collator((term,), self.pad, chunk_rows=1, stored=self.stored)
        aligned = align(example, (term,))
        batch = collator.collate([aligned]).to(next(self.student.parameters()).device)
        student_rows = self._student_rows(batch)
        teacher_rows = self._teacher_rows(batch, term.teacher)
        (groups,) = aligned.groups
        if isinstance(groups, AlignedResponse):
            assert batch.unaligned is not None
            groups = self._align(groups, batch.unaligned.layout, term, student_rows, teacher_rows)
            batch = collator.collate([AlignedExample(example, (groups,))]).to(student_rows.device)
        prompts = [example.sides[role].prompt.size for role in (STUDENT, term.teacher)]
        # Rows.ALL counts positions of the whole sequence; the viewer shows the response alone.
        before = prompts if term.method.rows is Rows.ALL else [0, 0]
        return {
            "item": example.id.rpartition("@")[0] or example.id,
            "method": term.method.name,
            "student": token_side(self.sides[STUDENT], example, STUDENT),
            "teacher": token_side(self.sides[term.teacher], example, term.teacher),
            "groups": pairs(groups, before),
            "kd": self._kd(batch, term, student_rows, teacher_rows, example.sides[STUDENT]),
        }

    def _student_rows(self, batch: Batch) -> Tensor:
        hidden = hidden_states(self.student, batch.input_ids, batch.attention_mask, batch.position_ids)
        return hidden.flatten(0, 1).index_select(0, batch.row_index)

    def _teacher_rows(self, batch: Batch, role: str) -> Tensor:
        part = batch.teachers[role]
        if part.stored is not None:
            weight = self.heads[role].weight
            return part.stored.to(device=weight.device, dtype=weight.dtype)
        assert part.input_ids is not None
        assert part.attention_mask is not None
        assert part.position_ids is not None
        hidden = hidden_states(self.live[role], part.input_ids, part.attention_mask, part.position_ids)
        return hidden.flatten(0, 1).index_select(0, part.row_index)

    def _align(self, response: AlignedResponse, layout: Layout, term: Term, student: Tensor, teacher: Tensor) -> Groups:
        """Groups of a method that aligns by entropies."""
        first = int(layout.student_shift[0][0]), int(layout.teacher_shift[0][0])
        ours = entropies(Head.of(self.student), student, len(student)).cpu().numpy()
        theirs = entropies(self.heads[term.teacher], teacher, len(teacher)).cpu().numpy()
        return term.method.align(
            replace(
                response,
                student_entropy=ours[first[0] :][: response.student_ids.size],
                teacher_entropy=theirs[first[1] :][: response.teacher_ids.size],
            )
        )

    def _kd(
        self,
        batch: Batch,
        term: Term,
        student: Tensor,
        teacher: Tensor,
        side: SideTokens,
    ) -> list[float | None]:
        """The KD of the smallest chunks that the groups allow, spread evenly over the student tokens in them.

        None, of any token, where a response is but one: of losses that see it whole, unless they are sums over groups.
        """
        kd: list[float | None] = [None] * side.response.size
        (part,) = batch.terms
        if Need.SURVEY in term.method.needs or (part.responses is None and len(batch.chunks) == 1 and len(kd) > 1):
            return []
        ours, theirs = Head.of(self.student), self.heads[term.teacher]
        if Need.HIDDEN not in term.method.needs:
            # One product for all rows, rather than one that reads the whole head for each of them.
            student, teacher = ours.logits(student), theirs.logits(teacher)
            ours = theirs = _Ready(student.new_zeros(()))
        objective = Objective("trace", 0.0, (term,))
        weights = [ours.weight] if ours.bias is None else [ours.weight, ours.bias]

        def summed(alone: Batch) -> float:
            walk = ChunkWalk(objective, ours, {term.teacher: theirs}, {term.teacher: teacher}, alone, [1.0, 1.0])
            sums, _ = walk.run(student, weights, [False, *(False for _ in weights)])
            return float(sums.kd[0])

        if part.responses is not None:
            bounds = [(0, part.groups), (0, part.groups // 2), (part.groups // 2, part.groups)]
            whole, *halves = (summed(_of_groups(batch, *each)) for each in bounds)
            if not math.isclose(sum(halves), whole, rel_tol=1e-3):
                return []
            pieces = [_of_groups(batch, group, group + 1) for group in range(part.groups)]
        else:
            pieces = [_of_chunk(batch, number) for number in range(len(batch.chunks))]
        position = {Rows.PREDICTING: 0, Rows.AFTER: 1, Rows.ALL: side.prompt.size}[term.method.rows]
        for alone in pieces:
            (own,), ((start, _),) = alone.terms, alone.chunks
            members, _, span, _ = own.slices[0]
            if span[0] == span[1]:
                continue
            rows = np.unique(own.student_index[slice(*members)].cpu().numpy()) + start
            tokens = [int(row) - position for row in rows if 0 <= row - position < len(kd)]
            value = summed(alone)
            for token in tokens:
                kd[token] = (kd[token] or 0.0) + value / len(tokens)
        return [None if value is None or not math.isfinite(value) else float(f"{value:.4g}") for value in kd]


def _of_chunk(batch: Batch, number: int) -> Batch:
    """One chunk of a batch of one term."""
    (part,) = batch.terms
    own = replace(part, slices=[part.slices[number]], in_order=[part.in_order[number]], within=[part.within[number]])
    return replace(batch, chunks=[batch.chunks[number]], terms=[own])


def _of_groups(batch: Batch, first: int, last: int) -> Batch:
    """Some groups, one behind the other, of a batch of one response, with their rows and one more before them."""
    (part,) = batch.terms
    assert part.responses is not None
    (_, _, _, theirs), (ours,) = part.slices[0], part.responses
    of_student, of_teacher = ((g >= first) & (g < last) for g in (part.student_group, part.teacher_group))
    s, t = part.student_index[of_student], part.teacher_index[of_teacher]
    rows, taught = _with_one_before(s), _with_one_before(t)
    span = ours[0] + rows[0], ours[0] + rows[1]
    own = replace(
        part,
        student_index=s - rows[0],
        student_group=part.student_group[of_student] - first,
        student_tokens=part.student_tokens[of_student],
        teacher_index=t - taught[0],
        teacher_group=part.teacher_group[of_teacher] - first,
        teacher_tokens=part.teacher_tokens[of_teacher],
        slices=[((0, len(s)), (0, len(t)), (0, last - first), (theirs[0] + taught[0], theirs[0] + taught[1]))],
        in_order=[(False, False)],
        responses=[span],
    )
    return replace(batch, chunks=[span], terms=[own])


def _with_one_before(index: Tensor) -> tuple[int, int]:
    return (max(int(index.min()) - 1, 0), int(index.max()) + 1) if len(index) else (0, 0)


@dataclass(frozen=True)
class _Ready(Head):
    """A head for rows that are logits already."""

    def logits(self, rows: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return rows
