"""Label smoothing of `sft` and `control`: as torch's own, over chunks, in the loss and in every gradient."""

from __future__ import annotations

import pytest
import torch

from harness.data.tokens import STUDENT
from methods.library.closed_form import IGNORED, add_smoothing, cross_entropy
from methods.sft import SFT, Control
from tests.methods import contract


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_added_to_the_cross_entropy_it_is_torchs(share: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(7, 11, generator=generator, dtype=torch.float64)).to(dtype)
    targets = torch.tensor([3, IGNORED, 0, 10, 5, IGNORED, 5])
    wide = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(wide, targets, reduction="sum", label_smoothing=share)
    (wanted,) = torch.autograd.grad(0.4 * expected, wide)
    scale = torch.tensor(0.4, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    full = logits if dtype == torch.float64 else logits.float()
    value, _, gradient = cross_entropy(full, targets, scale)
    value = value + share * add_smoothing(logits, targets, gradient, share * scale)
    near = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(value.double(), expected.detach(), **near)
    torch.testing.assert_close(gradient.double(), wanted, **near)


@pytest.mark.parametrize("kind", [SFT, Control])
def test_a_training_minimises_smoothed_targets_and_shows_the_plain_cross_entropy(kind: type[SFT]) -> None:
    """Against the model's own logits, response by response; chunks of 7 rows cut responses."""
    made = contract.bench(kind(label_smoothing=0.2), dtype=torch.float64)
    batch, parameters = made.batch(chunk_rows=7), list(made.student.parameters())
    parts = made.loss(batch)
    plain = smoothed = torch.zeros((), dtype=torch.float64)
    for aligned in made.examples:
        side = aligned.example.sides[STUDENT]
        ids = torch.from_numpy(side.sequence)[None]
        rows = made.student(input_ids=ids).logits[0, side.prompt.size - 1 : side.length - 1]
        response = torch.from_numpy(side.response)
        plain = plain + torch.nn.functional.cross_entropy(rows, response, reduction="sum")
        smoothed = smoothed + torch.nn.functional.cross_entropy(rows, response, reduction="sum", label_smoothing=0.2)
    assert float(parts.ce) == pytest.approx(float(plain.detach()), rel=1e-10)
    wanted = 0.3 * smoothed / float(batch.counts[0])
    assert float(parts.loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    found, expected = (torch.autograd.grad(loss, parameters) for loss in (parts.loss, wanted))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
