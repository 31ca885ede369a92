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
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist
from torch import Tensor

from methods.alignment import AlignedResponse, Groups, IntArray, group_bytes
from methods.base import (
    AlignedChunk,
    LossSums,
    Method,
    Need,
    Rows,
    SoftenedOptions,
    TeacherKind,
    register,
)
from methods.divergences import forward_kl, reverse_kl
from methods.maps import UNMAPPED, VocabularyMap, exact_map, stored_map
from methods.vocabulary import TokenizerPair, Vocabulary
from methods.warping import EditCosts, entropy_weights, link_groups, path_notes, token_texts, warp_all

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Pairs = tuple[IntArray, IntArray, IntArray, FloatArray]
"""Position, place among its source tokens, place among its target tokens, and relative edit distance."""
MASKED = -1e4
"""Logit of a column without a partner, on both sides, as in the authors' code: its probability underflows to 0."""


@register
class CDM(Method):
    name, paper, teacher = "cdm", "arXiv 2502.11104", TeacherKind.CROSS_TOKENIZER
    summary = "entropy-weighted time warping, KL over the k likeliest tokens, mapped at each position"
    fidelities_differ = True

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
        student, teacher, kind = pair.student, pair.teacher, self.options.static_map
        ahead = stored_map(kind, teacher, student, pair.maps)
        back = _turned(ahead, len(student)) if self._released else stored_map(kind, student, teacher, pair.maps)
        self.to_student = _Direction.of(teacher, student, ahead)
        self.to_teacher = _Direction.of(student, teacher, back)

    def align(self, response: AlignedResponse) -> Groups:
        return self.align_all([response])[0]

    def align_all(self, responses: Sequence[AlignedResponse]) -> list[Groups]:
        """All paths of the batch are searched at once."""
        if self.options.alignment == "bytes":
            return [self._by_bytes(response) for response in responses]
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
        costs *= entropy_weights(response.teacher_entropy)[:, None]
        costs *= entropy_weights(response.student_entropy)
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
        student, teacher = chunk.student.paired_logits(), chunk.teacher.paired_logits()
        ours, theirs = self._likeliest(student, self.to_teacher), self._likeliest(teacher, self.to_student)
        to_student = _contextual(theirs, ours, self.to_student, theta)
        to_teacher = _contextual(ours, theirs, self.to_teacher, theta)
        s1, t1 = _gathered(student, to_student), _masked(teacher, theirs, to_student)
        s2, t2 = _masked(student, ours, to_teacher), _gathered(teacher, to_teacher)
        forward = forward_kl((s1 / tau).log_softmax(-1), (t1 / tau).log_softmax(-1))
        reverse = reverse_kl((s2 / tau).log_softmax(-1), (t2 / tau).log_softmax(-1))
        return LossSums(tau**2 * (forward + reverse).sum(), _coverage(teacher, theirs, to_student, to_teacher))

    def _likeliest(self, logits: Tensor, source: _Direction) -> IntArray:
        """int64 [positions, k]: ids of the likeliest tokens, likeliest first; padding columns are no tokens."""
        known = logits.detach()[:, : min(len(source.static), logits.shape[-1])]
        ids: IntArray = known.topk(min(self.options.k, known.shape[-1]), dim=-1).indices.cpu().numpy()
        return ids

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
        left = np.where(to_student == UNMAPPED, 0, theirs)  # the code overwrites the ids that it masks
        to_teacher = _map_of_response(ours, left, self.to_teacher, theta)
        s1, t1 = _gathered(student, to_student), _masked(teacher, theirs, np.where(theirs == 0, UNMAPPED, to_student))
        s2, t2 = _masked(student, ours, np.where(ours == 0, UNMAPPED, to_teacher)), _gathered(teacher, to_teacher)
        kd = released_divergence(torch.cat([t1, s2], -1), torch.cat([s1, t2], -1), self.options.temperature)
        return LossSums(kd, _coverage(teacher, theirs, to_student, to_teacher))


def released_divergence(p: Tensor, q: Tensor, tau: float) -> Tensor:
    """Mean over the elements of P (τ² log P - Q), P = softmax(p), Q = log softmax(q / τ), as in the authors' code.

    One softmax runs over the columns of both directions; τ divides one side only.

    Args:
        p, q: logits [positions, columns].
    """
    log_p, log_q = p.log_softmax(-1), (q / tau).log_softmax(-1)
    return (log_p.exp() * (tau**2 * log_p - log_q)).sum() / p.numel()


@dataclass(frozen=True)
class _Direction:
    """From one vocabulary to the other.

    Attributes:
        static: the map that is made once a pair, :data:`~methods.maps.VocabularyMap`.
        exact: bool [source tokens], whether its partner spells the same bytes.
        source_texts, target_texts: what edit distances compare.
        source_lengths, target_lengths: int64, characters of each text.
    """

    static: VocabularyMap
    exact: BoolArray
    source_texts: tuple[str, ...]
    target_texts: tuple[str, ...]
    source_lengths: IntArray
    target_lengths: IntArray

    @classmethod
    def of(cls, source: Vocabulary, target: Vocabulary, static: VocabularyMap) -> _Direction:
        texts = token_texts(source), token_texts(target)
        lengths = [np.fromiter(map(len, side), np.int64, len(side)) for side in texts]
        return cls(static, static == exact_map(source, target), *texts, *lengths)


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


def _contextual(source: IntArray, target: IntArray, direction: _Direction, theta: float) -> IntArray:
    """int64 [positions, k]: partner of each source token at its position, one-to-one; -1 where there is none.

    Static partners stand. The others take the nearest of the position's target tokens that are free, nearest pairs
    first, equals in the order of source and then target. A pair that is the first of both its tokens' pairs is what
    that order would choose, so all such pairs of all positions are taken at once, until none is left.
    """
    mapped = _static_one_to_one(source, direction)
    taken = (target[:, :, None] == mapped[:, None, :]).any(-1)
    asked = (mapped == UNMAPPED)[:, :, None] & ~taken[:, None, :]
    position, ours, theirs, distance = _near(source, target, asked, direction, theta)
    order = np.lexsort((theirs, ours, distance, position))
    position, ours, theirs = position[order], ours[order], theirs[order]
    while position.size:
        left, right = position * source.shape[1] + ours, position * target.shape[1] + theirs
        first = np.zeros((2, position.size), dtype=bool)
        for side, keys in enumerate((left, right)):
            first[side, np.unique(keys, return_index=True)[1]] = True
        chosen = first.all(0)
        mapped[position[chosen], ours[chosen]] = target[position[chosen], theirs[chosen]]
        kept = ~np.isin(left, left[chosen]) & ~np.isin(right, right[chosen])
        position, ours, theirs = position[kept], ours[kept], theirs[kept]
    return mapped


def _static_one_to_one(source: IntArray, direction: _Direction) -> IntArray:
    """int64 [positions, k]: static partners; of a position's tokens with one partner the exact one, else the likeliest.

    The exact map never has two. Under the others a column would stand twice in a softmax.
    """
    mapped = direction.static[source]
    position, place = np.nonzero(mapped != UNMAPPED)
    partner = mapped[position, place]
    order = np.lexsort((place, ~direction.exact[source[position, place]], partner, position))
    keys = (position * len(direction.target_texts) + partner)[order]
    chosen = order[np.unique(keys, return_index=True)[1]]
    alone = np.full_like(mapped, UNMAPPED)
    alone[position[chosen], place[chosen]] = partner[chosen]
    return alone


def _map_of_response(source: IntArray, target: IntArray, direction: _Direction, theta: float) -> IntArray:
    """int64 [positions, k]: partners by the released form's one map for the whole response; -1 where there is none."""
    mapped = np.where(direction.static == 0, UNMAPPED, direction.static)
    alone = np.append(mapped == UNMAPPED, False)  # by id; the last entry is for target ids beyond the source's
    candidates = ~alone[np.minimum(target, mapped.size)]
    asked = (mapped[source] == UNMAPPED)[:, :, None] & candidates[:, None, :]
    position, ours, theirs, distance = _near(source, target, asked, direction, theta, blanks=True)
    order = np.lexsort((theirs, distance, ours, position))
    _, nearest = np.unique((position * source.shape[1] + ours)[order], return_index=True)
    chosen = order[nearest]  # in the order of positions: the last one stays
    found = target[position[chosen], theirs[chosen]]
    chosen, found = chosen[found != 0], found[found != 0]
    mapped[source[position[chosen], ours[chosen]]] = found
    return mapped[source]


def _near(
    source: IntArray, target: IntArray, asked: BoolArray, direction: _Direction, theta: float, blanks: bool = False
) -> Pairs:
    """The pairs whose edit distance, over the sum of both lengths, is below θ.

    Each pair of ids is measured once, and none whose lengths differ by more than that.

    Args:
        source, target: int64 [positions, k], ids.
        asked: bool [positions, k, k], which pairs of a position's source and target tokens may match.
        blanks: whether tokens of spaces alone, whose texts are empty, match one another.
    """
    position, ours, theirs = np.nonzero(asked)
    lengths = direction.source_lengths[source[position, ours]], direction.target_lengths[target[position, theirs]]
    total = lengths[0] + lengths[1]
    possible = (np.abs(lengths[0] - lengths[1]) / np.maximum(total, 1) < theta) & ((total > 0) | blanks)
    position, ours, theirs, total = position[possible], ours[possible], theirs[possible], total[possible]
    keys = source[position, ours] * len(direction.target_texts) + target[position, theirs]
    pairs, place = np.unique(keys, return_inverse=True)
    left, right = np.divmod(pairs, len(direction.target_texts))
    texts = [direction.source_texts[i] for i in left], [direction.target_texts[i] for i in right]
    distance = cpdist(*texts, scorer=Levenshtein.distance, dtype=np.int32, workers=-1)[place] / np.maximum(total, 1)
    near = distance < theta
    return position[near], ours[near], theirs[near], distance[near]


def _gathered(logits: Tensor, partners: IntArray) -> Tensor:
    """[positions, k]: logits of the partners; masked where there is none."""
    index = torch.from_numpy(partners).to(logits.device)
    return logits.gather(-1, index.clamp_min(0)).masked_fill(index == UNMAPPED, MASKED)


def _masked(logits: Tensor, ids: IntArray, partners: IntArray) -> Tensor:
    """[positions, k]: logits of the ids; masked where they have no partner."""
    alone = torch.from_numpy(partners == UNMAPPED).to(logits.device)
    return logits.gather(-1, torch.from_numpy(ids).to(logits.device)).masked_fill(alone, MASKED)


def _coverage(
    teacher: Tensor, theirs: IntArray, to_student: IntArray, to_teacher: IntArray
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Share of masked columns, and the teacher's probability on its mapped tokens."""
    mapped = torch.from_numpy(to_student != UNMAPPED).to(teacher.device)
    likely = teacher.softmax(-1).gather(-1, torch.from_numpy(theirs).to(teacher.device))
    masked = int((to_student == UNMAPPED).sum() + (to_teacher == UNMAPPED).sum())
    columns = teacher.new_tensor(float(to_student.size + to_teacher.size))
    positions = teacher.new_tensor(float(len(teacher)))
    return {
        "columns masked": (teacher.new_tensor(float(masked)), columns),
        "teacher mass covered": ((likely * mapped).sum(), positions),
        "aligned positions": (positions, None),
    }
