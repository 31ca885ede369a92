"""Which tensors the loops that numba compiles for the CPU (jit.py) take, and how their rows are shared out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

enabled = True
"""Whether losses may use loops; without them they take the way of other devices, which tests and benchmarks compare."""
_ENTRIES = 2**17
"""For fewer than these no further thread starts, which takes about as long as a loop over them."""


def run_on(*matrices: Tensor) -> bool:
    """Whether loops take them: on the CPU, in float32 or float64, where ``torch.compile`` does not look on."""
    eager = not torch.compiler.is_compiling()
    known = (torch.float32, torch.float64)
    return enabled and eager and all(each.device.type == "cpu" and each.dtype in known for each in matrices)


def within(numbers: Tensor, size: int, what: str) -> None:
    """Raises IndexError where numbers are not from 0 to ``size`` - 1: loops do not look."""
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < size:
        raise IndexError(f"{what} {int(numbers.min())} to {int(numbers.max())}, of which there are {size}")


def in_threads(rows: int, columns: int, function: Callable[[slice], object]) -> None:
    """Give each of torch's threads some of the rows: few matrices are worth all of them."""
    threads = min(torch.get_num_threads(), rows, rows * columns // _ENTRIES + 1)
    if threads < 2:
        function(slice(0, rows))
        return
    parts = (slice(*each) for each in pairwise(rows * thread // threads for thread in range(threads + 1)))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, parts))
