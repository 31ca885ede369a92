"""Loops that numba compiles for the CPU: once on a machine, where there is a place to keep what it made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy.typing as npt
from numba.core import event

Array = npt.NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
spent = event.TimingListener()
"""Of this process's compilations; what was kept from an earlier one is none."""
event.register("numba:compile", spent)


def compiled(function: F) -> F:
    """Decorator: the function in machine code, for callers in Python; other threads run beside it."""
    try:
        made: F = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder to keep it in can be written to
        made = numba.njit(**_OPTIONS)(function)
    return made


def part(function: F) -> F:
    """Decorator: a part of a compiled function."""
    made: F = numba.njit(**_OPTIONS)(function)
    return made


def part_in_any_order(function: F) -> F:
    """Decorator: a part whose sums may be added in any order, so that several terms are added at once."""
    made: F = numba.njit(fastmath={"reassoc", "nsz"}, **_OPTIONS)(function)
    return made
