# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written large
"""Time warping, edit distances and the nearest partners in Triton: one launch where the plain forms take thousands.

The plain forms are :mod:`methods.library.warping_device`, :mod:`methods.library.edit_distance` and
:mod:`methods.library.near_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS = 128
"""Pairs of texts that a program measures at once."""
LISTED = 512
"""Pairs of a position that a program looks at, at once, to list those that may be near."""


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
def _edits(
    text, text_length, pattern, pattern_length, known, text_longest, pattern_longest, BLOCK: tl.constexpr
):  # fmt: skip
    """int64 [BLOCK]: Myers' programme of one pair in every lane; see edit_distance.py.

    Args:
        text, pattern: where the points of each lane's texts begin; a pattern has at most 64.
    """
    one = tl.full((BLOCK,), 1, tl.int64)
    up = tl.full((BLOCK,), -1, tl.int64)
    down = tl.zeros((BLOCK,), tl.int64)
    distance = pattern_length
    last = tl.maximum(pattern_length - 1, 0)
    for place in range(text_longest):
        reading = known & (place < text_length)
        letter = tl.load(text + place, mask=reading, other=-1)
        equal = tl.zeros((BLOCK,), tl.int64)
        for k in range(pattern_longest):
            other = tl.load(pattern + k, mask=reading & (k < pattern_length), other=-2)
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
    return tl.where(pattern_length == 0, text_length, distance)


@triton.jit
def edit_kernel(
    text, text_lengths, text_ids, pattern, pattern_lengths, pattern_ids, out, pairs, text_stride, pattern_stride,
    text_longest, pattern_longest, BLOCK: tl.constexpr,
):  # fmt: skip
    """The distances of some pairs."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = pair < pairs
    left = tl.load(text_ids + pair, mask=known, other=0)
    right = tl.load(pattern_ids + pair, mask=known, other=0)
    text_length = tl.load(text_lengths + left, mask=known, other=0)
    pattern_length = tl.load(pattern_lengths + right, mask=known, other=0)
    distance = _edits(
        text + left * text_stride, text_length, pattern + right * pattern_stride, pattern_length, known, text_longest,
        pattern_longest, BLOCK,
    )  # fmt: skip
    tl.store(out + pair, distance, mask=known)


@triton.jit
def _length(starts, ids, known):
    """int64, of the texts of these numbers."""
    return tl.load(starts + ids + 1, mask=known, other=0) - tl.load(starts + ids, mask=known, other=0)


@triton.jit
def _measure(
    source, target, pairs, distances, found, points, source_starts, target_starts, source_longer, target_longer,
    longer, many_longer, theta, wide, BLOCK: tl.constexpr,
):  # fmt: skip
    """Distances, over the sum of both lengths, of a position's listed pairs; 2, which is beyond all, from theta on."""
    for start in range(0, found, BLOCK):
        at = start + tl.arange(0, BLOCK)
        known = at < found
        pair = tl.load(pairs + at, mask=known, other=0)
        left = tl.load(source + pair // wide, mask=known, other=0)
        right = tl.load(target + pair % wide, mask=known, other=0)
        left_start = tl.load(source_starts + left, mask=known, other=0)
        right_start = tl.load(target_starts + right, mask=known, other=0)
        left_length, right_length = _length(source_starts, left, known), _length(target_starts, right, known)
        row = tl.load(source_longer + left, mask=known, other=-1)
        column = tl.load(target_longer + right, mask=known, other=-1)
        both = (row >= 0) & (column >= 0)
        swapped = left_length < right_length  # the shorter one is the pattern
        text_length = tl.where(swapped, right_length, left_length)
        pattern_length = tl.where(swapped, left_length, right_length)
        asked = known & ~both
        edits = _edits(
            points + tl.where(swapped, right_start, left_start), text_length,
            points + tl.where(swapped, left_start, right_start), pattern_length, asked,
            tl.max(tl.where(asked, text_length, 0), 0), tl.max(tl.where(asked, pattern_length, 0), 0), BLOCK,
        )  # fmt: skip
        of_longer = tl.load(longer + row * many_longer + column, mask=both, other=0)
        edits = tl.where(both, of_longer.to(tl.int64), edits)
        total = left_length + right_length
        relative = edits.to(tl.float64) / tl.maximum(total, 1).to(tl.float64)
        near = (total > 0) & (relative < tl.load(theta))
        tl.store(distances + at, tl.where(near, relative, 2.0), mask=known)


@triton.jit
def _choose(
    pairs, distances, found, partners, free, ids, wide, seeking_many, sought_many, TURNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Give a position's tokens without a partner the nearest that is free, the nearest pair of all first.

    Args:
        partners: of the tokens that seek, -1 for none; written.
        free: of the tokens that are sought; what is taken is no longer.
        ids: of the tokens that are sought.
        TURNED: whether the pairs' columns seek.
    """
    least = tl.min(tl.zeros((BLOCK,), tl.float64), 0)
    while least < 2.0:
        nearest = tl.full((BLOCK,), 2.0, tl.float64)
        first = tl.full((BLOCK,), 2147483647, tl.int32)
        for start in range(0, found, BLOCK):
            at = start + tl.arange(0, BLOCK)
            pair = tl.load(pairs + at, mask=at < found, other=0)
            distance = tl.load(distances + at, mask=at < found, other=2.0)
            seeking, sought = pair // wide, pair % wide
            if TURNED:
                seeking, sought = sought, seeking
            possible = distance < 2.0
            seeks = tl.load(partners + seeking, mask=possible, other=0) < 0
            offered = tl.load(free + sought, mask=possible, other=0) != 0
            key = seeking * sought_many + sought
            better = (distance < nearest) | ((distance == nearest) & (key < first))
            better = better & possible & seeks & offered
            nearest = tl.where(better, distance, nearest)
            first = tl.where(better, key, first)
        least = tl.min(nearest, 0)
        key = tl.min(tl.where(nearest == least, first, 2147483647), 0)
        taken = least < 2.0
        tl.debug_barrier()
        tl.store(partners + key // sought_many, tl.load(ids + key % sought_many, mask=taken, other=0), mask=taken)
        tl.store(free + key % sought_many, 0, mask=taken)
        tl.debug_barrier()


@triton.jit
def _ones(bits):
    """How many bits of an int64 are set."""
    bits = bits - ((bits >> 1) & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + ((bits >> 2) & 0x3333333333333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (bits * 0x0101010101010101) >> 56


@triton.jit
def _look(ids, others_partners, free, count, others, BLOCK: tl.constexpr):
    """Which of a position's tokens may be taken: those that are nobody's partner yet."""
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mine = tl.load(ids + at, mask=at < count, other=-1)
        taken = tl.zeros((BLOCK,), tl.int32)
        for other in range(others):
            taken |= (mine == tl.load(others_partners + other)).to(tl.int32)
        tl.store(free + at, 1 - taken, mask=at < count)


@triton.jit
def _list(
    source, target, to_target, to_source, free_target, free_source, pairs, sets, target_sets, source_starts,
    target_starts, theta, high, wide, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write down the pairs that are asked for and may be near; how many.

    An edit takes at most one character out of a text: there are at least as many as characters that one alone has.
    """
    found = 0
    for start in range(0, high * wide, BLOCK):
        at = start + tl.arange(0, BLOCK)
        row, column = at // wide, at % wide
        inside = at < high * wide
        ahead = (tl.load(to_target + row, mask=inside, other=0) < 0) & (tl.load(free_target + column, mask=inside) > 0)
        back = (tl.load(to_source + column, mask=inside, other=0) < 0) & (tl.load(free_source + row, mask=inside) > 0)
        asked = inside & (ahead | back)
        left = tl.load(source + row, mask=asked, other=0)
        right = tl.load(target + column, mask=asked, other=0)
        ours = tl.load(sets + left, mask=asked, other=0)
        theirs = tl.load(target_sets + right, mask=asked, other=0)
        length, other = _length(source_starts, left, asked), _length(target_starts, right, asked)
        least = tl.maximum(_ones(ours & ~theirs), _ones(theirs & ~ours))
        least = tl.maximum(least, tl.abs(length - other))
        near = least.to(tl.float64) / tl.maximum(length + other, 1).to(tl.float64) < tl.load(theta)
        chosen = (asked & near).to(tl.int32)
        tl.store(pairs + found + tl.cumsum(chosen, 0) - 1, at, mask=chosen > 0)
        found += tl.sum(chosen, 0)
    return found


@triton.jit
def nearest_kernel(
    source, target, to_target, to_source, free, sets, target_sets, points, source_starts, target_starts, source_longer,
    target_longer, longer, many_longer, pairs, distances, theta, asked, high, wide,
    BLOCK: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """A position a program: its pairs that may be near listed, measured, and chosen from in either direction.

    Args:
        asked: int32 [positions], 1 where that is wanted, else 0: such a position has no source token.
    """
    position = tl.program_id(0).to(tl.int64)
    source, to_target = source + position * high, to_target + position * high
    target, to_source = target + position * wide, to_source + position * wide
    free_target = free + position * (high + wide)
    free_source = free_target + wide
    pairs, distances = pairs + position * high * wide, distances + position * high * wide
    rows = high * tl.load(asked + position)
    _look(target, to_target, free_target, wide, rows, BLOCK)
    _look(source, to_source, free_source, rows, wide, BLOCK)
    tl.debug_barrier()
    found = _list(
        source, target, to_target, to_source, free_target, free_source, pairs, sets, target_sets, source_starts,
        target_starts, theta, rows, wide, LISTED,
    )  # fmt: skip
    tl.debug_barrier()
    _measure(
        source, target, pairs, distances, found, points, source_starts, target_starts, source_longer, target_longer,
        longer, many_longer, theta, wide, BLOCK,
    )  # fmt: skip
    tl.debug_barrier()
    _choose(pairs, distances, found, to_target, free_target, target, wide, high, wide, False, BLOCK)
    _choose(pairs, distances, found, to_source, free_source, source, wide, wide, high, True, BLOCK)


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


def add_nearest(
    source: Tensor,
    target: Tensor,
    to_target: Tensor,
    to_source: Tensor,
    texts: Mapping[str, Tensor],
    theta: float,
    asked: Tensor | None = None,
) -> None:
    """As near_tokens.nearest_partners, written where a partner is missing.

    Args:
        source, target: int64 [positions, k_source] and [positions, k_target], ids.
        to_target, to_source: int64, like the ids, the partner of each; -1 for none.
        texts: tables of near_tokens.PairTexts.
        asked: bool [positions], where partners are wanted; None: everywhere.
    """
    positions, high, wide = *source.shape, target.shape[1]
    device, sizes = source.device, (positions, high, wide)
    free = torch.empty(positions, high + wide, dtype=torch.int32, device=device)
    pairs = torch.empty(sizes, dtype=torch.int32, device=device)
    distances = torch.empty(sizes, dtype=torch.float64, device=device)
    wanted = torch.ones(positions, dtype=torch.int32, device=device) if asked is None else asked.int()
    if pairs.numel():
        nearest_kernel[(positions,)](
            source, target, to_target, to_source, free, texts["source_sets"], texts["target_sets"], texts["points"],
            texts["source_starts"], texts["target_starts"], texts["source_longer"], texts["target_longer"],
            texts["longer"], texts["longer"].shape[1], pairs, distances, _number(theta, device), wanted, high, wide,
            BLOCK=PAIRS, LISTED=LISTED, num_warps=4,
        )  # fmt: skip


@cache
def _number(value: float, device: torch.device) -> Tensor:
    """float64 scalar: what a launch takes from Python is rounded to float32."""
    return torch.full((), value, dtype=torch.float64, device=device)
