"""The trainer's walk over chunks with Triton's kernels beside the same by torch, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Set

import pytest
import torch

from methods.base import Method
from methods.library import cpu_loops, kernels
from tests.harness.training.test_loss import walked
from tests.methods import contract


def compare_walks(
    method: Method, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch, told: Set[str] = frozenset()
) -> None:
    """Losses, gradients and diagnostics of both.

    Args:
        precision: of the logits that kernels read.
        told: diagnostics that kernels alone have, means that are below 1e-6.
    """
    made = contract.bench(method, dtype=torch.float32)
    walk, rows, weights = walked(made)
    with monkeypatch.context() as patch:
        patch.setattr(cpu_loops, "enabled", False)
        plain, (of_rows, of_weight) = walk.run(rows, weights, [True, True])
    monkeypatch.setattr(kernels, "_fit", lambda logits: logits.dtype in (torch.float32, torch.bfloat16))
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        parts, (kernel_rows, kernel_weight) = walk.run(rows, weights, [True, True])
    close = {"rtol": 1e-4, "atol": 1e-6} if precision is torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for name in ("loss", "ce", "kd", "ce_gradient", "kd_gradient"):
        torch.testing.assert_close(getattr(parts, name).double(), getattr(plain, name).double(), **close)
    assert parts.diagnostics.keys() - plain.diagnostics.keys() == told
    for name in told:
        total, groups = parts.diagnostics.pop(name)
        assert float(total / groups) < 1e-6
    assert parts.diagnostics.keys() == plain.diagnostics.keys()
    for name, pair in parts.diagnostics.items():
        torch.testing.assert_close(pair, plain.diagnostics[name], equal_nan=True, rtol=0.05, atol=0.1)
    for found, wanted in ((kernel_rows, of_rows), (kernel_weight, of_weight)):
        assert found is not None
        assert wanted is not None
        assert (found - wanted).norm() / wanted.norm() < (1e-4 if precision is torch.float32 else 0.1)
