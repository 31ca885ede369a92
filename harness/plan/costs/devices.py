"""What a device does in a second, and what a cost is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

GIB = 2.0**30
UTILISATION = 0.4
LAYER_SECONDS = 1.3e-3
"""Of one forward pass through one layer, whatever its size; a backward pass takes twice that."""
DECODING_LAYER_SECONDS = 0.5e-3
"""Of one layer for one generated token: no gradient, nothing to cast."""
ANSWERS_AT_A_TIME = 256
"""The most that `evaluation.batch_size: auto` takes; see :func:`harness.base.device.rows_at_a_time`."""
DRAW_SECONDS = 20e-9
"""Of the noise for one vocabulary entry of a sampled token; it is drawn on the CPU."""
NODE = 8
"""GPUs of a machine, as they are rented."""
CE_TRAFFIC = 8.0
"""Bytes read and written for one logit, cross-entropy and its gradient included."""
KD_TRAFFIC = 60.0
COUNTED_TRAFFIC = 90.0
SORT_TRAFFIC = 270.0
"""The same for a logit of a distillation term that takes softmaxes, of one that counts masses, and of one that sorts.

Seconds of losses on one H200, at its bandwidth, less the heads' products (benchmarks/results/gpu-h200.json).
"""


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
        more = {name: factor * getattr(self, name) for name in ("flops", "launches", "traffic", "cpu", "disk")}
        return replace(self, **more)

    def seconds(self, device: Device) -> float:
        """Estimated on a device, whether or not it has the memory."""
        rate = device.fp32 if self.fp32 else device.bf16
        products = self.flops / (UTILISATION * rate)
        return products + self.launches * LAYER_SECONDS + self.traffic / device.bandwidth + self.cpu
