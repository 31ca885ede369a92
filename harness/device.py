"""Which device computes, and in what precision: part of what a result means."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(precision: Precision) -> Literal["float32", "bfloat16"]:
    """What matrix products run in: bf16 where the GPU multiplies it; on a CPU it is emulated, far slower than fp32."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
