"""What a device does in a second, and what a cost is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

GIB = 2.0**30
NODE = 8
"""GPUs of a machine, as they are rented."""

# --- What was measured ------------------------------------------------------------------------------------------------

# Each number is held to the results that it is named after by tests/harness/plan/costs/test_costs.py.

UTILISATION = 0.4
"""Share of a device's peak that matrix products reach: trainings on an H100 (benchmarks/results/trainings-gpu.json)."""
LAYER_SECONDS = 1.3e-3
"""Of one forward pass through one layer, whatever its size; a backward pass takes twice that. The same trainings, where
launches rule: on an H100, and on an H200 with 95 to 127 ms a micro-batch of 18 to 30 layers."""
READING_LAYER_SECONDS = 0.5e-3
"""The same without gradient and with nothing to cast: "generate, float32" on an H100, 0.98 ms of which 0.2 are products
and 0.2 reads (benchmarks/results/generation-h100.json)."""
REPLAYED_LAYER_SECONDS = 0.11e-3
"""Of one layer for one generated token, which a CUDA graph replays, less products and what they read: "slots" and
"slots, float32" of the same file, 0.13 and 0.09 ms."""
DRAW_SECONDS = 0.85e-9
"""Of the noise for one vocabulary entry of a sampled token, drawn by 16 cores: "sampled, slots" less "slots"."""
CE_TRAFFIC = 8.0
"""Bytes read and written for one logit, cross-entropy and its gradient included."""
KERNEL_TRAFFIC = 15.0
KD_TRAFFIC = 60.0
COUNTED_TRAFFIC = 25.0
RECOUNTED_TRAFFIC = 55.0
SORT_TRAFFIC = 240.0
"""The same for a logit of a distillation term that takes softmaxes, by kernels and without; of one that counts masses,
once or again by all their bits; and of one that sorts.

Seconds of losses on one H200, at its bandwidth, less the heads' products (benchmarks/results/gpu-h200.json).
"""

# --- Devices ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A kind of GPU: memory that is free for a process, dense bf16 and fp32 operations a second, bytes a second."""

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float


DEVICES = (
    Device("H100 80 GB", 78 * GIB, 989e12, 67e12, 3.0e12),
    Device("A100 40 GB", 39 * GIB, 312e12, 19.5e12, 1.4e12),
    Device("RTX 4090 24 GB", 23 * GIB, 165e12, 82e12, 0.95e12),
)
"""Vendors' dense numbers (no sparsity); bandwidth as programs reach it, nine tenths of theirs."""


# --- Stages -----------------------------------------------------------------------------------------------------------

_SUMS = ("flops", "launches", "traffic", "cpu", "disk")


@dataclass(frozen=True)
class Cost:
    """Of one stage.

    Attributes:
        flops: in the stage's matrix products; ``fp32`` says whether these run in float32.
        launches: layers of forward passes, counted in :data:`LAYER_SECONDS`.
        traffic: bytes that the loss, or decoding, moves.
        cpu: seconds that a GPU waits for.
        memory: bytes on the device, at the most.
        disk: bytes that stay.
    """

    flops: float = 0.0
    launches: float = 0.0
    traffic: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    fp32: bool = False

    def times(self, factor: float) -> Cost:
        """The same work more often; memory stays."""
        return replace(self, **{name: factor * getattr(self, name) for name in _SUMS})

    def __add__(self, other: Cost) -> Cost:
        """One after the other, in the precision of the first; memory is that of the larger."""
        both = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        return replace(self, **both, memory=max(self.memory, other.memory))

    def seconds(self, device: Device) -> float:
        """Estimated on a device, whether or not it has the memory."""
        rate = device.fp32 if self.fp32 else device.bf16
        products = self.flops / (UTILISATION * rate)
        return products + self.launches * LAYER_SECONDS + self.traffic / device.bandwidth + self.cpu
