"""From the gradient at a chunk's logits to those of its rows and of the head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.models.heads import Head


def add_through_head(
    head: Head, rows: Tensor, logits: Tensor, upstream: Tensor, gradients: Sequence[Tensor | None], start: int
) -> None:
    """Add a chunk's share to the gradients of rows, weight and bias; the gradient at the logits is overwritten."""
    at_linear = head.at_linear(upstream, logits.detach())
    low = at_linear.to(rows.dtype)
    of_rows, of_weight, *of_bias = gradients
    if of_rows is not None:
        _add_product(of_rows[start : start + len(rows)], low, head.weight)
    if of_weight is not None:
        _add_product(of_weight, low.T, rows)
    for gradient in of_bias:
        if gradient is not None:
            gradient.add_(at_linear.sum(0))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product, inside of it where the device can: no second matrix of [vocabulary, hidden]."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.device.type == "cuda" and hasattr(torch.ops.aten.addmm, "dtype_out"):
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    else:
        total.add_(left @ right)
