"""Losses of whole responses that see a few numbers of each row: two passes over the rows, and logits a block at a time.

Before the walk over chunks, the loss is computed from numbers that are read of both sides' rows (``Side.read``), with
the gradient at the student's. In the walk, where a chunk's logits are there for the cross-entropy, the numbers are made
of them once more, and that gradient goes through to the logits. A response may lie in any number of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.models.heads import Head, widened
from methods.base import AlignedChunk, LossSums, Method, RowFunction
from methods.library.reading import added, blocks

_BLOCKS = 8  # a function of rows, and its gradient, see an eighth of a chunk at a time: they hold several matrices


class ReadRows:
    """One side's rows of a response, as a method reads them.

    Args:
        head: in the precision of its products.
        hidden: [rows, width].
        most: rows whose logits may be there at once.
        differentiable: whether the numbers that are read require grad.

    Attributes:
        numbers: what has been read, each with the function that gave it, where it requires grad.
    """

    def __init__(self, head: Head, hidden: Tensor, most: int, differentiable: bool) -> None:
        self.head, self.hidden, self.most, self.differentiable = head, hidden, most, differentiable
        self.numbers: list[tuple[RowFunction, Tensor]] = []

    @property
    def none(self) -> Tensor:
        """[0, vocabulary]: logits of no row."""
        return self.head.logits(self.hidden[:0].to(self.head.weight.dtype))

    @torch.no_grad()
    def read(self, function: RowFunction) -> Tensor:
        """As :meth:`Side.read`."""
        found = torch.cat([function(*block) for block in self._blocks()])
        if self.differentiable:
            self.numbers.append((function, found.requires_grad_()))
        return found

    @torch.no_grad()
    def total(self, function: RowFunction) -> Tensor:
        """As :meth:`Side.total`."""
        return added(function(*block) for block in self._blocks())

    def _blocks(self) -> Iterator[tuple[Tensor, slice]]:
        for piece in blocks(len(self.hidden), self.most):
            logits = self.head.logits(self.hidden[piece].to(self.head.weight.dtype))
            for part in blocks(len(logits), in_blocks(self.most)):
                yield widened(logits[part]), slice(piece.start + part.start, piece.start + part.stop)


class ReadResponse:
    """The loss of one response, and what it still has to add to the gradient at the student's logits.

    Args:
        method: with ``Need.ROW_SCALARS``.
        chunk: the response's groups; both sides are read from their rows.
        rows: the student's.
        first: which row of the batch its first one is.

    Attributes:
        sums: the method's.
    """

    def __init__(self, method: Method, chunk: AlignedChunk, rows: ReadRows, first: int) -> None:
        with torch.enable_grad():
            sums = method.loss(chunk)
        self.sums = LossSums(sums.kd.detach(), sums.diagnostics)
        self.first, self.stop = first, first + len(rows.hidden)
        self.found: list[tuple[RowFunction, Tensor]] = []
        if rows.numbers and sums.kd.requires_grad:
            functions, numbers = zip(*rows.numbers, strict=True)
            gradients = torch.autograd.grad(sums.kd, numbers, allow_unused=True)
            pairs = zip(functions, gradients, strict=True)
            self.found = [(function, gradient) for function, gradient in pairs if gradient is not None]

    def add_gradient(self, logits: Tensor, upstream: Tensor, start: int, most: int, share: float) -> list[Tensor]:
        """Add to the gradient at a chunk's logits, whose rows count from ``start`` in the batch.

        Args:
            logits, upstream: [rows, vocabulary], as the head gives them, and the gradient there so far.
            most: rows that are differentiated at once.
            share: of the loss.

        Returns:
            Squared norms of what is added, without the share.
        """
        first, last = max(start, self.first), min(start + len(logits), self.stop)
        squares = []
        for part in blocks(last - first, most) if self.found and first < last else ():
            here = slice(first - start + part.start, first - start + part.stop)
            rows = slice(first - self.first + part.start, first - self.first + part.stop)
            leaf = widened(logits[here].detach()).requires_grad_()
            with torch.enable_grad():
                made = [function(leaf, rows) for function, _ in self.found]
            (gradient,) = torch.autograd.grad(made, leaf, [given[rows] for _, given in self.found])
            upstream[here].add_(gradient, alpha=share)
            squares.append(torch.linalg.vector_norm(gradient).square())
        return squares


def in_blocks(chunk: int) -> int:
    """How many rows a function of rows is asked of at once, where chunks have so many at most."""
    return -(-chunk // _BLOCKS)
