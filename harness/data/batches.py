"""Tokenised examples -> padded batches with their rows, alignment groups and chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from harness.data.chunks import (
    TEACHER_ROWS,
    Layout,
    OnDevice,
    Responses,
    TermBatch,
    row_bounds,
    row_positions,
    row_shift,
    row_starts,
    row_targets,
    row_tokens,
    row_window,
)
from harness.data.terms import AlignedExample, Term
from harness.data.tokens import STUDENT, SideTokens, TokenizedExample
from methods.base import Method, Need, Rows
from methods.library.alignment import AlignedResponse, Groups, IntArray, PairedTokens


@dataclass
class TeacherBatch(OnDevice):
    """One teacher's part of a batch: its tokens for a live forward pass, or its stored rows.

    Attributes:
        input_ids, attention_mask, position_ids: int64 [batch, length]; None where rows are stored.
        row_index: int64 [rows], flat positions in [batch * length] of the rows that go through the head.
        targets: int64 [rows], the response token that each row predicts, or -100.
        stored: [rows, hidden] stored rows, or None.
        read: int64 [rows], the token that each row has read; None where no method reads this teacher's hidden rows.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    row_index: torch.Tensor
    targets: torch.Tensor
    stored: torch.Tensor | None
    read: torch.Tensor | None


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
        padded_behind: whether padding stands behind each sequence, the teachers' too.
        sampled: whether the responses are the student's own.
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
    padded_behind: bool = False
    sampled: bool = False


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
        self, terms: Sequence[Term], student: torch.Tensor, teachers: Mapping[str, torch.Tensor]
    ) -> tuple[list[tuple[int, int]], list[TermBatch]]:
        """Chunks and groups, as by :meth:`Layout.place`.

        Args:
            student, teachers: float64 [rows], entropies of the batch's rows, of each teacher by role.
        """
        placed: list[Sequence[Groups] | PairedTokens] = []
        for number, (term, parts) in enumerate(zip(terms, self.groups, strict=True)):
            asked: list[AlignedResponse] = []
            if any(isinstance(part, AlignedResponse) for part in parts):
                of_student, of_teacher = (_within_reach(e, term.method) for e in (student, teachers[term.teacher]))
            for place, part in enumerate(parts):
                if isinstance(part, AlignedResponse):
                    first = self.layout.student_shift[number][place], self.layout.teacher_shift[number][place]
                    ours = of_student[first[0] : first[0] + part.student_ids.size]
                    theirs = of_teacher[first[1] : first[1] + part.teacher_ids.size]
                    asked.append(replace(part, student_entropy=ours, teacher_entropy=theirs))
            pairs = term.method.pair_all(asked) if len(asked) == len(parts) else None
            if pairs is not None:
                placed.append(pairs)
                continue
            made = iter(term.method.align_all(asked))
            placed.append([next(made) if isinstance(part, AlignedResponse) else part for part in parts])
        return self.layout.place(placed)


def _within_reach(entropies: torch.Tensor, method: Method) -> Any:
    """Entropies as a method's :meth:`align_all` takes them."""
    return entropies if method.aligns_on_device and entropies.device.type != "cpu" else entropies.cpu().numpy()


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
            clash = method.needs & {Need.ONE_RESPONSE, Need.ROW_SCALARS}
            if method.pairs_on_device and clash:
                asked = " and ".join(sorted(need.value for need in clash))
                raise ValueError(f"{method.name} pairs tokens on the device, where it can't ask for {asked} too")
        self.roles = frozenset(term.teacher for term in terms)
        self.hidden = frozenset(term.teacher for term in terms if Need.HIDDEN in term.method.needs)
        self.windows = {
            **dict.fromkeys(self.roles, TEACHER_ROWS),
            STUDENT: row_window([term.method.rows for term in terms]),  # its own teacher's, too
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
        starts = row_starts(student, window)
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
        targets = np.concatenate([row_targets(side, window) for side in student])
        return Batch(
            input_ids,
            mask,
            positions,
            row_positions(student, window, offsets),
            torch.from_numpy(targets if sampled is None else np.full_like(targets, -100)),
            chunks,
            {role: self._teacher(role, plain) for role in (self.roles if sampled is None else sampled)},
            batch_terms,
            self.counts(examples),
            unaligned,
            self.padding_side == "right",
            sampled is not None,
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
        targets = torch.from_numpy(np.concatenate([row_targets(side, window) for side in sides]))
        read = None
        if role in self.hidden:
            read = torch.from_numpy(np.concatenate([side.sequence[slice(*row_bounds(side, window))] for side in sides]))
        if role in self.stored:
            rows = torch.cat([self.stored[role](example.id) for example in examples])
            return TeacherBatch(None, None, None, torch.arange(rows.shape[0]), targets, rows, read)
        input_ids, mask, positions, offsets = self._pad(role, sides)
        return TeacherBatch(input_ids, mask, positions, row_positions(sides, window, offsets), targets, None, read)

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
        teacher_starts: list[IntArray | None] = []
        for term in self.terms:
            kind = term.method.rows
            for name, role in (("student", STUDENT), ("teacher", term.teacher)):
                sides = [example.sides[role] for example in examples]
                first = [row_shift(kind, self.windows[role], side) for side in sides]
                shifts[name].append(row_starts(sides, self.windows[role])[:-1] + np.asarray(first, dtype=np.int64))
                tokens[name].append(np.concatenate([row_tokens(kind, side, self.windows[role]) for side in sides]))
            by_response = Need.ROW_SCALARS in term.method.needs
            theirs = [example.sides[term.teacher] for example in examples]
            teacher_starts.append(row_starts(theirs, self.windows[term.teacher]) if by_response else None)
        return Layout(
            starts,
            tuple(shifts["student"]),
            tuple(shifts["teacher"]),
            tuple(tokens["student"]),
            tuple(tokens["teacher"]),
            self.chunk_rows,
            self._responses,
            tuple(teacher_starts),
        )

    @property
    def _responses(self) -> Responses:
        apart = any(Need.ONE_RESPONSE in term.method.needs for term in self.terms)
        return "whole" if self.whole_responses else "apart" if apart else "any"

    @property
    def whole_responses(self) -> bool:
        """Whether a method reads whole responses: then each is a chunk."""
        return any(Need.WHOLE_RESPONSE in term.method.needs for term in self.terms)


def _pack(sides: Sequence[SideTokens]) -> tuple[torch.Tensor, None, torch.Tensor, IntArray]:
    """Ids and positions [1, all tokens] of sequences one behind the other, and where each starts."""
    ids = np.concatenate([side.sequence for side in sides])
    positions = np.concatenate([np.arange(side.length) for side in sides])
    offsets = np.concatenate([[0], np.cumsum([side.length for side in sides])])[:-1].astype(np.int64)
    return torch.from_numpy(ids)[None], None, torch.from_numpy(positions)[None], offsets
