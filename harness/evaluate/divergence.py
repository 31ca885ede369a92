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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.data.batches import Collator
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT, SideTokens, TokenizedExample
from harness.models.heads import Head, hidden_states
from harness.store.artefacts import Apart
from methods.library.alignment import IntArray

FloatArray = npt.NDArray[np.float64]
CHUNK_ROWS = 128  # whose logits of both models exist at once


@torch.no_grad()
def measure(
    model: Any,
    role: str,
    head: Head,
    rows: Callable[[str], Tensor],
    examples: Sequence[TokenizedExample],
    *,
    pad: int,
    one_vocabulary: bool,
    batch_size: int = 8,
) -> list[Apart]:
    """A student's distance from a teacher on each response that was not cut.

    Args:
        model: the student.
        role: of the teacher.
        head: the teacher's.
        rows: the teacher's hidden rows of an example by its id, [n + 1, hidden], of n response tokens.
        examples: tokenised for both.
        pad: the student's padding token id.
        one_vocabulary: whether a token id means the same to both.
    """
    device = next(model.parameters()).device
    model.eval()
    own, collator = Head.of(model), Collator((), {STUDENT: pad})
    whole = [example for example in examples if not example.cut]
    found = []
    for start in range(0, len(whole), batch_size):
        part = whole[start : start + batch_size]
        batch = collator.collate([AlignedExample(example, ()) for example in part]).to(device)
        hidden = hidden_states(model, batch.input_ids, batch.attention_mask, batch.position_ids).flatten(0, 1)
        sizes = [example.sides[STUDENT].response.size for example in part]
        ours = torch.split(hidden.index_select(0, batch.row_index), sizes)
        for example, mine in zip(part, ours, strict=True):
            theirs = rows(example.id)[: example.sides[role].response.size].to(head.weight)
            found.append(_apart(example, role, own, mine, head, theirs, one_vocabulary))
    return found


def _apart(
    example: TokenizedExample, role: str, own: Head, mine: Tensor, head: Head, theirs: Tensor, one_vocabulary: bool
) -> Apart:
    student, teacher = example.sides[STUDENT], example.sides[role]
    pieces = (likelihoods(own, mine, student), likelihoods(head, theirs, teacher))
    chunks = chunk_difference(*pieces, student.ends, teacher.ends) / math.log(2)
    kl = _kl(own, mine, head, theirs) / math.log(2) if one_vocabulary else None
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
