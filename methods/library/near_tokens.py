"""The nearest partners of a position's tokens, measured and chosen on the device where the logits are.

What :mod:`methods.cdm` measures on the host, pair by pair and with a memory, is one batched programme here. The host
learns how many pairs there are, and when no pair is left to choose; no pair goes to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.library.edit_distance import TextTable, edit_distances
from methods.library.maps import UNMAPPED

Asked = tuple[Tensor, Tensor]
"""bool [positions, k_source] and [positions, k_target]: a pair is asked for where both of its tokens are."""


def nearest_partners(
    source: Tensor,
    target: Tensor,
    candidates: Tensor,
    ahead: Asked,
    back: Asked,
    texts: tuple[TextTable, TextTable],
    theta: float,
) -> tuple[Tensor, Tensor]:
    """Partners below θ, one-to-one at each position and in either direction, nearest pairs first.

    Of equal distances the one whose seeking token comes first counts, then the one whose partner does.

    Args:
        source, target: int64 [positions, k_source] and [positions, k_target], ids.
        candidates: bool [positions, k_source, k_target], pairs that may be near.
        ahead, back: which pairs are asked for source tokens, and which for target tokens.
        texts: of the source's and the target's vocabulary.

    Returns:
        int64 [positions, k_source], the partner's id of each source token, -1 for none; int64 [positions, k_target].
    """
    position, left, right = candidates.nonzero().unbind(-1)
    ids = source[position, left], target[position, right]
    distance = relative_distances(*ids, texts, theta)
    keys = position * source.shape[1] + left, position * target.shape[1] + right
    found = []
    for seek, (of_source, of_target), shape in ((0, ahead, source.shape), (1, back, target.shape)):
        asked = of_source[position, left] & of_target[position, right] & (distance < theta)
        seeking, sought = keys[seek], keys[1 - seek]
        taken = one_to_one(seeking, sought, distance, asked, (source.numel(), target.numel())[:: 1 - 2 * seek])
        partner = torch.full((shape.numel() + 1,), UNMAPPED, device=source.device)
        partner[seeking.where(taken, shape.numel())] = ids[1 - seek]  # what is not taken goes behind the end
        found.append(partner[:-1].view(shape))
    return found[0], found[1]


def relative_distances(left: Tensor, right: Tensor, texts: tuple[TextTable, TextTable], theta: float) -> Tensor:
    """float64 [pairs]: edit distances over the sum of both lengths.

    Infinite where the lengths alone rule a pair out, and for two empty texts, which are tokens of spaces alone.
    """
    lengths = [table.tables.on(ids.device)["lengths"][ids] for table, ids in zip(texts, (left, right), strict=True)]
    total = (lengths[0] + lengths[1]).double()
    possible = ((lengths[0] - lengths[1]).abs() / total.clamp_min(1) < theta) & (total > 0)
    (chosen,) = possible.nonzero(as_tuple=True)
    distance = torch.full_like(total, torch.inf)
    distance[chosen] = edit_distances(*texts, left[chosen], right[chosen]) / total[chosen]
    return distance


def one_to_one(seeking: Tensor, sought: Tensor, distance: Tensor, asked: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """bool [pairs]: which pairs are taken, the nearest first, equals in the order of ``seeking`` and then ``sought``.

    A pair that is the first of both its tokens' pairs is what that order would choose, so all such pairs are taken at
    once, until none is left.

    Args:
        seeking, sought: int64 [pairs], numbers of the two tokens, below ``sizes``; positions have numbers of their own.
        distance: [pairs].
        asked: bool [pairs], which count.
    """
    count = len(distance)
    order = (seeking * sizes[1] + sought).argsort()
    order = order[distance[order].sort(stable=True).indices]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count, device=order.device)
    taken, left = torch.zeros_like(asked), asked
    while bool(left.any()):
        best = rank.masked_fill(~left, count)
        chosen = left
        for keys, size in zip((seeking, sought), sizes, strict=True):
            first = torch.full((size,), count, device=order.device).scatter_reduce(0, keys, best, "amin")
            chosen = chosen & (first[keys] == rank)
        taken = taken | chosen
        for keys, size in zip((seeking, sought), sizes, strict=True):
            used = torch.zeros(size, dtype=torch.int32, device=order.device).index_add_(0, keys, chosen.int())
            left = left & (used[keys] == 0)
    return taken
