"""The order in which a training sees its rows, where it is not the Trainer's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from harness.base.identity import seed_of


class LengthBuckets(Sampler[int]):
    """Row numbers so that the rows of an optimiser step are of like length, and the steps in random order.

    Rows are shuffled, every ``POOL`` steps of them sorted by length, and the steps shuffled again: every row comes once
    an epoch. Where the rows don't fill the last step, what is in it is drawn from all.

    Args:
        lengths: of the rows, in tokens.
        batch_size: rows of a step, over all ranks.
        seed: of the order; another one is made of it for each epoch.
    """

    POOL = 50

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of("bucket", self.seed, self.epoch))
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        whole, size = len(order) - len(order) % self.batch_size, self.batch_size
        steps: list[list[int]] = []
        for start in range(0, whole, self.POOL * size):
            pool = sorted(order[start : min(start + self.POOL * size, whole)], key=lambda row: self.lengths[row])
            steps += [pool[first : first + size] for first in range(0, len(pool), size)]
        for place in torch.randperm(len(steps), generator=generator).tolist():
            yield from steps[place]
        yield from order[whole:]
