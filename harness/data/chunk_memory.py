"""What a chunk of the loss holds in memory, a row of the student's: from what its methods promise to hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from methods.base import Held, Method, Need
from methods.library.kernels import By

_CROSS_ENTROPY = Held(1.5, 0)  # by torch: log-probabilities, which become the gradient, and that for the head's product
_ENTROPY = 2  # matrices of either side, for the entropies that some methods align by


def row_bytes(vocabulary: int, terms: Sequence[tuple[Method, float]], itemsize: int, by: By) -> float:
    """Bytes that a chunk holds at its peak for each row of the student's.

    Args:
        vocabulary: columns of the student's logits.
        terms: methods, each with the columns of its teacher's logits times the teacher's rows to one of the student's.
        itemsize: bytes of a logit as heads give it.
        by: what works on the logits; kernels, and a CPU's loops, begin with the cross-entropy.
    """
    begins = by != "torch"
    low = itemsize < 4
    given = (itemsize + 4 * low) * vocabulary  # logits as they are, and as losses by torch take them
    held = 0.0
    most = float(2 * itemsize * vocabulary if begins else given + _bytes(_CROSS_ENTROPY, vocabulary, 0))
    for method, columns in terms:
        into = {"kernels": method.held_into, "loops": method.held_by_loops, "torch": None}[by]
        if Need.ROW_SCALARS in method.needs:  # behind the cross-entropy, or of either side before it: no term waits
            ours, theirs = 4 * method.held.student * vocabulary, (itemsize + 4 * method.held.teacher) * columns
            begun = 2 * itemsize * vocabulary if begins else given + 4 * vocabulary
            most = max(most, theirs, held + begun + ours)
            continue
        begun = (2 * itemsize if begins else itemsize) * vocabulary  # the gradient of the cross-entropy is there
        if into is not None:
            peak = begun + itemsize * columns + _bytes(into, vocabulary, columns)
        else:
            peak = begun + 4 * low * vocabulary + (itemsize + 4 * low) * columns
            peak += _bytes(method.held, vocabulary, columns)
        most = max(most, held + peak)
        if not begins:  # gradients of terms wait for that of the cross-entropy
            held += 4 * vocabulary
            most = max(most, held + given + _bytes(_CROSS_ENTROPY, vocabulary, 0))
        if Need.ENTROPY in method.needs and by != "kernels":
            most = max(most, (itemsize + 4 * low + 4 * _ENTROPY) * max(vocabulary, columns))
    return most


def teacher_rows_beside(method: Method, ratio: float, on: torch.device) -> float:
    """The teacher's rows that a chunk holds for each of the student's.

    Args:
        ratio: the teacher's tokens of a response to the student's.
        on: where the loss is computed. Pairs that are made there have a teacher's row beside each of the student's.
    """
    return max(ratio, 1.0) if method.pairs_on_device and on.type != "cpu" else ratio


def _bytes(held: Held, vocabulary: int, columns: float) -> float:
    return 4 * (held.student * vocabulary + held.teacher * columns) + held.more
