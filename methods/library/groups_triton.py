# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written large
"""Kernels that go from members to groups and back, in Triton: one number a member, in one launch a side.

Plainly these are some forty small operations a chunk (``Merged`` in merging.py has their definitions), which took a
host longer to launch than a GPU to compare all distributions. Members of a group stand side by side, and a row has one
member at most.
"""

from __future__ import annotations

import triton
import triton.language as tl

from methods.library import merging

LOG_FLOOR = tl.constexpr(merging.LOG_FLOOR)


@triton.jit(
    do_not_specialize=["our_members", "their_members", "apart"],
    do_not_specialize_on_alignment=[
        f"{whose}_{what}" for whose in ("our", "their") for what in ("row", "group", "tokens", "realised")
    ],
)
def kept_kernel(
    ours, theirs, our_lse, their_lse, our_row, their_row, our_group, their_group, our_tokens, their_tokens, our_members,
    their_members, our_stride, their_stride, starts, rows, joint, our_realised, their_realised, apart, FIRST:
    tl.constexpr,
):  # fmt: skip
    """Of a group of either side its first member and the row that it keeps; of its members the log-probability of
    their own tokens.

    Args:
        starts, rows, joint: of student and teacher, ``apart`` numbers from each other.
        FIRST: whether the first member's row is kept, or the last one's.
    """
    if tl.program_id(1) == 0:
        _keep(
            ours, our_lse, our_row, our_group, our_tokens, our_members, our_stride, starts, rows, joint, our_realised,
            FIRST,
        )  # fmt: skip
    else:
        _keep(
            theirs, their_lse, their_row, their_group, their_tokens, their_members, their_stride, starts + apart,
            rows + apart, joint + apart, their_realised, FIRST,
        )  # fmt: skip


@triton.jit
def _keep(logits, lse, row, group, tokens, members, stride, starts, rows, joint, realised, FIRST: tl.constexpr):
    mine = tl.program_id(0)
    low, high = 0, members
    while low < high:
        middle = (low + high) // 2
        if tl.load(group + middle) < mine:
            low = middle + 1
        else:
            high = middle
    tl.store(starts + mine, low)
    product, last, number = 0.0, 0.0, low
    more = True
    while more:
        at = tl.load(row + number)
        z = tl.load(logits + at * stride + tl.maximum(tl.load(tokens + number), 0)).to(tl.float32)
        of_token = z - tl.load(lse + at)
        tl.store(realised + number, of_token)
        if FIRST:
            if number > low:
                product += tl.maximum(of_token, LOG_FLOOR)
        else:
            product += last
            last = tl.maximum(of_token, LOG_FLOOR)
        number += 1
        more = tl.load(group + number, mask=number < members, other=-1) == mine
    tl.store(joint + mine, product)
    tl.store(rows + mine, tl.load(row + (low if FIRST else number - 1)))


@triton.jit(do_not_specialize=["members", "groups"], do_not_specialize_on_alignment=["row", "tokens", "realised"])
def through_kernel(
    row, tokens, realised, starts, total, group_of_row, of_row, own, of_token, members, groups, FIRST: tl.constexpr
):  # fmt: skip
    """Of the rows of a group's members what passes through them; what stays 0 has no member.

    Args:
        group_of_row: the group that keeps a row, counted from 1.
        own: the token of a row's member, counted from 1.
    """
    mine = tl.program_id(0)
    first = tl.load(starts + mine)
    end = tl.load(starts + mine + 1, mask=mine + 1 < groups, other=members)
    passed = tl.load(total + mine)
    for number in range(first, end):
        at = tl.load(row + number)
        kept = number == (first if FIRST else end - 1)
        given = tl.where(kept | (tl.load(realised + number) < LOG_FLOOR), 0.0, passed)
        tl.store(group_of_row + at, tl.where(kept, mine + 1, 0))
        tl.store(of_row + at, tl.where(kept, passed, given))
        tl.store(own + at, tl.maximum(tl.load(tokens + number), 0).to(tl.int32) + 1)
        tl.store(of_token + at, given)


@triton.jit(do_not_specialize=["programs", "groups"])
def finish_kernel(sums, area, bound, rest_weight, total, found, programs, groups, BLOCK: tl.constexpr):
    """What the programs of :func:`values_kernel` found: the gradient of each group, and float64 sums over all groups.

    Args:
        sums: [5, programs, groups].
        found: value, bound, coverage.
    """
    values = tl.zeros((BLOCK,), tl.float64)
    bounds = tl.zeros((BLOCK,), tl.float64)
    shares = tl.zeros((BLOCK,), tl.float64)
    apart = programs * groups
    for start in range(0, groups, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < groups
        passed = tl.zeros((BLOCK,), tl.float32)
        for program in range(programs):
            place = sums + program * groups + at
            matched = tl.load(place, mask=inside, other=0.0)
            ours = tl.load(place + 2 * apart, mask=inside, other=0.0)
            theirs = tl.load(place + 3 * apart, mask=inside, other=0.0)
            passed += tl.load(place + apart, mask=inside, other=0.0) + ours
            values += matched.to(tl.float64) + (ours.to(tl.float64) - theirs.to(tl.float64))
            shares += tl.load(place + 4 * apart, mask=inside, other=0.0).to(tl.float64)
        tl.store(total + at, passed, mask=inside)
        values += rest_weight * tl.load(area + at, mask=inside, other=0.0)
        bounds += rest_weight * tl.load(bound + at, mask=inside, other=0.0)
    tl.store(found, tl.sum(values, 0))
    tl.store(found + 1, tl.sum(bounds, 0))
    tl.store(found + 2, tl.sum(shares, 0))
