"""A source of text whose entropy is known: a Markov chain over words, with integer weights.

What a model should say of such a text is no opinion. Words share stems and letters, so that tokenizers cut them into
pieces that look alike, and some hold characters beyond ASCII, which a vocabulary with byte fallback spells in bytes.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

WORDS = (
    *("the", "stone", "storm", "story", "store", "stove", "light", "night", "right", "might", "sight", "cat", "cart"),
    *("card", "care", "hat", "heat", "heart", "hear", "near", "river", "rivet", "café", "über", "naïve", "a", "an"),
    *("and", "so"),
)
_SPREAD, _POWER = 400, 6  # of weights: a power leaves each word some successors that are likely, and none impossible


@dataclass(frozen=True)
class WordChain:
    """A Markov chain of first order that begins with any word alike.

    Attributes:
        words: its states, each other than the others.
        weights: of each state its successors', positive integers; probabilities in proportion.
    """

    words: tuple[str, ...]
    weights: tuple[tuple[int, ...], ...]

    @classmethod
    def drawn(cls, words: Sequence[str] = WORDS, seed: int = 0) -> WordChain:
        """A chain with random weights, the same on every machine: products alone, no function of a library's."""
        uniform = random.Random(seed).random
        rows = [tuple(1 + int(_SPREAD * _power(uniform())) for _ in words) for _ in words]
        return cls(tuple(words), tuple(rows))

    @cached_property
    def transitions(self) -> FloatArray:
        """float64 [words, words]: row i holds the probabilities of what follows word i."""
        weights = np.asarray(self.weights, dtype=np.float64)
        share: FloatArray = weights / weights.sum(1, keepdims=True)
        return share

    def texts(self, length: int, seed: int) -> Iterator[tuple[str, ...]]:
        """Words of text after text without end, each of a first word and ``length`` more."""
        uniform = random.Random(seed).random  # alone of random's methods the same in every version of Python
        bounds = [list(accumulate(row)) for row in self.weights]
        while True:
            states = [int(uniform() * len(self.words))]
            for _ in range(length):
                known = bounds[states[-1]]
                states.append(bisect_right(known, int(uniform() * known[-1])))
            yield tuple(self.words[state] for state in states)

    def bits(self, text: Sequence[str]) -> float:
        """-log2 of the probability of a text's words given the first.

        Raises:
            ValueError: a word that the chain has not.
        """
        states = [self.words.index(word) for word in text]
        return float(-sum(np.log2(self.transitions[a, b]) for a, b in pairwise(states)))

    def entropy(self, length: int) -> float:
        """Bits that ``length`` words after the first carry in the mean over all texts: exact, no sample."""
        of_state = -(self.transitions * np.log2(self.transitions)).sum(1)
        return float(sum(marginal @ of_state for marginal in self._marginals(length)))

    def mean_bytes(self, length: int) -> float:
        """UTF-8 bytes of ``length`` words after the first, each behind a space, in the mean over all texts: exact."""
        sizes = np.asarray([1 + len(word.encode()) for word in self.words], dtype=np.float64)
        return float(sum(marginal @ self.transitions @ sizes for marginal in self._marginals(length)))

    def likeliest(self, word: str) -> str:
        """The likeliest successor of a word; of equals the first."""
        row = self.weights[self.words.index(word)]
        return self.words[row.index(max(row))]

    def _marginals(self, length: int) -> Iterator[FloatArray]:
        """Probabilities of the word at each place but the last, float64 [words] each."""
        marginal: FloatArray = np.full(len(self.words), 1 / len(self.words))
        for _ in range(length):
            yield marginal
            marginal = marginal @ self.transitions


def _power(number: float) -> float:
    product = 1.0
    for _ in range(_POWER):
        product *= number
    return product
