"""methods.library.divergences: values by hand, torch.distributions and the plainest possible references."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from methods.library.closed_form import with_gradient
from methods.library.counted import edges
from methods.library.divergences import (
    Sort,
    SortOptions,
    distance_by,
    forward_kl,
    generalized_jsd,
    generalized_jsd_parts,
    reverse_kl,
    sorted_l1,
    sorted_l1_parts,
)

SIZES = pytest.mark.parametrize(("columns_s", "columns_t"), [(7, 12), (12, 7), (9, 9), (1, 5), (5, 1)])


def random_logits(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).to(dtype)


def kl_by_loops(p: Tensor, q: Tensor) -> list[float]:
    """KL(p || q) of probabilities, a number at a time."""
    return [
        sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p.tolist(), q.tolist(), strict=True)
    ]


def closed(student: Tensor, teacher: Tensor, top_k: int | None = None) -> Tensor:
    """Sum over the rows of the sorted distance, which autograd differentiates by what the closed form says."""
    value, signs, _ = sorted_l1_parts(student.detach(), teacher.detach(), top_k)
    return with_gradient(student, value.sum(), signs)


# --- KL ---------------------------------------------------------------------------------------------------------------


def test_kl_by_hand() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = ln 2 - ln 3 / 2, KL(q||p) = 3/4 ln 3 - ln 2."""
    p, q = (
        torch.tensor([[0.5, 0.5]], dtype=torch.float64).log(),
        torch.tensor([[0.25, 0.75]], dtype=torch.float64).log(),
    )
    forward, reverse = math.log(2) - math.log(3) / 2, 0.75 * math.log(3) - math.log(2)
    assert forward_kl(student=q, teacher=p).item() == pytest.approx(forward, rel=1e-14)
    assert reverse_kl(student=q, teacher=p).item() == pytest.approx(reverse, rel=1e-14)


def test_kl_equals_torch_distributions_and_loops() -> None:
    student, teacher = random_logits(6, 11), random_logits(6, 11, seed=1)
    p, q = student.softmax(-1), teacher.softmax(-1)
    forward = forward_kl(student.log_softmax(-1), teacher.log_softmax(-1))
    reverse = reverse_kl(student.log_softmax(-1), teacher.log_softmax(-1))
    torch.testing.assert_close(forward, kl_divergence(Categorical(logits=teacher), Categorical(logits=student)))
    torch.testing.assert_close(reverse, kl_divergence(Categorical(logits=student), Categorical(logits=teacher)))
    assert forward.tolist() == pytest.approx(kl_by_loops(q, p), rel=1e-12)
    assert reverse.tolist() == pytest.approx(kl_by_loops(p, q), rel=1e-12)


def test_gradient_of_forward_kl_is_the_difference_of_probabilities() -> None:
    """d KL(q || softmax(z)) / dz = softmax(z) - q, known in closed form."""
    logits, teacher = random_logits(4, 9).requires_grad_(), random_logits(4, 9, seed=1)
    forward_kl(logits.log_softmax(-1), teacher.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - teacher.softmax(-1))


def test_gradient_of_reverse_kl_in_closed_form() -> None:
    """d KL(p || q) / dz_j = p_j (log p_j - log q_j - KL(p || q)) for p = softmax(z)."""
    logits, teacher = random_logits(4, 9).requires_grad_(), random_logits(4, 9, seed=1)
    student = logits.log_softmax(-1)
    reverse_kl(student, teacher.log_softmax(-1)).sum().backward()
    p, ratio = student.detach().exp(), (student - teacher.log_softmax(-1)).detach()
    torch.testing.assert_close(logits.grad, p * (ratio - (p * ratio).sum(-1, keepdim=True)))


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_kl_of_far_apart_distributions_stays_finite(divergence: type) -> None:
    """Logits 500 apart in float32: probabilities underflow to 0, their logarithms don't."""
    logits = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    teacher = torch.tensor([[-500.0, 0.0, 500.0]]).log_softmax(-1)
    value = divergence(logits.log_softmax(-1), teacher).sum()
    value.backward()
    assert value.item() == pytest.approx(1000.0)
    assert torch.isfinite(logits.grad).all()


# --- generalised JSD --------------------------------------------------------------------------------------------------


def jsd_by_loops(student: list[float], teacher: list[float], beta: float) -> float:
    """β KL(T || M) + (1 - β) KL(S || M), a number at a time."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        m = (1 - beta) * s + beta * t
        total += beta * t * math.log(t / m) + (1 - beta) * s * math.log(s / m)
    return total


def test_generalized_jsd_by_hand() -> None:
    """s = (1/4, 3/4), t = (3/4, 1/4): m = (1/2, 1/2), and JSD = ln 2 - H(1/4) = 3/4 ln 3 - ln 2."""
    s, t = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.25, 0.75], [0.75, 0.25]))
    assert generalized_jsd(s, t, 0.5).item() == pytest.approx(0.75 * math.log(3) - math.log(2), rel=1e-14)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("mass", [1.0, 0.3])
def test_generalized_jsd_equals_loops(beta: float, mass: float) -> None:
    """Of masses that do not add up to one too."""
    student, teacher = random_logits(6, 11).softmax(-1), mass * random_logits(6, 11, seed=1).softmax(-1)
    expected = [jsd_by_loops(s, t, beta) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert generalized_jsd(student.log(), teacher.log(), beta).tolist() == pytest.approx(expected, rel=1e-10)
    swapped = generalized_jsd(teacher.log(), student.log(), 1 - beta)
    assert swapped.tolist() == pytest.approx(expected, rel=1e-10)


def test_generalized_jsd_at_its_ends_is_a_kl() -> None:
    """Which is what the divergence over β, and over 1 - β, tends to."""
    student, teacher = random_logits(4, 9).log_softmax(-1), random_logits(4, 9, seed=1).log_softmax(-1)
    assert torch.equal(generalized_jsd(student, teacher, 0), forward_kl(student, teacher))
    assert torch.equal(generalized_jsd(student, teacher, 1), reverse_kl(student, teacher))
    near = generalized_jsd(student, teacher, 1e-7) / 1e-7, generalized_jsd(student, teacher, 1 - 1e-7) / 1e-7
    torch.testing.assert_close(near[0], forward_kl(student, teacher), rtol=1e-4, atol=0)
    torch.testing.assert_close(near[1], reverse_kl(student, teacher), rtol=1e-4, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_generalized_jsd_is_zero_between_equals_and_has_no_gradient_there(beta: float) -> None:
    logits = random_logits(4, 9).requires_grad_()
    value = generalized_jsd(logits.log_softmax(-1), logits.detach().log_softmax(-1), beta)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-14)


def test_generalized_jsd_of_parts_of_distributions_may_be_negative() -> None:
    student, teacher = (
        torch.tensor([[0.5]], dtype=torch.float64).log(),
        torch.tensor([[0.1]], dtype=torch.float64).log(),
    )
    assert generalized_jsd(student, teacher, 0).item() == pytest.approx(0.1 * math.log(0.1 / 0.5))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_in_closed_form_is_autograds(beta: float, dtype: torch.dtype) -> None:
    """With masses below the floor on both sides, and ones that add up to less than 1."""
    masses = (4 * random_logits(6, 11, dtype=dtype)).log_softmax(-1) - 0.7
    student, teacher, floor = masses.clone().requires_grad_(), masses.roll(3, -1).roll(1, 0), math.log(1e-8)
    assert (masses < floor).any()
    expected = generalized_jsd(student.clamp_min(floor), teacher.clamp_min(floor), beta)
    (gradient,) = torch.autograd.grad(expected.sum(), student)
    value, found = generalized_jsd_parts(masses.clone(), teacher.clone(), beta, floor)
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(value, expected.detach(), **tolerance)
    torch.testing.assert_close(found, gradient, **tolerance)


# --- sorted L1 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        pytest.param([0.6, 0.3, 0.1], [0.1, 0.6, 0.3], 0.0, id="the same numbers in another order"),
        pytest.param([0.2, 0.8], [0.1, 0.4, 0.5], 0.3 + 0.2 + 0.1, id="teacher larger"),
        pytest.param([0.1, 0.4, 0.5], [0.2, 0.8], 0.3 + 0.2 + 0.1, id="student larger"),
        pytest.param([1.0, 0.0], [0.25, 0.25, 0.25, 0.25], 0.75 + 0.25 + 0.25 + 0.25, id="one-hot against uniform"),
        pytest.param([1.0], [0.5, 0.5], 1.0, id="a vocabulary of one"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorted_l1_by_hand(student: list[float], teacher: list[float], expected: float, dtype: torch.dtype) -> None:
    sides = torch.tensor([student], dtype=dtype), torch.tensor([teacher], dtype=dtype)
    for value in (sorted_l1(*sides), sorted_l1_parts(*sides)[0]):
        assert value.tolist() == pytest.approx([expected], abs=1e-7)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorted_l1_in_closed_form_is_its_definition(columns_s: int, columns_t: int, dtype: torch.dtype) -> None:
    """Values and gradients; on random values, so that no rank is shared."""
    logits = random_logits(8, columns_s, dtype=dtype)
    teacher = random_logits(8, columns_t, seed=1, dtype=dtype).softmax(-1)
    found, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    masses, reference = found.softmax(-1), sorted_l1(expected.softmax(-1), teacher)
    distance, signs, _ = sorted_l1_parts(masses.detach(), teacher)
    weights = torch.linspace(0.5, 2, 8, dtype=dtype)  # so that a row's gradient can't stand in for another's
    masses.backward(signs * weights[:, None])
    (reference * weights).sum().backward()
    torch.testing.assert_close(distance, reference.detach())
    torch.testing.assert_close(found.grad, expected.grad)


@SIZES
def test_sorted_l1_ignores_which_token_has_which_id(columns_s: int, columns_t: int) -> None:
    student, teacher = random_logits(5, columns_s).softmax(-1), random_logits(5, columns_t, seed=1).softmax(-1)
    generator = torch.Generator().manual_seed(2)
    order_s, order_t = (torch.randperm(n, generator=generator) for n in (columns_s, columns_t))
    found = sorted_l1_parts(student[:, order_s], teacher[:, order_t])[0]
    torch.testing.assert_close(found, sorted_l1_parts(student, teacher)[0])


def test_sorted_l1_gradient_follows_the_permutation() -> None:
    probabilities, teacher = random_logits(5, 12).softmax(-1), random_logits(5, 7, seed=1).softmax(-1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    plain, permuted = probabilities.clone().requires_grad_(), probabilities[:, order].clone().requires_grad_()
    closed(plain, teacher).backward()
    closed(permuted, teacher).backward()
    assert torch.equal(permuted.grad, plain.grad[:, order])


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 3.0, 40.0]))
def test_sorted_l1_is_a_distance_of_at_most_two(columns_s: int, columns_t: int, seed: int, scale: float) -> None:
    """Ties too: with scale 0 both sides are uniform."""
    student = (scale * random_logits(3, columns_s, seed)).softmax(-1)
    teacher = (scale * random_logits(3, columns_t, seed + 1)).softmax(-1)
    value = sorted_l1_parts(student, teacher)[0]
    assert (value >= 0).all()
    assert (value <= 2 + 1e-12).all()
    torch.testing.assert_close(value, sorted_l1_parts(teacher, student)[0])
    torch.testing.assert_close(value, sorted_l1(student, teacher))
    assert sorted_l1_parts(student, student)[0].eq(0).all()


@pytest.mark.parametrize("ranks", [3, 9])
def test_the_path_of_other_devices_gives_the_same(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no loop counts, torch sorts: a top-k of few ranks, a sort of many."""
    student, teacher = random_logits(5, 12).softmax(-1), random_logits(5, ranks, seed=1).softmax(-1)
    expected = sorted_l1_parts(student, teacher)
    monkeypatch.setattr("methods.library.cpu_loops.enabled", False)
    for found, other in zip(sorted_l1_parts(student, teacher), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-14, atol=1e-14)


@settings(deadline=None)
@given(
    st.integers(1, 14), st.integers(1, 14), st.integers(1, 16), st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 2, 9])
)
def test_top_k_is_too_small_by_no_more_than_its_bound(
    columns_s: int, columns_t: int, top_k: int, seed: int, scale: float
) -> None:
    """And exact where it compares all ranks of the smaller vocabulary. Masses need not add up to 1."""
    student = 0.4 * (scale * random_logits(4, columns_s, seed)).softmax(-1)
    teacher = (scale * random_logits(4, columns_t, seed + 1)).softmax(-1)
    exact = sorted_l1(student, teacher)
    distance, _, bound = sorted_l1_parts(student, teacher, top_k)
    assert (distance <= exact + 1e-12).all()
    assert (exact <= distance + bound + 1e-12).all()
    if top_k >= min(columns_s, columns_t):
        assert bound.eq(0).all()
        torch.testing.assert_close(distance, exact)


def test_top_k_and_its_bound_by_hand() -> None:
    """Tails (.1, .1) and (.2, 0): the masses beyond the first rank are alike, the tails .2 apart.

    The bound: 2 · .2 · (1 - .2 / (2 · .8)) = .35, since neither tail may exceed the .8 of the first rank. Uniform tails
    leave nothing open.
    """
    student, teacher = torch.tensor([[0.1, 0.8, 0.1]]).double(), torch.tensor([[0.8, 0.2, 0.0]]).double()
    distance, signs, bound = sorted_l1_parts(student, teacher, top_k=1)
    assert (distance.item(), signs.tolist()) == (pytest.approx(0, abs=1e-15), [[0, 0, 0]])
    assert bound.item() == pytest.approx(0.35)
    assert sorted_l1(student, teacher).item() == pytest.approx(0.2)
    uniform = torch.full((1, 10), 0.1).double()
    assert sorted_l1_parts(uniform, uniform, top_k=3)[2].item() == pytest.approx(0, abs=1e-15)


@SIZES
def test_gradient_of_top_k_is_that_of_its_value(columns_s: int, columns_t: int) -> None:
    logits, teacher = random_logits(3, columns_s).requires_grad_(), random_logits(3, columns_t, seed=1).softmax(-1)

    def distance(values: Tensor) -> Tensor:
        return closed(values.softmax(-1), teacher, top_k=2)

    assert torch.autograd.gradcheck(distance, (logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_teachers_are_sorted_too(dtype: torch.dtype) -> None:
    """numpy knows no bfloat16: these rows take torch's sort."""
    student, teacher = random_logits(3, 9).softmax(-1), random_logits(3, 11, seed=1).softmax(-1).to(dtype)
    found, expected = sorted_l1_parts(student.float(), teacher)[0], sorted_l1(student, teacher.double())
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0)


def test_the_closed_form_changes_nothing_that_it_is_given() -> None:
    student, teacher = random_logits(3, 9).softmax(-1), random_logits(3, 11, seed=1).softmax(-1)
    kept = student.clone(), teacher.clone()
    sorted_l1_parts(student, teacher)
    assert torch.equal(student, kept[0])
    assert torch.equal(teacher, kept[1])


@pytest.mark.parametrize("how", ["counted", "resolved"])
def test_distance_without_a_sort(how: Literal["counted", "resolved"]) -> None:
    """What the GPU computes, beside the full sort."""
    student, teacher = (random_logits(5, n, seed=n).softmax(-1) for n in (400, 300))
    sort = Sort(how, None, edges(student.dtype, student.device))
    distance, signs, bound = distance_by(sort, student, teacher)
    wanted, of_sort, _ = distance_by(Sort(), student, teacher)
    assert (wanted - distance <= bound + 1e-12).all()
    assert (wanted - distance >= -1e-12).all()
    if how == "resolved":
        assert torch.equal(signs, of_sort)


def test_the_device_chooses_the_sort() -> None:
    """On a CPU nothing changes by itself; on a GPU masses are counted unless a recipe wants a sort."""
    here, there = torch.zeros(1, 3), torch.zeros(1, 3, device="meta")
    options = {sort: SortOptions(sort=sort, top_k=7) for sort in ("auto", "exact", "counted", "top_k")}
    chosen = {sort: (made.sort_of(here)[:2], made.sort_of(there)[:2]) for sort, made in options.items()}
    assert chosen == {
        "auto": (("sorted", None), ("counted", None)),
        "exact": (("sorted", None), ("sorted", None)),
        "counted": (("counted", None), ("counted", None)),
        "top_k": (("sorted", 7), ("sorted", 7)),
    }
    assert [Sort().is_exact, Sort("resolved").is_exact, Sort("counted").is_exact, Sort("sorted", 7).is_exact] == [
        True,
        True,
        False,
        False,
    ]
