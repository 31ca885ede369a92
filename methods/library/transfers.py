"""Copies that a GPU takes while it computes."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the host goes on while a GPU still computes.

    From memory that is not page-locked a driver may let the host wait for what a GPU was told before (CUDA Runtime API,
    "API synchronization behavior"), which torch's own switch for such waits does not see.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
