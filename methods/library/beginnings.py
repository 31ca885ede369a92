"""Tokens of a vocabulary by the bytes that they begin with."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from methods.library.alignment import IntArray
from methods.library.vocabulary import TokenKind, Vocabulary


class Beginnings:
    """All tokens that stand for text, in the order of their bytes.

    Args:
        vocabulary: whose tokens they are.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        texts = np.flatnonzero(vocabulary.kinds <= TokenKind.FALLBACK)
        spelled = sorted((vocabulary.token_bytes[index], int(index)) for index in texts)
        self._bytes = [spelling for spelling, _ in spelled]
        self._ids = np.asarray([index for _, index in spelled], dtype=np.int64)

    def of(self, prefix: bytes) -> IntArray:
        """int64: ids of the tokens whose bytes begin with ``prefix``, the token that is no more than it among them.

        Args:
            prefix: one byte at least.
        """
        trimmed = prefix.rstrip(b"\xff")  # what comes behind all of them: the last byte that can be raised is
        behind = trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None
        stop = len(self._bytes) if behind is None else bisect_left(self._bytes, behind)
        return self._ids[bisect_left(self._bytes, prefix) : stop]
