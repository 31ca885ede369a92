"""Where Triton is, and what the losses do with its kernels (comparison.py).

A kernel reads logits as the head gives them, in bfloat16 too, and adds a loss's gradient to what is there already.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from methods.library.chunk import AlignedChunk
from methods.library.merging import LOG_FLOOR, Merge, kept_members

enabled = True
"""Whether losses may use kernels; benchmarks compare both."""


@cache
def _kernels() -> ModuleType | None:
    """The kernels, or None where there is no Triton."""
    try:
        from methods.library import comparison
    except ImportError:
        return None
    return comparison


def kernels_for(*logits: Tensor) -> Any | None:
    """The kernels for these logits, a module; None where they would not run on one of them."""
    return _kernels() if enabled and all(_fit(each) for each in logits) else None


def _fit(logits: Tensor) -> bool:
    known = logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return logits.device.type == "cuda" and known and logits.stride(-1) == 1


def divergence_for(*logits: Tensor) -> Any | None:
    """The kernels for KL divergences of these logits, or None; a module."""
    return _divergence() if enabled and all(_fit(each) for each in logits) else None


@cache
def _divergence() -> ModuleType | None:
    try:
        from methods.library import divergence_triton
    except ImportError:
        return None
    return divergence_triton


def warping_for(numbers: Tensor) -> Any | None:
    """The kernels for time warping and edit distances where these whole numbers are, or None; a module."""
    return _warping() if enabled and numbers.device.type == "cuda" else None


@cache
def _warping() -> ModuleType | None:
    try:
        from methods.library import warping_triton
    except ImportError:
        return None
    return warping_triton


class Raw(NamedTuple):
    """One side's rows of a chunk, without gradient, and their groups; as :class:`methods.base.Members`.

    Attributes:
        lse: float32 [rows], log of the sum of each row's exponentials.
    """

    logits: Tensor
    row: Tensor
    group: Tensor
    tokens: Tensor
    lse: Tensor


class Sums(NamedTuple):
    """Sums over the groups of a chunk, scalars.

    Attributes:
        value: of the distances.
        bound: the most by which ``value`` is too small.
        covered: the teacher's probability on shared columns.
        squared_norm: of the gradient at the student's logits.
    """

    value: Tensor
    bound: Tensor
    covered: Tensor
    squared_norm: Tensor


def raw_sides(kernels: Any, chunk: AlignedChunk, lse: Tensor) -> tuple[Raw, Raw]:
    """Both sides of a chunk for :func:`compare_into`, the student's rows with the sums that are known."""
    ours, theirs = chunk.members()
    return Raw(*ours[:4], lse), Raw(*theirs[:4], kernels.log_sum_exp(theirs.logits))


def compare_into(
    kernels: Any,
    student: Raw,
    teacher: Raw,
    groups: int,
    how: Merge,
    hybrid: Any,
    upstream: Tensor,
    scale: float,
    exact: bool = False,
) -> Sums:
    """Counted distance of merged groups, and GOLD's matched part; its gradient is added to ``upstream``.

    Args:
        how: "bayesian" or "observed", see merging.py.
        hybrid: columns that are compared one by one, ``comparison.Hybrid``, or None.
        upstream: [rows, vocabulary], at the student's logits.
        scale: factor of the gradient.
        exact: whether what counting leaves in doubt is counted again, by all bits of the masses.
    """
    ours, theirs = (_kept(kernels, side, groups, how) for side in (student, teacher))
    made = kernels.GroupComparison(ours.side, theirs.side, hybrid, exact)
    found = made.values()
    norm = made.add_gradient(_through(kernels, student, ours, found.total), upstream, scale)
    return Sums(found.value.sum(), found.bound.sum(), found.covered.sum(), norm)


class _Members(NamedTuple):
    """A side's kept rows; of each member its token, its log-probability, and whether it is multiplied in. [members]."""

    side: Any
    ids: Tensor
    realised: Tensor
    others: Tensor


def _kept(kernels: Any, side: Raw, groups: int, how: Merge) -> _Members:
    """As merging.Merged, of which only one number a member is needed here."""
    alone = side.row.numel() == groups
    kept = torch.arange(groups, device=side.group.device) if alone else kept_members(side.group, groups, how)
    rows, ids = side.row[kept], side.tokens.clamp_min(0)
    realised = side.logits[side.row, ids].float() - side.lse[side.row]
    others = torch.ones_like(realised).index_fill_(0, kept, 0.0)
    joint = realised.new_zeros(groups)
    if not alone:
        joint.index_add_(0, side.group, realised.clamp_min(LOG_FLOOR) * others)
    return _Members(kernels.Kept(side.logits, side.lse, rows, joint), ids, realised, others)


def _through(kernels: Any, side: Raw, members: _Members, total: Tensor) -> Any:
    """From what passed through each group to what passes through each row."""
    count = len(side.logits)
    of_token = members.others * (members.realised >= LOG_FLOOR) * total[side.group]
    group = torch.full((count,), -1, dtype=torch.int32, device=total.device)
    group[members.side.rows] = torch.arange(len(total), dtype=torch.int32, device=total.device)
    sums = total.new_zeros(count).index_add_(0, members.side.rows, total).index_add_(0, side.row, of_token)
    own = torch.full((count,), -1, dtype=torch.int64, device=total.device)
    own[side.row] = members.ids
    return kernels.Through(group, sums, own, total.new_zeros(count).index_add_(0, side.row, of_token))
