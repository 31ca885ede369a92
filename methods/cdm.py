"""Contextual Dynamic Mapping (CDM): time warping weighted by entropies, and a vocabulary map made at each position.

Chen et al., arXiv 2502.11104, sections 3.1 to 3.3:   L = α CE + (1 - α) L_KD.   Two tokenisations are aligned by
dynamic time warping whose cost is the edit distance of two tokens times weights that grow with both models' entropy.
At an aligned position the k likeliest tokens of each side are mapped to the other: by equal bytes, or else to the
nearest of the other side's k likeliest whose edit distance, over the sum of both lengths, is below θ.

``described``: rows that predict the first token of each aligned piece, whose prefixes agree where both pieces start
on the same byte; L_KD sums τ² [KL(p_T || p_S) over the teacher's k + KL(p_S || p_T) over the student's k] over the
pieces, each a softmax over its mapped columns; the map is per position and one-to-one, nearest pairs first.

``released`` (the authors' code): means of logits after the pieces are consumed, and a map with the code's faults; see
:meth:`CDM._released_loss`, and a mean over elements; see :func:`released_divergence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from methods.base import AlignedChunk, LossSums, Method, Need, Rows, Side, SoftenedOptions, TeacherKind, register
from methods.library.alignment import AlignedResponse, Groups, IntArray, group_bytes
from methods.library.divergences import forward_kl, reverse_kl
from methods.library.edit_distance import TextTable
from methods.library.maps import UNMAPPED, Tables, VocabularyMap, exact_map, stored_map
from methods.library.near_tokens import nearest_partners
from methods.library.vocabulary import TokenizerPair
from methods.library.warping import EditCosts, EditDistances, entropy_weights, link_groups, path_notes, warp_all
from methods.library.warping_device import DeviceCosts

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
MASKED = -1e4
"""Logit of a column without a partner, on both sides, as in the authors' code: its probability underflows to 0."""
_CLASSES = 32
"""Of characters, by which almost all pairs of texts are told apart."""
_SLACK = 0.01
"""Of the sums that tell them apart, for rounding; what remains is measured exactly."""
_ENTRIES_AT_ONCE = 1 << 22


@register
class CDM(Method):
    name, paper, teacher = "cdm", "arXiv 2502.11104", TeacherKind.CROSS_TOKENIZER
    summary = "entropy-weighted time warping, KL over the k likeliest tokens, mapped at each position"
    fidelities_differ = True
    aligns_on_device = True

    class Options(SoftenedOptions):
        k: int = Field(100, ge=1, description="likeliest tokens of each side that are compared")
        theta: float = Field(0.3, ge=0, description="θ: edit distance over both lengths below which tokens are mapped")
        static_map: Literal["exact", "nearest", "prefix"] = Field("exact", description="map that is made once a pair")
        alignment: Literal["dtw", "bytes"] = Field(
            "dtw", description="time warping as in the paper, or groups on shared byte boundaries"
        )
        normalize: Literal["tokens", "samples"] = Field(  # positions are known only after warping
            "tokens", description="what the KD sum is divided by: the student's response tokens, or the responses"
        )

    @property
    def needs(self) -> frozenset[Need]:
        needed = {Need.WHOLE_RESPONSE} if self._released else set()
        return frozenset(needed | ({Need.ENTROPY} if self.options.alignment == "dtw" else set()))

    @property
    def rows(self) -> Rows:
        return Rows.AFTER if self._released else Rows.PREDICTING

    @property
    def normalize(self) -> str:
        return "samples" if self._released else super().normalize

    @property
    def zero_at_identity(self) -> bool:
        return not self._released  # τ on one side only: the released term has no zero

    @property
    def _released(self) -> bool:
        return bool(self.options.fidelity == "released")

    @property
    def caveat(self) -> str:
        if not self._released:
            return ""
        columns = 2 * self.options.k
        return (
            f"the authors' code takes a mean over the {columns} columns of a position, so this KD term is about "
            f"1/{columns} of a KL per token"
        )

    def prepare(self, pair: TokenizerPair) -> None:
        self.costs = EditCosts(pair.student, pair.teacher)
        self._device_costs = DeviceCosts(self.costs)
        distances, kind = pair.shared(EditDistances), self.options.static_map
        student, teacher = (
            _Spellings(self.costs.student_texts, distances),
            _Spellings(self.costs.teacher_texts, distances),
        )
        ahead = stored_map(kind, pair.teacher, pair.student, pair.maps)
        if self._released:
            back = _turned(ahead, len(pair.student))
        else:
            back = stored_map(kind, pair.student, pair.teacher, pair.maps)
        exact = exact_map(pair.teacher, pair.student), exact_map(pair.student, pair.teacher)
        self.to_student = _Direction(teacher, student, ahead, ahead == exact[0])
        self.to_teacher = _Direction(student, teacher, back, back == exact[1])

    def align(self, response: AlignedResponse) -> Groups:
        return self.align_all([response])[0]

    def align_all(self, responses: Sequence[AlignedResponse]) -> list[Groups]:
        """All paths of the batch are searched at once."""
        if self.options.alignment == "bytes":
            return [self._by_bytes(response) for response in responses]
        if any(_on_device(response.student_entropy) for response in responses):
            paths = self._device_costs.paths(responses)
        else:
            paths = warp_all([self._costs(response) for response in responses])
        return [self._by_path(*path, response) for path, response in zip(paths, responses, strict=True)]

    def _by_bytes(self, response: AlignedResponse) -> Groups:
        groups = group_bytes(response.student_ends, response.teacher_ends)
        pairs = {"aligned 1-1": (float(groups.only_one_to_one().count), float(response.student_ids.size))}
        return replace(groups, notes=pairs) if self._released else _first_members(groups, pairs)

    def _costs(self, response: AlignedResponse) -> IntArray:
        """int64 [m, n]: edit distances times the weights of both tokens."""
        assert response.student_entropy is not None
        assert response.teacher_entropy is not None
        costs = self.costs.costs(response.student_ids, response.teacher_ids)
        costs *= entropy_weights(np.asarray(response.teacher_entropy))[:, None]
        costs *= entropy_weights(np.asarray(response.student_entropy))
        return costs

    def _by_path(self, teacher: IntArray, student: IntArray, response: AlignedResponse) -> Groups:
        notes = path_notes(teacher, student, response)
        if self._released:
            return _nested_means(teacher, student, notes)
        groups = _first_members(link_groups(teacher, student), notes)
        starts = [np.concatenate([[0], ends])[:-1] for ends in (response.student_ends, response.teacher_ends)]
        apart = np.sum(starts[0][groups.student_index] != starts[1][groups.teacher_index])
        notes["pieces that start apart"] = (float(apart), float(groups.count))
        return groups

    def loss(self, chunk: AlignedChunk) -> LossSums:
        return self._released_loss(chunk) if self._released else self._described_loss(chunk)

    # --- described --------------------------------------------------------------------------------------------------

    def _described_loss(self, chunk: AlignedChunk) -> LossSums:
        tau, theta = self.options.temperature, self.options.theta
        ours = _paired(chunk.student, self._likeliest(chunk.student.logits, self.to_teacher))
        theirs = _paired(chunk.teacher, self._likeliest(chunk.teacher.logits, self.to_student))
        to_student, to_teacher = contextual(theirs, ours, self.to_student, self.to_teacher, theta)
        masked = torch.cat([to_student, to_teacher], -1) == UNMAPPED
        # the teacher's k and their partners, then the student's k and theirs
        student = _columns(chunk.student, torch.cat([to_student, ours], -1)).masked_fill(masked, MASKED) / tau
        teacher = _columns(chunk.teacher, torch.cat([theirs, to_teacher], -1)).masked_fill(masked, MASKED) / tau
        k = theirs.shape[-1]
        forward = forward_kl(student[:, :k].log_softmax(-1), teacher[:, :k].log_softmax(-1))
        reverse = reverse_kl(student[:, k:].log_softmax(-1), teacher[:, k:].log_softmax(-1))
        mass = _mass(chunk.teacher.logits, chunk.teacher.index, theirs, to_student)
        return LossSums(tau**2 * (forward + reverse).sum(), _coverage(masked, mass))

    def _likeliest(self, logits: Tensor, source: _Direction) -> Tensor:
        """int64 [positions, k]: ids of the likeliest tokens, likeliest first; padding columns are no tokens."""
        known = logits.detach()[:, : min(source.size, logits.shape[-1])]
        return known.topk(min(self.options.k, known.shape[-1]), dim=-1).indices

    # --- released ---------------------------------------------------------------------------------------------------

    def _released_loss(self, chunk: AlignedChunk) -> LossSums:
        """What the authors' code compares over one response.

        Faults of its map: id 0 means unmapped, on both sides; ids of source tokens without a static partner are taken
        out of the target's candidates, by number; the nearest token of the last position that finds one counts for
        the whole response; tokens that the first direction leaves unmapped can't be found by the second; several
        tokens may share a partner; two tokens of spaces alone are the nearest of all. Two details differ: of equal
        distances the likeliest candidate's counts, where the code follows the order of a Python set; and a masked
        token, whose id reads 0, is compared by the text of id 0, where the code keeps its own.
        """
        theta = self.options.theta
        student, teacher = chunk.student.mean_logits(chunk.groups), chunk.teacher.mean_logits(chunk.groups)
        ours, theirs = self._likeliest(student, self.to_teacher), self._likeliest(teacher, self.to_student)
        to_student = _map_of_response(theirs, ours, self.to_student, theta)
        left = theirs.masked_fill(to_student == UNMAPPED, 0)  # the code overwrites the ids that it masks
        to_teacher = _map_of_response(ours, left, self.to_teacher, theta)
        masked = torch.cat([to_student, to_teacher], -1) == UNMAPPED
        k = theirs.shape[-1]
        own, partners = torch.cat([theirs, ours], -1), torch.cat([to_student, to_teacher], -1).clamp_min(0)
        of_student = student.gather(-1, torch.cat([partners[:, :k], ours], -1))
        of_teacher = teacher.gather(-1, torch.cat([theirs, partners[:, k:]], -1))
        p = torch.cat([of_teacher[:, :k], of_student[:, k:]], -1).masked_fill(masked | (own == 0), MASKED)
        q = torch.cat([of_student[:, :k], of_teacher[:, k:]], -1).masked_fill(masked, MASKED)
        kd = released_divergence(p, q, self.options.temperature)
        return LossSums(
            kd, _coverage(masked, _mass(teacher, torch.arange(len(teacher), device=teacher.device), theirs, to_student))
        )


def released_divergence(p: Tensor, q: Tensor, tau: float) -> Tensor:
    """Mean over the elements of P (τ² log P - Q), P = softmax(p), Q = log softmax(q / τ), as in the authors' code.

    One softmax runs over the columns of both directions; τ divides one side only.

    Args:
        p, q: logits [positions, columns].
    """
    log_p, log_q = p.log_softmax(-1), (q / tau).log_softmax(-1)
    return (log_p.exp() * (tau**2 * log_p - log_q)).sum() / p.numel()


class _Spellings:
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

    @cached_property
    def points(self) -> TextTable:
        """The texts for a device that measures pairs itself."""
        return TextTable(self.texts)


class _Direction:
    """From the tokens of one vocabulary to those of the other.

    Attributes:
        size: number of source tokens.
        source, target: their texts.
        one_to_one: whether no two source tokens have one static partner.
        tables: int64 [size] static, the map that is made once a pair; bool [size] exact, whether a token's partner
            spells the same bytes.
    """

    def __init__(self, source: _Spellings, target: _Spellings, static: VocabularyMap, exact: BoolArray) -> None:
        self.size, self.source, self.target = len(static), source, target
        partners = static[static != UNMAPPED]
        self.one_to_one = np.unique(partners).size == partners.size
        self.tables = Tables(static=torch.from_numpy(static), exact=torch.from_numpy(exact))


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


def _turned(mapped: VocabularyMap, size: int) -> VocabularyMap:
    """int64 [size]: the released form's map in the other direction; of several tokens the highest id counts."""
    turned = np.full(size, UNMAPPED, dtype=np.int64)
    known = np.flatnonzero(mapped > 0)  # 0 means unmapped
    turned[mapped[known]] = known
    return turned


def _first_members(groups: Groups, notes: dict[str, tuple[float, float]]) -> Groups:
    """Each group's first token on each side, as a pair."""
    numbers = np.arange(groups.count)
    student = groups.student_index[np.searchsorted(groups.student_group, numbers)]
    teacher = groups.teacher_index[np.searchsorted(groups.teacher_group, numbers)]
    return Groups(student, numbers, teacher, numbers, groups.count, notes=notes)


def _nested_means(teacher: IntArray, student: IntArray, notes: dict[str, tuple[float, float]]) -> Groups:
    """The released groups: the student's tokens of each teacher step, equal lists once.

    The teacher's side of a student token is the mean of its linked steps, and a group's the mean over its tokens, so a
    step counts 1 / (links of the token) for each token that it is linked to.
    """
    steps = np.unique(teacher)
    first, last = np.searchsorted(teacher, steps), np.searchsorted(teacher, steps, side="right")
    lists = dict.fromkeys((int(student[a]), int(student[b - 1])) for a, b in zip(first, last, strict=True))
    degree = np.bincount(student, minlength=int(student.max(initial=-1)) + 1)
    parts: list[tuple[IntArray, IntArray, FloatArray]] = []
    for start, stop in lists:  # a path's students of one step are neighbours
        links = slice(np.searchsorted(student, start), np.searchsorted(student, stop, side="right"))
        parts.append((np.arange(start, stop + 1), teacher[links], 1.0 / degree[student[links]]))
    return Groups(
        np.concatenate([p[0] for p in parts]) if parts else student,
        np.repeat(np.arange(len(parts)), [p[0].size for p in parts]),
        np.concatenate([p[1] for p in parts]) if parts else teacher,
        np.repeat(np.arange(len(parts)), [p[1].size for p in parts]),
        len(parts),
        np.concatenate([p[2] for p in parts]) if parts else np.zeros(0),
        notes,
    )


def contextual(
    theirs: Tensor, ours: Tensor, ahead: _Direction, back: _Direction, theta: float
) -> tuple[Tensor, Tensor]:
    """int64 [positions, k] each: partner of each teacher and of each student token at its position; -1 for none.

    One-to-one in either direction. Static partners stand. The others take the nearest of the position's tokens of the
    other side that are free, nearest pairs first, equals in the order of source and then target.
    """
    to_student, to_teacher = _static_one_to_one(theirs, ahead), _static_one_to_one(ours, back)
    there = to_student == UNMAPPED, ~_among(ours, to_student)  # source tokens that seek, target tokens that are free
    back_again = ~_among(theirs, to_teacher), to_teacher == UNMAPPED
    # Distances are the same both ways: one search for both directions.
    if _on_device(theirs):
        of_theirs, of_ours = (torch.stack(side).any(0) for side in zip(there, back_again, strict=True))
        candidates = _may_be_near(theirs, ours, of_theirs, of_ours, ahead, theta)
        points = ahead.source.points, ahead.target.points
        found = nearest_partners(theirs, ours, candidates, there, back_again, points, theta)
        return torch.maximum(to_student, found[0]), torch.maximum(to_teacher, found[1])
    near = _near(theirs, ours, [there, back_again], ahead, theta)
    a, b = (near.kept(use) for use in near.uses)
    k = theirs.shape[-1], ours.shape[-1]
    a = a.kept(_one_to_one(a.position, a.source, a.target, a.distance, k))
    b = b.kept(_one_to_one(b.position, b.target, b.source, b.distance, k[::-1]))
    to_student[_on(a.position, ours), _on(a.source, ours)] = _on(a.target_ids, ours)
    to_teacher[_on(b.position, ours), _on(b.target, ours)] = _on(b.source_ids, ours)
    return to_student, to_teacher


def _static_one_to_one(source: Tensor, direction: _Direction) -> Tensor:
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


def _map_of_response(source: Tensor, target: Tensor, direction: _Direction, theta: float) -> Tensor:
    """int64 [positions, k]: partners by the released form's one map for the whole response; -1 where there is none."""
    static = direction.tables.on(source.device)["static"]
    mapped = static.masked_fill(static == 0, UNMAPPED)
    # ids that no target may have; those beyond the source's have no such fault
    fault = torch.cat([mapped == UNMAPPED, mapped.new_zeros(1, dtype=torch.bool)])
    use = mapped[source] == UNMAPPED, ~fault[target.clamp_max(len(mapped))]
    near = _near(source, target, [use], direction, theta, blanks=True)
    order = np.lexsort((near.target, near.distance, near.source, near.position))
    _, nearest = np.unique((near.position * source.shape[1] + near.source)[order], return_index=True)
    chosen = order[nearest]  # in the order of positions
    chosen = chosen[near.target_ids[chosen] != 0][::-1]
    ids, last = np.unique(near.source_ids[chosen], return_index=True)  # the last position's stays
    mapped[_on(ids, source)] = _on(near.target_ids[chosen[last]], source)
    return mapped[source]


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


def _near(
    source: Tensor,
    target: Tensor,
    uses: Sequence[tuple[Tensor, Tensor]],
    direction: _Direction,
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
    source: Tensor, target: Tensor, of_source: Tensor, of_target: Tensor, direction: _Direction, theta: float
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


def _on_device(where: Any) -> bool:
    """Whether work on these numbers stays on their device, which is not the CPU."""
    return isinstance(where, Tensor) and where.device.type != "cpu"


def _on(ids: IntArray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(ids)).to(like.device)


def _paired(side: Side, of_rows: Tensor) -> Tensor:
    """[members, k] of [rows, k]."""
    return of_rows if side.in_order else of_rows.index_select(0, side.index)


def _columns(side: Side, ids: Tensor) -> Tensor:
    """[members, k]: logits of a member's ids, int64 [members, k]; anything where an id is -1.

    Not from a copy of the members' rows, so that the gradient is scattered once into one tensor of the rows' size.
    """
    columns = ids.clamp_min(0)
    return side.logits.gather(-1, columns) if side.in_order else side.logits[side.index[:, None], columns]


def _mass(logits: Tensor, rows: Tensor, ids: Tensor, partners: Tensor) -> Tensor:
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


def _coverage(masked: Tensor, mass: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Share of masked columns, bool [positions, columns], and the teacher's probability on its mapped tokens."""
    positions = mass.new_full((), len(masked))
    return {
        "columns masked": (masked.sum().to(mass.dtype), mass.new_full((), masked.numel())),
        "teacher mass covered": (mass, positions),
        "aligned positions": (positions, None),
    }
