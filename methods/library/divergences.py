"""Divergences between rows of next-token distributions. Each returns one value a row, in nats where it is a KL.

:func:`generalized_jsd` and :func:`sorted_l1` are the definitions. What losses run on is their closed form beside them,
``..._parts``: the same values, with the gradient that autograd finds through the definition. Tests hold the two equal.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from methods.library.counted import counted_l1_parts, edges
from methods.library.cpu_loops import run_on
from methods.library.ranks import compare_ranks


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student), mean-seeking.

    Args:
        student, teacher: log-probabilities [rows, vocabulary] over the same vocabulary.

    Returns:
        [rows].
    """
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher), mode-seeking; arguments and result as in :func:`forward_kl`."""
    return (student.exp() * (student - teacher)).sum(-1)


def generalized_jsd(student: Tensor, teacher: Tensor, beta: float, floor: float = -math.inf) -> Tensor:
    """β KL(T || M) + (1 - β) KL(S || M) with M = (1 - β) S + β T (GKD, arXiv 2306.13649, equation 1).

    β = 0 stands for KL(T || S) and β = 1 for KL(S || T), which the divergence over β and over 1 - β tends to.

    Args:
        student, teacher: log-masses [rows, columns] of the same tokens. They need not add up to 1; where they don't,
            the value may be negative.
        beta: from 0 to 1.
        floor: least log-mass; what is below counts as it, and gets no gradient.

    Returns:
        [rows].
    """
    student, teacher = student.clamp_min(floor), teacher.clamp_min(floor)
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * forward_kl(mixture, teacher) + (1 - beta) * forward_kl(mixture, student)


def generalized_jsd_parts(
    student: Tensor, teacher: Tensor, beta: float, floor: float, masses: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The closed form of :func:`generalized_jsd`: its value and its gradient.

    Of the student's log-masses s, with masses S, T and M = (1 - β) S + β T, the gradient is -T where β = 0,
    S (s - t + 1) where β = 1, else (1 - β) S (s - log M); 0 below the floor.

    Args:
        student, teacher: log-masses [rows, columns], without gradient; overwritten.
        beta: from 0 to 1.
        floor: least log-mass.
        masses: [rows, columns], the teacher's, where somebody has made them; overwritten.

    Returns:
        [rows], and the gradient [rows, columns].
    """
    s = student if floor == -math.inf else student.clamp_min(floor)
    t = teacher.clamp_min_(floor)
    if beta == 0:
        gradient = _floored(t, masses, floor).neg_()
        value = s.sub_(t).mul_(gradient).sum(-1)
    elif beta == 1:
        mass = s.exp()
        gradient = s.sub_(t)
        value = t.copy_(gradient).mul_(mass).sum(-1)
        gradient.add_(1.0).mul_(mass)
    else:
        mixture = torch.logaddexp(s + math.log1p(-beta), t + math.log(beta))
        theirs = _floored(t, masses, floor)
        value = t.sub_(mixture).mul_(theirs).sum(-1).mul_(beta)
        ours = s.exp()
        gradient = s.sub_(mixture).mul_(ours).mul_(1 - beta)
        value += gradient.sum(-1)
    if floor != -math.inf:
        gradient.mul_(student.ge_(floor))  # ones, since masks are slow on a CPU
    return value, gradient


def _floored(log_masses: Tensor, masses: Tensor | None, floor: float) -> Tensor:
    """The masses of log-masses that are not below a floor; from masses that may be, where somebody has made them."""
    return log_masses.exp() if masses is None else masses.clamp_min_(math.exp(floor))


class Sort(NamedTuple):
    """How ranks are compared.

    Attributes:
        how: "sorted", "counted" or "resolved"; see :func:`distance_by`.
        top_k: ranks that are compared one by one where they are sorted; None for all.
        ends: edges of the bins where masses are counted.
    """

    how: Literal["sorted", "counted", "resolved"] = "sorted"
    top_k: int | None = None
    ends: Tensor | None = None

    @property
    def is_exact(self) -> bool:
        """Whether nothing but rounding is lost."""
        return self.how == "resolved" or (self.how == "sorted" and self.top_k is None)


class SortOptions(BaseModel):
    """Options of methods that compare sorted distributions."""

    sort: Literal["auto", "exact", "counted", "top_k"] = Field(
        "auto",
        description="exact: all ranks; counted: masses in bins, 1e-3 off at most as a rule, no sort; top_k: the first "
        "top_k ranks, and what is left as one mass; auto: exact on a CPU, counted on a GPU",
    )
    top_k: int = Field(1024, ge=1, description="ranks that are compared one by one, where sort is top_k")

    @property
    def counts(self) -> bool:
        """Whether masses are counted on a GPU."""
        return self.sort in ("auto", "counted")

    @property
    def sorts_by_kernels(self) -> bool:
        """Whether kernels count what these options compare."""
        return self.sort != "top_k"

    @property
    def sorts_by_loops(self) -> bool:
        """Whether a CPU's loops compare what these options compare: all ranks."""
        return self.sort in ("auto", "exact")

    @property
    def bytes_of_counts(self) -> float:
        """Of a row, by kernels: bins of both sides and slopes; where exact, what is in doubt is counted again."""
        return 3.9e5 if self.sort == "exact" else 1.4e5

    def sort_of(self, logits: Tensor) -> Sort:
        """How masses that come from these logits are compared, on their device."""
        on_gpu = logits.device.type != "cpu"
        if self.sort != "counted" and not (self.sort == "auto" and on_gpu):
            return Sort("sorted", self.top_k if self.sort == "top_k" else None)
        masses = torch.float64 if logits.dtype is torch.float64 else torch.float32
        return Sort("counted", None, edges(masses, logits.device))


def sort_error(
    bound: Tensor | None, groups: int, sort: Sort, by_kernels: bool = False
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The diagnostic of a sort that is not exact: the most by which KD may be too small, per group.

    Args:
        bound: of all groups; None: it is exact.
        by_kernels: whether masses were counted by kernels, which have room for so many bins in doubt, no more.
    """
    if bound is None or (sort.is_exact and not by_kernels):
        return {}
    return {"sort error at most": (bound, torch.full_like(bound, groups))}


def distance_by(sort: Sort, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sorted distance of rows of masses, its gradient at the student's, and the most by which it is too small.

    A "sorted" one is :func:`sorted_l1_parts`; a "counted" or "resolved" one :func:`counted_l1_parts`, where "resolved"
    sorts what counting leaves in doubt.
    """
    if sort.how == "sorted":
        return sorted_l1_parts(student, teacher, sort.top_k)
    return counted_l1_parts(student, teacher, sort.how == "resolved", sort.ends)


def sorted_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of two distributions whose vocabularies have nothing to do with each other.

    Both are sorted in descending order, the smaller one padded with zeros: sum_k |p_(k) - q_(k)|
    (ULD, arXiv 2402.12030, section 3: the Wasserstein distance under a uniform cost).

    Args:
        student, teacher: masses [rows, V_s] and [rows, V_t], not negative.

    Returns:
        [rows].
    """
    width = max(student.shape[-1], teacher.shape[-1])
    padded = (nn.functional.pad(side, (0, width - side.shape[-1])) for side in (student, teacher))
    p, q = (side.sort(-1, descending=True).values for side in padded)
    return (p - q).abs().sum(-1)


def sorted_l1_parts(student: Tensor, teacher: Tensor, top_k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The closed form of :func:`sorted_l1`: its value, its gradient, and a bound of the error that ``top_k`` makes.

    The gradient at a mass is the sign of the difference in its rank.

    Exact where ``top_k`` is None or at least the smaller vocabulary: only the first min(V_s, V_t) ranks need an order,
    of the larger side's rest the sum is enough. Else only the first k ranks are compared, and beyond them one number a
    side: the masses A and B that are left. Let a_i and b_i be the ranks beyond k, n = max(V_s, V_t) - k of them, and m
    the larger of the two masses at rank k. Then

        sum |a_i - b_i| = A + B - 2 sum min(a_i, b_i),   while the estimate is |A - B| = A + B - 2 min(A, B),
        min(a_i, b_i) >= a_i b_i / m,   since neither exceeds m,   and sum a_i b_i >= A B / n   (Chebyshev; both fall),

    so that the estimate is never too large, and too small by no more than 2 min(A, B) (1 - max(A, B) / (n m)).

    Args:
        student, teacher: masses [rows, V_s] and [rows, V_t], not negative.
        top_k: ranks that are compared one by one; None for all.

    Returns:
        Distance [rows]; its gradient [rows, V_s], signs; bound [rows] of the distance's error, 0 where it is exact.
    """
    shorter = min(student.shape[-1], teacher.shape[-1])
    exact = top_k is None or top_k >= shorter
    if exact and run_on(student, teacher) and teacher.dtype == student.dtype:
        value, at_masses = compare_ranks(student, teacher)
        return value, at_masses, torch.zeros_like(value)
    ranks = shorter if exact or top_k is None else top_k
    ordered, place = _largest(student, ranks)
    reference = _largest(teacher, ranks)[0]
    difference = ordered - reference
    left, right = _rest(student, ordered, place), _rest(teacher, reference)
    rest = left - right  # where the order is complete, one of the two is 0
    signs = torch.ones_like(rest) if exact else rest.sign()
    signs = signs.unsqueeze(-1).expand_as(student).scatter(-1, place, difference.sign())
    distance = difference.abs().sum(-1) + rest.abs()
    if exact:
        return distance, signs, torch.zeros_like(distance)
    beyond = (max(student.shape[-1], teacher.shape[-1]) - ranks) * torch.maximum(ordered[:, -1], reference[:, -1])
    least, most = torch.minimum(left, right), torch.maximum(left, right)
    spread = (most / beyond.clamp_min(torch.finfo(beyond.dtype).tiny)).clamp_max(1.0)
    return distance, signs, 2 * least * (1 - spread)


def _rest(values: Tensor, largest: Tensor, place: Tensor | None = None) -> Tensor:
    """[rows]: sum of what is not among the largest; added up for itself where their places are known.

    Elsewhere a difference of two sums in float64, so that nothing small is lost in what float32 rounds.
    """
    if largest.shape[-1] == values.shape[-1]:
        return values.new_zeros(len(values))
    if place is not None:
        return values.scatter(-1, place, 0.0).sum(-1)
    return (values.sum(-1, dtype=torch.float64) - largest.sum(-1, dtype=torch.float64)).clamp_min(0).to(values.dtype)


def _largest(values: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """The ``ranks`` largest of each row in descending order, and where they stand, int64; without gradient."""
    if 2 * ranks < values.shape[-1]:
        found = values.topk(ranks, -1)
        return found.values, found.indices
    everything = values.sort(-1, descending=True)
    return everything.values[:, :ranks], everything.indices[:, :ranks]
