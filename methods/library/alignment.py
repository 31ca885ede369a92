"""Alignment of two tokenisations of the same response. Bytes are the only coordinate that they share.

Every response token has a half-open span [start, end) of UTF-8 bytes, relative to the response's first byte. Spans
of one side are contiguous, so a list of ends says it all. Groups close where both sides end on the same byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AlignedResponse:
    """One response as both models see it; EOS, where present, is a last token of width zero.

    Attributes:
        student_ids, teacher_ids: int64 [n], [m], response tokens.
        student_ends, teacher_ends: int64 [n], [m], where each token ends, in bytes of the response.
        student_prompt, teacher_prompt: number of tokens before the response.
        student_entropy, teacher_entropy: float64 [n], [m], in nats, of the rows that the method's loss reads; None
            unless the method needs them. Tensors where the method aligns on the models' device, else arrays.
        reward: what the task says of a response that the student sampled; None where nobody asks it.
    """

    student_ids: IntArray
    teacher_ids: IntArray
    student_ends: IntArray
    teacher_ends: IntArray
    student_prompt: int = 0
    teacher_prompt: int = 0
    student_entropy: npt.NDArray[np.float64] | Tensor | None = None
    teacher_entropy: npt.NDArray[np.float64] | Tensor | None = None
    reward: float | None = None


class PairedTokens(NamedTuple):
    """Groups of one token on each side of a batch of responses, on the device where they were found.

    A token of either side is in one pair at most.

    Attributes:
        partners: for each response, int64 [n]: the teacher token of each student token, -1 for none.
        notes: as of :class:`Groups`, summed over the batch; float64 scalars.
    """

    partners: list[Tensor]
    notes: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Groups:
    """Alignment groups: which student tokens are compared with which teacher tokens.

    Members are listed group by group. A token may be in several groups (time warping) or in none.

    Attributes:
        student_index, student_group: int64 [members], token and its group, groups ascending.
        teacher_index, teacher_group: the same for the teacher.
        count: number of groups; each has members on both sides.
        teacher_weight: float64 [teacher members], how much each counts: in a mean over its group, or, where nobody
            teaches, as it was rewarded; None: all alike.
        notes: what the alignment says of itself, by name: a sum, and the sum that it is a share of.
    """

    student_index: IntArray
    student_group: IntArray
    teacher_index: IntArray
    teacher_group: IntArray
    count: int
    teacher_weight: npt.NDArray[np.float64] | None = None
    notes: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def one_to_one(cls, student: npt.ArrayLike, teacher: npt.ArrayLike) -> Groups:
        """Groups of one token on each side.

        Raises:
            ValueError: the two lists differ in length.
        """
        left, right = np.asarray(student, dtype=np.int64), np.asarray(teacher, dtype=np.int64)
        if left.shape != right.shape:
            raise ValueError(f"{left.size} student tokens can't be paired with {right.size} teacher tokens")
        number = np.arange(left.size)
        return cls(left, number, right, number, left.size)

    @classmethod
    def from_lists(cls, student: Sequence[Sequence[int]], teacher: Sequence[Sequence[int]]) -> Groups:
        """Groups from one list of token indices a group and side.

        Raises:
            ValueError: a group without members on one side.
        """
        if len(student) != len(teacher) or not all(map(len, [*student, *teacher])):
            raise ValueError("every group needs members on both sides")
        return cls(*_flatten(student), *_flatten(teacher), len(student))

    def only_one_to_one(self) -> Groups:
        """The groups that have one member on each side, renumbered."""
        alone = np.bincount(self.student_group, minlength=self.count) == 1
        alone &= np.bincount(self.teacher_group, minlength=self.count) == 1
        student, teacher = alone[self.student_group], alone[self.teacher_group]
        return Groups.one_to_one(self.student_index[student], self.teacher_index[teacher])

    def to_lists(self) -> tuple[list[list[int]], list[list[int]]]:
        """One list of token indices a group, for each side."""
        return (
            _unflatten(self.student_index, self.student_group, self.count),
            _unflatten(self.teacher_index, self.teacher_group, self.count),
        )


def pair_identical(response: AlignedResponse, prompt: bool = False) -> Groups:
    """Every token with itself, for models that share a tokenizer; with the prompt's positions where asked.

    Raises:
        ValueError: the two sides hold different tokens, so they don't share a tokenizer or a prompt.
    """
    if not np.array_equal(response.student_ids, response.teacher_ids):
        raise ValueError("student and teacher cut the response into different tokens")
    if prompt and response.student_prompt != response.teacher_prompt:
        raise ValueError("student and teacher render the prompt with different numbers of tokens")
    every = np.arange(response.student_ids.size + (response.student_prompt if prompt else 0))
    return Groups.one_to_one(every, every)


def pair_positions(students: int, teachers: int) -> Groups:
    """Token i with token i, cut to the shorter side (ULD, arXiv 2402.12030, section 3)."""
    shorter = np.arange(min(students, teachers))
    return Groups.one_to_one(shorter, shorter)


def group_bytes(student_ends: IntArray, teacher_ends: IntArray) -> Groups:
    """The finest partition of both sides on the byte boundaries that they share; O(n + m).

    Same groups as the two-pointer walk that advances the side which ends first and closes a group when both end on
    the same byte. A k-th token that ends on a byte closes with the other side's k-th, so that a zero-width EOS on
    both sides is a group of its own. The tail after the last shared boundary is in no group.

    Args:
        student_ends, teacher_ends: int64 [n], [m], ascending.
    """
    most = max(len(student_ends), len(teacher_ends)) + 1
    student_keys, teacher_keys = _boundary_keys(student_ends, most), _boundary_keys(teacher_ends, most)
    place = teacher_keys.searchsorted(student_keys)  # of each student token: the first teacher token as far as it
    met = (np.append(teacher_keys, -1)[place] == student_keys).nonzero()[0]
    student_last, teacher_last = met, place[met]  # last members of the groups
    student_index = np.arange(student_last[-1] + 1 if met.size else 0)
    teacher_index = np.arange(teacher_last[-1] + 1 if met.size else 0)
    return Groups(
        student_index,
        student_last.searchsorted(student_index),
        teacher_index,
        teacher_last.searchsorted(teacher_index),
        met.size,
    )


def first_members(index: IntArray, group: IntArray) -> IntArray:
    """int64 [groups]: each group's first token on one side, of members that are listed group by group."""
    return index[np.flatnonzero(np.diff(group, prepend=-1))]


def starts_of(ends: IntArray) -> IntArray:
    """int64 [n]: where each token begins, in bytes of the response; spans are contiguous."""
    return np.concatenate([[0], ends])[:-1].astype(np.int64)


def cut_at_common_boundary(ends: Sequence[IntArray], limits: Sequence[int]) -> list[int] | None:
    """How many tokens of each side to keep so that none exceeds its limit and all end on the same byte.

    Args:
        ends: int64 [n_k] for each side, without EOS.
        limits: the most tokens that each side may keep.

    Returns:
        None where nothing needs to be cut; else the number of tokens of each side, 0 where no boundary past byte 0
        is shared (a dummy prefix space, which covers no byte, is no response).
    """
    if all(len(side) <= limit for side, limit in zip(ends, limits, strict=True)):
        return None
    shared = ends[0][: limits[0]]
    for side, limit in zip(ends[1:], limits[1:], strict=True):
        shared = np.intersect1d(shared, side[:limit])
    last = shared[-1] if shared.size else 0
    if last == 0:
        return [0] * len(ends)
    return [int(np.searchsorted(side[:limit], last, side="right")) for side, limit in zip(ends, limits, strict=True)]


def _boundary_keys(ends: IntArray, most: int) -> IntArray:
    """Unique ascending keys of (end, how many tokens before ended there too), comparable between sides."""
    keys: IntArray = ends * most + np.arange(len(ends)) - ends.searchsorted(ends)
    return keys


def _flatten(lists: Sequence[Sequence[int]]) -> tuple[IntArray, IntArray]:
    index = np.asarray([token for group in lists for token in group], dtype=np.int64)
    number = np.repeat(np.arange(len(lists)), [len(group) for group in lists])
    return index, number


def _unflatten(index: IntArray, group: IntArray, count: int) -> list[list[int]]:
    bounds = np.searchsorted(group, np.arange(count + 1))
    return [index[a:b].tolist() for a, b in pairwise(bounds)]
