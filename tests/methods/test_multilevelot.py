"""MultiLevelOT against hand values in float64, and against its formula written out over two whole models."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from methods.base import AlignedChunk
from methods.library.alignment import pair_positions
from methods.multilevelot import MultiLevelOT
from tests.methods import contract

TEACHER = torch.tensor([[2, 0, 1, -1], [0, 1, 2, -1]], dtype=torch.float64)
STUDENT = torch.tensor([[1, 2, 0], [0.5, 0, 1]], dtype=torch.float64)


def kd(student: torch.Tensor, teacher: torch.Tensor, **options: Any) -> float:
    tokens = np.zeros(len(student), dtype=np.int64)
    chunk = AlignedChunk.of(pair_positions(len(student), len(teacher)), student, teacher, tokens, tokens)
    return float(MultiLevelOT(**options).loss(chunk).kd)


@pytest.mark.parametrize(
    ("matching", "parts", "total"),
    [
        ("optimal", (0.404792, 1.417245, 0.284536), 0.086246),
        ("greedy", (0.404792, 1.417245, 0.284536), 0.086246),
        ("rank", (1.859168, 2.788078, 0.141074), 0.322813),
    ],
)
def test_two_positions_by_hand(matching: str, parts: tuple[float, ...], total: float) -> None:
    """For columns 2 and 0 of the teacher, its likeliest: by the least cost 2 and 1 of the student, by rank 1 and 2."""
    options = {"k": 2, "matching": matching}
    alone = {"logarithmic_weight": 0.0, "sinkhorn_weight": 0.0}
    distance = kd(STUDENT, TEACHER, **options, **alone)
    assert distance == pytest.approx(parts[0], abs=1e-6)
    for weight, part in zip(alone, parts[1:], strict=True):
        assert kd(STUDENT, TEACHER, **options, **(alone | {weight: 1.0})) - distance == pytest.approx(part, abs=2e-6)
    assert 0.15 * kd(STUDENT, TEACHER, **options) == pytest.approx(total, abs=1e-6)


def test_the_released_form_is_what_the_authors_class_gives() -> None:
    """1.824772 with its factor 1.5; the teacher against itself is not 0."""
    assert 1.5 * kd(STUDENT, TEACHER, fidelity="released") == pytest.approx(1.824772, abs=1e-6)
    assert 1.5 * kd(TEACHER, TEACHER, fidelity="released") == pytest.approx(0.204834, abs=1e-6)


def test_scale_counts_as_described_only() -> None:
    """The released form divides by the standard deviation, up to what it adds to that."""
    released = [kd(scale * STUDENT, TEACHER, fidelity="released") for scale in (1, 3)]
    assert released[0] == pytest.approx(released[1], rel=1e-3)
    assert kd(STUDENT, TEACHER) != pytest.approx(kd(3 * STUDENT, TEACHER), rel=0.05)


@pytest.mark.parametrize("fidelity", ["described", "released"])
def test_loss_equals_the_formula(fidelity: str) -> None:
    """By rank, in plain loops over positions and columns."""
    options = {"k": 3, "sinkhorn_steps": 2} if fidelity == "described" else {"k": 3}
    method = MultiLevelOT(matching="rank", fidelity=fidelity, **options)
    made = contract.bench(method)
    total = 0.0
    for student, teacher in contract.seen(made):
        length = min(len(student.ids) - (fidelity == "released"), len(teacher.ids))
        s, t = student.rows[:length], teacher.rows[:length]
        total += described(s, t) if fidelity == "described" else released(s, t)
    assert float(made.loss(made.batch()).kd[0]) == pytest.approx(total, rel=1e-8)


def by_rank(masses: torch.Tensor) -> list[int]:
    sums = masses.sum(0).tolist()
    return sorted(range(len(sums)), key=lambda column: -sums[column])[:3]


def described(s: torch.Tensor, t: torch.Tensor) -> float:
    ours, theirs = by_rank(s.softmax(-1)), by_rank(t.softmax(-1))
    p, q = s.softmax(-1)[:, ours], t.softmax(-1)[:, theirs]
    softer = (s / 2).softmax(-1)[:, ours], (t / 2).softmax(-1)[:, theirs]
    pairs = list(zip(p.flatten().tolist(), q.flatten().tolist(), strict=True))
    return float(sum(abs(a - b) for a, b in pairs) - 0.1 * (q * p.log()).sum() + 0.1 * transport(*softer, steps=2))


def released(s: torch.Tensor, t: torch.Tensor) -> float:
    p, q = ((side / (side.std(-1, keepdim=True) + 1e-4)).softmax(-1) for side in (s, t))
    p, q = p[:, by_rank(p)], q[:, by_rank(q)]
    exchanged = -(p.softmax(-1) * q.softmax(-1).log()).sum()
    far = transport((p / 2).softmax(-1), (q / 2).softmax(-1), steps=10)
    return float(((p - q).abs().sum() + 0.1 * exchanged) / len(s) + 0.1 * 0.001 * far)


def transport(s: torch.Tensor, t: torch.Tensor, steps: int) -> float:
    n = len(s)
    cost = np.asarray([[float((t[i] - s[j]).abs().sum()) for j in range(n)] for i in range(n)])
    plan = np.exp(-cost / 0.1)
    for _, axis in itertools.product(range(steps), (1, 0)):
        plan = plan / plan.sum(axis=axis, keepdims=True)
    return float((plan * cost).sum())
