"""Held-out bits per byte of the reference responses: compares models across tokenizers, moves before any score.

Sum of -log2 p(response tokens) over the sum of the responses' UTF-8 bytes, over the corpus. EOS is left out, the
prompt is rendered as in training, responses that a limit would cut are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from harness.data.batches import Collator
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT, TokenizedExample
from harness.models.heads import Head, hidden_states
from harness.store.artefacts import Bits


def corpus_bits_per_byte(items: Sequence[Bits]) -> float:
    """Sum of bits over sum of bytes; NaN where there are no items."""
    total = sum(item.bytes for item in items)
    return sum(item.bits for item in items) / total if total else math.nan


@torch.no_grad()
def measure(
    model: Any,
    examples: Sequence[TokenizedExample],
    *,
    pad: int,
    batch_size: int = 8,
    chunk_rows: int = 256,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Bits]:
    """Bits of each response that was not cut.

    Args:
        examples: tokenised for the model under the role "student".
        pad: padding token id.
        on_batch: called with the number of examples done.
    """
    device = next(model.parameters()).device
    model.eval()
    head = Head.of(model)
    collator = Collator((), {STUDENT: pad})
    whole = [example for example in examples if not example.cut]
    measured = []
    for start in range(0, len(whole), batch_size):
        part = whole[start : start + batch_size]
        batch = collator.collate([AlignedExample(example, ()) for example in part]).to(device)
        places = batch.input_ids, batch.attention_mask, batch.position_ids
        hidden = hidden_states(model, *places, padded_behind=batch.padded_behind).flatten(0, 1)
        rows = hidden.index_select(0, batch.row_index)
        nats = torch.cat(
            [
                torch.nn.functional.cross_entropy(head.logits(piece).float(), targets, reduction="none")
                for piece, targets in zip(
                    torch.split(rows, chunk_rows), torch.split(batch.targets, chunk_rows), strict=True
                )
            ]
        ).double()
        sizes = [example.sides[STUDENT].response.size for example in part]
        sums = torch.stack([values[:-1].sum() for values in torch.split(nats, sizes)]).tolist()  # the last one is EOS
        for example, of_response in zip(part, sums, strict=True):
            measured.append(Bits(example.id, of_response / math.log(2), example.response_bytes))
        on_batch(len(measured))
    return measured
