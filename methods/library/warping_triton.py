# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written large
"""Time warping and edit distances in Triton: one launch where the plain forms take thousands.

The plain forms are :mod:`methods.library.warping_device` and :mod:`methods.library.edit_distance`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS = 128
"""Pairs of texts that a program measures at once."""


@triton.jit
def _least(left, right):
    return tl.minimum(left, right)


@triton.jit
def warp_kernel(costs, total, rows, columns, cells, high, wide, steps, SIZE: tl.constexpr):
    """A response a program: the costs of the cheapest paths row by row, then the way back cell by cell."""
    response = tl.program_id(0).to(tl.int64)
    costs, total = costs + response * high * wide, total + response * high * wide
    last_row, last_column = tl.load(rows + response) - 1, tl.load(columns + response) - 1
    at = tl.arange(0, SIZE)
    inside = at < wide
    for row in range(last_row + 1):
        cost = tl.load(costs + row * wide + at, mask=inside, other=0).to(tl.int32)
        running = tl.cumsum(cost, 0)
        above = tl.load(total + (row - 1) * wide + at, mask=inside & (row > 0), other=0)
        diagonal = tl.load(total + (row - 1) * wide + at - 1, mask=inside & (row > 0) & (at > 0), other=2**30)
        cheaper = tl.minimum(above, diagonal) - (running - cost)
        # before the first row a path may only come from the left: from nothing before the first column
        cheaper = tl.where(row > 0, cheaper, 0)
        tl.store(total + row * wide + at, running + tl.associative_scan(cheaper, 0, _least), mask=inside)
        tl.debug_barrier()
    row, column = last_row, last_column
    for step in range(steps):
        tl.store(cells + response * steps + step, row * wide + column)
        place = total + row * wide + column
        both = (row > 0) & (column > 0)
        diagonal = tl.load(place - wide - 1, mask=both, other=0)
        above = tl.load(place - wide, mask=both, other=0)
        left = tl.load(place - 1, mask=both, other=0)
        back = both & (diagonal <= above) & (diagonal <= left)
        up = (both & (back == 0) & (above <= left)) | ((column == 0) & (row > 0))
        aside = (both & (back == 0) & (above > left)) | ((row == 0) & (column > 0))
        row -= (back | up).to(tl.int64)
        column -= (back | aside).to(tl.int64)


@triton.jit
def edit_kernel(
    text, text_lengths, text_ids, pattern, pattern_lengths, pattern_ids, out, pairs, text_stride, pattern_stride,
    text_longest, pattern_longest, BLOCK: tl.constexpr,
):  # fmt: skip
    """Myers' programme of one pair in every lane; see edit_distance.py."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = pair < pairs
    left = tl.load(text_ids + pair, mask=known, other=0)
    right = tl.load(pattern_ids + pair, mask=known, other=0)
    text_length = tl.load(text_lengths + left, mask=known, other=0)
    pattern_length = tl.load(pattern_lengths + right, mask=known, other=0)
    one = tl.full((BLOCK,), 1, tl.int64)
    up = tl.full((BLOCK,), -1, tl.int64)
    down = tl.zeros((BLOCK,), tl.int64)
    distance = pattern_length
    last = tl.maximum(pattern_length - 1, 0)
    for place in range(text_longest):
        reading = known & (place < text_length)
        letter = tl.load(text + left * text_stride + place, mask=reading, other=-1)
        equal = tl.zeros((BLOCK,), tl.int64)
        for k in range(pattern_longest):
            other = tl.load(pattern + right * pattern_stride + k, mask=reading & (k < pattern_length), other=-2)
            equal |= tl.where(other == letter, one << k, 0)
        vertical = equal | down
        diagonal = (((equal & up) + up) ^ up) | equal
        right_up = down | ~(diagonal | up)
        right_down = up & diagonal
        distance += tl.where(reading, ((right_up >> last) & 1) - ((right_down >> last) & 1), 0)
        right_up = (right_up << 1) | 1
        right_down = right_down << 1
        up = right_down | ~(vertical | right_up)
        down = right_up & vertical
    tl.store(out + pair, tl.where(pattern_length == 0, text_length, distance), mask=known)


def warp_cells(costs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """As warping_device.warp_cells."""
    count, high, wide = costs.shape
    cells = torch.zeros(count, high + wide - 1, dtype=torch.int64, device=costs.device)
    total = torch.empty(costs.shape, dtype=torch.int32, device=costs.device)
    size = triton.next_power_of_2(wide)
    warp_kernel[(count,)](
        costs, total, rows, columns, cells, high, wide, high + wide - 1, SIZE=size, num_warps=8 if size > 512 else 4
    )
    return cells


def edit_distances(
    text: tuple[Tensor, Tensor, Tensor], pattern: tuple[Tensor, Tensor, Tensor], longest: tuple[int, int]
) -> Tensor:
    """int64 [pairs]; patterns have at most 64 characters.

    Args:
        text, pattern: int32 [texts, characters] points, int64 [texts] lengths, int64 [pairs] ids.
        longest: characters of the longest text and pattern among the pairs.
    """
    pairs = len(text[2])
    out = torch.empty(pairs, dtype=torch.int64, device=text[0].device)
    if pairs:
        edit_kernel[(triton.cdiv(pairs, PAIRS),)](
            *text, *pattern, out, pairs, text[0].stride(0), pattern[0].stride(0), *longest, BLOCK=PAIRS, num_warps=4
        )
    return out
