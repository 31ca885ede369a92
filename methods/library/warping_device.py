"""Dynamic time warping where the entropies are: costs, programme and the way back on one device, for a whole batch.

The same paths as :func:`methods.library.warping.warp_all` finds on the host. Where only single tokens are compared, the
pairs stay on the device too. Pieces of several tokens come to the host, in one copy: from them the chunks are laid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from methods.library.alignment import AlignedResponse, PairedTokens, starts_of
from methods.library.edit_distance import TextTable, edit_distances
from methods.library.kernels import warping_for
from methods.library.maps import UNMAPPED
from methods.library.transfers import sent
from methods.library.warping import ALONE, APART, CONFIRMED, EditCosts, Path, alike, groups_by_bytes

_EMPTY = np.zeros(0, dtype=np.int64)


class DeviceCosts:
    """What :class:`EditCosts` gives, on the device of the entropies."""

    def __init__(self, costs: EditCosts) -> None:
        self._costs = costs

    @cached_property
    def _tables(self) -> tuple[TextTable, TextTable]:
        """The teacher's texts and the student's; a training on the CPU needs none."""
        return TextTable(self._costs.teacher_texts), TextTable(self._costs.student_texts)

    def paths(self, responses: Sequence[AlignedResponse]) -> list[Path]:
        """The cheapest path of each response, its costs weighted by both models' entropies, tensors on one device."""
        found: list[Path] = [(_EMPTY, _EMPTY)] * len(responses)
        for part, cells, wide in self._tables_of(responses):
            for number, path in zip(part, cells.cpu().numpy(), strict=True):
                found[number] = _links(path, wide)
        return found

    def pairs(self, responses: Sequence[AlignedResponse], firsts: bool) -> PairedTokens:
        """What the paths pair, one token with one; the host learns nothing of it.

        Args:
            responses: one or more, as of :meth:`paths`.
            firsts: whether the first tokens of a piece of several are a pair; else such a piece has none.
        """
        device = torch.as_tensor(responses[0].student_entropy).device
        partners = [torch.full((each.student_ids.size,), UNMAPPED, device=device) for each in responses]
        counts = torch.zeros(5, dtype=torch.int64, device=device)
        for part, cells, wide in self._tables_of(responses):
            links = _Links.of(cells, wide)
            alone = links.begins & links.ends
            pairs = links.begins if firsts else alone
            table = torch.full((len(part), wide + 1), UNMAPPED, device=device)
            table.scatter_(1, links.student.where(pairs, wide), links.teacher)  # what is no pair goes behind the end
            for number, row in zip(part, table, strict=True):
                partners[number] = row[: responses[number].student_ids.size]
            confirmed, apart = links.beside_bytes([responses[number] for number in part])
            noted = [alone, confirmed, links.known, apart & pairs, pairs]
            counts = counts + torch.stack([each.sum() for each in noted])
        ones, confirmed, known, apart, compared = counts.double().unbind()
        tokens = torch.full_like(ones, sum(each.student_ids.size for each in responses))
        return PairedTokens(partners, {ALONE: (ones, tokens), CONFIRMED: (confirmed, known), APART: (apart, compared)})

    def _tables_of(self, responses: Sequence[AlignedResponse]) -> Iterator[tuple[list[int], Tensor, int]]:
        """Numbers of responses that share a table, the cells of their paths in it (:func:`warp_cells`), its width."""
        for part in alike([(each.teacher_ids.size, each.student_ids.size) for each in responses]):
            cells, wide = self._cells([responses[number] for number in part])
            yield part, cells, wide

    def _cells(self, responses: Sequence[AlignedResponse]) -> tuple[Tensor, int]:
        """Of responses that share one table."""
        ours = [torch.as_tensor(each.student_entropy) for each in responses]
        theirs = [torch.as_tensor(each.teacher_entropy) for each in responses]
        device = ours[0].device
        sizes = [[each.numel() for each in side] for side in (theirs, ours)]
        rows, columns = (sent(torch.tensor(side), device) for side in sizes)
        costs = self._between(responses, device)
        costs *= padded_weights(theirs, rows).unsqueeze(2) * padded_weights(ours, columns).unsqueeze(1)
        return warp_cells(costs, rows, columns), costs.shape[2]

    def _between(self, responses: Sequence[AlignedResponse], device: torch.device) -> Tensor:
        """int64 [responses, m, n]: edit distances of all tokens; each pair of ids is measured once in the batch."""
        sides = []
        for table, lists in (
            (self._tables[0], [each.teacher_ids for each in responses]),
            (self._tables[1], [each.student_ids for each in responses]),
        ):
            unique, place = np.unique(np.concatenate(lists), return_inverse=True)
            longest = int(table.tables.on(torch.device("cpu"))["lengths"][torch.from_numpy(unique)].max())
            bounds = np.cumsum([each.size for each in lists])[:-1]
            places = [torch.from_numpy(part) for part in np.split(place, bounds)]
            padded = sent(torch.nn.utils.rnn.pad_sequence(places, batch_first=True), device)
            sides.append((unique, longest, padded))
        (theirs, their_longest, their_place), (ours, our_longest, our_place) = sides
        # the tokens alone are copied: of each with each there are millions
        special = self._costs.student_of_special[theirs]
        left, same, right = (sent(torch.from_numpy(ids), device) for ids in (theirs, special, ours))
        shape = len(left), len(right)
        pairs = left.unsqueeze(1).expand(shape).flatten(), right.expand(shape).flatten()
        distances = edit_distances(*self._tables, *pairs, (their_longest, our_longest)).view(shape)
        distances = distances.masked_fill(same.unsqueeze(1) == right, 0)  # UNMAPPED is no token
        return distances[their_place.unsqueeze(2), our_place.unsqueeze(1)]


class _Links(NamedTuple):
    """The links of paths, each from its last one back to its first; behind that anything.

    Attributes:
        teacher, student: int64 [responses, links], the tokens that are linked.
        known: bool [responses, links], which there are.
        begins, ends: bool [responses, links], which begin and end a piece, as of :func:`~warping.link_groups`.
    """

    teacher: Tensor
    student: Tensor
    known: Tensor
    begins: Tensor
    ends: Tensor

    @classmethod
    def of(cls, cells: Tensor, wide: int) -> _Links:
        """From the cells of :func:`warp_cells` in tables of this width."""
        teacher, student = cells // wide, cells % wide
        known = torch.arange(cells.shape[1], device=cells.device) <= (cells > 0).sum(1, keepdim=True)
        apart = (teacher[:, 1:] != teacher[:, :-1]) & (student[:, 1:] != student[:, :-1]) | ~known[:, 1:]
        edge = known.new_ones(len(known), 1)
        return cls(teacher, student, known, known & torch.cat([apart, edge], 1), known & torch.cat([edge, apart], 1))

    def beside_bytes(self, responses: Sequence[AlignedResponse]) -> tuple[Tensor, Tensor]:
        """bool [responses, links]: links of tokens in one group by bytes; and, anything behind a path, of tokens that
        begin apart.
        """
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for each in responses:
            ends = each.student_ends, each.teacher_ends
            for side, groups, own in zip(sides, groups_by_bytes(*ends), ends, strict=True):
                side.append(torch.from_numpy(np.stack([groups, starts_of(own)], axis=1)))
        found = []
        for side, tokens in zip(sides, (self.student, self.teacher), strict=True):
            padded = sent(torch.nn.utils.rnn.pad_sequence(side, batch_first=True), tokens.device)
            found.append(padded.gather(1, tokens.unsqueeze(2).expand(-1, -1, 2)).unbind(2))
        (our_group, our_start), (their_group, their_start) = found
        same = self.known & (our_group == their_group) & (our_group >= 0)
        return same, our_start != their_start


def padded_weights(entropies: Sequence[Tensor], sizes: Tensor) -> Tensor:
    """int64 [responses, longest]: :func:`methods.library.warping.entropy_weights` of each response, 3 behind its end.

    Args:
        entropies: float64 [n] each, n > 0.
        sizes: int64 [responses], their n.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(entropies), batch_first=True)
    behind = torch.arange(padded.shape[1], device=padded.device) >= sizes.unsqueeze(1)
    lowest = padded.masked_fill(behind, torch.inf).amin(1, keepdim=True)
    spread = padded.masked_fill(behind, -torch.inf).amax(1, keepdim=True) - lowest
    scaled = torch.where(spread > 0, (padded - lowest) / spread, 0.0)
    sigmoid = 1 / (1 + torch.exp(2 - 4 * scaled))
    return torch.where(behind, 3, (3 * sigmoid + 3).to(torch.int64))


def warp_cells(costs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """int64 [responses, m + n - 1]: the path's cells, i * n + j, from a response's last one to 0, and 0 from there on.

    Args:
        costs: int64 [responses, m, n], not negative.
        rows, columns: int64 [responses], how much of the table is a response's.
    """
    kernels = warping_for(costs)
    if kernels is not None:
        known: Tensor = kernels.warp_cells(costs, rows, columns)
        return known
    _, high, wide = costs.shape
    before = _predecessors(_accumulated(costs)).flatten(1)
    cells = ((rows - 1) * wide + columns - 1).unsqueeze(1)
    # one step back from each cell, then two, four, ...: as many steps are known as cells are on the path
    while cells.shape[1] < high + wide - 1:
        cells = torch.cat([cells, before.gather(1, cells)], 1)
        before = before.gather(1, before)
    return cells[:, : high + wide - 1]


def _accumulated(costs: Tensor) -> Tensor:
    """int64 [responses, m, n]: the cost of the cheapest path to each cell, a row of all responses at a time.

    As in :func:`methods.library.warping.warp_all`: with S the running sum of a row's costs and a[j] the cheaper of the
    cells above and diagonally above, D[i, j] = S[j] + min over k <= j of (a[k] - S[k - 1]).
    """
    total = costs.cumsum(2)
    shifted = total - costs
    for row in range(1, total.shape[1]):
        above = total[:, row - 1]
        cheaper = torch.cat([above[:, :1], torch.minimum(above[:, 1:], above[:, :-1])], 1)
        total[:, row] += (cheaper - shifted[:, row]).cummin(1).values
    return total


def _predecessors(total: Tensor) -> Tensor:
    """int64 [responses, m, n]: the cell before each on a path, diagonally if nothing is cheaper; of the first, it."""
    _, high, wide = total.shape
    row = torch.arange(high, device=total.device).unsqueeze(1)
    column = torch.arange(wide, device=total.device)
    diagonal, above, left = total[:, :-1, :-1], total[:, :-1, 1:], total[:, 1:, :-1]
    back = torch.where((diagonal <= above) & (diagonal <= left), wide + 1, torch.where(above <= left, wide, 1))
    steps = torch.where(column > 0, 1, torch.where(row > 0, wide, 0)).expand_as(total).clone()
    steps[:, 1:, 1:] = back
    return row * wide + column - steps


def _links(cells: np.typing.NDArray[np.int64], wide: int) -> Path:
    """A path from its cells, which end with any number of zeros."""
    known = cells[: np.flatnonzero(cells).size + 1][::-1]
    return known // wide, known % wide
