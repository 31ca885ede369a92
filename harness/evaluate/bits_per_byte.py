"""Held-out bits per byte of the reference responses: compares models across tokenizers, moves before any score.

Sum of -log2 p(response tokens) over the sum of the responses' UTF-8 bytes, over the corpus. EOS is left out, the
prompt is rendered as in training, responses that a limit would cut are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.data.tokens import TokenizedExample
from harness.evaluate.references import reference_rows
from harness.models.heads import Head
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
    on_rows: Callable[[Mapping[str, Tensor]], None] = lambda rows: None,
) -> list[Bits]:
    """Bits of each response that was not cut.

    Args:
        examples: tokenised for the model under the role "student".
        pad: padding token id.
        on_batch: called with the number of examples done.
        on_rows: called with the hidden rows that predict each response, by example id: [n, hidden] of n tokens.
    """
    head = Head.of(model)
    measured = []
    for part, rows, targets in reference_rows(model, examples, pad=pad, batch_size=batch_size):
        on_rows({example.id: of_one for example, of_one in zip(part, rows, strict=True)})
        pieces = zip(torch.split(torch.cat(rows), chunk_rows), torch.split(targets, chunk_rows), strict=True)
        nats = torch.cat(
            [
                torch.nn.functional.cross_entropy(head.logits(piece).float(), wanted, reduction="none")
                for piece, wanted in pieces
            ]
        ).double()
        # the last token is EOS
        sums = torch.stack([values[:-1].sum() for values in torch.split(nats, [len(one) for one in rows])]).tolist()
        for example, of_response in zip(part, sums, strict=True):
            measured.append(Bits(example.id, of_response / math.log(2), example.response_bytes))
        on_batch(len(measured))
    return measured
