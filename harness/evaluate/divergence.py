"""How far a model is from a teacher on held-out references, whatever their tokenizers.

- Chunks: both models' log-likelihoods of the pieces of a response between bytes at which both have a token's end,
  Σ |log2 p_model(piece) - log2 p_teacher(piece)| over the responses' bytes. It needs no map between vocabularies, and
  is 0 where both give every piece the same probability.
- KL, where both have one vocabulary: KL(teacher || model) of the next-token distributions, in bits a response token,
  its end included. Columns that one of both lacks (padding of another size) are left out.

The pieces come from the tokens' byte spans, as in ``methods.library.alignment.group_bytes``; ends are left out of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.data.tokens import STUDENT, SideTokens, TokenizedExample
from harness.evaluate.references import reference_rows
from harness.models.heads import Head
from harness.store.artefacts import Apart
from methods.library.alignment import IntArray

FloatArray = npt.NDArray[np.float64]
CHUNK_ROWS = 128  # whose logits of both models exist at once


@dataclass(frozen=True)
class Taught:
    """A teacher, as far as a distance from it is concerned.

    Attributes:
        role: of the teacher.
        head: its.
        rows: its hidden rows of an example by its id, [n + 1, hidden], of n response tokens.
        one_vocabulary: whether a token id means the same to the student.
        said: its own log-probabilities by example id, float64 [n]. What is missing is added: they are the same for all
            students, and a large vocabulary makes them dearer than all else here.
    """

    role: str
    head: Head
    rows: Callable[[str], Tensor]
    one_vocabulary: bool
    said: dict[str, FloatArray] = field(default_factory=dict)


@torch.no_grad()
def measure(
    model: Any,
    teachers: Sequence[Taught],
    examples: Sequence[TokenizedExample],
    *,
    pad: int,
    read: Mapping[str, Tensor] | None = None,
    batch_size: int = 8,
) -> list[list[Apart]]:
    """A student's distance from each teacher, on each response that was not cut.

    Args:
        model: the student.
        examples: tokenised for it and the teachers.
        pad: the student's padding token id.
        read: the student's hidden rows of the first examples, by id, where it has read them before.

    Returns:
        A list for each teacher.
    """
    own = Head.of(model)
    found: list[list[Apart]] = [[] for _ in teachers]
    for example, rows in _read(model, examples, read or {}, pad, batch_size):
        mine = rows.to(own.weight.device)
        said = likelihoods(own, mine, example.sides[STUDENT])
        for teacher, distances in zip(teachers, found, strict=True):
            distances.append(_apart(example, own, mine, said, teacher))
    return found


def _read(
    model: Any, examples: Sequence[TokenizedExample], read: Mapping[str, Tensor], pad: int, batch_size: int
) -> Iterator[tuple[TokenizedExample, Tensor]]:
    yield from ((example, read[example.id]) for example in examples if example.id in read)
    missing = [example for example in examples if example.id not in read]
    for part, rows, _ in reference_rows(model, missing, pad=pad, batch_size=batch_size):
        yield from zip(part, rows, strict=True)


def _apart(example: TokenizedExample, own: Head, mine: Tensor, said: FloatArray, teacher: Taught) -> Apart:
    student, other = example.sides[STUDENT], example.sides[teacher.role]
    theirs = teacher.rows(example.id)[: other.response.size].to(teacher.head.weight)
    if example.id not in teacher.said:
        teacher.said[example.id] = likelihoods(teacher.head, theirs, other)
    chunks = chunk_difference(said, teacher.said[example.id], student.ends, other.ends) / math.log(2)
    kl = _kl(own, mine, teacher.head, theirs) / math.log(2) if teacher.one_vocabulary else None
    return Apart(example.id, chunks, example.response_bytes, kl, student.response.size)


def likelihoods(head: Head, rows: Tensor, tokens: SideTokens) -> FloatArray:
    """float64 [n]: natural log-probability of each response token, from the rows that predict it."""
    targets = torch.from_numpy(tokens.response).to(rows.device)
    parts = [
        head.logits(piece).float().log_softmax(-1).gather(-1, at[:, None])[:, 0]
        for piece, at in zip(torch.split(rows, CHUNK_ROWS), torch.split(targets, CHUNK_ROWS), strict=True)
    ]
    return torch.cat(parts).double().cpu().numpy()


def chunk_difference(ours: FloatArray, theirs: FloatArray, our_ends: IntArray, their_ends: IntArray) -> float:
    """Σ |difference of log-likelihoods| over the pieces between common byte ends; the last token (EOS) is left out.

    Args:
        ours, theirs: float64 [n], [m], log-probabilities of the tokens of each side.
        our_ends, their_ends: int64 [n], [m], the byte at which each ends.
    """
    common = np.intersect1d(our_ends[:-1], their_ends[:-1])
    sums = []
    for values, ends in ((ours, our_ends), (theirs, their_ends)):
        # a token without bytes of its own belongs to the piece that ends where it does
        total = np.concatenate([[0.0], np.cumsum(values[:-1])])
        sums.append(np.diff(total[np.searchsorted(ends[:-1], common, side="right")], prepend=0.0))
    return float(np.abs(sums[0] - sums[1]).sum())


def _kl(own: Head, mine: Tensor, head: Head, theirs: Tensor) -> float:
    """Sum over rows of KL(teacher || student) over the columns that both have, in nats."""
    columns = min(len(own.weight), len(head.weight))
    total = 0.0
    for a, b in zip(torch.split(mine, CHUNK_ROWS), torch.split(theirs, CHUNK_ROWS), strict=True):
        q = own.logits(a)[:, :columns].float().log_softmax(-1)
        p = head.logits(b)[:, :columns].float().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
    return total
