"""methods.library.counted: the sort it does without, in float64, is the truth; bounds hold whatever the masses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.library.counted import counted_l1_parts, edges, place

ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
EITHER = pytest.mark.parametrize("exact", [False, True], ids=["counted", "exact"])


def by_sorting(student: Tensor, teacher: Tensor) -> Tensor:
    """The distance as its formula stands: zeros up to the larger vocabulary, both sides sorted in full."""
    return rank_differences(student, teacher)[0].abs().sum(-1)


def rank_differences(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [rows, columns], p_(k) - q_(k), and the student's columns in the order of their ranks."""
    columns = max(student.shape[-1], teacher.shape[-1])
    p, q = (torch.nn.functional.pad(s.double(), (0, columns - s.shape[-1])).sort(-1, True) for s in (student, teacher))
    return p.values - q.values, p.indices


def softmax(rows: int, columns: int, spread: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * spread).softmax(-1).to(dtype)


# From few values, so that there are ties within a side and across; zeros, subnormals and a rounded 1 among them.
AWKWARD = st.sampled_from([0.0, 1e-45, 1e-40, 1e-38, 2.0**-50, 1e-9, 0.125, 0.125 + 2**-20, 0.25, 0.5, 1.0, 1 + 2**-21])
ORDINARY = st.floats(0, 1, width=32)
SIDES = st.lists(st.one_of(AWKWARD, ORDINARY), min_size=1, max_size=24)


@given(SIDES, SIDES, st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=400, deadline=None)
def test_any_masses(ours: list[float], theirs: list[float], dtype: torch.dtype) -> None:
    p, q = (torch.tensor([side], dtype=dtype) for side in (ours, theirs))
    truth = by_sorting(p, q)
    slack = ROUNDING[dtype] * (1 + p.double().sum() + q.double().sum())
    distance, signs, bound = (part.double() for part in counted_l1_parts(p, q))
    assert (truth - distance >= -slack).all()
    assert (truth - distance <= bound * (1 + 1e-6) + slack).all()
    assert signs.abs().max() <= 1
    exact, exact_signs, rest = (part.double() for part in counted_l1_parts(p, q, exact=True))
    torch.testing.assert_close(exact, truth, rtol=0, atol=float(slack))
    assert rest.max() < slack
    check_signs(p, q, exact_signs)


def check_signs(p: Tensor, q: Tensor, signs: Tensor) -> None:
    """The sort's own signs, or their mean where masses of the student are tied; below 2^-50 none is promised."""
    difference, order = rank_differences(p, q)
    for row in range(len(p)):
        wanted = difference[row].sign()
        own = order[row] < p.shape[1]  # not what pads
        columns, wanted = order[row][own], wanted[own]
        for value in p[row].unique():
            tied = p[row][columns] == value
            if value >= 2.0**-50:
                mean = wanted[tied].mean().expand(int(tied.sum()))
                torch.testing.assert_close(signs[row][columns[tied]].double(), mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("columns_s", "columns_t"), [(7, 12), (12, 7), (9, 9), (1, 5), (5, 1), (1, 1), (300, 40)])
@DTYPES
def test_gradient_is_that_of_the_sort(columns_s: int, columns_t: int, dtype: torch.dtype) -> None:
    """Autograd through the formula; random masses have no ties."""
    p, q = softmax(6, columns_s, 3, 0, dtype), softmax(6, columns_t, 3, 1, dtype)
    leaf = p.double().requires_grad_()
    columns = max(columns_s, columns_t)
    sides = [torch.nn.functional.pad(s, (0, columns - s.shape[-1])) for s in (leaf, q.double())]
    ordered = [side.sort(-1, descending=True).values for side in sides]
    (ordered[0] - ordered[1]).abs().sum().backward()
    _, signs, _ = counted_l1_parts(p, q, exact=True)
    if (columns_s, columns_t) == (1, 1):  # 1 against 1, a tie
        assert signs.abs().max() == 0
    else:
        torch.testing.assert_close(signs.double(), leaf.grad, rtol=0, atol=0)


def test_by_hand() -> None:
    """(0.5, 0.3, 0.2) against (0.6, 0.4): 0.1 + 0.1 + 0.2, and the sign of each rank's difference."""
    p, q = torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[0.4, 0.6]])
    for exact in (False, True):
        distance, signs, bound = counted_l1_parts(p, q, exact)
        assert distance.item() == pytest.approx(0.4, abs=1e-6)
        assert signs.tolist() == [[1, -1, -1]]
        assert bound.item() == 0


def test_tied_ranks_share_their_signs() -> None:
    """0.25 twice against 0.25 and 0.125: one rank is equal, at the other ours is larger."""
    p, q = torch.tensor([[0.25, 0.25]]), torch.tensor([[0.125, 0.25]])
    distance, signs, _ = counted_l1_parts(p, q, exact=True)
    assert distance.item() == 0.125
    assert signs.tolist() == [[0.5, 0.5]]


@EITHER
def test_equal_rows_are_at_a_distance_of_nothing(exact: bool) -> None:
    p = softmax(4, 3000, 3, 0)
    shuffled = p[:, torch.randperm(3000, generator=torch.Generator().manual_seed(1))]
    distance, signs, bound = counted_l1_parts(p, shuffled, exact)
    assert signs.abs().max() == 0
    assert distance.abs().max() < 1e-6
    assert exact == bool(bound.max() < 1e-9)  # counting does not know that it is right


@pytest.mark.parametrize(
    ("columns_s", "columns_t", "spread_s", "spread_t"),
    [
        (20_000, 16_000, 3, 2.7),
        (262_144, 32_064, 8, 7),
        (262_144, 32_064, 3, 2.7),
        (32_064, 262_144, 3, 0.1),
        (262_144, 262_144, 1, 0.9),
        (262_144, 1, 3, 1),
    ],
)
def test_full_vocabularies(columns_s: int, columns_t: int, spread_s: float, spread_t: float) -> None:
    """At the sizes of real vocabularies the bound is below 1e-3, which makes counting the default there."""
    p, q = softmax(2, columns_s, spread_s, 0), softmax(2, columns_t, spread_t, 1)
    truth = by_sorting(p, q)
    distance, signs, bound = counted_l1_parts(p, q)
    assert bound.max() <= 1e-3
    assert (truth - distance.double() >= -2e-6).all()
    assert (truth - distance.double() <= bound.double() + 2e-6).all()
    exact, exact_signs, rest = counted_l1_parts(p, q, exact=True)
    torch.testing.assert_close(exact.double(), truth, rtol=0, atol=2e-6)
    assert rest.max() < 1e-9
    difference, order = rank_differences(p, q)
    sorts = difference.sign().gather(-1, order.argsort(-1))[:, :columns_s]
    assert ((exact_signs - sorts).abs() * p).sum(-1).max() < 1e-3  # ties within the student's side apart
    assert ((signs - exact_signs).abs() * p).sum(-1).max() < 0.1


@EITHER
def test_confident_rows_are_told_apart(exact: bool) -> None:
    """Both sides nearly sure of one token, by how much is the whole distance."""
    p, q = torch.full((1, 5), 0.002), torch.full((1, 3), 0.001)
    p[0, 2], q[0, 0] = 0.992, 0.998
    distance, signs, _ = counted_l1_parts(p, q, exact)
    assert distance.item() == pytest.approx(float(by_sorting(p, q)), abs=1e-6)
    assert signs[0].tolist() == [1, 1, -1, 1, 1]


def test_the_bin_is_the_number_of_edges_reached() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        lower = edges(dtype, torch.device("cpu"))[:-1]
        masses = torch.cat([torch.rand(5000, generator=generator) ** 9, lower.float()]).to(dtype)
        assert torch.equal(lower.to(dtype).double(), lower)
        assert torch.equal(place(masses), torch.searchsorted(lower, masses.double(), right=True) - 1)


def test_order_of_columns_changes_nothing() -> None:
    p, q = softmax(3, 500, 3, 0), softmax(3, 400, 3, 1)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    for exact in (False, True):
        straight, mixed = counted_l1_parts(p, q, exact), counted_l1_parts(p[:, order], q, exact)
        assert torch.equal(straight[1][:, order], mixed[1])
        torch.testing.assert_close(straight[0], mixed[0], rtol=0, atol=1e-6)


@EITHER
def test_no_rows(exact: bool) -> None:
    distance, signs, bound = counted_l1_parts(torch.zeros(0, 5), torch.zeros(0, 3), exact)
    assert (distance.shape, signs.shape, bound.shape) == ((0,), (0, 5), (0,))


def test_masses_that_are_no_numbers_stay_visible() -> None:
    p = torch.tensor([[0.5, float("nan")], [0.5, 0.5]])
    distance, _, _ = counted_l1_parts(p, torch.tensor([[1.0], [1.0]]))
    assert distance[0].isnan()
    assert distance[1].item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    p, q = softmax(4, 3000, 3, 0), softmax(4, 2000, 3, 1)
    try:
        compiled = torch.compile(counted_l1_parts, dynamic=True)(p, q, ends=edges(p.dtype, p.device))
    except torch._dynamo.exc.TorchDynamoException as error:
        pytest.skip(f"no compiler here: {error}")
    for found, wanted in zip(compiled, counted_l1_parts(p, q), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
