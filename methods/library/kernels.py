"""Where Triton is, and what the losses do with its kernels (comparison.py).

A kernel reads logits as the head gives them, in bfloat16 too, and adds a loss's gradient to what is there already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from methods.library.chunk import AlignedChunk
from methods.library.merging import Merge

enabled = True
"""Whether losses may use kernels; benchmarks compare both."""


def _where_triton_is(load: Callable[[], ModuleType]) -> Callable[[], ModuleType | None]:
    """Decorator: the module, loaded once, or None where there is no Triton."""

    @cache
    def found() -> ModuleType | None:
        try:
            return load()
        except ImportError:
            return None

    return found


@_where_triton_is
def _kernels() -> ModuleType:
    from methods.library import comparison

    return comparison


def kernels_for(*logits: Tensor) -> Any | None:
    """The kernels for these logits, a module; None where they would not run on one of them."""
    return _kernels() if enabled and all(_fit(each) for each in logits) else None


def run_on(device: torch.device) -> bool:
    """Whether a device has kernels for the logits of models."""
    return enabled and device.type == "cuda" and _kernels() is not None


def _fit(logits: Tensor) -> bool:
    known = logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return logits.device.type == "cuda" and known and logits.stride(-1) == 1


def divergence_for(*logits: Tensor) -> Any | None:
    """The kernels for KL divergences of these logits, or None; a module."""
    return _divergence() if enabled and all(_fit(each) for each in logits) else None


@_where_triton_is
def _divergence() -> ModuleType:
    from methods.library import divergence_triton

    return divergence_triton


def warping_for(numbers: Tensor) -> Any | None:
    """The kernels for time warping and edit distances where these whole numbers are, or None; a module."""
    return _warping() if enabled and numbers.device.type == "cuda" else None


@_where_triton_is
def _warping() -> ModuleType:
    from methods.library import warping_triton

    return warping_triton


def mapped_for(*logits: Tensor) -> Any | None:
    """The kernels for CDM's divergences of these logits, or None; a module."""
    return _mapped() if enabled and all(_fit(each) for each in logits) else None


@_where_triton_is
def _mapped() -> ModuleType:
    from methods.library import mapped_triton

    return mapped_triton


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
    made = kernels.GroupComparison(*kernels.keep(student, teacher, groups, how), hybrid, exact)
    value, bound, covered = made.values()
    return Sums(value, bound, covered, made.add_gradient(upstream, scale))
