"""A teacher's likeliest tokens in the place of its hidden rows, where these are too large to store.

A stored row stays one row of one tensor: uint8 [6 k + 8] holds k log-probabilities in float16, k token ids in int32,
and in float32 the logarithm of the mass of all other tokens, which share it evenly, and the logarithm that logits were
normalised by. :class:`TopRowsHead` reads such rows as :class:`harness.models.heads.Head` reads hidden ones, so that
losses do not know the difference; released CDM, which puts logits of two models under one softmax, needs the last
number.

A temperature above 1 raises tokens of an even rest more than it raises those of the teacher's own: methods that divide
logits by one see a heavier rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.models.heads import Head

_CHUNK = 256
_LOWEST = torch.finfo(torch.float16).min


def packed_bytes(k: int) -> int:
    """Bytes of one packed row."""
    return 6 * k + 8


def pack(logits: Tensor, k: int) -> Tensor:
    """uint8 [n, 6 k + 8] from logits [n, vocabulary], k at most the vocabulary."""
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    log_probs = logits - total
    top, ids = log_probs.topk(k)
    rest = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)  # -inf where no token is left
    parts = (top.clamp_min(_LOWEST).half(), ids.int(), rest, total)
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], -1)


def unpack(rows: Tensor, vocabulary: int) -> Tensor:
    """float32 [n, vocabulary]: the logits, but for the rounding of the likeliest and the even rest."""
    k = (rows.shape[-1] - 8) // 6
    top, ids, numbers = rows.tensor_split([2 * k, 6 * k], -1)
    rest, total = _read(numbers, torch.float32).chunk(2, -1)
    each = rest - math.log(max(vocabulary - k, 1)) + total
    known = _read(top, torch.float16).float() + total
    return each.expand(-1, vocabulary).scatter(-1, _read(ids, torch.int32).long(), known)


def _read(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers; a copy, since a part of a row may begin where no number of this size may."""
    return part.clone(memory_format=torch.contiguous_format).view(dtype)


def packer(head: Head, k: int) -> Callable[[Tensor], Tensor]:
    """What packs hidden rows [n, hidden] of a head's model; logits exist for a chunk of rows only."""
    return lambda rows: torch.cat([pack(head.logits(part), k) for part in torch.split(rows, _CHUNK)])


@dataclass(frozen=True)
class TopRowsHead(Head):
    """A head for packed rows. It computes nothing but float32, and its weight only says vocabulary, device and dtype.

    Attributes:
        weight: uint8 [vocabulary, 0].
    """

    @classmethod
    def over(cls, vocabulary: int, device: torch.device | str) -> TopRowsHead:
        """The head of a teacher of so many tokens."""
        return cls(torch.empty(vocabulary, 0, dtype=torch.uint8, device=device))

    def to(self, dtype: torch.dtype) -> Head:
        """The same head: bytes are not cast."""
        return self

    def logits(self, rows: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """float32 [n, vocabulary] from packed rows uint8 [n, 6 k + 8]."""
        return unpack(rows, self.weight.shape[0])
