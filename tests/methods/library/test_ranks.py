"""methods.library.ranks: torch's stable sort of all columns is the truth, to the last sign, ties included."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.library import cpu_loops
from methods.library.ranks import compare_ranks

ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}


def by_sorting(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [rows] and [rows, V_s]: the formula on zeros up to the larger vocabulary; of ties the first column leads.

    Beyond the teacher's last rank the distance grows with the student's mass, from 0 too.
    """
    width = max(student.shape[1], teacher.shape[1])
    p, q = (
        torch.nn.functional.pad(side.double(), (0, width - side.shape[1])).sort(dim=-1, descending=True, stable=True)
        for side in (student, teacher)
    )
    difference = p.values - q.values
    of_rank = difference.sign()
    of_rank[:, teacher.shape[1] :] = 1
    signs = torch.zeros_like(difference).scatter(1, p.indices, of_rank)[:, : student.shape[1]]
    return difference.abs().sum(-1), signs


def check(student: Tensor, teacher: Tensor) -> None:
    distance, signs = compare_ranks(student, teacher)
    wanted, of_sort = by_sorting(student, teacher)
    slack = ROUNDING[student.dtype] * float(1 + student.double().sum(-1).max() + teacher.double().sum(-1).max())
    torch.testing.assert_close(distance.double(), wanted, rtol=0, atol=slack)
    assert torch.equal(signs.double(), of_sort)
    assert distance.dtype == signs.dtype == student.dtype


def softmax(rows: int, columns: int, spread: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * spread).softmax(-1).to(dtype)


# From few values, so that ranks are tied within a side and across; neighbours that share upper bits, zeros, subnormals.
AWKWARD = st.sampled_from([0.0, 1e-45, 1e-40, 1e-38, 1e-9, 0.125, 0.125 + 2**-20, 0.25, 0.25 + 2**-24, 0.5, 1.0])
SIDES = st.lists(st.one_of(AWKWARD, st.floats(0, 1, width=32)), min_size=1, max_size=24)


@given(SIDES, SIDES, st.sampled_from([torch.float32, torch.float64]), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_any_masses(ours: list[float], theirs: list[float], dtype: torch.dtype, seed: int) -> None:
    """Two rows, the second one in another order, so that one row's entries can't stand in for the other's."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.tensor([side, side], dtype=dtype) for side in (ours, theirs))
    p[1] = p[1, torch.randperm(len(ours), generator=generator)] / 2
    check(p, q)


@pytest.mark.parametrize(
    ("rows", "columns_s", "columns_t", "spread_s", "spread_t"),
    [
        (2, 262_144, 32_064, 8, 7),
        (2, 32_064, 262_144, 3, 2.7),
        (2, 262_144, 1, 3, 1),
        (2, 1, 262_144, 1, 3),
        (40, 3000, 2500, 3, 3),
        (40, 3000, 3000, 0.01, 0.01),  # nearly uniform: hardly any mass is told by its upper bits
        (40, 1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vocabularies(
    rows: int, columns_s: int, columns_t: int, spread_s: float, spread_t: float, dtype: torch.dtype
) -> None:
    p, q = softmax(rows, columns_s, spread_s, 0, dtype), softmax(rows, columns_t, spread_t, 1, dtype)
    p[:, ::7] = 0
    check(p, q)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("columns_t", [3000, 2900, 3100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_nearly_equal(noise: float, columns_t: int, dtype: torch.dtype) -> None:
    """Of which counts leave nearly all in doubt, or much of it; with ties, and zeros of either sign."""
    generator = torch.Generator().manual_seed(2)
    p = softmax(40, 3000, 3, 0, dtype)
    p[:, ::5], p[:, 1::10], p[0, ::50] = p[:, 1::5], 0.0, -0.0
    q = p[:, torch.randperm(3000, generator=generator)]
    q = q * (1 + noise * torch.randn(q.shape, generator=generator, dtype=dtype)).clamp_min(0)
    check(p, torch.nn.functional.pad(q, (0, max(columns_t - 3000, 0)))[:, :columns_t])


def test_a_distance_far_below_the_rounding_of_a_sum_is_found() -> None:
    """Two masses trade 1e-8 of them, which no sum of a row in float32 shows; else both rows hold the same."""
    p = softmax(3, 5000, 3, 0)
    q = p[:, torch.randperm(5000, generator=torch.Generator().manual_seed(1))]
    assert not compare_ranks(p, q)[0].any()
    largest = q.topk(40).indices[:, [-1, -2]]
    q = q.scatter(1, largest, q.gather(1, largest) * torch.tensor([1 + 2**-22, 1 - 2**-22]))
    distance, _ = compare_ranks(p, q)
    wanted, _ = by_sorting(p, q)
    assert ((wanted > 0) & (wanted < 1e-8)).all()
    torch.testing.assert_close(distance.double(), wanted, rtol=1e-6, atol=0)


def test_any_layout_and_no_rows() -> None:
    p, q = softmax(8, 600, 3, 0), softmax(8, 500, 3, 1)
    for ours, theirs in ((p[:, ::2], q[:, 1::2]), (p.t().contiguous().t(), q.t().contiguous().t()), (p[::2], q[::2])):
        check(ours, theirs)
    distance, signs = compare_ranks(p[:0], q[:0])
    assert (distance.shape, signs.shape) == ((0,), (0, 600))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_threads_share_rows_out_and_change_no_bit(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.library.cpu_loops._ENTRIES", 1)
    p, q = softmax(rows, 300, 3, 0), softmax(rows, 200, 3, 1)
    wanted, before = compare_ranks(p, q), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with patch.object(cpu_loops, "ThreadPoolExecutor", wraps=cpu_loops.ThreadPoolExecutor) as pool:
            found = compare_ranks(p, q)
    finally:
        torch.set_num_threads(before)
    assert [call.args for call in pool.call_args_list] == ([(min(rows, 3),)] if rows > 1 else [])
    for part, of_one_thread in zip(found, wanted, strict=True):
        assert torch.equal(part, of_one_thread)


@pytest.mark.parametrize("sign", [1, -1])
def test_masses_that_are_no_numbers_stay_visible_and_alone(sign: int) -> None:
    p, q = softmax(4, 300, 3, 0), softmax(4, 200, 3, 1)
    wanted = compare_ranks(p, q)
    p[1, ::3] = float(np.copysign(np.nan, sign))
    q[2] = float(np.copysign(np.nan, sign))
    found = compare_ranks(p, q)
    for part, before in zip(found, wanted, strict=True):
        assert part[1:3].isnan().all()
        assert torch.equal(part[[0, 3]], before[[0, 3]])
