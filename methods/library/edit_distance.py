"""Levenshtein distances of many pairs of tokens at once, on the device where the tokens' numbers are.

Texts are rows of a table of code points that is copied to a device once. A pattern of up to 64 characters is one
integer of Myers' bit-parallel programme (Myers, A fast bit-vector algorithm for approximate string matching, JACM 46,
1999; distances of whole strings as in Hyyrö, 2003): bit i says how the i-th vertical step of the current column goes.
Where both texts are longer, a column of the ordinary programme is computed at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from methods.library.kernels import warping_for
from methods.library.maps import Tables

WORD = 64
"""Characters of a pattern that fit into one integer."""
_CELLS_AT_ONCE = 1 << 26
"""Most entries of an intermediate tensor, characters of all pairs together."""


class TextTable:
    """Texts as code points, on every device that asks.

    Attributes:
        longest: characters of the longest text.
        tables: int32 [texts, longest] points, -1 behind the end, and int64 [texts] lengths.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self.longest = int(lengths.max(initial=0))
        points = np.full((len(texts), max(self.longest, 1)), -1, dtype=np.int32)
        row = np.repeat(np.arange(len(texts)), lengths)
        column = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        points[row, column] = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.int32)
        self.tables = Tables(points=torch.from_numpy(points), lengths=torch.from_numpy(lengths))

    def of(self, ids: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """int32 [ids, longest] points and int64 [ids] lengths of the texts of these numbers, none of them longer."""
        tables = self.tables.on(ids.device)
        return tables["points"][:, : max(longest, 1)].index_select(0, ids), tables["lengths"][ids]


def edit_distances(
    left: TextTable, right: TextTable, left_ids: Tensor, right_ids: Tensor, longest: tuple[int, int] | None = None
) -> Tensor:
    """int64 [pairs]: distances of the texts of paired numbers.

    Args:
        left_ids, right_ids: int64 [pairs].
        longest: characters of the longest text on either side, where the caller knows; else the device is asked.
    """
    if not len(left_ids):
        return left_ids.new_zeros(0)
    if longest is None:
        longest = _longest(left, right, left_ids, right_ids)
    if longest[0] < longest[1]:  # the shorter side is the pattern
        return edit_distances(right, left, right_ids, left_ids, longest[::-1])
    kernels = warping_for(left_ids)
    if kernels is not None and longest[1] <= WORD:
        sides = (left.tables.on(left_ids.device), left_ids), (right.tables.on(left_ids.device), right_ids)
        of_left, of_right = ((tables["points"], tables["lengths"], ids) for tables, ids in sides)
        found: Tensor = kernels.edit_distances(of_left, of_right, longest)
        return found
    measure = _bit_parallel if longest[1] <= WORD else _by_columns
    at_once = max(1, _CELLS_AT_ONCE // max(longest[1], 1))
    parts = [
        measure(*left.of(ours, longest[0]), *right.of(theirs, longest[1]))
        for ours, theirs in zip(torch.split(left_ids, at_once), torch.split(right_ids, at_once), strict=True)
    ]
    return torch.cat(parts)


def _longest(left: TextTable, right: TextTable, left_ids: Tensor, right_ids: Tensor) -> tuple[int, int]:
    """Characters of the longest text on either side; waits for the device."""
    sides = [table.tables.on(ids.device)["lengths"][ids].max() for table, ids in ((left, left_ids), (right, right_ids))]
    ours, theirs = torch.stack(sides).tolist()
    return ours, theirs


def _bit_parallel(text: Tensor, text_length: Tensor, pattern: Tensor, pattern_length: Tensor) -> Tensor:
    """int64 [pairs]: distances; patterns have at most :data:`WORD` characters.

    Args:
        text, pattern: int32 [pairs, characters], -1 behind the end.
        text_length, pattern_length: int64 [pairs].
    """
    weights = torch.ones((), dtype=torch.int64, device=text.device) << torch.arange(
        pattern.shape[1], device=text.device
    )
    up = torch.full_like(text_length, -1)  # vertical steps that add one; all do in the column before the text
    down = torch.zeros_like(text_length)
    distance = pattern_length.clone()
    last = (pattern_length - 1).clamp_min(0)
    for place in range(text.shape[1]):
        equal = ((pattern == text[:, place, None]) * weights).sum(-1)
        vertical = equal | down
        diagonal = (((equal & up) + up) ^ up) | equal
        right_up = down | ~(diagonal | up)
        right_down = up & diagonal
        change = ((right_up >> last) & 1) - ((right_down >> last) & 1)
        distance += change.masked_fill(text_length <= place, 0)
        right_up = (right_up << 1) | 1
        right_down = right_down << 1
        up = right_down | ~(vertical | right_up)
        down = right_up & vertical
    return torch.where(pattern_length == 0, text_length, distance)


def _by_columns(text: Tensor, text_length: Tensor, pattern: Tensor, pattern_length: Tensor) -> Tensor:
    """As :func:`_bit_parallel`, patterns of any length: a character of the text after the other.

    D[i, j] = min over k <= j of (a[k] - k) + j, a[k] being the cheapest way to [i, k] that comes from column i - 1.
    """
    numbers = torch.arange(pattern.shape[1] + 1, device=text.device)
    column = numbers.expand(len(text), -1)
    distance = pattern_length.clone()
    for place in range(text.shape[1]):
        diagonal = column[:, :-1] + (pattern != text[:, place, None])
        ahead = column + 1
        ahead = torch.cat([ahead[:, :1], torch.minimum(ahead[:, 1:], diagonal)], 1)
        column = (ahead - numbers).cummin(-1).values + numbers
        at_end = column.gather(1, pattern_length[:, None]).squeeze(1)
        distance = at_end.where(text_length == place + 1, distance)
    return distance
