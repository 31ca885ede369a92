"""Where the rows of a batch are, and how its loss walks over them: chunks closed under all alignment groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from harness.data.tokens import SideTokens
from methods.base import Rows
from methods.library.alignment import Groups, IntArray, PairedTokens
from methods.library.transfers import sent

Responses = Literal["any", "apart", "whole"]


class OnDevice:
    """A dataclass whose tensors move to a device together, as accelerate's data loaders ask.

    Class attributes:
        stays: names of fields that no move concerns.
    """

    stays: ClassVar[frozenset[str]] = frozenset()

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def sent(self, device: torch.device) -> Any:
        """A copy on a device, for which no host waits: see :func:`methods.library.transfers.sent`."""
        return self._with(lambda tensor: sent(tensor, device))

    def pin_memory(self) -> Any:
        """A copy in page-locked memory, from where a GPU reads while it computes."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        moving = [f.name for f in fields(self) if f.name not in self.stays]  # type: ignore[arg-type]
        return replace(self, **{name: _changed(getattr(self, name), change) for name in moving})  # type: ignore[type-var]


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with its tensors changed, wherever they stand in it."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, OnDevice):
        return value._with(change)
    if isinstance(value, dict):
        return {key: _changed(item, change) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], OnDevice):
        return [_changed(item, change) for item in value]
    return value


@dataclass
class TermBatch(OnDevice):
    """Groups of one term over all rows of a batch. Row numbers count the rows of :class:`Batch`.

    Attributes:
        student_index, student_group, teacher_index, teacher_group: int64 [members], groups ascending.
        student_tokens, teacher_tokens: int64 [members], the response token that each member is, -100 for one of the
            prompt.
        slices: for each chunk, (student members, teacher members, groups, teacher rows) as (start, stop) pairs; for
            each response of a term that reads numbers of rows.
        in_order: for each of them, whether (student, teacher) members are its rows in their order.
        groups: number of groups, or of those that there may be where pairs were made on the device.
        within: for each chunk, the number of the response of its first row, and how many groups that has.
        teacher_weight: float64 [teacher members] or None, see :class:`Groups`.
        notes: what the alignment says of itself, summed over the batch.
        responses: (start, stop) of the student rows of each response, where the slices are theirs.
        partners, paired: int64 and bool [members], where pairs were made on the device: the teacher's row beside each
            token of the student's, any where it has none, and whether it has one. Each token then is a member, and a
            group, of its own, and the last of a chunk's slices is of ``partners``.
    """

    student_index: torch.Tensor
    student_group: torch.Tensor
    teacher_index: torch.Tensor
    teacher_group: torch.Tensor
    student_tokens: torch.Tensor
    teacher_tokens: torch.Tensor
    slices: list[tuple[tuple[int, int], ...]]
    in_order: list[tuple[bool, bool]]
    groups: int
    within: list[tuple[int, int]]
    teacher_weight: torch.Tensor | None = None
    notes: dict[str, tuple[float, float]] | dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    responses: list[tuple[int, int]] | None = None
    partners: torch.Tensor | None = None
    paired: torch.Tensor | None = None

    def of_teacher(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """Of the teacher's rows, or of numbers of them, those that a chunk reads."""
        start, stop = self.slices[number][3]
        return rows[start:stop] if self.partners is None else rows.index_select(0, self.partners[start:stop])

    def pieces(self, number: int) -> list[int]:
        """The chunks of a response, where it begins with this one and has groups; else none."""
        response, groups = self.within[number]
        if not groups or (number and self.within[number - 1][0] == response):
            return []
        return [each for each, (other, _) in enumerate(self.within) if other == response]


@dataclass(frozen=True)
class Layout:
    """Where the rows of a batch are, so that the groups of its examples become chunks.

    Attributes:
        starts: int64 [batch + 1], where each example's student rows start.
        student_shift, teacher_shift: for each term, int64 [batch]: row number of index 0 of each example's groups.
        student_tokens, teacher_tokens: for each term, int64 [rows]: the response token that a member of a group in
            that row is, or -100.
        chunk_rows: the most student rows in a chunk, unless one group or response needs more.
        responses: whether each chunk is one response ("whole"), within one ("apart"), or has rows of any ("any").
        teacher_starts: for each term that reads numbers of rows, int64 [batch + 1], where each example's teacher rows
            start: its groups are cut by response, and bound no chunk. None for the others.
    """

    starts: IntArray
    student_shift: tuple[IntArray, ...]
    teacher_shift: tuple[IntArray, ...]
    student_tokens: tuple[IntArray, ...]
    teacher_tokens: tuple[IntArray, ...]
    chunk_rows: int
    responses: Responses
    teacher_starts: tuple[IntArray | None, ...]

    def place(self, groups: Sequence[Sequence[Groups] | PairedTokens]) -> tuple[list[tuple[int, int]], list[TermBatch]]:
        """Chunks of the batch and the groups of each term in them.

        Args:
            groups: of each term, its pairs, or the groups of each example.
        """
        joined = {k: self._join(k, parts) for k, parts in enumerate(groups) if not isinstance(parts, PairedTokens)}
        bounding = [term for k, term in joined.items() if self.teacher_starts[k] is None]
        chunks = chunk_bounds(self.starts, bounding, self.chunk_rows, self.responses)
        of_chunks = [int(np.searchsorted(self.starts, start, side="right")) - 1 for start, _ in chunks]
        placed = []
        for k, parts in enumerate(groups):
            if isinstance(parts, PairedTokens):
                placed.append(self._pair(k, parts, chunks, of_chunks))
            else:
                counts = [(number, part.count) for number, part in enumerate(parts)]
                placed.append(self._slice(k, joined[k], chunks, [counts[number] for number in of_chunks], counts))
        return chunks, placed

    def _slice(
        self,
        term: int,
        groups: Groups,
        chunks: Sequence[tuple[int, int]],
        of_chunks: list[tuple[int, int]],
        of_responses: list[tuple[int, int]],
    ) -> TermBatch:
        """The groups of one term by chunk, or by response where it reads numbers of rows.

        Args:
            of_chunks, of_responses: as ``within`` of :class:`TermBatch`, of either.
        """
        tokens, starts = (self.student_tokens[term], self.teacher_tokens[term]), self.teacher_starts[term]
        if starts is None:
            return slice_term(groups, chunks, of_chunks, *tokens)
        responses = _bounds(self.starts)
        return replace(slice_term(groups, responses, of_responses, *tokens, _bounds(starts)), responses=responses)

    def _pair(
        self, term: int, pairs: PairedTokens, chunks: Sequence[tuple[int, int]], of_chunks: Sequence[int]
    ) -> TermBatch:
        """The pairs of one term: how many a chunk has is not known here, so each token of the student's may be one."""
        sizes, device = [len(each) for each in pairs.partners], pairs.partners[0].device
        own = zip(sizes, self.student_shift[term], strict=True)
        rows = np.concatenate([np.arange(size) + shift for size, shift in own])
        found = torch.cat(pairs.partners)
        paired = found >= 0
        taught = found + sent(torch.from_numpy(np.repeat(self.teacher_shift[term], sizes)), device)
        partners = taught.where(paired, 0)
        starts = np.asarray([start for start, _ in chunks])
        bounds = np.searchsorted(rows, [*starts, int(self.starts[-1])]).tolist()
        spans = list(pairwise(bounds))
        counts = [stop - start for start, stop in spans]
        index = rows - np.repeat(starts, counts)
        number = sent(torch.from_numpy(np.concatenate([np.arange(count) for count in counts])), device)
        in_order = [
            (_is_range(index[slice(*span)], stop - start), True)
            for span, (start, stop) in zip(spans, chunks, strict=True)
        ]
        return TermBatch(
            sent(torch.from_numpy(index), device),
            number,
            number,
            number,
            sent(torch.from_numpy(self.student_tokens[term][rows]), device),
            sent(torch.from_numpy(self.teacher_tokens[term]), device).index_select(0, partners),
            [(span, span, span, span) for span in spans],
            in_order,
            len(rows),
            list(zip(of_chunks, counts, strict=True)),
            notes=dict(sorted(pairs.notes.items())),
            partners=partners,
            paired=paired,
        )

    def _join(self, term: int, parts: Sequence[Groups]) -> Groups:
        """The groups of one term over the whole batch, members as row numbers of the batch."""
        offsets = np.concatenate([[0], np.cumsum([part.count for part in parts])]).astype(np.int64)
        shifts = self.student_shift[term], self.teacher_shift[term]
        names = {name for part in parts for name in part.notes}
        notes = {name: [part.notes.get(name, (0.0, 0.0)) for part in parts] for name in names}
        weighted = any(part.teacher_weight is not None for part in parts)
        weights = [
            np.ones(part.teacher_index.size) if part.teacher_weight is None else part.teacher_weight for part in parts
        ]
        return Groups(
            np.concatenate([part.student_index + shift for part, shift in zip(parts, shifts[0], strict=True)]),
            np.concatenate([part.student_group + start for part, start in zip(parts, offsets, strict=False)]),
            np.concatenate([part.teacher_index + shift for part, shift in zip(parts, shifts[1], strict=True)]),
            np.concatenate([part.teacher_group + start for part, start in zip(parts, offsets, strict=False)]),
            int(offsets[-1]),
            np.concatenate(weights) if weighted else None,
            {name: (sum(a for a, _ in pairs), sum(b for _, b in pairs)) for name, pairs in sorted(notes.items())},
        )


# A teacher's rows of a response: from the row that predicts the first token to the row after the last one, so that
# one set of stored rows serves PREDICTING and AFTER.
TEACHER_ROWS = Rows.AFTER


def row_window(kinds: Sequence[Rows]) -> Rows:
    """The widest of the windows that an objective's terms need: PREDICTING < AFTER < ALL."""
    order = [Rows.PREDICTING, Rows.AFTER, Rows.ALL]
    return order[max((order.index(kind) for kind in kinds), default=0)]


def row_bounds(side: SideTokens, window: Rows) -> tuple[int, int]:
    """First and one past the last position whose rows go through the head.

    PREDICTING: p-1 .. p+n-1, n rows. AFTER: one more, n+1 rows. ALL: every position of the sequence.
    """
    first = side.prompt.size - 1
    if window is Rows.ALL:
        return 0, side.length
    return first, first + side.response.size + (1 if window is Rows.AFTER else 0)


def row_shift(kind: Rows, window: Rows, side: SideTokens) -> int:
    """What to add to a group's index of ``kind`` to get a row number within the example's window."""
    position = {Rows.PREDICTING: side.prompt.size - 1, Rows.AFTER: side.prompt.size, Rows.ALL: 0}[kind]
    return int(position - row_bounds(side, window)[0])


def row_starts(sides: Sequence[SideTokens], window: Rows) -> IntArray:
    """int64 [batch + 1]: where each example's rows start among the rows of the batch."""
    sizes = [stop - start for start, stop in (row_bounds(side, window) for side in sides)]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def row_positions(sides: Sequence[SideTokens], window: Rows, offsets: IntArray) -> torch.Tensor:
    bounds = [row_bounds(side, window) for side in sides]
    return torch.from_numpy(
        np.concatenate([np.arange(a, b) + offset for (a, b), offset in zip(bounds, offsets, strict=True)])
    )


def row_targets(side: SideTokens, window: Rows) -> IntArray:
    start, stop = row_bounds(side, window)
    targets = np.full(stop - start, -100, dtype=np.int64)
    first = side.prompt.size - 1 - start
    targets[first : first + side.response.size] = side.response
    return targets


def row_tokens(kind: Rows, side: SideTokens, window: Rows) -> IntArray:
    """int64 [rows]: the response token that a group's member in each row is; one before it where rows come AFTER."""
    targets = row_targets(side, window)
    return targets if kind is Rows.PREDICTING else np.concatenate([[-100], targets[:-1]])


def chunk_bounds(starts: IntArray, terms: Sequence[Groups], most: int, responses: Responses) -> list[tuple[int, int]]:
    """Cut the rows of a batch into contiguous chunks that no group straddles.

    Args:
        starts: int64 [batch + 1], where each example's rows start.
        terms: the groups of each term, members as row numbers of the batch.
        most: rows in a chunk, unless one group needs more.
        responses: as of :class:`Layout`.

    Returns:
        (start, stop) of each chunk; together they cover all rows.
    """
    rows = int(starts[-1])
    allowed = np.ones(rows + 1, dtype=bool)  # allowed[r]: a chunk may end before row r
    if responses == "whole":
        allowed[:] = False
        allowed[starts] = True
    for groups in terms:
        if groups.count:
            first = np.full(groups.count, rows, dtype=np.int64)
            last = np.zeros(groups.count, dtype=np.int64)
            np.minimum.at(first, groups.student_group, groups.student_index)
            np.maximum.at(last, groups.student_group, groups.student_index)
            inside = np.zeros(rows + 2, dtype=np.int64)  # +1 where a group forbids cuts, -1 where it ends
            np.add.at(inside, first + 1, 1)
            np.add.at(inside, last + 1, -1)
            allowed &= np.cumsum(inside)[: rows + 1] == 0
    cuts = np.flatnonzero(allowed)
    bounds, ends = [0], starts[-1:] if responses == "any" else starts
    while bounds[-1] < rows:
        start = bounds[-1]
        furthest = min(start + (0 if responses == "whole" else most), int(ends[ends > start][0]))
        within = cuts[(cuts > start) & (cuts <= furthest)]
        bounds.append(int(within[-1]) if within.size else int(cuts[cuts > start][0]))
    return list(pairwise(bounds))


def slice_term(
    groups: Groups,
    chunks: Sequence[tuple[int, int]],
    within: list[tuple[int, int]],
    student_tokens: IntArray,
    teacher_tokens: IntArray,
    teacher_rows: Sequence[tuple[int, int]] | None = None,
) -> TermBatch:
    """Sort a batch's groups by chunk and make member indices relative to their chunk's first row.

    Args:
        within: as of :class:`TermBatch`.
        student_tokens, teacher_tokens: int64 [rows], the response token that a member in each row is.
        teacher_rows: (start, stop) of the teacher's rows of each chunk; None: from the first member to the last.
    """
    first = np.full(groups.count, np.iinfo(np.int64).max)
    np.minimum.at(first, groups.student_group, groups.student_index)
    stops = np.asarray([stop for _, stop in chunks])
    chunk_of_group = np.searchsorted(stops, first, side="right")
    order = np.argsort(chunk_of_group, kind="stable")
    number = np.empty(groups.count, dtype=np.int64)
    number[order] = np.arange(groups.count)
    group_bounds = np.searchsorted(chunk_of_group[order], np.arange(len(chunks) + 1))
    student_index, student_group, _ = _reorder(groups.student_index, number[groups.student_group])
    teacher_index, teacher_group, teacher_order = _reorder(groups.teacher_index, number[groups.teacher_group])
    students, teachers = student_tokens[student_index], teacher_tokens[teacher_index]
    spans = [(int(a), int(b)) for a, b in pairwise(group_bounds)]
    members = [(_members(student_group, span), _members(teacher_group, span)) for span in spans]
    slices: list[tuple[tuple[int, int], ...]] = []
    in_order: list[tuple[bool, bool]] = []
    for place, ((start, stop), span, (s, t)) in enumerate(zip(chunks, spans, members, strict=True)):
        rows = _extent(teacher_index[slice(*t)]) if teacher_rows is None else teacher_rows[place]
        student_index[slice(*s)] -= start
        teacher_index[slice(*t)] -= rows[0]
        student_group[slice(*s)] -= span[0]
        teacher_group[slice(*t)] -= span[0]
        slices.append((s, t, span, rows))
        both = student_index[slice(*s)], teacher_index[slice(*t)]
        in_order.append((_is_range(both[0], stop - start), _is_range(both[1], rows[1] - rows[0])))
    return TermBatch(
        torch.from_numpy(student_index),
        torch.from_numpy(student_group),
        torch.from_numpy(teacher_index),
        torch.from_numpy(teacher_group),
        torch.from_numpy(students),
        torch.from_numpy(teachers),
        slices,
        in_order,
        groups.count,
        within,
        None if groups.teacher_weight is None else torch.from_numpy(groups.teacher_weight[teacher_order]),
        dict(groups.notes),
    )


def _reorder(index: IntArray, group: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    order = np.argsort(group, kind="stable")
    return index[order].copy(), group[order].copy(), order


def _members(group: IntArray, span: tuple[int, int]) -> tuple[int, int]:
    return int(np.searchsorted(group, span[0])), int(np.searchsorted(group, span[1]))


def _extent(index: IntArray) -> tuple[int, int]:
    return (int(index.min()), int(index.max()) + 1) if index.size else (0, 0)


def _bounds(starts: IntArray) -> list[tuple[int, int]]:
    return [(int(start), int(stop)) for start, stop in pairwise(starts)]


def _is_range(index: IntArray, rows: int) -> bool:
    return index.size == rows and bool(np.array_equal(index, np.arange(rows)))
