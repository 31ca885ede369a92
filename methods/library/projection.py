"""A sparse matrix from one vocabulary to another: which of the teacher's tokens a student's token is written in.

X-Token, arXiv 2605.21699 (second hand): a token that both vocabularies have has weight 1. The text of any other is cut
by the teacher's tokenizer, and its pieces have weights 0.9 · 0.1^i, of which the first four are kept and divided by
their sum. Ours: tokens that are no text (parts of a character) have no weight; a text is cut as inside of another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from methods.library.maps import UNMAPPED, VocabularyMap, exact_map
from methods.library.vocabulary import TokenizerPair, TokenKind, Vocabulary, without_dummy_space

_PIECES = 4
_ROWS_AT_ONCE = 16


class Projection(NamedTuple):
    """Entries of the matrix, those of a student's token one behind the other, the largest first.

    Attributes:
        student, teacher: int64 [entries], row and column.
        weight: float64 [entries]; the sum of a student's token is 1, or 0 where it has no entry.
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor


class LearntWeights(nn.Module):
    """The entries' weights as they are trained: those of a token stay positive and keep their sum of 1.

    What is trained is added to the logs of the weights that a projection begins with, so that a decay of the weights
    leads back to these.

    Args:
        begun: a projection whose tokens with entries have a sum of 1.
    """

    added: nn.Parameter
    _begun: Tensor
    _token: Tensor

    def __init__(self, begun: Projection) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.zeros(len(begun.weight)))
        self.register_buffer("_begun", begun.weight.log().to(self.added.dtype), persistent=False)
        found, token = torch.unique(begun.student, return_inverse=True)
        self.register_buffer("_token", token, persistent=False)
        self._tokens = len(found)

    def forward(self) -> Tensor:
        """[entries]"""
        logs = self._begun + self.added
        tokens = logs.new_zeros(self._tokens)
        largest = tokens.scatter_reduce(0, self._token, logs.detach(), "amax", include_self=False)
        masses = (logs - largest[self._token]).exp()
        return masses / tokens.index_add(0, self._token, masses)[self._token]


class SpreadMasses(torch.autograd.Function):
    """Masses of the student's vocabulary as those of the teacher's, some rows at a time.

    Entries are more than either vocabulary has columns: a matrix of them all would be the largest there is.
    """

    @staticmethod  # Any: torch's context, which takes what is put on it
    def forward(ctx: Any, masses: Tensor, weight: Tensor, student: Tensor, teacher: Tensor, columns: int) -> Tensor:
        """[groups, columns].

        Args:
            masses: [groups, vocabulary] of the student.
            weight, student, teacher: entries of a :class:`Projection`, with a gradient at the weights where one is
                asked for.
            columns: of the teacher.
        """
        ctx.save_for_backward(masses, weight, student, teacher)
        made = masses.new_zeros(len(masses), columns)
        for out, rows in zip(*(torch.split(each, _ROWS_AT_ONCE) for each in (made, masses)), strict=True):
            out.index_add_(1, teacher, rows.index_select(1, student).mul_(weight))
        return made

    @staticmethod  # Any: as above
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        masses, weight, student, teacher = ctx.saved_tensors
        at_masses = torch.zeros_like(masses)
        at_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        parts = (torch.split(each, _ROWS_AT_ONCE) for each in (at_masses, masses, upstream))
        for out, rows, given in zip(*parts, strict=True):
            of_entries = given.index_select(1, teacher)
            if at_weight is not None:
                at_weight += (rows.index_select(1, student) * of_entries).sum(0)
            out.index_add_(1, student, of_entries.mul_(weight))
        return at_masses, at_weight, None, None, None


def projection(pair: TokenizerPair) -> Projection:
    """The matrix of a pair.

    Raises:
        ValueError: the teacher's vocabulary was made by hand, so that no tokenizer can cut a text.
    """
    exact = exact_map(pair.student, pair.teacher)
    missing = np.flatnonzero((exact == UNMAPPED) & (pair.student.kinds == TokenKind.ORDINARY))
    texts = {int(index): text for index in missing if (text := _text(pair.student.token_bytes[index]))}
    pieces = dict(zip(texts, _cut(pair.teacher, list(texts.values())), strict=True))
    pieces |= {int(index): [int(exact[index])] for index in np.flatnonzero(exact != UNMAPPED)}
    entries = [
        (student, teacher, weight)
        for student, found in sorted(pieces.items())
        for teacher, weight in zip(found[:_PIECES], _weights(len(found[:_PIECES])), strict=True)
    ]
    ours, theirs, weights = zip(*entries, strict=True) if entries else ((), (), ())
    return Projection(
        torch.tensor(ours, dtype=torch.int64),
        torch.tensor(theirs, dtype=torch.int64),
        torch.tensor(weights, dtype=torch.float64),
    )


def weighted_map(pair: TokenizerPair) -> VocabularyMap:
    """For each token of the teacher the student's whose largest weight it has, or -1; one-to-one.

    Of several the one with the largest weight counts, then the first in the order of their bytes (X-Token's code takes
    the lowest id).
    """
    mapped = np.full(len(pair.teacher), UNMAPPED, dtype=np.int64)
    best: dict[int, tuple[float, bytes]] = {}
    made = projection(pair)
    _, first = np.unique(made.student.numpy(), return_index=True)
    for student, teacher, weight in zip(*(part[first].tolist() for part in made), strict=True):
        rank = -weight, pair.student.token_bytes[student]
        if teacher not in best or rank < best[teacher]:
            mapped[teacher], best[teacher] = student, rank
    return mapped


def _text(spelled: bytes) -> str:
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return ""


def _weights(pieces: int) -> list[float]:
    falling = [0.9 * 0.1**place for place in range(pieces)]
    return [weight / sum(falling) for weight in falling]


def _cut(vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
    """The tokens of each text; none of a text that has one for which a model has no column."""
    if vocabulary.tokenizer is None:
        raise ValueError(f"{vocabulary.name} has no tokenizer that could cut a text")
    places = {piece: index for index, piece in enumerate(vocabulary.pieces) if piece is not None}
    encoded = without_dummy_space(vocabulary.tokenizer).encode_batch(texts, add_special_tokens=False)
    cut = [[places.get(piece, UNMAPPED) for piece in found.tokens] for found in encoded]
    used = vocabulary.kinds != TokenKind.UNUSED
    return [ids if all(index != UNMAPPED and used[index] for index in ids) else [] for ids in cut]
