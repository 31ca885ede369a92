"""CDM and MinED as the code of CDM's authors computes them, faults included.

Chen et al., arXiv 2502.11104. Both take means of logits over nested lists of tokens, after the tokens are consumed, and
a mean over elements with τ on one side only; CDM's map counts for a whole response. What else the code does that the
paper does not say stands at :func:`maps_of_response`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from methods.library.alignment import AlignedResponse, Groups, IntArray
from methods.library.chunk import AlignedChunk, LossSums
from methods.library.contextual import MASKED, Direction, FloatArray, coverage, mass, near_pairs, on_device
from methods.library.maps import UNMAPPED, VocabularyMap
from methods.library.warping import EditCosts, path_notes, warp_all


def turned(mapped: VocabularyMap, size: int) -> VocabularyMap:
    """int64 [size]: the released form's map in the other direction; of several tokens the highest id counts."""
    turned = np.full(size, UNMAPPED, dtype=np.int64)
    known = np.flatnonzero(mapped > 0)  # 0 means unmapped
    turned[mapped[known]] = known
    return turned


def released_groups(costs: EditCosts, responses: Sequence[AlignedResponse]) -> list[Groups]:
    """Time warping weighted by entropies, and the code's nested means along each path."""
    paths = warp_all([costs.weighted(response) for response in responses])
    return [nested_means(*path, path_notes(*path, response)) for path, response in zip(paths, responses, strict=True)]


def nested_means(teacher: IntArray, student: IntArray, notes: dict[str, tuple[float, float]]) -> Groups:
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


def maps_of_response(
    ours: Tensor, theirs: Tensor, to_student: Direction, to_teacher: Direction, theta: float
) -> tuple[Tensor, Tensor]:
    """int64 [size] of either vocabulary: the partners of its tokens in one response, -1 where there is none.

    Faults of these maps in the authors' code: id 0 means unmapped, on both sides; ids of source tokens without a static
    partner are taken out of the target's candidates, by number; the nearest token of the last position that finds one
    counts for the whole response; tokens that the first direction leaves unmapped can't be found by the second; several
    tokens may share a partner; two tokens of spaces alone are the nearest of all. Two details differ: of equal
    distances the likeliest candidate's counts, where the code follows the order of a Python set; and a masked
    token, whose id reads 0, is compared by the text of id 0, where the code keeps its own.

    Args:
        ours, theirs: int64 [positions, k], the likeliest tokens of student and teacher.
        to_student, to_teacher: maps that are made once a pair, and the texts of both vocabularies.
        theta: distance over both lengths below which tokens are mapped.
    """
    there = _map_of_response(theirs, ours, to_student, theta)
    left = theirs.masked_fill(there[theirs] == UNMAPPED, 0)  # the code overwrites the ids that it masks
    return there, _map_of_response(ours, left, to_teacher, theta)


def released_loss(
    means: AlignedChunk, found: tuple[Tensor, Tensor], maps: tuple[Tensor, Tensor], tau: float
) -> LossSums:
    """What the authors' code compares over one response, of one chunk of it.

    Args:
        means: :meth:`AlignedChunk.of_means` of the chunk.
        found: int64 [groups, k], the likeliest tokens of student and teacher.
        maps: :func:`maps_of_response`.
        tau: temperature, of one side.
    """
    student, teacher = means.student.logits, means.teacher.logits
    ours, theirs = found
    there, back = maps[0][theirs], maps[1][ours]
    masked = torch.cat([there, back], -1) == UNMAPPED
    k = theirs.shape[-1]
    own, partners = torch.cat([theirs, ours], -1), torch.cat([there, back], -1).clamp_min(0)
    of_student = student.gather(-1, torch.cat([partners[:, :k], ours], -1))
    of_teacher = teacher.gather(-1, torch.cat([theirs, partners[:, k:]], -1))
    p = torch.cat([of_teacher[:, :k], of_student[:, k:]], -1).masked_fill(masked | (own == 0), MASKED)
    q = torch.cat([of_student[:, :k], of_teacher[:, k:]], -1).masked_fill(masked, MASKED)
    every = torch.arange(len(teacher), device=teacher.device)
    kd = released_divergence(p, q, tau, means.response_groups)
    return LossSums(kd, coverage(masked, mass(teacher, every, theirs, there)))


def released_divergence(p: Tensor, q: Tensor, tau: float, positions: int) -> Tensor:
    """What a chunk gives to the mean over the elements of P (τ² log P - Q), P = softmax(p), Q = log softmax(q / τ).

    As in the authors' code. One softmax runs over the columns of both directions; τ divides one side only.

    Args:
        p, q: logits [positions of the chunk, columns].
        positions: of the response.
    """
    log_p, log_q = p.log_softmax(-1), (q / tau).log_softmax(-1)
    return (log_p.exp() * (tau**2 * log_p - log_q)).sum() / (positions * p.shape[-1])


def _map_of_response(source: Tensor, target: Tensor, direction: Direction, theta: float) -> Tensor:
    """int64 [size]: one direction of :func:`maps_of_response`, of ids [positions, k]."""
    static = direction.tables.on(source.device)["static"]
    mapped = static.masked_fill(static == 0, UNMAPPED)
    # ids that no target may have; those beyond the source's have no such fault
    fault = torch.cat([mapped == UNMAPPED, mapped.new_zeros(1, dtype=torch.bool)])
    use = mapped[source] == UNMAPPED, ~fault[target.clamp_max(len(mapped))]
    found = near_pairs(source, target, [use], direction, theta, blanks=True)
    order = np.lexsort((found.target, found.distance, found.source, found.position))
    _, nearest = np.unique((found.position * source.shape[1] + found.source)[order], return_index=True)
    chosen = order[nearest]  # in the order of positions
    chosen = chosen[found.target_ids[chosen] != 0][::-1]
    ids, last = np.unique(found.source_ids[chosen], return_index=True)  # the last position's stays
    mapped[on_device(ids, source)] = on_device(found.target_ids[chosen[last]], source)
    return mapped
