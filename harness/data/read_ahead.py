"""Batches that a thread makes while the one before is trained: stored rows are read, and pinned where a GPU computes.

Speed only: the same collator makes the same batches of the same examples in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NotRequired, TypedDict

import torch

from harness.data.batches import Batch, Collator
from harness.data.terms import AlignedExample


class AheadBatch:
    """A batch that is being made.

    Attributes:
        counts: of the batch, see :class:`Batch`; known before the rest is.
    """

    def __init__(self, making: Future[Batch], counts: torch.Tensor, device: Any = None) -> None:
        self.counts, self._making, self._device = counts, making, device

    def to(self, device: Any, non_blocking: bool = False) -> AheadBatch:
        """The same batch, bound for a device; it moves once it is made."""
        return AheadBatch(self._making, self.counts, device)

    def ready(self) -> Batch:
        """The batch on its device; waits until it is made, and raises what making it raised."""
        batch = self._making.result()
        moved: Batch = batch if self._device is None else batch.to(self._device, non_blocking=True)
        return moved

    def cancel(self) -> None:
        """Don't make it, unless that has begun."""
        self._making.cancel()


class Sample(TypedDict):
    """What a data loader gives: a batch, and what it is made from; see :meth:`Collator.collate`."""

    batch: Batch | AheadBatch
    examples: tuple[AlignedExample, ...]
    sampled: NotRequired[frozenset[str]]


class ReadAhead:
    """A collator for data loaders that gives back at once; one thread makes the batches, in order.

    Data loaders of accelerate fetch a batch before they hand out the last one, and the Trainer fetches a whole
    accumulation window before it trains: so many batches wait at most, and so much memory is taken.

    Args:
        pin: copy batches into page-locked memory, from where they move to a GPU while it computes.
    """

    def __init__(self, collator: Collator, *, pin: bool = False) -> None:
        self.collator, self.pin = collator, pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def __call__(self, examples: Sequence[AlignedExample]) -> Sample:
        """The batch under the key "batch", as transformers' Trainer wants a mapping, and what it is made from."""
        making = self._thread.submit(self._make, examples)
        return {"batch": AheadBatch(making, self.collator.counts(examples)), "examples": tuple(examples)}

    def close(self) -> None:
        """End the thread; what it has not begun is not made."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, examples: Sequence[AlignedExample]) -> Batch:
        batch = self.collator.collate(examples)
        pinned: Batch = batch.pin_memory() if self.pin else batch
        return pinned
