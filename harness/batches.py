"""Tokenised examples -> padded batches with their rows, alignment groups and chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from harness.tokens import STUDENT, SideTokens, TokenizedExample
from methods.alignment import AlignedResponse, Groups, IntArray
from methods.base import Method, Need, Rows

EntropyArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """One distillation term of an objective.

    Attributes:
        method: its loss.
        teacher: role of the teacher it learns from.
        weight: factor of its KD sum in the total loss.
    """

    method: Method
    teacher: str
    weight: float


class OnDevice:
    """A dataclass whose tensors move to a device together, as accelerate's data loaders ask.

    Class attributes:
        stays: names of fields that no move concerns.
    """

    stays: ClassVar[frozenset[str]] = frozenset()

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

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
        slices: for each chunk, (student members, teacher members, groups, teacher rows) as (start, stop) pairs.
        in_order: for each chunk, whether (student, teacher) members are its rows in their order.
        groups: number of groups.
        teacher_weight: float64 [teacher members] or None, see :class:`Groups`.
        notes: what the alignment says of itself, summed over the batch.
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
    teacher_weight: torch.Tensor | None = None
    notes: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class TeacherBatch(OnDevice):
    """One teacher's part of a batch: its tokens for a live forward pass, or its stored rows.

    Attributes:
        input_ids, attention_mask, position_ids: int64 [batch, length]; None where rows are stored.
        row_index: int64 [rows], flat positions in [batch * length] of the rows that go through the head.
        targets: int64 [rows], the response token that each row predicts, or -100.
        stored: [rows, hidden] stored rows, or None.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    row_index: torch.Tensor
    targets: torch.Tensor
    stored: torch.Tensor | None


@dataclass
class Batch(OnDevice):
    """A padded batch of the student, its teachers' parts, and how the loss walks over its rows.

    Attributes:
        input_ids, attention_mask, position_ids: int64 [batch, length]. Where sequences are packed, [1, all tokens]:
            positions start again with each of them, and there is no mask.
        row_index: int64 [rows], flat positions in [batch * length] of the rows that go through the head.
        targets: int64 [rows], the response token that each row predicts, or -100.
        chunks: (start, stop) of the student rows of each chunk.
        counts: float64 [2 + terms], always on the CPU, where a window's are added up: response tokens, responses, and
            the groups of each term (0 where they are made at the step).
        unaligned: what the step needs to make ``chunks`` and ``terms``, where a method aligns by entropies.
    """

    stays = frozenset({"counts"})

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor
    row_index: torch.Tensor
    targets: torch.Tensor
    chunks: list[tuple[int, int]]
    teachers: dict[str, TeacherBatch]
    terms: list[TermBatch]
    counts: torch.Tensor
    unaligned: Unaligned | None = None


@dataclass(frozen=True)
class AlignedExample:
    """A tokenised example with the groups of every term, or what a term will align at the step."""

    example: TokenizedExample
    groups: tuple[Groups | AlignedResponse, ...]


def align(example: TokenizedExample, terms: Sequence[Term]) -> AlignedExample:
    """Align an example for every term; done once, but for the methods that need a model's entropies for it."""
    groups: list[Groups | AlignedResponse] = []
    for term in terms:
        response = example.aligned(term.teacher)
        groups.append(response if Need.ENTROPY in term.method.needs else term.method.align(response))
    return AlignedExample(example, tuple(groups))


@dataclass(frozen=True)
class Layout:
    """Where the rows of a batch are, so that the groups of its examples become chunks.

    Attributes:
        starts: int64 [batch + 1], where each example's student rows start.
        student_shift, teacher_shift: for each term, int64 [batch]: row number of index 0 of each example's groups.
        student_tokens, teacher_tokens: for each term, int64 [rows]: the response token that a member of a group in
            that row is, or -100.
        chunk_rows: the most student rows in a chunk, unless one group or response needs more.
        whole: whether every chunk is one response.
    """

    starts: IntArray
    student_shift: tuple[IntArray, ...]
    teacher_shift: tuple[IntArray, ...]
    student_tokens: tuple[IntArray, ...]
    teacher_tokens: tuple[IntArray, ...]
    chunk_rows: int
    whole: bool

    def place(self, groups: Sequence[Sequence[Groups]]) -> tuple[list[tuple[int, int]], list[TermBatch]]:
        """Chunks of the batch and the groups of each term in them; ``groups[k][i]`` are term k's of example i."""
        terms = [self._join(number, parts) for number, parts in enumerate(groups)]
        chunks = chunk_bounds(self.starts, terms, self.chunk_rows, self.whole)
        tokens = zip(self.student_tokens, self.teacher_tokens, strict=True)
        return chunks, [slice_term(term, chunks, *own) for term, own in zip(terms, tokens, strict=True)]

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


@dataclass(frozen=True)
class Unaligned:
    """A batch of which some terms are aligned at the step, by the entropies of its rows.

    Attributes:
        layout: where its rows are.
        groups: by term and example, groups or what is still to be aligned.
    """

    layout: Layout
    groups: tuple[tuple[Groups | AlignedResponse, ...], ...]

    def place(
        self, terms: Sequence[Term], student: EntropyArray, teachers: Mapping[str, EntropyArray]
    ) -> tuple[list[tuple[int, int]], list[TermBatch]]:
        """Chunks and groups, as by :meth:`Layout.place`.

        Args:
            student, teachers: float64 [rows], entropies of the batch's rows, of each teacher by role.
        """
        placed = []
        for number, (term, parts) in enumerate(zip(terms, self.groups, strict=True)):
            asked: list[AlignedResponse] = []
            for place, part in enumerate(parts):
                if isinstance(part, AlignedResponse):
                    first = self.layout.student_shift[number][place], self.layout.teacher_shift[number][place]
                    ours = student[first[0] : first[0] + part.student_ids.size]
                    theirs = teachers[term.teacher][first[1] : first[1] + part.teacher_ids.size]
                    asked.append(replace(part, student_entropy=ours, teacher_entropy=theirs))
            made = iter(term.method.align_all(asked))
            placed.append([next(made) if isinstance(part, AlignedResponse) else part for part in parts])
        return self.layout.place(placed)


class Collator:
    """Builds a :class:`Batch` from aligned examples.

    Args:
        terms: the objective's distillation terms, in the order of each example's groups.
        pad: padding token id by role.
        chunk_rows: the most student rows in a chunk, unless one group or response needs more.
        padding_side: "right" or "left"; losses don't depend on it.
        stored: rows of a teacher by role and example id, ``stored[role](example_id) -> [rows, hidden]``.
        packing: whether the student's sequences stand one behind the other instead of padded; live teachers' are
            padded in any case.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        pad: Mapping[str, int],
        *,
        chunk_rows: int = 256,
        padding_side: Literal["left", "right"] = "right",
        stored: Mapping[str, Any] | None = None,
        packing: bool = False,
    ) -> None:
        self.terms, self.pad, self.chunk_rows, self.padding_side = list(terms), pad, chunk_rows, padding_side
        self.stored, self.packing = stored or {}, packing
        for method in (term.method for term in terms):
            if Need.ENTROPY in method.needs and method.normalize == "rows":
                raise ValueError(f"{method.name} aligns at the step: the window's number of groups is not known before")
        self.roles = frozenset(term.teacher for term in terms)
        self.windows = {
            STUDENT: row_window([term.method.rows for term in terms]),
            **dict.fromkeys(self.roles, TEACHER_ROWS),
        }
        for role in self.roles:
            if any(term.method.rows is Rows.ALL for term in terms if term.teacher == role):
                if role in self.stored:
                    raise ValueError(f"the stored rows of {role!r} leave out the prompt, which a method scores")
                self.windows[role] = Rows.ALL

    def __call__(self, examples: Sequence[AlignedExample]) -> dict[str, Any]:
        """The batch under the key "batch", as transformers' Trainer wants a mapping, and what it was made from."""
        return {"batch": self.collate(examples), "examples": tuple(examples)}

    def collate(self, examples: Sequence[AlignedExample], sampled: frozenset[str] | None = None) -> Batch:
        """The batch of the examples.

        Args:
            sampled: where the responses are the student's own, roles of the teachers that score them; such a batch
                carries no cross-entropy.
        """
        plain = [aligned.example for aligned in examples]
        student = [example.sides[STUDENT] for example in plain]
        window = self.windows[STUDENT]
        starts = _row_starts(student, window)
        input_ids, mask, positions, offsets = _pack(student) if self.packing else self._pad(STUDENT, student)
        groups = tuple(tuple(aligned.groups[k] for aligned in examples) for k in range(len(self.terms)))
        layout = self._layout(plain, starts)
        unaligned: Unaligned | None = None
        chunks: list[tuple[int, int]] = []
        batch_terms: list[TermBatch] = []
        known = [[part for part in parts if isinstance(part, Groups)] for parts in groups]
        if all(len(parts) == len(examples) for parts in known):
            chunks, batch_terms = layout.place(known)
        else:
            unaligned = Unaligned(layout, groups)
        targets = np.concatenate([_targets(side, window) for side in student])
        return Batch(
            input_ids,
            mask,
            positions,
            _row_index(student, window, offsets),
            torch.from_numpy(targets if sampled is None else np.full_like(targets, -100)),
            chunks,
            {role: self._teacher(role, plain) for role in (self.roles if sampled is None else sampled)},
            batch_terms,
            self.counts(examples),
            unaligned,
        )

    def counts(self, examples: Sequence[AlignedExample]) -> torch.Tensor:
        """What a window's loss is divided by, as :class:`Batch` holds it; reads no rows."""
        counts = [sum(aligned.example.sides[STUDENT].response.size for aligned in examples), len(examples)]
        for number in range(len(self.terms)):
            parts = [aligned.groups[number] for aligned in examples]
            counts.append(sum(part.count for part in parts if isinstance(part, Groups)))
        return torch.tensor(counts, dtype=torch.float64)

    def _teacher(self, role: str, examples: Sequence[TokenizedExample]) -> TeacherBatch:
        sides, window = [example.sides[role] for example in examples], self.windows[role]
        targets = torch.from_numpy(np.concatenate([_targets(side, window) for side in sides]))
        if role in self.stored:
            rows = torch.cat([self.stored[role](example.id) for example in examples])
            return TeacherBatch(None, None, None, torch.arange(rows.shape[0]), targets, rows)
        input_ids, mask, positions, offsets = self._pad(role, sides)
        return TeacherBatch(input_ids, mask, positions, _row_index(sides, window, offsets), targets, None)

    def _pad(self, role: str, sides: Sequence[SideTokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, IntArray]:
        """Ids, mask and positions [batch, length], and the flat position where each sequence starts."""
        length = max(side.length for side in sides)
        ids = np.full((len(sides), length), self.pad[role], dtype=np.int64)
        mask = np.zeros((len(sides), length), dtype=np.int64)
        positions = np.zeros((len(sides), length), dtype=np.int64)
        starts = np.zeros(len(sides), dtype=np.int64)
        for row, side in enumerate(sides):
            starts[row] = length - side.length if self.padding_side == "left" else 0
            place = slice(starts[row], starts[row] + side.length)
            ids[row, place], mask[row, place], positions[row, place] = side.sequence, 1, np.arange(side.length)
        offsets = starts + np.arange(len(sides)) * length
        return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(positions), offsets

    def _layout(self, examples: Sequence[TokenizedExample], starts: IntArray) -> Layout:
        shifts: dict[str, list[IntArray]] = {"student": [], "teacher": []}
        tokens: dict[str, list[IntArray]] = {"student": [], "teacher": []}
        for term in self.terms:
            kind = term.method.rows
            for name, role in (("student", STUDENT), ("teacher", term.teacher)):
                sides = [example.sides[role] for example in examples]
                first = [_shift(kind, self.windows[role], side) for side in sides]
                shifts[name].append(_row_starts(sides, self.windows[role])[:-1] + np.asarray(first, dtype=np.int64))
                tokens[name].append(np.concatenate([_tokens(kind, side, self.windows[role]) for side in sides]))
        return Layout(
            starts,
            tuple(shifts["student"]),
            tuple(shifts["teacher"]),
            tuple(tokens["student"]),
            tuple(tokens["teacher"]),
            self.chunk_rows,
            self._whole_responses(),
        )

    def _whole_responses(self) -> bool:
        return any(Need.WHOLE_RESPONSE in term.method.needs for term in self.terms)


def _pack(sides: Sequence[SideTokens]) -> tuple[torch.Tensor, None, torch.Tensor, IntArray]:
    """Ids and positions [1, all tokens] of sequences one behind the other, and where each starts."""
    ids = np.concatenate([side.sequence for side in sides])
    positions = np.concatenate([np.arange(side.length) for side in sides])
    offsets = np.concatenate([[0], np.cumsum([side.length for side in sides])])[:-1].astype(np.int64)
    return torch.from_numpy(ids)[None], None, torch.from_numpy(positions)[None], offsets


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


def _shift(kind: Rows, window: Rows, side: SideTokens) -> int:
    """What to add to a group's index of ``kind`` to get a row number within the example's window."""
    position = {Rows.PREDICTING: side.prompt.size - 1, Rows.AFTER: side.prompt.size, Rows.ALL: 0}[kind]
    return int(position - row_bounds(side, window)[0])


def _row_starts(sides: Sequence[SideTokens], window: Rows) -> IntArray:
    """int64 [batch + 1]: where each example's rows start among the rows of the batch."""
    sizes = [stop - start for start, stop in (row_bounds(side, window) for side in sides)]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _row_index(sides: Sequence[SideTokens], window: Rows, offsets: IntArray) -> torch.Tensor:
    bounds = [row_bounds(side, window) for side in sides]
    return torch.from_numpy(
        np.concatenate([np.arange(a, b) + offset for (a, b), offset in zip(bounds, offsets, strict=True)])
    )


def _targets(side: SideTokens, window: Rows) -> IntArray:
    start, stop = row_bounds(side, window)
    targets = np.full(stop - start, -100, dtype=np.int64)
    first = side.prompt.size - 1 - start
    targets[first : first + side.response.size] = side.response
    return targets


def _tokens(kind: Rows, side: SideTokens, window: Rows) -> IntArray:
    """int64 [rows]: the response token that a group's member in each row is; one before it where rows come AFTER."""
    targets = _targets(side, window)
    return targets if kind is Rows.PREDICTING else np.concatenate([[-100], targets[:-1]])


def chunk_bounds(starts: IntArray, terms: Sequence[Groups], most: int, whole: bool) -> list[tuple[int, int]]:
    """Cut the rows of a batch into contiguous chunks that no group straddles.

    Args:
        starts: int64 [batch + 1], where each example's rows start.
        terms: the groups of each term, members as row numbers of the batch.
        most: rows in a chunk, unless one group needs more.
        whole: whether every chunk is one response.

    Returns:
        (start, stop) of each chunk; together they cover all rows.
    """
    rows = int(starts[-1])
    allowed = np.ones(rows + 1, dtype=bool)  # allowed[r]: a chunk may end before row r
    if whole:
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
    bounds = [0]
    while bounds[-1] < rows:
        within = cuts[(cuts > bounds[-1]) & (cuts <= bounds[-1] + (0 if whole else most))]
        bounds.append(int(within[-1]) if within.size else int(cuts[cuts > bounds[-1]][0]))
    return list(pairwise(bounds))


def slice_term(
    groups: Groups, chunks: Sequence[tuple[int, int]], student_tokens: IntArray, teacher_tokens: IntArray
) -> TermBatch:
    """Sort a batch's groups by chunk and make member indices relative to their chunk's first row.

    Args:
        student_tokens, teacher_tokens: int64 [rows], the response token that a member in each row is.
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
    for (start, stop), span, (s, t) in zip(chunks, spans, members, strict=True):
        rows = _extent(teacher_index[slice(*t)])
        student_index[slice(*s)] -= start
        teacher_index[slice(*t)] -= rows[0]
        student_group[slice(*s)] -= span[0]
        teacher_group[slice(*t)] -= span[0]
        slices.append((s, t, span, rows))
        student_rows, teacher_rows = student_index[slice(*s)], teacher_index[slice(*t)]
        in_order.append((_is_range(student_rows, stop - start), _is_range(teacher_rows, rows[1] - rows[0])))
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


def _is_range(index: IntArray, rows: int) -> bool:
    return index.size == rows and bool(np.array_equal(index, np.arange(rows)))
