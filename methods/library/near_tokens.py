"""The nearest partners of a position's tokens, measured and chosen on the device where the logits are.

What :mod:`methods.cdm` measures on the host, pair by pair and with a memory, is one batched programme here. Without
Triton the host learns how many pairs there are, and when no pair is left to choose; no pair goes to it. A kernel
(:mod:`methods.library.warping_triton`), a program of which lists, measures and chooses a position's pairs, tells it
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from torch import Tensor

from methods.library.edit_distance import WORD, TextTable, edit_distances
from methods.library.maps import UNMAPPED, Tables

BytesArray = npt.NDArray[np.uint8]


class PairTexts:
    """The texts of two vocabularies as a kernel reads them, on every device that asks.

    Attributes:
        tables: int32 [characters] points of all texts, one behind the other; int64 [texts + 1] source_starts and
            target_starts, where each begins; int64 [texts] source_sets and target_sets, the characters of each as bits;
            int32 [texts] source_longer and target_longer, the number of each among those of its side that are longer
            than a word, -1 for others; int32 [n, m] longer, the distances of these.

    Args:
        source, target: texts.
        characters: uint8 [texts, 64] of each side, 1 where a text has a character; one more or less changes one entry.
    """

    def __init__(self, source: Sequence[str], target: Sequence[str], characters: Sequence[BytesArray]) -> None:
        self._texts = source, target
        points = np.frombuffer("".join([*source, *target]).encode("utf-32-le"), dtype=np.uint32).astype(np.int32)
        sides = [np.fromiter(map(len, side), np.int64, len(side)) for side in self._texts]
        starts = np.concatenate([[0], np.cumsum(np.concatenate(sides))])
        longer = [lengths > WORD for lengths in sides]
        numbers = [np.where(which, np.cumsum(which) - 1, -1).astype(np.int32) for which in longer]
        of_longer = [
            [side[i] for i in np.flatnonzero(which).tolist()] for side, which in zip(self._texts, longer, strict=True)
        ]
        sets = [np.packbits(each, axis=1, bitorder="little").view(np.int64)[:, 0] for each in characters]
        self.tables = Tables(
            points=torch.from_numpy(points),
            source_starts=torch.from_numpy(starts[: len(source) + 1]),
            target_starts=torch.from_numpy(starts[len(source) :]),
            source_sets=torch.from_numpy(sets[0]),
            target_sets=torch.from_numpy(sets[1]),
            source_longer=torch.from_numpy(numbers[0]),
            target_longer=torch.from_numpy(numbers[1]),
            longer=torch.from_numpy(cdist(*of_longer, scorer=Levenshtein.distance, dtype=np.int32)),
        )

    @cached_property
    def padded(self) -> tuple[TextTable, TextTable]:
        """The same for who has no kernel."""
        return TextTable(self._texts[0]), TextTable(self._texts[1])


def nearest_partners(
    source: Tensor,
    target: Tensor,
    candidates: Tensor,
    partners: tuple[Tensor, Tensor],
    free: tuple[Tensor, Tensor],
    texts: PairTexts,
    theta: float,
) -> tuple[Tensor, Tensor]:
    """Partners below θ, one-to-one at each position and in either direction, nearest pairs first.

    Of equal distances the one whose seeking token comes first counts, then the one whose partner does.

    Args:
        source, target: int64 [positions, k_source] and [positions, k_target], ids.
        candidates: bool [positions, k_source, k_target], pairs that may be near.
        partners: int64, like the ids, the partner that each token has; -1 where one is sought.
        free: bool, which tokens of the target, and which of the source, may be taken.
        texts: of both vocabularies.

    Returns:
        The partners with what was found.
    """
    position, left, right = candidates.nonzero().unbind(-1)
    ids, places = (source[position, left], target[position, right]), (left, right)
    distance = relative_distances(*ids, texts.padded, theta)
    keys = position * source.shape[1] + left, position * target.shape[1] + right
    found = []
    for seek, sizes in ((0, (source.numel(), target.numel())), (1, (target.numel(), source.numel()))):
        known, offered = partners[seek], free[seek]
        asked = (known[position, places[seek]] == UNMAPPED) & offered[position, places[1 - seek]] & (distance < theta)
        taken = one_to_one(keys[seek], keys[1 - seek], distance, asked, sizes)
        partner = torch.full((sizes[0] + 1,), UNMAPPED, device=source.device)
        partner[keys[seek].where(taken, sizes[0])] = ids[1 - seek]  # what is not taken goes behind the end
        found.append(torch.maximum(known, partner[:-1].view_as(known)))
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
