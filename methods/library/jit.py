"""Loops that numba compiles for the CPU, once for all processes of a store.

What numba keeps it finds by a function's file and name and by the processor. Nothing in that tells an older version of
what the function calls, and two processes that write at once may take one name for two things. So there is a folder for
each state of the sources, and whoever compiles or loads holds its lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from filelock import FileLock
from numba.core import event

Array = npt.NDArray[Any]
Real = float | np.floating[Any]
F = TypeVar("F", bound=Callable[..., Any])

spent = event.TimingListener()
"""Of this process's compilations; what was kept from an earlier one is none."""
event.register("numba:compile", spent)
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_AT_ONCE = {"contract"}
"""A product and a sum in one instruction, rounded once."""
_one_at_a_time = threading.Lock()


class Compiled:
    """A function of arrays in machine code, which other threads run beside.

    Args:
        function: in what Python numba knows.
        signature: of its arguments in numba's words: of T, the float that the first one holds, and B, an integer of as
            many bits.
    """

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self._function, self._signature = function, signature
        self._made: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> None:
        """Raises TypeError where an argument has another type or layout than the signature says."""
        kind = arguments[0].dtype.itemsize
        if kind not in self._made:
            with _one_at_a_time:
                if kind not in self._made:
                    of_kind = re.sub(
                        r"\b[TB]\b", lambda found: {"T": "f", "B": "i"}[found[0]] + str(kind), self._signature
                    )
                    self._made[kind] = self._compiled(of_kind)
        self._made[kind](*arguments)

    def _compiled(self, signature: str) -> Callable[..., Any]:
        folder = _folder()
        if folder is not None:
            try:
                return self._kept(signature, folder)
            except Exception as error:  # whatever a folder may hold or lack: without it the work goes on
                warnings.warn(f"compiled without {folder}: {type(error).__name__}: {error}", stacklevel=4)
        return _of_one_signature(self._function, signature)

    def _kept(self, signature: str, folder: Path) -> Callable[..., Any]:
        folder.mkdir(parents=True, exist_ok=True)
        before = numba.config.CACHE_DIR
        with FileLock(folder / "lock"):
            numba.config.CACHE_DIR = str(folder)
            try:
                return _of_one_signature(self._function, signature, cache=True)
            finally:
                numba.config.CACHE_DIR = before


def compiled(signature: str) -> Callable[[Callable[..., Any]], Compiled]:
    """Decorator: a function as :class:`Compiled`, for callers in Python."""
    return lambda function: Compiled(function, signature)


def part(function: F) -> F:
    """Decorator: a part of a compiled function.

    It becomes a piece of what calls it. As a function of its own it would be there twice, compiled alone and with its
    caller, of which a process that compiles may run the one and a process that loads the other: sums would be rounded
    in another order.
    """
    made: F = numba.njit(fastmath=_AT_ONCE, forceinline=True, **_OPTIONS)(function)
    return made


def part_in_any_order(function: F) -> F:
    """Decorator: a part whose sums may be added in any order, so that several terms are added at once."""
    made: F = numba.njit(fastmath=_AT_ONCE | {"reassoc", "nsz"}, forceinline=True, **_OPTIONS)(function)
    return made


def _of_one_signature(function: Callable[..., Any], signature: str, **options: Any) -> Callable[..., Any]:
    made: Any = numba.njit(**_OPTIONS, **options)(function)
    made.compile(signature)
    made.disable_compile()
    return made  # type: ignore[no-any-return]


def _folder() -> Path | None:
    """Where compiled loops of these sources are kept: in the folder that the environment names."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    if not named:
        return None
    digest = hashlib.sha256(numba.__version__.encode())
    for source in [Path(__file__), *sorted(Path(__file__).parent.glob("*_numba.py"))]:
        digest.update(source.read_bytes())
    return Path(named) / digest.hexdigest()[:16]
