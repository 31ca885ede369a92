"""Dynamic time warping of two tokenisations by edit distance, as CDM and MinED align them.

Chen et al., arXiv 2502.11104, section 3.1 (CDM: costs weighted by entropies); Wan et al., arXiv 2401.10491 (FuseLLM,
MinED: plain edit distances). Paths are lists of links (teacher token, student token), ascending on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist, cpdist

from methods.library.alignment import AlignedResponse, Groups, IntArray, group_bytes
from methods.library.maps import UNMAPPED, exact_map
from methods.library.vocabulary import TokenKind, Vocabulary

FloatArray = npt.NDArray[np.float64]
Path = tuple[IntArray, IntArray]
"""Links of a warping path: teacher tokens and student tokens, int64 [links] each."""
ALONE, CONFIRMED, APART = "aligned 1-1", "links that bytes confirm", "pieces that start apart"
"""How a path's notes are called: student tokens that are linked 1-1; links, and compared pieces' starts, by bytes."""
_CELLS_AT_ONCE = 1 << 24
"""Most cells that the tables of one batch have together, but for a single larger one: 64 MiB where int32 holds them."""


def token_texts(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Text of each token as time warping compares it: decoded alone, spaces deleted.

    Bytes that are no whole character read U+FFFD, as the tokenizers' own decoders write them.
    """
    return tuple(spelling.decode("utf-8", "replace").replace(" ", "") for spelling in vocabulary.token_bytes)


class EditDistances:
    """Levenshtein distances of scattered pairs of texts, kept from step to step, and for the next training.

    Of the pairs whose keys fall into one slot of a table the last one stays. That bounds memory: 12 bytes a slot, 24
    MiB in all, and the texts. (All pairs of two lists are no work for it: rapidfuzz's ``cdist`` measures a pair in
    the time of a look-up.)
    """

    def __init__(self, slots: int = 1 << 21) -> None:
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []
        self._keys = np.zeros(slots, dtype=np.int64)
        self._kept = np.zeros(slots, dtype=np.int32)

    def numbers(self, texts: Sequence[str]) -> IntArray:
        """int64 [texts]: the number of each text; equal texts have one."""
        for text in texts:
            if self._numbers.setdefault(text, len(self._texts)) == len(self._texts):
                self._texts.append(text)
        return np.fromiter(map(self._numbers.__getitem__, texts), np.int64, len(texts))

    def between(self, left: IntArray, right: IntArray) -> IntArray:
        """int64 [pairs]: distances of the texts of these numbers, each pair measured once while it is kept."""
        keys = (np.minimum(left, right) << 32) + np.maximum(left, right) + 1  # 0 is an empty slot
        # the golden ratio's multiple of a key, of which the upper bits are spread evenly (Knuth, volume 3, 6.4)
        slots = ((keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) % np.uint64(self._keys.size)
        distances: IntArray = self._kept[slots].astype(np.int64)
        (missing,) = np.nonzero(self._keys[slots] != keys)
        if missing.size:
            _, first, place = np.unique(keys[missing], return_index=True, return_inverse=True)
            asked = missing[first]
            texts = [[self._texts[i] for i in side[asked]] for side in (left, right)]
            found = cpdist(*texts, scorer=Levenshtein.distance, dtype=np.int32, workers=-1)
            distances[missing] = found[place]
            self._keys[slots[asked]], self._kept[slots[asked]] = keys[asked], found
        return distances


class EditCosts:
    """Levenshtein distances between the tokens of two vocabularies; special tokens of one meaning cost nothing."""

    def __init__(self, student: Vocabulary, teacher: Vocabulary) -> None:
        self.student_texts, self.teacher_texts = token_texts(student), token_texts(teacher)
        mapped = exact_map(teacher, student)
        mapped[teacher.kinds != TokenKind.SPECIAL] = UNMAPPED
        self.student_of_special = mapped

    def costs(self, student_ids: IntArray, teacher_ids: IntArray) -> IntArray:
        """int64 [m, n]: cost of each teacher token with each student token; each pair of ids is measured once."""
        ours, our_place = np.unique(student_ids, return_inverse=True)
        theirs, their_place = np.unique(teacher_ids, return_inverse=True)
        left, right = [self.teacher_texts[i] for i in theirs], [self.student_texts[i] for i in ours]
        distances = cdist(left, right, scorer=Levenshtein.distance, dtype=np.int32).astype(np.int64)
        distances[self.student_of_special[theirs][:, None] == ours] = 0
        costs: IntArray = distances.take(our_place, axis=1).take(their_place, axis=0)
        return costs

    def weighted(self, response: AlignedResponse) -> IntArray:
        """int64 [m, n]: the costs times the :func:`entropy_weights` of both tokens (CDM)."""
        assert response.student_entropy is not None
        assert response.teacher_entropy is not None
        costs = self.costs(response.student_ids, response.teacher_ids)
        costs *= entropy_weights(torch.as_tensor(response.teacher_entropy).cpu().numpy())[:, None]
        costs *= entropy_weights(torch.as_tensor(response.student_entropy).cpu().numpy())
        return costs


def entropy_weights(entropy: FloatArray) -> IntArray:
    """int64 [n], 3 to 5: f = int(3 g + 3), g = sigmoid(4 x - 2), x the entropy scaled to [0, 1] over the sequence.

    Where all entropies are equal nothing tells tokens apart, and all weigh the same.
    """
    if not entropy.size:
        return np.zeros(0, dtype=np.int64)
    lowest, highest = float(entropy.min()), float(entropy.max())
    scaled = (entropy - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(entropy)
    sigmoid = 1 / (1 + np.exp(2 - 4 * scaled))
    return (3 * sigmoid + 3).astype(np.int64)


def warp(costs: IntArray) -> Path:
    """The cheapest path from the first pair of tokens to the last: every token is linked, no link crosses another.

    D[i, j] = C[i, j] + min(D[i-1, j], D[i, j-1], D[i-1, j-1]); among equals the path goes back diagonally, else by a
    teacher step, else by a student step.

    Args:
        costs: int64 [m, n], not negative.

    Returns:
        Teacher tokens and student tokens of the links; empty where one side is.
    """
    return warp_all([costs])[0]


def warp_all(costs: Sequence[IntArray]) -> list[Path]:
    """The paths of :func:`warp` of a batch of responses, all at once.

    A row of every response at a time: with S the running sum of the row's costs and a[j] the cheaper of D[i-1, j] and
    D[i-1, j-1], D[i, j] = S[j] + min over k <= j of (a[k] - S[k-1]). In whole numbers that is exact. What pads a
    response lies behind its last cell, which no cell before depends on.

    Args:
        costs: int64 [m_b, n_b] each, not negative.
    """
    paths: list[Path] = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))] * len(costs)
    for part in alike([table.shape for table in costs]):
        total = _accumulated([costs[number] for number in part])
        for place, number in enumerate(part):
            paths[number] = _walk_back(total, place, *costs[number].shape)
    return paths


def alike(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Numbers of the tables that have cells, parted so that tables of like size share one of limited size."""
    part: list[int] = []
    rows = columns = 0
    for number in sorted((k for k, shape in enumerate(shapes) if min(shape)), key=lambda k: shapes[k]):
        rows, columns = max(rows, shapes[number][0]), max(columns, shapes[number][1])
        if part and rows * columns * (len(part) + 1) > _CELLS_AT_ONCE:
            yield part
            part, (rows, columns) = [], shapes[number]
        part.append(number)
    if part:
        yield part


def _accumulated(costs: Sequence[IntArray]) -> npt.NDArray[np.signedinteger]:
    """[rows, tables, columns]: D of each table, and anything behind its last row and column."""
    rows, columns = (max(table.shape[axis] for table in costs) for axis in (0, 1))
    largest = (rows + columns) * max(int(table.max()) for table in costs)
    total = np.zeros((rows, len(costs), columns), np.int32 if largest <= np.iinfo(np.int32).max else np.int64)
    for place, table in enumerate(costs):
        total[: table.shape[0], place, : table.shape[1]] = table
    np.cumsum(total, axis=2, out=total)  # S; each row turns into D in its place
    cheaper = np.empty_like(total[0])
    for above, row in pairwise(total):
        cheaper[:, 0] = above[:, 0]
        np.minimum(above[:, 1:], above[:, :-1], out=cheaper[:, 1:])
        cheaper[:, 1:] -= row[:, :-1]
        np.minimum.accumulate(cheaper, axis=1, out=cheaper)
        row += cheaper
    return total


def _walk_back(total: npt.NDArray[np.signedinteger], place: int, rows: int, columns: int) -> Path:
    cell = total.data  # reads one number in a tenth of the time that an array takes
    i, j = rows - 1, columns - 1
    links = [(i, j)]
    while i and j:
        diagonal, teacher_step, student_step = cell[i - 1, place, j - 1], cell[i - 1, place, j], cell[i, place, j - 1]
        if diagonal <= teacher_step and diagonal <= student_step:
            i, j = i - 1, j - 1
        elif teacher_step <= student_step:
            i -= 1
        else:
            j -= 1
        links.append((i, j))
    links += [(k, 0) for k in range(i - 1, -1, -1)] + [(0, k) for k in range(j - 1, -1, -1)]
    path = np.asarray(links[::-1], dtype=np.int64)
    return path[:, 0], path[:, 1]


def link_groups(teacher: IntArray, student: IntArray) -> Groups:
    """Pieces of a path: a new one begins where both sides step, so that every token is in one group."""
    both_step = (np.diff(teacher) > 0) & (np.diff(student) > 0)
    piece = np.concatenate([[0], np.cumsum(both_step)])[: teacher.size].astype(np.int64)
    count = int(piece[-1]) + 1 if piece.size else 0
    # a token's links are neighbours, in one piece: each counts once
    ours, theirs = (np.flatnonzero(np.diff(tokens, prepend=-1)) for tokens in (student, teacher))
    return Groups(student[ours], piece[ours], teacher[theirs], piece[theirs], count)


def confirmed_links(
    teacher: IntArray, student: IntArray, student_ends: IntArray, teacher_ends: IntArray
) -> npt.NDArray[np.bool_]:
    """bool [links]: whether a path's link joins two tokens of one group of the alignment by bytes."""
    of_student, of_teacher = groups_by_bytes(student_ends, teacher_ends)
    confirmed: npt.NDArray[np.bool_] = (of_student[student] == of_teacher[teacher]) & (of_student[student] >= 0)
    return confirmed


def path_notes(teacher: IntArray, student: IntArray, response: AlignedResponse) -> dict[str, tuple[float, float]]:
    """What :class:`Groups` note of a path: student tokens that are linked 1-1, and links that bytes confirm."""
    alone = link_groups(teacher, student).only_one_to_one().count
    confirmed = confirmed_links(teacher, student, response.student_ends, response.teacher_ends)
    return {
        ALONE: (float(alone), float(response.student_ids.size)),
        CONFIRMED: (float(confirmed.sum()), float(confirmed.size)),
    }


def groups_by_bytes(student_ends: IntArray, teacher_ends: IntArray) -> tuple[IntArray, IntArray]:
    """int64 [n], [m]: the group of each token in the alignment by bytes, -1 where it is in none."""
    groups = group_bytes(student_ends, teacher_ends)
    return (
        _groups_of(groups.student_index, groups.student_group, student_ends.size),
        _groups_of(groups.teacher_index, groups.teacher_group, teacher_ends.size),
    )


def _groups_of(index: IntArray, group: IntArray, size: int) -> IntArray:
    """int64 [size], the group of each token, -1 where it is in none."""
    found = np.full(size, -1, dtype=np.int64)
    found[index] = group
    return found
