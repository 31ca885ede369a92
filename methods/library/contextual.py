"""The contextual map of CDM: at each position the likeliest tokens of both sides, mapped by edit distance.

Chen et al., arXiv 2502.11104, section 3.2. Static partners stand (a map that is made once a pair); the others take the
nearest of the position's tokens of the other side whose edit distance, over the sum of both lengths, is below θ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from methods.library.alignment import IntArray
from methods.library.kernels import warping_for
from methods.library.maps import UNMAPPED, Tables, VocabularyMap
from methods.library.near_tokens import PairTexts, nearest_partners
from methods.library.warping import EditDistances

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
MASKED = -1e4
"""Logit of a column without a partner, on both sides, as in the authors' code: its probability underflows to 0."""
_CLASSES = 32
"""Of characters, by which almost all pairs of texts are told apart."""
_SLACK = 0.01
"""Of the sums that tell them apart, for rounding; what remains is measured exactly."""
_ENTRIES_AT_ONCE = 1 << 22
_ROWS_AT_ONCE = 128


class Spellings:
    """What edit distances compare of a vocabulary's tokens.

    Attributes:
        distances: of all texts of both vocabularies.
        numbers, lengths: int64 [size], number in ``distances`` and characters of each token's text.
        tables: the lengths as float32, and uint8 [size, entries] characters, see :func:`_character_sets`.
    """

    def __init__(self, texts: Sequence[str], distances: EditDistances) -> None:
        self.texts, self.distances, self.numbers = texts, distances, distances.numbers(texts)
        self.lengths: IntArray = np.fromiter(map(len, texts), np.int64, len(texts))
        self.tables = Tables(
            lengths=torch.from_numpy(self.lengths.astype(np.float32)),
            characters=torch.from_numpy(_character_sets(texts, self.lengths)),
        )


class Direction:
    """From the tokens of one vocabulary to those of the other.

    Attributes:
        size: number of source tokens.
        source, target: their texts.
        one_to_one: whether no two source tokens have one static partner.
        tables: int64 [size] static, the map that is made once a pair; bool [size] exact, whether a token's partner
            spells the same bytes.
    """

    def __init__(self, source: Spellings, target: Spellings, static: VocabularyMap, exact: BoolArray) -> None:
        self.size, self.source, self.target = len(static), source, target
        partners = static[static != UNMAPPED]
        self.one_to_one = np.unique(partners).size == partners.size
        self.tables = Tables(static=torch.from_numpy(static), exact=torch.from_numpy(exact))

    @cached_property
    def texts(self) -> PairTexts:
        """The texts for a device that measures pairs itself."""
        characters = [side.tables.on(torch.device("cpu"))["characters"].numpy() for side in (self.source, self.target)]
        return PairTexts(self.source.texts, self.target.texts, characters)


def _character_sets(texts: Sequence[str], lengths: IntArray) -> npt.NDArray[np.uint8]:
    """uint8 [texts, 2 * classes]: 1 for each class of characters (their code points modulo a number) that a text has
    at least once, and at least twice. One character more or less changes one entry at most.
    """
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    owner = np.repeat(np.arange(len(texts)), lengths)
    keys, counts = np.unique(owner * _CLASSES + points % _CLASSES, return_counts=True)
    sets = np.zeros((2, len(texts) * _CLASSES), dtype=np.uint8)
    sets[0, keys] = 1
    sets[1, keys[counts > 1]] = 1
    return np.concatenate(sets.reshape(2, len(texts), _CLASSES), axis=1)


def likeliest(logits: Tensor, source: Direction, k: int) -> Tensor:
    """int64 [positions, k]: ids of the likeliest tokens, likeliest first; padding columns are no tokens."""
    known = logits.detach()[:, : min(source.size, logits.shape[-1])]
    # where columns are left out, a search on a GPU copies the others first: some rows at a time
    parts = [known] if known.is_contiguous() or known.device.type == "cpu" else torch.split(known, _ROWS_AT_ONCE)
    found = [part.topk(min(k, known.shape[-1]), dim=-1).indices for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found)


def stays_on_device(where: Any) -> bool:
    """Whether work on these numbers stays on their device, which is not the CPU."""
    return isinstance(where, Tensor) and where.device.type != "cpu"


def contextual(
    theirs: Tensor, ours: Tensor, ahead: Direction, back: Direction, theta: float, asked: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """int64 [positions, k] each: partner of each teacher and of each student token at its position; -1 for none.

    One-to-one in either direction. Static partners stand. The others take the nearest of the position's tokens of the
    other side that are free, nearest pairs first, equals in the order of source and then target.

    Args:
        theirs, ours: int64 [positions, k], ids.
        asked: bool [positions], which count: in others no token has a partner. None: all do.
    """
    found = _partners(theirs, ours, ahead, back, theta, asked)
    if asked is None:
        return found
    to_student, to_teacher = (each.masked_fill(~asked[:, None], UNMAPPED) for each in found)
    return to_student, to_teacher


def _partners(
    theirs: Tensor, ours: Tensor, ahead: Direction, back: Direction, theta: float, asked: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :func:`contextual`, and anything where nobody asks."""
    to_student, to_teacher = _static_one_to_one(theirs, ahead), _static_one_to_one(ours, back)
    kernels = warping_for(theirs) if stays_on_device(theirs) else None
    if kernels is not None:
        texts = ahead.texts.tables.on(theirs.device)
        kernels.add_nearest(theirs, ours, to_student, to_teacher, texts, theta, asked)
        return to_student, to_teacher
    there = to_student == UNMAPPED, ~_among(ours, to_student)  # source tokens that seek, target tokens that are free
    back_again = ~_among(theirs, to_teacher), to_teacher == UNMAPPED
    # Distances are the same both ways: one search for both directions.
    if stays_on_device(theirs):
        of_theirs, of_ours = (torch.stack(side).any(0) for side in zip(there, back_again, strict=True))
        candidates = _may_be_near(theirs, ours, of_theirs, of_ours, ahead, theta)
        partners, free = (to_student, to_teacher), (there[1], back_again[0])
        return nearest_partners(theirs, ours, candidates, partners, free, ahead.texts, theta)
    near = near_pairs(theirs, ours, [there, back_again], ahead, theta)
    a, b = (near.kept(use) for use in near.uses)
    k = theirs.shape[-1], ours.shape[-1]
    a = a.kept(_one_to_one(a.position, a.source, a.target, a.distance, k))
    b = b.kept(_one_to_one(b.position, b.target, b.source, b.distance, k[::-1]))
    to_student[on_device(a.position, ours), on_device(a.source, ours)] = on_device(a.target_ids, ours)
    to_teacher[on_device(b.position, ours), on_device(b.target, ours)] = on_device(b.source_ids, ours)
    return to_student, to_teacher


def _static_one_to_one(source: Tensor, direction: Direction) -> Tensor:
    """int64 [positions, k]: static partners; of a position's tokens with one partner the exact one, else the likeliest.

    The exact map never has two. Under the others a column would stand twice in a softmax.
    """
    tables, k = direction.tables.on(source.device), source.shape[-1]
    mapped = tables["static"][source]
    if direction.one_to_one:
        return mapped
    rank = torch.arange(k, device=source.device) + k * ~tables["exact"][source]
    order = (mapped * 2 * k + rank).argsort(-1)
    partner = mapped.gather(-1, order)
    partner[:, 1:].masked_fill_(partner[:, 1:] == mapped.gather(-1, order)[:, :-1], UNMAPPED)
    return partner.scatter(-1, order, partner)


def _among(ids: Tensor, chosen: Tensor) -> Tensor:
    """bool [positions, n]: whether a position's ids, [positions, n], are among its chosen ones, [positions, m]."""
    ordered = chosen.sort(-1).values
    place = torch.searchsorted(ordered, ids).clamp_max(chosen.shape[-1] - 1)
    return ordered.gather(-1, place) == ids


def _one_to_one(
    position: IntArray, source: IntArray, target: IntArray, distance: FloatArray, shape: tuple[int, int]
) -> BoolArray:
    """bool [pairs]: which pairs are taken, the nearest first, equals in the order of source and then target.

    A pair that is the first of both its tokens' pairs is what that order would choose, so all such pairs of all
    positions are taken at once, until none is left.
    """
    order = np.lexsort((target, source, distance, position))
    left, right = (position * shape[0] + source)[order], (position * shape[1] + target)[order]
    size = int(position.max(initial=-1)) + 1
    used = [np.zeros(size * k, dtype=bool) for k in shape]
    first = [np.zeros(size * k, dtype=np.int64) for k in shape]
    taken = np.zeros(position.size, dtype=bool)
    while order.size:
        number = np.arange(order.size)
        for keys, place in ((left, first[0]), (right, first[1])):
            place[keys[::-1]] = number[::-1]  # of equal keys the first is written last
        chosen = (first[0][left] == number) & (first[1][right] == number)
        taken[order[chosen]] = True
        used[0][left[chosen]] = used[1][right[chosen]] = True
        rest = ~(used[0][left] | used[1][right])
        order, left, right = order[rest], left[rest], right[rest]
    return taken


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a position's source and target tokens, int64 [pairs] each.

    Attributes:
        position, source, target: position, and place of each token among the position's.
        source_ids, target_ids: the tokens.
        distance: float64 [pairs], edit distance over the sum of both lengths.
        uses: bool [uses, pairs], for what a pair was asked.
    """

    position: IntArray
    source: IntArray
    target: IntArray
    source_ids: IntArray
    target_ids: IntArray
    distance: FloatArray
    uses: BoolArray

    def kept(self, which: BoolArray) -> _Pairs:
        return _Pairs(*(getattr(self, field.name)[..., which] for field in fields(self)))


def near_pairs(
    source: Tensor,
    target: Tensor,
    uses: Sequence[tuple[Tensor, Tensor]],
    direction: Direction,
    theta: float,
    blanks: bool = False,
) -> _Pairs:
    """The pairs whose edit distance, over the sum of both lengths, is below θ.

    Almost all pairs are ruled out on the device, by the characters that only one text has. The rest go to the host in
    one transfer, the only one of a chunk, and are measured there.

    Args:
        source, target: int64 [positions, k], ids.
        uses: bool [positions, k] of the source and of the target: a pair is asked for where both are true.
        blanks: whether tokens of spaces alone, whose texts are empty, match one another.
    """
    of_source, of_target = (torch.stack(side).any(0) for side in zip(*uses, strict=True))
    position, left, right = _may_be_near(source, target, of_source, of_target, direction, theta).nonzero().unbind(-1)
    flags = [use[0][position, left] & use[1][position, right] for use in uses]
    packed = torch.stack([position, left, right, source[position, left], target[position, right], *flags]).cpu().numpy()
    packed = packed[:, packed[5:].any(0)]
    sides = direction.source, direction.target
    lengths = [side.lengths[ids] for side, ids in zip(sides, packed[3:5], strict=True)]
    total = lengths[0] + lengths[1]
    possible = (np.abs(lengths[0] - lengths[1]) / np.maximum(total, 1) < theta) & ((total > 0) | blanks)
    packed, total = packed[:, possible], total[possible]
    texts = [side.numbers[ids] for side, ids in zip(sides, packed[3:5], strict=True)]
    distance = direction.source.distances.between(*texts) / np.maximum(total, 1)
    found = _Pairs(packed[0], packed[1], packed[2], packed[3], packed[4], distance, packed[5:].astype(bool))
    return found.kept(distance < theta)


def _may_be_near(
    source: Tensor, target: Tensor, of_source: Tensor, of_target: Tensor, direction: Direction, theta: float
) -> Tensor:
    """bool [positions, k, k]: pairs of tokens with both flags whose relative edit distance may be below θ.

    An edit takes at most one character out of a text, and so at most one entry out of its :func:`_character_sets`:
    there are at least as many edits as entries that only one text has.
    """
    sides = []
    for spellings, ids, flags in ((direction.source, source, of_source), (direction.target, target, of_target)):
        tables = spellings.tables.on(ids.device)
        characters, allowed = tables["characters"][ids].float(), theta * tables["lengths"][ids]
        least = (characters.sum(-1) - allowed - _SLACK).masked_fill(~flags, torch.inf)
        sides.append((characters, allowed, least))
    ours, theirs = sides
    shared = (ours[0] @ theirs[0].mT).float()  # small whole numbers, exact in autocast's precision too; the sums aren't
    near = shared + theirs[1][:, None, :] > ours[2][:, :, None]
    return near.logical_and_(shared.add_(ours[1][:, :, None]) > theirs[2][:, None, :])


def on_device(ids: IntArray, like: Tensor) -> Tensor:
    """The numbers as a tensor, where another one is."""
    return torch.from_numpy(np.ascontiguousarray(ids)).to(like.device)


def mass(logits: Tensor, rows: Tensor, ids: Tensor, partners: Tensor) -> Tensor:
    """Sum over the rows, int64 [positions], of the probability of the ids that have a partner, both [positions, k].

    A softmax of some rows at a time takes a third of the time that all rows at once take on a CPU, where new memory is
    slow; logsumexp of as many takes no less.
    """
    at_once = max(1, _ENTRIES_AT_ONCE // logits.shape[-1])
    total = logits.new_zeros(())
    for row, some, those in zip(*(torch.split(part, at_once) for part in (rows, ids, partners)), strict=True):
        likely = logits.index_select(0, row).softmax(-1).gather(-1, some)
        total += likely.masked_fill(those == UNMAPPED, 0).sum()
    return total


def coverage(masked: Tensor, mass: Tensor, asked: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Share of masked columns, bool [positions, columns], and the teacher's probability on its mapped tokens."""
    return shares(masked.sum(), (len(masked), masked.shape[1]), mass, asked)


def shares(
    masked: Tensor, shape: tuple[int, int], mass: Tensor, asked: Tensor | None
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The same of sums that are known.

    Args:
        masked: scalar, columns that are masked at any position.
        shape: positions, and columns of each.
        asked: as of :func:`contextual`; a position that doesn't count is masked whole.
    """
    positions, columns = shape
    compared = mass.new_full((), positions) if asked is None else asked.sum().to(mass.dtype)
    return {
        "columns masked": (masked.to(mass.dtype) - columns * (positions - compared), columns * compared),
        "teacher mass covered": (mass, compared),
        "aligned positions": (compared, None),
    }
