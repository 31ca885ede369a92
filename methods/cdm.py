"""Contextual Dynamic Mapping (CDM): time warping weighted by entropies, and a vocabulary map made at each position.

Chen et al., arXiv 2502.11104, sections 3.1 to 3.3:   L = α CE + (1 - α) L_KD.   Two tokenisations are aligned by
dynamic time warping whose cost is the edit distance of two tokens times weights that grow with both models' entropy.
At an aligned position the k likeliest tokens of each side are mapped to the other: by equal bytes, or else to the
nearest of the other side's k likeliest whose edit distance, over the sum of both lengths, is below θ.

``described``: L_KD sums τ² [KL(p_T || p_S) over the teacher's k + KL(p_S || p_T) over the student's k] over the pieces
of the path, each a softmax over its mapped columns; the map is per position and one-to-one, nearest pairs first, and a
token that is a space alone (▁) has no partner. ``pieces`` says which rows stand for a piece of several tokens:
``one_to_one``: none, only pieces of one token on both sides are compared. ``first``: those that predict the first token
of either side, whose prefixes agree where both pieces start on the same byte; they teach how the teacher cuts a text.
``mean``: the mean of the piece's logits, as in the paper's code.

``released`` (the authors' code): means of logits after the pieces are consumed, a map with the code's faults, and a
mean over elements; see methods/library/cdm_released.py. The map of each position: methods/library/contextual.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from methods.base import (
    AlignedChunk,
    Held,
    LossSums,
    Method,
    Need,
    Rows,
    Side,
    SoftenedOptions,
    TeacherKind,
    register,
)
from methods.library.alignment import (
    AlignedResponse,
    Groups,
    IntArray,
    PairedTokens,
    first_members,
    group_bytes,
    starts_of,
)
from methods.library.cdm_released import maps_of_response, released_groups, released_loss, turned
from methods.library.contextual import (
    MASKED,
    Direction,
    Spellings,
    contextual,
    coverage,
    likeliest,
    mass,
    shares,
    stays_on_device,
)
from methods.library.divergences import forward_kl, reverse_kl
from methods.library.kernels import mapped_for
from methods.library.maps import UNMAPPED, VocabularyMap, exact_map, stored_map, without
from methods.library.vocabulary import TokenizerPair
from methods.library.warping import ALONE, APART, EditCosts, EditDistances, link_groups, path_notes, warp_all
from methods.library.warping_device import DeviceCosts

_CAVEATS = {
    "one_to_one": "tokens are compared where both sides have one; the paper compares pieces of several tokens too",
    "first": "of pieces of several tokens the first are compared, which teaches how the teacher cuts a text",
    "mean": "",
}


class CDMOptions(SoftenedOptions):
    k: int = Field(100, ge=1, description="likeliest tokens of each side that are compared")
    theta: float = Field(0.3, ge=0, description="θ: edit distance over both lengths below which tokens are mapped")
    static_map: Literal["exact", "nearest", "prefix"] = Field("exact", description="map that is made once a pair")
    pieces: Literal["one_to_one", "first", "mean"] = Field(
        "one_to_one",
        description="what is compared where a token stands for several: nothing, the rows of both first tokens, or "
        "means of logits as in the paper's code (described)",
    )
    alignment: Literal["dtw", "bytes"] = Field(
        "dtw", description="time warping as in the paper, or groups on shared byte boundaries"
    )
    normalize: Literal["tokens", "samples"] = Field(  # positions are known only after warping
        "tokens", description="what the KD sum is divided by: the student's response tokens, or the responses"
    )


@register
class CDM(Method[CDMOptions]):
    name, paper, teacher = "cdm", "arXiv 2502.11104", TeacherKind.CROSS_TOKENIZER
    summary = "entropy-weighted time warping, KL over the k likeliest tokens, mapped at each position"
    fidelities_differ = aligns_on_device = True
    released_rows, released_normalize = Rows.AFTER, "samples"
    Options = CDMOptions

    @property
    def align_seconds(self) -> float:
        """Of a GPU and its host, to find and compare the best k of both sides (benchmarks/results/gpu-h200.json)."""
        return 4e-6 + 8e-7 * (float(self.options.k) / 100) ** 2

    @property
    def needs(self) -> frozenset[Need]:
        needed = {Need.ONE_RESPONSE, Need.SURVEY} if self._released else set()
        return frozenset(needed | ({Need.ENTROPY} if self.options.alignment == "dtw" else set()))

    @property
    def held(self) -> Held:
        means = self._released or self.options.pieces == "mean"
        return Held(4 if means else 2.3, 1.5, 1.5e3 * self.options.k)

    @property
    def held_into(self) -> Held | None:
        plain = not self._released and self.options.pieces != "mean"
        return Held(0, 0, 3.1e3 * self.options.k) if plain else None

    @property
    def pairs_on_device(self) -> bool:
        """Not pieces of several tokens: chunks are closed under them, and the host lays chunks."""
        return self.options.alignment == "dtw" and not self._released and self.options.pieces != "mean"

    @property
    def zero_at_identity(self) -> bool:
        return not self._released  # τ on one side only: the released term has no zero

    @property
    def reads_ids(self) -> str:
        return "drops candidates of one vocabulary by the ids of the other" if self._released else ""

    @property
    def caveat(self) -> str:
        if not self._released:
            return _CAVEATS[self.options.pieces]
        columns = 2 * self.options.k
        return (
            f"the authors' code takes a mean over the {columns} columns of a position, so this KD term is about "
            f"1/{columns} of a KL per token"
        )

    def prepare(self, pair: TokenizerPair) -> None:
        self.costs = EditCosts(pair.student, pair.teacher)
        self._device_costs = DeviceCosts(self.costs)
        distances = pair.shared(EditDistances)
        student, teacher = (
            Spellings(self.costs.student_texts, distances),
            Spellings(self.costs.teacher_texts, distances),
        )
        ahead, back = self._static_maps(pair)
        exact = exact_map(pair.teacher, pair.student), exact_map(pair.student, pair.teacher)
        self.to_student = Direction(teacher, student, ahead, ahead == exact[0])
        self.to_teacher = Direction(student, teacher, back, back == exact[1])

    def _static_maps(self, pair: TokenizerPair) -> tuple[VocabularyMap, VocabularyMap]:
        """Teacher to student, and back."""
        kind = self.options.static_map
        ahead = stored_map(kind, pair.teacher, pair.student, pair.maps)
        if self._released:
            return ahead, turned(ahead, len(pair.student))
        back = stored_map(kind, pair.student, pair.teacher, pair.maps)
        blank = [
            np.asarray([spelling == b" " for spelling in side.token_bytes]) for side in (pair.student, pair.teacher)
        ]
        return without(ahead, blank[1], blank[0]), without(back, blank[0], blank[1])

    def align(self, response: AlignedResponse) -> Groups:
        return self.align_all([response])[0]

    def align_all(self, responses: Sequence[AlignedResponse]) -> list[Groups]:
        """All paths of the batch are searched at once."""
        if self.options.alignment == "bytes":
            return [self._by_bytes(response) for response in responses]
        if self._released:
            return released_groups(self.costs, responses)
        if any(stays_on_device(response.student_entropy) for response in responses):
            paths = self._device_costs.paths(responses)
        else:
            paths = warp_all([self.costs.weighted(response) for response in responses])
        return [self._by_path(*path, response) for path, response in zip(paths, responses, strict=True)]

    def pair_all(self, responses: Sequence[AlignedResponse]) -> PairedTokens | None:
        if not self.pairs_on_device or not any(stays_on_device(response.student_entropy) for response in responses):
            return None
        return self._device_costs.pairs(responses, firsts=self.options.pieces == "first")

    def _by_bytes(self, response: AlignedResponse) -> Groups:
        groups = group_bytes(response.student_ends, response.teacher_ends)
        pairs = {ALONE: (float(groups.only_one_to_one().count), float(response.student_ids.size))}
        return replace(groups, notes=pairs) if self._released else self._compared(groups, pairs)

    def _by_path(self, teacher: IntArray, student: IntArray, response: AlignedResponse) -> Groups:
        notes = path_notes(teacher, student, response)
        groups = self._compared(link_groups(teacher, student), notes)
        ours = first_members(groups.student_index, groups.student_group)
        theirs = first_members(groups.teacher_index, groups.teacher_group)
        apart = np.sum(starts_of(response.student_ends)[ours] != starts_of(response.teacher_ends)[theirs])
        notes[APART] = (float(apart), float(groups.count))
        return groups

    def _compared(self, groups: Groups, notes: dict[str, tuple[float, float]]) -> Groups:
        """The rows of the pieces that count."""
        if self.options.pieces == "one_to_one":
            groups = groups.only_one_to_one()
        elif self.options.pieces == "first":
            student = first_members(groups.student_index, groups.student_group)
            groups = Groups.one_to_one(student, first_members(groups.teacher_index, groups.teacher_group))
        return replace(groups, notes=notes)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        if self._released:
            means = chunk.of_means()
            chosen = self._likeliest(means)
            return released_loss(means, chosen, self.known(chunk, chosen), self.options.temperature)
        if self.options.pieces == "mean":
            chunk = chunk.of_means()
        found = self._found(chunk)
        student, teacher, masked = found.columns()
        kd = self._divergence(
            _columns(chunk.student, student), _columns(chunk.teacher, teacher), masked, found.theirs.shape[-1]
        )
        covered = mass(chunk.teacher.logits, chunk.teacher.index, found.theirs, found.to_student)
        return LossSums(kd, coverage(masked, covered, chunk.paired))

    def survey(self, chunk: AlignedChunk) -> tuple[Tensor, Tensor]:
        """Of the released form: int64 [groups, k], the likeliest tokens of student and teacher."""
        return self._likeliest(chunk.of_means())

    def conclude(self, surveys: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The released form's maps of a response, to the student and to the teacher."""
        ours, theirs = (torch.cat(parts) for parts in zip(*surveys, strict=True))
        return maps_of_response(ours, theirs, self.to_student, self.to_teacher, self.options.theta)

    def _likeliest(self, means: AlignedChunk) -> tuple[Tensor, Tensor]:
        sides = (means.student, self.to_teacher), (means.teacher, self.to_student)
        ours, theirs = (likeliest(side.logits, known, self.options.k) for side, known in sides)
        return ours, theirs

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        """Of the logits only the columns compared are read, and of the gradient only theirs is written."""
        kernels = mapped_for(upstream, chunk.teacher.logits)
        if kernels is None or self.held_into is None:
            return None
        found = self._found(chunk)
        student = kernels.MappedSide(chunk.student.logits, chunk.student.index, found.ours, found.to_teacher)
        teacher = kernels.MappedSide(chunk.teacher.logits, chunk.teacher.index, found.theirs, found.to_student)
        sums = kernels.add_mapped(student, teacher, self.options.temperature, MASKED, upstream, scale)
        shape = len(found.ours), found.theirs.shape[1] + found.ours.shape[1]
        diagnostics = shares(sums.masked, shape, sums.mass, chunk.paired)
        return LossSums(sums.value, diagnostics, squared_norm=sums.squared_norm)

    def _found(self, chunk: AlignedChunk) -> _Found:
        ours = _paired(chunk.student, likeliest(chunk.student.logits, self.to_teacher, self.options.k))
        theirs = _paired(chunk.teacher, likeliest(chunk.teacher.logits, self.to_student, self.options.k))
        directions = self.to_student, self.to_teacher
        to_student, to_teacher = contextual(theirs, ours, *directions, self.options.theta, chunk.paired)
        return _Found(theirs, to_student, ours, to_teacher)

    def _divergence(self, student: Tensor, teacher: Tensor, masked: Tensor, k: int) -> Tensor:
        """Scalar sum, of logits [positions, columns] of what was found, of which the first k are the teacher's."""
        tau = self.options.temperature
        student, teacher = (side.masked_fill(masked, MASKED) / tau for side in (student, teacher))
        forward = forward_kl(student[:, :k].log_softmax(-1), teacher[:, :k].log_softmax(-1))
        reverse = reverse_kl(student[:, k:].log_softmax(-1), teacher[:, k:].log_softmax(-1))
        return tau**2 * (forward + reverse).sum()


class _Found(NamedTuple):
    """What is compared at each position: the teacher's k and their partners, then the student's k and theirs.

    Attributes:
        theirs, ours: int64 [positions, k], ids of the likeliest tokens.
        to_student, to_teacher: int64 [positions, k], their partners' ids, -1 for one that is missing.
    """

    theirs: Tensor
    to_student: Tensor
    ours: Tensor
    to_teacher: Tensor

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """[positions, columns]: int64, ids of student and teacher, -1 for none; bool, where one is missing."""
        student, teacher = torch.cat([self.to_student, self.ours], -1), torch.cat([self.theirs, self.to_teacher], -1)
        return student, teacher, torch.cat([self.to_student, self.to_teacher], -1) == UNMAPPED


def _paired(side: Side, of_rows: Tensor) -> Tensor:
    """[members, k] of [rows, k]."""
    return of_rows if side.in_order else of_rows.index_select(0, side.index)


def _columns(side: Side, ids: Tensor) -> Tensor:
    """[members, k]: logits of a member's ids, int64 [members, k]; anything where an id is -1.

    Not from a copy of the members' rows, so that the gradient is scattered once into one tensor of the rows' size.
    """
    columns = ids.clamp_min(0)
    return side.logits.gather(-1, columns) if side.in_order else side.logits[side.index[:, None], columns]
