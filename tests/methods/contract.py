"""What tests of methods share: harness/training/contract_bench.py, and the engine's loss of given logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from harness.data.batches import Collator
from harness.data.chunks import TEACHER_ROWS, row_bounds
from harness.data.terms import AlignedExample, Term
from harness.data.tokens import STUDENT, TokenizedExample
from harness.models.heads import Head
from harness.training.chunk_walk import ChunkWalk
from harness.training.contract import resumed_equals_straight
from harness.training.contract_bench import Bench, StoppedError, bench, run
from harness.training.objective import Objective
from methods.base import Method
from methods.library.alignment import Groups

__all__ = ["Bench", "Seen", "StoppedError", "bench", "loss_of_logits", "resumed_equals_straight", "run", "seen"]


class Seen(NamedTuple):
    """What one model of a bench says of one response, and how its tokenizer cuts it.

    Attributes:
        rows: [tokens + 1, vocabulary], logits; row i predicts token i, the last one has seen the whole response.
        ids, ends: of the response's tokens; where each ends, in bytes.
    """

    rows: torch.Tensor
    ids: list[int]
    ends: list[int]

    @property
    def realised(self) -> list[float]:
        """Log-probability of each token."""
        return [float(self.rows[i].log_softmax(-1)[token]) for i, token in enumerate(self.ids)]


@torch.no_grad()
def seen(made: Bench) -> list[tuple[Seen, Seen]]:
    """Student and teacher of each example, models run whole."""
    found = []
    for aligned in made.examples:
        pair = []
        for role, model in ((STUDENT, made.student), (made.role, made.teacher)):
            side = aligned.example.sides[role]
            assert model is not None
            logits = model(input_ids=torch.from_numpy(side.sequence)[None]).logits[0]
            pair.append(Seen(logits[side.prompt.size - 1 :], side.response.tolist(), side.ends.tolist()))
        found.append((pair[0], pair[1]))
    return found


def chunks_by_walking(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Tokens of either side between two bytes where both end, found by taking the side that is behind."""
    chunks: list[tuple[list[int], list[int]]] = []
    open_: tuple[list[int], list[int]] = ([], [])
    i = j = 0
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            chunks.append(([*open_[0], i], [*open_[1], j]))
            open_, i, j = ([], []), i + 1, j + 1
        elif ours[i] < theirs[j]:
            open_[0].append(i)
            i += 1
        else:
            open_[1].append(j)
            j += 1
    return chunks


def loss_of_logits(
    method: Method,
    examples: Sequence[TokenizedExample],
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    groups: Sequence[Groups] | None = None,
) -> tuple[float, list[torch.Tensor]]:
    """The engine's KD loss of given logits: heads are identity matrices, so that rows are logits.

    Args:
        examples: with sides "student" and "cross".
        student, teacher: [length, vocabulary] of each example's whole sequence.
        groups: of each example; None: as the method aligns.

    Returns:
        The loss, and its gradient at each example's student logits.
    """
    term = Term(method, "cross", 1.0)
    found = [method.align(e.aligned("cross")) for e in examples] if groups is None else groups
    aligned = [AlignedExample(e, (g,)) for e, g in zip(examples, found, strict=True)]
    stored = {
        e.id: logits[slice(*row_bounds(e.sides["cross"], TEACHER_ROWS))]
        for e, logits in zip(examples, teacher, strict=True)
    }
    collator = Collator((term,), {STUDENT: 0}, chunk_rows=16, stored={"cross": stored.__getitem__})
    batch = collator.collate(aligned)
    padded = torch.nn.utils.rnn.pad_sequence(list(student), batch_first=True)
    heads = [torch.eye(side[0].shape[-1], dtype=side[0].dtype) for side in (student, teacher)]
    objective = Objective(method.name, 0.0, (term,))
    divisors = objective.divisors(batch.counts)
    rows = padded.flatten(0, 1).index_select(0, batch.row_index)
    teacher_rows = batch.teachers["cross"].stored
    assert teacher_rows is not None
    walk = ChunkWalk(objective, Head(heads[0]), {"cross": Head(heads[1])}, {"cross": teacher_rows}, batch, divisors)
    parts, (of_rows, _) = walk.run(rows, [heads[0]], [True, False])
    assert of_rows is not None
    gradient = torch.zeros_like(padded).flatten(0, 1).index_copy(0, batch.row_index, of_rows).view_as(padded)
    return float(parts.loss), [g[: len(s)] for g, s in zip(gradient, student, strict=True)]
