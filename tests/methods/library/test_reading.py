"""What is read of rows some at a time, with the values and gradients of the plain definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods.library.closed_form import forward_kl_towards
from methods.library.divergences import forward_kl
from methods.library.projection import SpreadMasses
from methods.library.reading import added, blocks, by_rows, log_probs_at, log_totals

ROWS, COLUMNS = 37, 23  # more rows than are read at once


def logits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)


def chosen(size: int, below: int, seed: int) -> Tensor:
    return torch.randint(0, below, (size,), generator=torch.Generator().manual_seed(seed))


def agree(found: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """Values, and gradients of a product with other numbers."""
    weights = torch.randn(plain(at).shape, generator=torch.Generator().manual_seed(9), dtype=at.dtype)
    made = []
    for function in (found, plain):
        leaf = at.clone().requires_grad_()
        value = function(leaf)
        made.append((value.detach(), *torch.autograd.grad((value * weights).sum(), leaf)))
    for ours, theirs in zip(*made, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("raw", [False, True])
def test_places_have_their_log_probabilities(raw: bool) -> None:
    """Rows and entries come more than once."""
    entries = chosen(50, ROWS, 1), chosen(50, COLUMNS, 2)
    block = chosen(45, ROWS, 3), torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(4))[:7]

    def ours(at: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in log_probs_at(at, entries, block, raw)])

    def plain(at: Tensor) -> Tensor:
        rows = at if raw else at.log_softmax(-1)
        return torch.cat([rows[entries], rows.index_select(0, block[0]).index_select(1, block[1]).flatten()])

    agree(ours, plain, logits())


def test_no_places_have_none() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    leaf = logits().requires_grad_()
    entries, block = log_probs_at(leaf, (nothing, nothing), (nothing, torch.arange(3)))
    assert (entries.shape, block.shape) == ((0,), (0, 3))
    assert not torch.autograd.grad(entries.sum() + block.sum(), leaf)[0].any()


def test_totals_are_those_of_whole_matrices() -> None:
    torch.testing.assert_close(log_totals(logits()), logits().logsumexp(-1))
    index = chosen(50, ROWS, 5)
    expected = logits()[index].softmax(-1).sum(0)
    found = added(logits()[index[part]].softmax(-1).sum(0) for part in blocks(len(index)))
    torch.testing.assert_close(found, expected)


def test_rows_by_themselves_are_rows_together() -> None:
    index = chosen(50, ROWS, 6)

    def function(rows: Tensor) -> Tensor:
        return (rows / (rows.std(-1, keepdim=True) + 1e-4)).softmax(-1)[:, 3:9]

    weight = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    agree(
        lambda at: by_rows(lambda rows, place: function(rows) * weight[place], at, index),
        lambda at: function(at[index]) * weight,
        logits(),
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_divergence_towards_fixed_rows_is_that_of_the_definition(temperature: float) -> None:
    index, of_target = chosen(50, ROWS, 7), chosen(50, ROWS, 8)
    weight, target = torch.linspace(0, 1, 50, dtype=torch.float64), logits(1)

    def plain(at: Tensor) -> Tensor:
        p, q = (at / temperature).log_softmax(-1)[index], (target / temperature).log_softmax(-1)[of_target]
        return (forward_kl(p, q) * weight).sum()

    agree(lambda at: forward_kl_towards(at, index, target, of_target, weight, temperature), plain, logits())


@pytest.mark.parametrize("of_weights", [False, True])
def test_masses_are_spread_as_by_a_matrix(of_weights: bool) -> None:
    student, teacher = chosen(60, COLUMNS, 10), chosen(60, 11, 11)
    weight, masses = torch.linspace(0.1, 1, 60, dtype=torch.float64), logits().softmax(-1)

    def ours(at: Tensor) -> Tensor:
        given = (masses, at) if of_weights else (at, weight)
        made: Tensor = SpreadMasses.apply(*given, student, teacher, 11)  # type: ignore[no-untyped-call]
        return made

    def plain(at: Tensor) -> Tensor:
        rows, entries = (masses, at) if of_weights else (at, weight)
        matrix = torch.zeros(COLUMNS, 11, dtype=torch.float64).index_put((student, teacher), entries, accumulate=True)
        return rows @ matrix

    agree(ours, plain, weight if of_weights else masses)
