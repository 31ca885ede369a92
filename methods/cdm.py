"""Contextual Dynamic Mapping (CDM): time warping weighted by entropies, and a vocabulary map made at each position.

Chen et al., arXiv 2502.11104, sections 3.1 to 3.3:   L = α CE + (1 - α) L_KD.   Two tokenisations are aligned by
dynamic time warping whose cost is the edit distance of two tokens times weights that grow with both models' entropy.
At an aligned position the k likeliest tokens of each side are mapped to the other: by equal bytes, or else to the
nearest of the other side's k likeliest whose edit distance, over the sum of both lengths, is below θ.

``described``: rows that predict the first token of each aligned piece, whose prefixes agree where both pieces start
on the same byte; L_KD = mean of τ² [KL(p_T || p_S) over the teacher's k + KL(p_S || p_T) over the student's k], each a
softmax over its mapped columns; the map is per position and one-to-one, nearest pairs first.

``released`` (the authors' code): means of logits after the pieces are consumed, and a map with the code's faults; see
:meth:`CDM._released_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
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
from methods.maps import UNMAPPED, VocabularyMap, exact_map, nearest_map, prefix_map
from methods.vocabulary import TokenizerPair
from methods.warping import EditCosts, agreement_note, entropy_weights, link_groups, token_texts, warp

FloatArray = npt.NDArray[np.float64]
Texts = Sequence[str]
_MASKED = -1e4
"""Logit of a column without a partner, on both sides, as in the authors' code: its probability underflows to 0."""

STATIC_MAPS = {"exact": exact_map, "nearest": nearest_map, "prefix": prefix_map}


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
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        needed = {Need.WHOLE_RESPONSE} if self._released else set()
        return frozenset(needed | ({Need.ENTROPY} if self.options.alignment == "dtw" else set()))

    @property
    def rows(self) -> Rows:
        return Rows.AFTER if self._released else Rows.PREDICTING

    @property
    def normalize(self) -> str:
        return "samples" if self._released else super().normalize

    @property
    def zero_at_identity(self) -> bool:  # type: ignore[override]
        return not self._released  # τ on one side only: the released term has no zero

    @property
    def _released(self) -> bool:
        return bool(self.options.fidelity == "released")

    def prepare(self, pair: TokenizerPair) -> None:
        make = STATIC_MAPS[self.options.static_map]
        self.costs = EditCosts(pair.student, pair.teacher)
        self.student_texts, self.teacher_texts = token_texts(pair.student), token_texts(pair.teacher)
        self.student_of_teacher, self.teacher_of_student = (
            make(pair.teacher, pair.student),
            make(pair.student, pair.teacher),
        )

    def align(self, response: AlignedResponse) -> Groups:
        if self.options.alignment == "bytes":
            groups = group_bytes(response.student_ends, response.teacher_ends)
            return groups if self._released else _first_members(groups, {})
        assert response.student_entropy is not None
        assert response.teacher_entropy is not None
        costs = self.costs.costs(response.student_ids, response.teacher_ids)
        weights = np.outer(entropy_weights(response.teacher_entropy), entropy_weights(response.student_entropy))
        teacher, student = warp(costs * weights)
        notes = agreement_note(teacher, student, response)
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
        tau = self.options.temperature
        student, teacher = chunk.student.paired_logits(), chunk.teacher.paired_logits()
        ours, theirs = (
            self._likeliest(student, len(self.student_texts)),
            self._likeliest(teacher, len(self.teacher_texts)),
        )
        distances = _distances(theirs, ours, self.teacher_texts, self.student_texts)
        to_student = _contextual(theirs, ours, self.student_of_teacher, distances, self.options.theta)
        to_teacher = _contextual(ours, theirs, self.teacher_of_student, _swapped(distances), self.options.theta)
        s1, t1 = _gathered(student, to_student), _masked(teacher, theirs, to_student)
        s2, t2 = _masked(student, ours, to_teacher), _gathered(teacher, to_teacher)
        forward = forward_kl((s1 / tau).log_softmax(-1), (t1 / tau).log_softmax(-1))
        reverse = reverse_kl((s2 / tau).log_softmax(-1), (t2 / tau).log_softmax(-1))
        return LossSums(tau**2 * (forward + reverse).sum(), _coverage(teacher, theirs, to_student, to_teacher))

    def _likeliest(self, logits: Tensor, size: int) -> IntArray:
        """int64 [positions, k]: ids of the likeliest tokens, likeliest first; padding columns are no tokens."""
        known = logits.detach()[:, : min(size, logits.shape[-1])]
        ids: IntArray = known.topk(min(self.options.k, known.shape[-1]), dim=-1).indices.cpu().numpy()
        return ids

    # --- released ---------------------------------------------------------------------------------------------------

    def _released_loss(self, chunk: AlignedChunk) -> LossSums:
        """Mean over the elements of one response, as the authors' code computes it.

        The softmax runs over both directions' columns at once, τ divides one side only. The map's faults: id 0 means
        unmapped; the teacher's ids that have a static partner are taken out of the student's candidates by number;
        the nearest token of the last position that finds one counts for the whole response; tokens that the first
        direction leaves unmapped can't be found by the second; several tokens may share a partner.
        """
        tau = self.options.temperature
        student, teacher = chunk.student.mean_logits(chunk.groups), chunk.teacher.mean_logits(chunk.groups)
        ours, theirs = (
            self._likeliest(student, len(self.student_texts)),
            self._likeliest(teacher, len(self.teacher_texts)),
        )
        to_student = self._map_of_response(
            theirs, ours, self.student_of_teacher, _distances(theirs, ours, self.teacher_texts, self.student_texts)
        )
        left = np.where(to_student == UNMAPPED, 0, theirs)  # the code overwrites the ids that it masks
        to_teacher = self._map_of_response(
            ours, left, self.teacher_of_student, _distances(ours, left, self.student_texts, self.teacher_texts)
        )
        s1, t1 = _gathered(student, to_student), _masked(teacher, theirs, to_student)
        s2, t2 = _masked(student, ours, to_teacher), _gathered(teacher, to_teacher)
        p = torch.cat([t1, s2], -1).log_softmax(-1)
        q = (torch.cat([s1, t2], -1) / tau).log_softmax(-1)
        kd = (p.exp() * (tau**2 * p - q)).sum() / p.numel()
        return LossSums(kd, _coverage(teacher, theirs, to_student, to_teacher))

    def _map_of_response(
        self, source: IntArray, target: IntArray, static: VocabularyMap, distances: FloatArray
    ) -> IntArray:
        """int64 [positions, k]: partners by one map for the whole response; -1 where there is none."""
        mapped = static.copy()
        mapped[mapped == 0] = UNMAPPED
        known = mapped[source] != UNMAPPED
        matched = np.where(known, source, -1)
        by_number = (target[:, :, None] == matched[:, None, :]).any(-1)  # [positions, candidates]
        found = np.where(by_number[:, None, :], np.inf, distances)
        best = found.argmin(-1)
        nearest = np.take_along_axis(target, best, 1)
        near = (np.take_along_axis(found, best[..., None], 2)[..., 0] < self.options.theta) & ~known
        mapped[source[near]] = nearest[near]  # in the order of positions: the last one stays
        mapped[mapped == 0] = UNMAPPED
        return mapped[source]


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


def _distances(source: IntArray, target: IntArray, source_texts: Texts, target_texts: Texts) -> FloatArray:
    """float64 [positions, k, k]: Levenshtein distance of two tokens' texts over the sum of their lengths.

    Each pair of texts that occurs anywhere in the chunk is measured once.
    """
    ours, our_place = np.unique(source, return_inverse=True)
    theirs, their_place = np.unique(target, return_inverse=True)
    left, right = [source_texts[i] for i in ours], [target_texts[i] for i in theirs]
    matrix = cdist(left, right, scorer=Levenshtein.distance, dtype=np.int32, workers=-1)
    lengths = np.fromiter(map(len, left), np.int64, len(left))[:, None] + np.fromiter(map(len, right), np.int64)
    relative = np.where(lengths > 0, matrix / np.maximum(lengths, 1), 1.0)  # two tokens of spaces alone are no match
    return relative[our_place.reshape(source.shape)[:, :, None], their_place.reshape(target.shape)[:, None, :]]


def _swapped(distances: FloatArray) -> FloatArray:
    return distances.transpose(0, 2, 1)


def _contextual(
    source: IntArray, target: IntArray, static: VocabularyMap, distances: FloatArray, theta: float
) -> IntArray:
    """int64 [positions, k]: partner of each source token at its position, one-to-one; -1 where there is none.

    Static partners stand. The others take the nearest of the position's target tokens that are free, nearest pairs
    first, equals in the order of source and then target. A pair that is the first of both its tokens' pairs is what
    that order would choose, so all such pairs of all positions are taken at once, until none is left.
    """
    mapped = static[source]
    taken = (target[:, :, None] == mapped[:, None, :]).any(-1)
    open_pairs = (distances < theta) & (mapped == UNMAPPED)[:, :, None] & ~taken[:, None, :]
    position, ours, theirs = np.nonzero(open_pairs)
    order = np.lexsort((theirs, ours, distances[position, ours, theirs], position))
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


def _gathered(logits: Tensor, partners: IntArray) -> Tensor:
    """[positions, k]: logits of the partners; masked where there is none."""
    index = torch.from_numpy(partners).to(logits.device)
    return logits.gather(-1, index.clamp_min(0)).masked_fill(index == UNMAPPED, _MASKED)


def _masked(logits: Tensor, ids: IntArray, partners: IntArray) -> Tensor:
    """[positions, k]: logits of the ids; masked where they have no partner."""
    alone = torch.from_numpy(partners == UNMAPPED).to(logits.device)
    return logits.gather(-1, torch.from_numpy(ids).to(logits.device)).masked_fill(alone, _MASKED)


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
