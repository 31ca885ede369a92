"""methods.library.counted_triton in Triton's interpreter: the plain definitions in float64 are the truth.

    TRITON_INTERPRET=1 python -m pytest tests/methods/library/test_comparison.py

takes some minutes, and so test_warping_triton.py; the interpreter of Triton 3.6 needs numpy before 2.4. On a GPU
``benchmarks/gpu_checks.py`` tries the kernels.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs Triton and TRITON_INTERPRET=1, which no other test may see", allow_module_level=True)

from methods.base import Members, Method
from methods.fkd import FKD
from methods.gold import GOLD
from methods.library import comparison
from methods.library.closed_form import cross_entropy
from methods.library.compared import Columns
from methods.library.counted import counted_l1_parts
from methods.library.divergences import generalized_jsd_parts
from methods.library.merging import LOG_FLOOR, Merge, Merged, kept_members
from methods.sft import SFT
from methods.uld import ULD
from tests.methods.library.kernel_walks import compare_walks

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several blocks, the last one part empty, in little time."""
    monkeypatch.setattr(comparison, "BLOCK", 64)


def logits(rows: int, columns: int, seed: int, dtype: torch.dtype, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, columns, generator=generator)).to(dtype)


@DTYPES
@pytest.mark.parametrize("columns", [1, 63, 64, 150])
def test_log_sum_exp(columns: int, dtype: torch.dtype) -> None:
    made = logits(5, columns, columns, dtype, 20)
    made[0, columns // 2 :] = -torch.inf if columns > 1 else made[0, 0]
    torch.testing.assert_close(comparison.log_sum_exp(made), made.double().logsumexp(-1).float())


@DTYPES
def test_cross_entropy(dtype: torch.dtype) -> None:
    made, targets = logits(6, 150, 0, dtype), torch.tensor([3, -100, 149, 0, 64, -100])
    scale = torch.tensor(0.25)
    value, norm, upstream, lse = comparison.cross_entropy(made, targets, scale)
    wanted = cross_entropy(made.double(), targets, scale.double())
    torch.testing.assert_close(value.double(), wanted[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.double(), wanted[1], rtol=1e-6, atol=1e-6)
    assert upstream.dtype == dtype
    assert torch.equal(lse, comparison.log_sum_exp(made))
    torch.testing.assert_close(upstream.double(), wanted[2], **tolerance(dtype))


@DTYPES
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_entropy(dtype: torch.dtype, spread: float) -> None:
    made = logits(5, 150, 1, dtype, spread)
    made[0, 70:] = -torch.inf
    log_probs = made.double().log_softmax(-1)
    wanted = -torch.where(log_probs > -torch.inf, log_probs.exp() * log_probs, 0.0).sum(-1)
    torch.testing.assert_close(comparison.entropy(made).double(), wanted, rtol=1e-5, atol=2e-5)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-2, "atol": 1e-4} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}


def members(rows: Tensor, sizes: list[int], skipped: int, seed: int) -> Members:
    """Groups of neighbouring rows after some that are in none."""
    count = sum(sizes)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    tokens = torch.randint(0, rows.shape[1], (count,), generator=torch.Generator().manual_seed(seed))
    return Members(rows, torch.arange(skipped, skipped + count), group, tokens, False)


def plainly(
    student: Members, teacher: Members, groups: int, how: Merge, columns: Tensor | None, beta: float, exact: bool
) -> tuple:
    """Value, gradient, bound and coverage from masses in float64, and counted as if they were float32."""
    sides = [Members(side.logits.double(), *side[1:]) for side in (student, teacher)]
    merged = Merged(sides[0], groups, how)
    ours, theirs = merged.log_masses(), Merged(sides[1], groups, how).log_masses()
    weights, gradient = (0.0, 1.0), torch.zeros_like(ours)
    value, covered = ours.new_zeros(groups), ours.new_zeros(groups)
    rest = [torch.arange(side.shape[1]) for side in (ours, theirs)]
    if columns is not None:
        weights, matched = (0.6, 0.4), (columns >= 0).nonzero().squeeze(1)
        rest = [torch.tensor([i for i in range(side.shape[1]) if i not in set(used.tolist())])
                for side, used in ((ours, columns[matched]), (theirs, matched))]  # fmt: skip
        made, at_shared = generalized_jsd_parts(ours[:, columns[matched]], theirs[:, matched], beta, LOG_FLOOR)
        value += weights[0] * made
        gradient[:, columns[matched]] = weights[0] * at_shared
        plain = sides[1].logits.softmax(-1)[:, matched].sum(-1)
        kept = kept_members(teacher.group, groups, how)
        covered = plain[teacher.row[kept]]
    masses = [side[:, some].exp() for side, some in zip((ours, theirs), rest, strict=True)]
    distance, signs, bound = counted_l1_parts(*(m.float() for m in masses), exact)
    value += weights[1] * distance.double()
    gradient[:, rest[0]] = weights[1] * signs.double() * masses[0]
    return value.sum(), merged.at_logits((None, gradient)), weights[1] * bound.double().sum(), covered.sum()


@DTYPES
@pytest.mark.parametrize("how", ["bayesian", "observed"])
@pytest.mark.parametrize("sizes", [([1, 1, 1, 1], [1, 1, 1, 1]), ([1, 3, 2, 1], [2, 1, 4, 1])], ids=["alone", "merged"])
@pytest.mark.parametrize("hybrid", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("exact", [False, True], ids=["counted", "exact"])
def test_comparison(
    dtype: torch.dtype, how: Merge, sizes: tuple[list[int], list[int]], hybrid: float | None, exact: bool
) -> None:
    groups = len(sizes[0])
    student = members(logits(sum(sizes[0]) + 3, 150, 0, dtype), sizes[0], 2, 1)
    teacher = members(logits(sum(sizes[1]) + 1, 90, 2, dtype), sizes[1], 0, 3)
    columns = None
    if hybrid is not None:  # the teacher's column to the student's
        columns = torch.full((90,), -1)
        columns[::2] = torch.randperm(150, generator=torch.Generator().manual_seed(5))[:45]
    upstream = logits(len(student.logits), 150, 9, torch.float32).to(dtype)
    before = upstream.clone()
    lse = comparison.log_sum_exp(student.logits)
    found = comparison.compare_into(student, teacher, lse, groups, how, shared(columns, hybrid), upstream, 0.5, exact)
    value, gradient, bound, covered = plainly(student, teacher, groups, how, columns, hybrid or 0.0, exact)
    assert float(found.value) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    assert float(found.bound) == pytest.approx(float(bound), rel=1e-3, abs=1e-6)
    assert float(found.covered) == pytest.approx(float(covered), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(upstream.double(), before.double() + 0.5 * gradient, **tolerance(dtype))
    assert float(found.squared_norm) == pytest.approx(float(gradient.square().sum()), rel=1e-4)


def shared(columns: Tensor | None, beta: float | None) -> comparison.Hybrid | None:
    if columns is None or beta is None:
        return None
    return comparison.hybrid_of(Columns.of(columns, 150, len(columns)), (0.6, 0.4), beta)


@pytest.mark.parametrize(
    "method",
    [SFT(), ULD(sort="counted"), ULD(sort="counted", pairing="bytes"), GOLD(sort="counted"), FKD(),
     ULD(sort="exact"), GOLD(sort="exact"),
     GOLD(sort="counted", fidelity="released"), GOLD(sort="counted", matched_weight=1.0, unmatched_weight=0.0)],
    ids=lambda method: " ".join(map(str, (method.name, *method.options.model_dump(exclude_defaults=True).values()))),
)  # fmt: skip
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_walk_with_kernels(method: Method, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own walk over chunks, with losses that have a kernel and one that has none."""
    monkeypatch.setattr(comparison, "BLOCK", 1024)
    told = {"sort error at most"} if getattr(method.options, "sort", "") == "exact" else set()
    compare_walks(method, precision, monkeypatch, told)


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
@pytest.mark.parametrize(("columns_s", "columns_t"), [(1, 1), (1, 70), (70, 1), (300, 40), (40, 300)])
@pytest.mark.parametrize("exact", [False, True], ids=["counted", "exact"])
def test_distances_of_all_shapes(columns_s: int, columns_t: int, spread: float, exact: bool) -> None:
    """Confident rows, flat rows, equal rows and rows of a single column."""
    student, teacher = logits(4, columns_s, 0, torch.float32, spread), logits(4, columns_t, 1, torch.float32, spread)
    if columns_s == columns_t:
        student = teacher
    alone = torch.arange(4)
    sides = (Members(z, alone, alone, torch.zeros_like(alone), True) for z in (student, teacher))
    upstream, lse = torch.zeros(4, columns_s), comparison.log_sum_exp(student)
    found = comparison.compare_into(*sides, lse, 4, "bayesian", None, upstream, 1.0, exact)
    p, q = (side.double().softmax(-1).float() for side in (student, teacher))
    distance, signs, bound = counted_l1_parts(p, q, exact)
    assert float(found.value) == pytest.approx(float(distance.double().sum()), abs=2e-5)
    if not exact or columns_s != columns_t:  # of equal rows more bins are in doubt than have slots
        assert float(found.bound) == pytest.approx(float(bound.double().sum()), rel=1e-2, abs=1e-5)
    assert (upstream - p * (signs - (signs * p).sum(-1, keepdim=True))).abs().sum(-1).max() < 1e-3


def test_rows_that_are_counted_again_stand_beside_rows_that_are_not() -> None:
    """The second pair of rows crosses within a bin, which is told apart by numbers; the others' signs are known."""
    student, teacher = torch.full((3, 64), -60.0), torch.full((3, 64), -60.0)
    student[0, :2], teacher[0, :2] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])
    student[1, :3], teacher[1, :3] = torch.tensor([1.0, 1 + 2e-6, 0.9]), torch.tensor([1 + 1e-6, 1 - 1e-6, 0.9])
    student[2, :3], teacher[2, :3] = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 4.0])
    alone = torch.arange(3)
    sides = [comparison.Raw(z, alone, alone, torch.zeros_like(alone), comparison.log_sum_exp(z))
             for z in (student, teacher)]  # fmt: skip
    made = comparison.GroupComparison(*comparison.keep(*sides, 3, "bayesian"), exact=True)
    assert (made.slots[:, 0, 0] >= 0).tolist() == [False, True, False]
    p, q = (side.double().softmax(-1).float() for side in (student, teacher))
    distance, signs, _ = counted_l1_parts(p, q, exact=True)
    assert float(made.values()[0]) == pytest.approx(float(distance.double().sum()), rel=1e-5)
    upstream = torch.zeros_like(student)
    made.add_gradient(upstream, 1.0)
    torch.testing.assert_close(upstream, p * (signs - (signs * p).sum(-1, keepdim=True)), rtol=1e-4, atol=1e-7)
