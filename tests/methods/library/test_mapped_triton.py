"""methods.library.mapped_triton beside the loss by autograd, in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace

import pytest
import torch

if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs Triton and TRITON_INTERPRET=1, which no other test may see", allow_module_level=True)

from methods.cdm import CDM
from methods.library import mapped_triton
from tests.methods.library.kernel_walks import compare_walks
from tests.methods.test_cdm import chunk, toy


@pytest.mark.parametrize(("in_order", "k", "theta"), [(True, 8, 0.6), (False, 12, 0.6), (True, 5, 0.0)])
def test_loss_and_gradient(in_order: bool, k: int, theta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a column is one of the student's k and the partner of one of the teacher's, and where none is mapped."""
    made, method = chunk(10, pair=toy(3)), CDM(k=k, theta=theta, temperature=2.0)
    method.prepare(toy(3))
    if not in_order:
        index = torch.randperm(10, generator=torch.Generator().manual_seed(2))[:7]
        number = torch.arange(7)
        for side in (made.student, made.teacher):
            side.index, side.group, side.tokens, side.in_order = index, number, number, False
        made = replace(made, groups=7)
    if not theta:
        for direction in (method.to_student, method.to_teacher):
            direction.tables.on(torch.device("cpu"))["static"].fill_(-1)
    wanted = method.loss(made)
    (gradient,) = torch.autograd.grad(wanted.kd, made.student.logits)
    before = torch.randn(made.student.logits.shape, generator=torch.Generator().manual_seed(1))
    upstream = before.clone()
    raw = replace(
        made,
        student=made.student.with_logits(made.student.logits.detach().float()),
        teacher=made.teacher.with_logits(made.teacher.logits.float()),
    )
    monkeypatch.setattr("methods.cdm.mapped_for", lambda *logits: mapped_triton)
    with torch.no_grad():
        found = method.loss_into(raw, raw.student.logits.logsumexp(-1), upstream, 0.5)
        columns = method._found(raw)
    assert found is not None
    assert found.squared_norm is not None
    twice = (columns.to_student[:, :, None] == columns.ours[:, None]).any()
    assert bool(twice) == bool(theta)
    assert float(found.kd) == pytest.approx(float(wanted.kd.detach()), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(upstream - before, 0.5 * gradient.float(), rtol=1e-4, atol=1e-6)
    assert float(found.squared_norm) == pytest.approx(float(gradient.square().sum()), rel=1e-4)
    for name, numbers in wanted.diagnostics.items():
        torch.testing.assert_close(found.diagnostics[name], numbers, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_rows_without_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them counts, where the teacher's are no numbers either; their gradient is what it was."""
    made, method = chunk(9, pair=toy(3)), CDM(k=8, theta=0.6, temperature=2.0)
    method.prepare(toy(3))
    paired = torch.arange(9) % 3 != 1
    made.teacher.logits[~paired] = torch.nan
    made = replace(made, paired=paired)
    wanted = method.loss(made)
    (gradient,) = torch.autograd.grad(wanted.kd, made.student.logits)
    sides = (side.with_logits(side.logits.detach().float()) for side in (made.student, made.teacher))
    raw = replace(made, **dict(zip(("student", "teacher"), sides, strict=True)))
    monkeypatch.setattr("methods.cdm.mapped_for", lambda *logits: mapped_triton)
    upstream = torch.ones(made.student.logits.shape)
    with torch.no_grad():
        found = method.loss_into(raw, raw.student.logits.logsumexp(-1), upstream, 0.5)
    assert found is not None
    assert found.squared_norm is not None
    assert float(found.kd) == pytest.approx(float(wanted.kd.detach()), rel=1e-5)
    torch.testing.assert_close(upstream - 1, 0.5 * gradient.float(), rtol=1e-4, atol=1e-6)
    assert bool((upstream[~paired] == 1).all())
    assert float(found.squared_norm) == pytest.approx(float(gradient.square().sum()), rel=1e-4)
    for name, numbers in wanted.diagnostics.items():
        torch.testing.assert_close(found.diagnostics[name], numbers, rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_walk(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_walks(CDM(k=20), precision, monkeypatch)
