"""What generated tokens cost: answers, and responses that a student samples. One engine makes both, in slots.

See :mod:`harness.generation.slots`. A token is a pass through all layers, replayed as one CUDA graph. It reads all
weights, and each row's keys and values in all columns of its slot, filled or not. Where several queries share a key,
attention under a mask repeats keys and values first: it writes and reads them once more for each query.
"""

from __future__ import annotations

from harness.plan.costs.devices import (
    DRAW_SECONDS,
    LAYER_SECONDS,
    READING_LAYER_SECONDS,
    REPLAYED_LAYER_SECONDS,
    Cost,
)
from harness.plan.costs.shapes import Shape

ANSWERS_AT_A_TIME = 256
"""The most that `evaluation.batch_size: auto` takes; see :func:`harness.base.device.rows_at_a_time`."""

_RECORDING = 3
"""Passes that recording a graph takes: two before it."""


def reading(shape: Shape, rows: float, length: float, passes: float = 1.0) -> Cost:
    """Of reading so many prompts of a length, in so many passes."""
    launches = passes * shape.layers * READING_LAYER_SECONDS / LAYER_SECONDS
    return Cost(flops=shape.forward(rows * length, length), launches=launches)


def recording(shape: Shape) -> Cost:
    """Of recording a graph, once whenever generation begins; its few tokens multiply next to nothing."""
    return reading(shape, 0.0, 0.0, _RECORDING)


def decoding(shape: Shape, rows: float, columns: float, new_tokens: float, width: int, *, sampled: bool) -> Cost:
    """Of rows that are decoded at once.

    Args:
        columns: of a slot, the longest prompt and its answer.
        new_tokens: of each row, the most that it may get.
        width: bytes of a number.
        sampled: whether noise is drawn for them.
    """
    weights = shape.body + shape.head
    repeated = 2.0 * shape.queries if shape.queries > shape.keys else 0.0
    kept = rows * columns * shape.layers * 2.0 * (shape.keys + repeated)
    return Cost(
        flops=2.0 * weights * rows * new_tokens,
        launches=new_tokens * shape.layers * REPLAYED_LAYER_SECONDS / LAYER_SECONDS,
        traffic=new_tokens * width * (weights + kept),
        cpu=rows * new_tokens * shape.vocabulary * DRAW_SECONDS if sampled else 0.0,
    )
