"""methods.library.divergence_triton in Triton's interpreter: the plain definitions in float64 are the truth.

    TRITON_INTERPRET=1 python -m pytest tests/methods/library/test_divergence_triton.py

As test_comparison.py; on a GPU ``benchmarks/gpu_checks.py`` tries the kernels.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs Triton and TRITON_INTERPRET=1, which no other test may see", allow_module_level=True)

from methods.base import Method
from methods.fkd import FKD
from methods.library import comparison
from methods.library import divergence_triton as kernel
from methods.library.closed_form import kl
from methods.mined import MinED
from methods.one_to_one import OneToOne
from methods.rkd import RKD
from tests.methods.library.kernel_walks import compare_walks

Direction = Literal["forward", "reverse"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several blocks and parts, the last one part empty, in little time."""
    monkeypatch.setattr(kernel, "BLOCK", 64)


def logits(rows: int, columns: int, seed: int, dtype: torch.dtype, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, columns, generator=generator)).to(dtype)


def compare(
    found: tuple[Tensor, Tensor], value: Tensor, gradient: Tensor, added: Tensor, scale: float, largest: float = 10.0
) -> None:
    """What a kernel found with a value and its gradient in float64, and what it added with what it should have.

    Args:
        largest: of the softened logits. A log in float32 is rounded as they are, so that probabilities add up to 1 but
            for as much, times a log ratio of twice their size.
    """
    error = 1e-5 + 1.5e-7 * largest**2
    assert float(found[0]) == pytest.approx(float(value), rel=error, abs=2 * error)
    assert float(found[1].sqrt()) == pytest.approx(float(gradient.norm()), rel=error, abs=error)
    allowed = {"rtol": 1e-2, "atol": 1e-4 + error} if added.dtype is torch.bfloat16 else {"rtol": error, "atol": error}
    torch.testing.assert_close(added.double(), scale * gradient, **allowed)


def largest_of(*logits: Tensor) -> float:
    return max(float(side.abs().max()) for side in logits)


@settings(max_examples=12, deadline=None)
@example(1, 1, 1.0, 3.0, torch.float32, "forward", 0)
@example(1000, 70, 0.5, 30.0, torch.float32, "reverse", 1)
@example(70, 1000, 2.0, 60.0, torch.bfloat16, "forward", 2)
@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 0.1, 3.0, 30.0]),  # all alike; nearly; as a model's; sure, with tails that underflow
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from(DIRECTIONS),
    st.integers(0, 1000),
)
def test_kl_of_shared_columns(
    ours: int, theirs: int, tau: float, spread: float, dtype: torch.dtype, direction: Direction, seed: int
) -> None:
    """closed_form.kl over the first columns that both have; some of the student's rows are in no pair."""
    columns, rows, others = min(ours, theirs), torch.tensor([3, 0, 4]), torch.tensor([1, 1, 0])
    student, teacher = logits(5, ours, seed, dtype, spread), logits(2, theirs, seed + 1, dtype, spread)
    pair = student.double()[rows, :columns], teacher.double()[others, :columns]
    value, of_pairs = kl(*pair, tau, direction)
    gradient = torch.zeros(5, ours, dtype=torch.float64)
    gradient[rows, :columns] = of_pairs / tau**2
    sides = kernel.softened(student, rows, tau, columns), kernel.softened(teacher, others, tau, columns)
    torch.testing.assert_close(sides[0].lse.double(), (pair[0] / tau).logsumexp(-1), rtol=1e-6, atol=1e-6)
    upstream = torch.zeros(5, ours, dtype=dtype)
    found = kernel.add_kl(*sides, tau, direction, upstream, 0.5)
    compare(found, value / tau**2, gradient, upstream, 0.5, largest_of(*pair) / tau)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([0.0, 3.0, 30.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from(DIRECTIONS),
    st.integers(0, 1000),
)
def test_kl_of_partners(
    ours: int, theirs: int, tau: float, spread: float, dtype: torch.dtype, direction: Direction, seed: int
) -> None:
    """closed_form.kl over chosen columns, renormalised on either side; the gradient is added to what is there."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, min(ours, theirs) + 1, (), generator=generator))
    mine, other = (torch.randperm(size, generator=generator)[:count] for size in (ours, theirs))
    student, teacher = logits(3, ours, seed, dtype, spread), logits(3, theirs, seed + 1, dtype, spread)
    value, of_pairs = kl(student.double()[:, mine], teacher.double()[:, other], tau, direction)
    gradient = torch.zeros(3, ours, dtype=torch.float64).index_copy_(1, mine, of_pairs / tau**2)
    rows = torch.arange(3)
    tables = [torch.full((size,), -1, dtype=torch.int32) for size in (ours, theirs)]
    tables[0][mine], tables[1][other] = other.int(), mine.int()
    sides = [kernel.softened(z, rows, tau, known=table) for z, table in zip((student, teacher), tables, strict=True)]
    before = logits(3, ours, seed + 2, torch.float32, 1.0)
    upstream = before.clone()
    found = kernel.add_kl(*sides, tau, direction, upstream, 2.0, kernel.Partners(tables[0], True))
    compare(found, value / tau**2, gradient, upstream - before, 2.0, largest_of(student, teacher) / tau)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_columns_without_mass_count_nothing(direction: Direction) -> None:
    """Logits of -inf on both sides, which the plain form gives no number for, as if the columns were not there."""
    student, teacher = logits(2, 90, 0, torch.float32, 3.0), logits(2, 90, 1, torch.float32, 3.0)
    student[:, 60:], teacher[:, 60:] = -torch.inf, -torch.inf
    value, gradient = kl(student.double()[:, :60], teacher.double()[:, :60], 1.0, direction)
    rows, upstream = torch.arange(2), torch.zeros(2, 90)
    found = kernel.add_kl(
        kernel.softened(student, rows, 1.0), kernel.softened(teacher, rows, 1.0), 1.0, direction, upstream, 1.0
    )
    compare(found, value, torch.nn.functional.pad(gradient, (0, 30)), upstream, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_largest_of_each_columns_sources(dtype: torch.dtype) -> None:
    counts = torch.randint(1, 6, (130,), generator=torch.Generator().manual_seed(0))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    sources = torch.randint(0, 80, (int(starts[-1]),), generator=torch.Generator().manual_seed(1))
    made, rows = logits(3, 80, 2, dtype, 3.0), torch.tensor([2, 0, 2])
    found = kernel.mapped(made, rows, starts.int(), sources.int())
    for i, row in enumerate(rows.tolist()):
        for column in range(130):
            assert found[i, column] == made[row, sources[starts[column] : starts[column + 1]]].max()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "method",
    [FKD(), FKD(temperature=2.0), FKD(fidelity="released"), RKD(temperature=2.0), RKD(fidelity="released"), OneToOne(),
     OneToOne(temperature=2.0), OneToOne(top_k=4), MinED(), MinED(temperature=2.0), MinED(collisions="dskd"),
     MinED(fidelity="released")],
    ids=lambda method: " ".join(map(str, (method.name, *method.options.model_dump(exclude_defaults=True).values()))),
)  # fmt: skip
def test_a_walk_with_kernels(method: Method, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own walk over chunks with kernels, and without."""
    monkeypatch.setattr(comparison, "BLOCK", 1024)
    monkeypatch.setattr(kernel, "BLOCK", 256)
    compare_walks(method, precision, monkeypatch)
