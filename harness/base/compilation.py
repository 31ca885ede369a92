"""What torch and numba compiled in this process: where it is kept, how long it took, why it was compiled once more."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "NUMBA_CACHE_DIR": "numba"}
SETTLED = 8
"""Optimiser steps in which kinds of chunks come up for the first time."""


def keep_compiled(folder: Path) -> None:
    """Let this process, and those that it starts, look for compiled code in a folder, and put it there.

    A folder that the environment names already stays. Entries are found by a digest of code, versions and device, of
    loops for the CPU by one of their sources (methods/library/jit.py).
    """
    for variable, name in CACHES.items():
        os.environ.setdefault(variable, str((folder / name).absolute()))


def compile_seconds() -> float:
    """Seconds that this process has spent in ``torch.compile``, what was found in a cache included, and in numba."""
    loops: Any = sys.modules.get("methods.library.jit")
    by_numba = loops.spent.duration if loops is not None and loops.spent.done else 0.0
    return float(sum(_taken()) + by_numba)


def _taken() -> list[float]:
    """Seconds of each compilation so far; none where nothing has loaded the compiler."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return [] if dynamo is None else dynamo.compilation_time_metrics.get("_compile.compile_inner", [])


class Recompilations:
    """Warns of code that is compiled once more in the middle of a training, which stands still meanwhile."""

    def __init__(self) -> None:
        self._seen = len(_taken())

    def look(self, step: int) -> None:
        """Warn of what was compiled since the last look, behind the first `SETTLED` steps, with the cause.

        Args:
            step: optimiser steps that are done.
        """
        taken = _taken()
        new, self._seen = taken[self._seen :], len(taken)
        if not new or step <= SETTLED:
            return
        dynamo: Any = sys.modules["torch._dynamo.utils"]
        for found, seconds in zip(dynamo.get_compilation_metrics()[-len(new) :], new, strict=False):
            cause = found.recompile_reason or "it had not run before"
            warnings.warn(
                f"{found.co_name} was compiled in step {step}, which took {seconds:.1f} s: {cause}", stacklevel=2
            )
