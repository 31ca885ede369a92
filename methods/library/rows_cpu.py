"""What all losses do with rows of logits on a CPU, in loops that numba compiles: as Triton kernels (comparison.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.library.closed_form import IGNORED, entropy
from methods.library.cpu_loops import in_threads, within

__all__ = ["cross_entropy", "entropy"]


def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As closed_form.cross_entropy, with the log of the sum of each row's exponentials last, float32 [rows].

    Args:
        logits: float32 [rows, vocabulary].
        targets: int64 [rows], -100 where a row has none.
        scale: scalar.

    Raises:
        IndexError: a target that the vocabulary does not have.
    """
    from methods.library import rows_numba  # compiles, which `harness plan` need not wait for

    within(targets.where(targets != IGNORED, 0), logits.shape[1], "targets")
    upstream, lse = torch.empty_like(logits), logits.new_empty(len(logits))
    sums, share = torch.empty(len(logits), 2, dtype=torch.float64), float(scale)
    given = [each.numpy() for each in (logits, targets, upstream, lse, sums)]

    def of(part: slice) -> None:
        z, chosen, gradient, total, found = (each[part] for each in given)
        rows_numba.cross_entropy(z, chosen, share, gradient, total, found)

    in_threads(len(logits), logits.shape[1], of)
    value, norm = sums.sum(0).to(logits.dtype)
    return value, norm, upstream, lse
