"""A little of many rows, which is all that some losses read of logits, with one gradient of the logits' size.

Autograd would keep a matrix as large for each step between, and make one more for each place that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

_ROWS_AT_ONCE = 16


def log_totals(logits: Tensor) -> Tensor:
    """[rows]: log of the sum of the exponentials of each row of logits, some rows at a time."""
    return torch.cat([part.logsumexp(-1) for part in torch.split(logits, _ROWS_AT_ONCE)])


def log_probs_at(
    logits: Tensor,
    entries: tuple[Tensor, Tensor],
    block: tuple[Tensor, Tensor],
    raw: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of rows of logits at some places, as ``log_softmax(-1)`` has them.

    Args:
        logits: [rows, vocabulary].
        entries: row and column of each, int64 [n].
        block: rows, int64 [m], and columns that are read of each of them, int64 [c].
        raw: read the logits themselves.

    Returns:
        [n] and [m, c].
    """
    found: tuple[Tensor, Tensor] = _Read.apply(logits, raw, *entries, *block)  # type: ignore[no-untyped-call]
    return found


class _Read(torch.autograd.Function):
    """The gradient of log p(c) at the logits is that of the entry itself less the row's distribution."""

    @staticmethod  # Any: torch's context, which takes what is put on it
    def forward(ctx: Any, logits: Tensor, raw: bool, *places: Tensor) -> tuple[Tensor, Tensor]:
        row, column, rows, columns = places
        totals = torch.zeros_like(logits[:, 0]) if raw else log_totals(logits)
        ctx.save_for_backward(logits, totals, *places)
        ctx.raw = raw
        return logits[row, column] - totals[row], logits[rows[:, None], columns].sub_(totals[rows, None])

    @staticmethod  # Any: as above
    def backward(ctx: Any, of_entries: Tensor, of_block: Tensor) -> tuple[Tensor | None, ...]:
        logits, totals, row, column, rows, columns = ctx.saved_tensors
        if ctx.raw:
            gradient = torch.zeros_like(logits)
        else:
            of_rows = torch.zeros_like(totals).index_add_(0, row, of_entries).index_add_(0, rows, of_block.sum(-1))
            gradient = (logits - totals[:, None]).exp_().mul_(of_rows.neg()[:, None])
        gradient.index_put_((row, column), of_entries, accumulate=True)
        parts = (torch.split(each, _ROWS_AT_ONCE) for each in (rows, of_block))
        for numbers, part in zip(*parts, strict=True):
            spread = part.new_zeros(len(part), gradient.shape[1]).index_add_(1, columns, part)
            gradient.index_add_(0, numbers, spread)
        return gradient, *[None] * 5


RowFunction = Callable[[Tensor, slice], Tensor]
"""Of some rows of logits, [n, vocabulary], and of where they stand among all that are read."""


def by_rows(function: RowFunction, logits: Tensor, index: Tensor) -> Tensor:
    """What a function makes of each row by itself, of some rows at a time; its gradient makes it once more.

    Args:
        function: of [n, vocabulary] and their places in the index, gives [n, any].
        logits: [rows, vocabulary].
        index: int64 [members], the rows that it is asked of.
    """
    made: Tensor = _ByRows.apply(function, logits, index)  # type: ignore[no-untyped-call]
    return made


def blocks(rows: int, most: int = _ROWS_AT_ONCE) -> list[slice]:
    """Places of so many rows, some at a time; one of nothing where there are none."""
    return [slice(start, min(start + most, rows)) for start in range(0, max(rows, 1), most)]


def added(parts: Iterable[Tensor]) -> Tensor:
    """The sum of one tensor or more, of which two are there at once."""
    return reduce(torch.add, parts)


class _ByRows(torch.autograd.Function):
    @staticmethod  # Any: as above
    def forward(ctx: Any, function: RowFunction, logits: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(logits, index)
        ctx.function = function
        return torch.cat([function(logits[index[part]], part) for part in blocks(len(index))])

    @staticmethod  # Any: as above
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, index = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for part in blocks(len(index)):
            with torch.enable_grad():
                leaf = logits[index[part]].detach().requires_grad_()
                (found,) = torch.autograd.grad(ctx.function(leaf, part), leaf, upstream[part])
            gradient.index_add_(0, index[part], found)
        return None, gradient, None
