"""Other kernels: products of matrices and sums that round another way for each shape, as on another processor.

A library of linear algebra takes other code for other shapes, threads and processors, and adds up in another order. On
one processor a batch of one row may give, to the last bit, what it gives among others; on the next it doesn't. What
docs/exactness.md promises holds on all of them: ``pytest -p tests.kernels`` runs any test with results that depend on
the shapes, and on nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_aten = torch.ops.aten
SHAKEN = {
    _aten.mm,
    _aten.addmm,
    _aten.bmm,
    _aten.baddbmm,
    _aten.mv,
    _aten.addmv,
    _aten.dot,
    _aten.sum,
    _aten.mean,
    _aten.logsumexp,
    _aten._log_softmax,
    _aten._softmax,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten.native_layer_norm,
}
EXACT = (torch.float32, torch.float64)
"""Shorter numbers are made of float32's sums: of those, another order changes few."""


class OtherKernels(TorchDispatchMode):
    """Moves each result of ``SHAKEN`` by one rounding up or down, or leaves it, as the shapes of what went in say."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket not in SHAKEN:
            return found
        shapes = str([tuple(each.shape) for each in tree_iter(args) if isinstance(each, Tensor)])
        first = found[0] if isinstance(found, (tuple, list)) else found
        if first.dtype in EXACT and first.numel() and not first.is_meta:
            _shake(first, shapes)
        return found


def _shake(values: Tensor, shapes: str) -> None:
    """In place: a product with 1 is exact, and zeros and infinities stay."""
    values.mul_(1 + torch.finfo(values.dtype).eps * _pattern(shapes, tuple(values.shape)).to(values.dtype))


@cache
def _pattern(shapes: str, shape: tuple[int, ...]) -> Tensor:
    """int8 of the shape: -1, 0 or 1 at each place, the same wherever the shapes are."""
    generator = torch.Generator().manual_seed(zlib.crc32(shapes.encode()))
    return torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    """Only the test itself, not what it shares with others."""
    with OtherKernels():
        return (yield)
