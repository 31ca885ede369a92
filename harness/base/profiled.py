"""What a profile of a training holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Operation:
    """One kind of operation: a kernel on a GPU, an operator on a CPU.

    Attributes:
        seconds: of all calls, without what they call.
        share: of the operations' seconds.
    """

    name: str
    calls: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Profiled:
    """Steps that were traced.

    Attributes:
        seconds: of all of them.
        busy: seconds in which the device worked; on a CPU those of all operators.
        gaps: stretches between two kernels in which the device waited for the host, and their seconds.
        waits: calls in which the host waited for the device, by name: how many, and their seconds. On a CPU they cost
            nothing, and show what would wait on a GPU.
        trace: for chrome://tracing or Perfetto.
    """

    title: str
    device: str
    steps: int
    seconds: float
    busy: float
    gaps: tuple[int, float]
    waits: dict[str, tuple[int, float]]
    longest: Sequence[Operation]
    trace: Path
