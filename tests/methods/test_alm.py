"""ALM against hand values in float64, and against its formula written out a chunk at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from harness.data.tokens import STUDENT
from methods.alm import ALM
from tests.methods import contract

Scalars = list[float]
FALLBACK = ("<0x0A>", "<0x09>", "<0x20>")


def over_chunks(method: ALM, teacher: Scalars, student: Scalars, *masses: Scalars) -> tuple[float, Scalars]:
    """Loss over τ of chunks with given probabilities, and its gradient at the student's log-probabilities.

    Args:
        masses: B of the teacher and of the student; none where they don't count.
    """
    p, q, *behind = (torch.tensor(side, dtype=torch.float64).log() for side in (student, teacher, *masses))
    theirs, ours = behind or (torch.zeros_like(p), torch.zeros_like(p))
    kd, _ = method.over_chunks(p.requires_grad_(), ours, q, theirs)
    (gradient,) = torch.autograd.grad(kd, p)
    tau = method.options.temperature
    return float(kd.detach()) / tau, (gradient / tau).tolist()


ONE = {"teacher": [0.9 * 0.9], "student": [0.5]}


@pytest.mark.parametrize(
    ("options", "value", "slope"),
    [
        ({"temperature": 1}, 0.206924, -0.620000),
        ({"temperature": 5}, 0.045326, -0.136240),
        ({"temperature": 100}, 0.002312751, -0.006952602),
        ({"temperature": 1, "divergence": "tvd"}, 0.620000, None),
        ({"temperature": 5, "divergence": "tvd"}, 0.176362, None),
        ({"fidelity": "released"}, 0.017395177, -0.006952602),
    ],
    ids=str,
)
def test_one_chunk_by_hand(options: dict[str, Any], value: float, slope: float | None) -> None:
    """Teacher tokens .9 and .9, one of the student .5; the cross-entropy has the gradient of the divergence."""
    found, (gradient,) = over_chunks(ALM(debiased=False, **options), **ONE)
    assert found == pytest.approx(value, abs=1e-6 if options.get("temperature", 100) < 100 else 1e-9)
    if slope is not None:
        assert gradient == pytest.approx(slope, rel=2e-4)  # ε moves the released one in the fourth digit


def test_the_released_form_has_a_floor() -> None:
    found, (gradient,) = over_chunks(ALM(debiased=False, fidelity="released"), [0.81], [0.81])
    assert found == pytest.approx(0.015082921, abs=1e-9)
    assert gradient == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("tau", "value"), [(1, 0.257048), (5, 0.062615), (100, 0.003265745)])
def test_the_mass_behind_a_chunk_counts(tau: float, value: float) -> None:
    found, _ = over_chunks(ALM(temperature=tau), ONE["teacher"], ONE["student"], [0.8], [0.6])
    assert found == pytest.approx(value, abs=1e-6 if tau < 100 else 1e-9)


FIVE = (
    [0.9, 0.8, 0.5, 0.7, 0.6],
    [0.8, 0.7, 0.6, 0.5, 0.4],
    [0.05, 0.9, 0.02, 0.5, 0.03],
    [0.1, 0.85, 0.03, 0.6, 0.05],
)


def test_weak_chunks_are_left_out_or_joined_with_those_behind_them() -> None:
    """Of five chunks the second and the fourth have a mass above 0.1; the fifth has none behind it to join."""
    described, _ = over_chunks(ALM(temperature=5), *FIVE)
    assert described / 2 == pytest.approx(0.004827890, abs=1e-9)
    teacher = [0.9 * 0.8 * 0.9, 0.5 * 0.7 * 0.5, 0.6 * 0.03]
    student = [0.8 * 0.7 * 0.85, 0.6 * 0.5 * 0.6, 0.4 * 0.05]
    pairs = [(p**0.2 * math.exp(-1e-6), q**0.2 * math.exp(-1e-6)) for p, q in zip(teacher, student, strict=True)]
    released = [-a * math.log(b) - (1 - a) * math.log(1 - b) for a, b in pairs]
    found, _ = over_chunks(ALM(temperature=5, fidelity="released"), *FIVE)
    assert found == pytest.approx(sum(released) / 3, rel=1e-12)
    kl = [binary_kl(p**0.2, q**0.2) for p, q in zip(teacher, student, strict=True)]
    assert kl == pytest.approx([0.014441917, 0.000038475, 0.000183401], abs=1e-9)


def binary_kl(a: float, b: float) -> float:
    return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 5.0}, {"debiased": False}, {"threshold": 0.0, "divergence": "tvd"}, {"fidelity": "released"}],
    ids=str,
)
def test_loss_equals_the_formula(options: dict[str, Any]) -> None:
    """Chunks found by walking over both sides, boundary tokens by what they decode to."""
    method = ALM(**options)
    made = contract.bench(method)
    released, tau = options.get("fidelity") == "released", options.get("temperature", 100.0)
    total = 0.0
    for pair in contract.seen(made):
        masses, chances = [], []
        for role, side in zip((STUDENT, made.role), pair, strict=True):
            tokenizer, special = made.sides[role].tokenizer, made.sides[role].tokenizer.all_special_ids
            pieces = tokenizer.convert_ids_to_tokens(range(side.rows.shape[-1]))
            after = [i for i, piece in enumerate(pieces) if piece[0] in "Ġ▁Ċĉ\n\t" or piece in FALLBACK]
            after = sorted({*after, *special}) if released else [i for i in after if i not in special]
            shares = side.rows.softmax(-1)
            masses.append([float(row[after].sum()) for row in shares])
            chances.append([math.exp(value) for value in side.realised])
        chunks = contract.chunks_by_walking(pair[0].ends, pair[1].ends)
        p, q, values = 1.0, 1.0, []
        for number, (ours, theirs) in enumerate(chunks):
            at_end = pair[0].ids[ours[-1]] in made.sides[STUDENT].tokenizer.all_special_ids
            behind = [1.0, 1.0] if at_end else [masses[0][ours[-1] + 1], masses[1][theirs[-1] + 1]]
            p *= math.prod(chances[0][i] for i in ours)
            q *= math.prod(chances[1][j] for j in theirs)
            clear = behind[1] > options.get("threshold", 0.1)
            if released and not clear and number < len(chunks) - 1:
                continue
            if not released and not clear and options.get("debiased", True):
                p = q = 1.0
                continue
            if options.get("debiased", True):
                p, q = p * behind[0], q * behind[1]
            a, b = q ** (1 / tau), p ** (1 / tau)
            if released:
                a, b = a * math.exp(-1e-6), b * math.exp(-1e-6)
                values.append(-a * math.log(b) - (1 - a) * math.log(1 - b))
            elif options.get("divergence") == "tvd":
                values.append(abs(a - b) + abs((1 - a) - (1 - b)))
            else:
                values.append(binary_kl(a, b))
            p = q = 1.0
        total += tau * (sum(values) / len(values) if released else sum(values))
    assert float(made.loss(made.batch()).kd[0]) == pytest.approx(total, rel=1e-8)


def test_a_long_response_is_compared_piece_by_piece() -> None:
    """Eight rows of logits at a time: what all responses at once give."""
    made = contract.bench(ALM())
    found = []
    for rows in (10**6, 8):
        batch = made.batch(chunk_rows=rows)
        made.student.zero_grad()
        parts = made.loss(batch)
        parts.loss.backward()
        gradients = [parameter.grad.clone() for parameter in made.student.parameters() if parameter.grad is not None]
        found.append((torch.stack([parts.loss.detach(), parts.ce, *parts.kd]), gradients))
    assert max(stop - start for start, stop in batch.chunks) <= 8
    assert len(batch.chunks) > 2 * len(made.examples)
    for left, right in zip(*((sums, *gradients) for sums, gradients in found), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_a_chunk_that_is_certain_has_a_finite_loss_and_gradient() -> None:
    method = ALM(debiased=False)
    logits = torch.full((2, 3), -1e4)
    logits[:, 0] = 0.0
    for student, teacher in ((torch.zeros(2, 3), logits), (logits, torch.zeros(2, 3))):
        ours = student.clone().requires_grad_()
        log_p = ours[0, 0] - ours[0].logsumexp(-1)
        log_q = teacher[0, 0] - teacher[0].logsumexp(-1)
        none = torch.zeros(1)
        kd, _ = method.over_chunks(log_p[None], none, log_q[None], none)
        kd.backward()
        assert torch.isfinite(kd)
        assert ours.grad is not None
        assert torch.isfinite(ours.grad).all()
