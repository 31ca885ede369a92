"""Which kernels the losses have: Triton's on a GPU (comparison.py), loops that numba compiles on a CPU.

A kernel reads logits as the head gives them, in bfloat16 too on a GPU, and adds a loss's gradient to what is there
already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from methods.library import cpu_loops

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


def kernels_for(logits: Tensor) -> Any | None:
    """The kernels for rows of logits: comparison.py, or rows_cpu.py; None where they would not run on these."""
    if not enabled:
        return None
    if _fit(logits):
        return _kernels()
    return _loops_of_rows() if _fits_loops(logits) else None


def comparison_for(student: Tensor, teacher: Tensor) -> Any | None:
    """The kernels for groups of rows of both sides, comparison.py or comparison_cpu.py, or None."""
    if not enabled:
        return None
    if _fit(student) and _fit(teacher):
        return _kernels()
    return _loops_of_groups() if _fits_loops(student) and _fits_loops(teacher) else None


By = Literal["kernels", "loops", "torch"]
"""What works on rows of logits."""


def works_on(device: torch.device, dtype: torch.dtype) -> By:
    """Triton's kernels, a CPU's loops, or torch alone, on logits of a dtype."""
    if enabled and device.type == "cuda" and _kernels() is not None:
        return "kernels"
    loops = enabled and cpu_loops.enabled and device.type == "cpu" and dtype is torch.float32
    return "loops" if loops else "torch"


def _fit(logits: Tensor) -> bool:
    known = logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return logits.device.type == "cuda" and known and logits.stride(-1) == 1


@cache
def _loops_of_rows() -> ModuleType:
    from methods.library import rows_cpu

    return rows_cpu


@cache
def _loops_of_groups() -> ModuleType:
    from methods.library import comparison_cpu

    return comparison_cpu


def _fits_loops(logits: Tensor) -> bool:
    return cpu_loops.run_on(logits) and logits.dtype is torch.float32 and logits.is_contiguous()


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
