"""How far a model is from the truth and from a teacher, on references that nobody was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.data.batches import Collator
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT, TokenizedExample
from harness.evaluate.divergence import chunk_difference as difference_of_chunks
from harness.models.heads import Head, hidden_states
from harness.run.workbench import as_student

BATCH = 64  # of responses


@dataclass(frozen=True)
class Said:
    """What a model says of a response.

    Attributes:
        log_probs: float64 [n, vocabulary], in nats, of the rows that predict its tokens, its end included.
        tokens: int64 [n].
    """

    log_probs: Tensor
    tokens: Tensor

    @property
    def of_tokens(self) -> npt.NDArray[np.float64]:
        """float64 [n]: log2 of the probability of each token."""
        picked: npt.NDArray[np.float64] = self.log_probs.gather(1, self.tokens[:, None])[:, 0].cpu().numpy()
        return picked / math.log(2)


@torch.no_grad()
def said(model: Any, examples: Sequence[TokenizedExample], role: str, pad: int) -> list[Said]:
    """What a model says of each response.

    Args:
        model: of the role.
        pad: padding token id.
    """
    device, head, collator = next(model.parameters()).device, Head.of(model), Collator((), {STUDENT: pad})
    model.eval()
    found: list[Said] = []
    for start in range(0, len(examples), BATCH):
        part = [as_student(example, role) for example in examples[start : start + BATCH]]
        batch = collator.collate([AlignedExample(example, ()) for example in part]).to(device)
        hidden = hidden_states(model, batch.input_ids, batch.attention_mask, batch.position_ids).flatten(0, 1)
        log_probs = head.logits(hidden.index_select(0, batch.row_index)).double().log_softmax(-1)
        sizes = [example.sides[STUDENT].response.size for example in part]
        found += map(Said, torch.split(log_probs, sizes), torch.split(batch.targets, sizes))
    return found


def bits_per_byte(of: Sequence[Said], examples: Sequence[TokenizedExample]) -> float:
    """As ``harness.evaluate.bits_per_byte`` has it: the ends are left out."""
    return -sum(float(one.of_tokens[:-1].sum()) for one in of) / sum(example.response_bytes for example in examples)


def divergence(teacher: Sequence[Said], student: Sequence[Said]) -> float:
    """KL(teacher || student) in bits a token, of models with one tokenizer."""
    total, tokens = 0.0, 0
    for theirs, ours in zip(teacher, student, strict=True):
        columns = min(theirs.log_probs.shape[1], ours.log_probs.shape[1])
        p, q = theirs.log_probs[:, :columns], ours.log_probs[:, :columns]
        total += float((p.exp() * (p - q)).sum()) / math.log(2)
        tokens += len(ours.tokens)
    return total / tokens


def chunk_difference(
    teacher: Sequence[Said], student: Sequence[Said], examples: Sequence[TokenizedExample], role: str
) -> float:
    """Mean |difference of log-likelihoods| of byte-aligned chunks, in bits a byte, whatever the tokenizers.

    Args:
        role: of the teacher.
    """
    total, size = 0.0, 0
    for theirs, ours, example in zip(teacher, student, examples, strict=True):
        ends = example.sides[STUDENT].ends, example.sides[role].ends
        total += difference_of_chunks(ours.of_tokens, theirs.of_tokens, *ends)
        size += example.response_bytes
    return total / size
