"""The word chain: its exact entropy against all texts of a small chain, and against a long sample of the real one."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest

from harness.base.word_chain import WORDS, WordChain

SMALL = WordChain(("a", "bc", "é"), ((1, 2, 5), (4, 1, 1), (3, 3, 10)))


def every_text(chain: WordChain, length: int) -> list[tuple[tuple[str, ...], Fraction]]:
    """Each text with its probability, the first word's among it, as a fraction."""
    found = []
    for states in itertools.product(range(len(chain.words)), repeat=length + 1):
        probability = Fraction(1, len(chain.words))
        for before, after in itertools.pairwise(states):
            probability *= Fraction(chain.weights[before][after], sum(chain.weights[before]))
        found.append((tuple(chain.words[state] for state in states), probability))
    return found


@pytest.mark.parametrize("length", [1, 2, 5])
def test_entropy_and_bytes_are_those_of_all_texts(length: int) -> None:
    texts = every_text(SMALL, length)
    assert sum(probability for _, probability in texts) == 1
    given_first = [(text, probability, probability * len(SMALL.words)) for text, probability in texts]
    entropy = -sum(float(p) * math.log2(conditional) for _, p, conditional in given_first)
    size = sum(float(p) * len("".join(f" {word}" for word in text[1:]).encode()) for text, p, _ in given_first)
    assert SMALL.entropy(length) == pytest.approx(entropy, rel=1e-12)
    assert SMALL.mean_bytes(length) == pytest.approx(size, rel=1e-12)
    for text, _, conditional in given_first:
        assert SMALL.bits(text) == pytest.approx(-math.log2(conditional), rel=1e-12)


def test_a_long_sample_has_the_entropy() -> None:
    """5,000 texts: their mean is within four of its own standard errors."""
    chain = WordChain.drawn()
    bits = [chain.bits(text) for text in itertools.islice(chain.texts(12, seed=7), 5_000)]
    mean = sum(bits) / len(bits)
    error = math.sqrt(sum((each - mean) ** 2 for each in bits) / (len(bits) - 1) / len(bits))
    assert error < 0.1
    assert abs(mean - chain.entropy(12)) < 4 * error


def test_texts_are_drawn_by_the_weights() -> None:
    """Successors of a word in a long sample, within four standard errors of its probabilities."""
    pairs = list(itertools.islice(SMALL.texts(1, seed=3), 12_000))
    after = [second for first, second in pairs if first == "a"]
    assert len(after) == pytest.approx(4_000, rel=0.1)
    for place, word in enumerate(SMALL.words):
        share = SMALL.weights[0][place] / sum(SMALL.weights[0])
        error = math.sqrt(share * (1 - share) / len(after))
        assert abs(after.count(word) / len(after) - share) < 4 * error


def test_the_source_is_the_same_everywhere() -> None:
    """Weights and texts by integers and products alone: as they were when docs/known_truth.md was written."""
    chain = WordChain.drawn()
    assert len(chain.words) == len(set(WORDS)) == 29
    assert chain.weights[0][:6] == (146, 76, 3, 1, 8, 2)
    assert next(chain.texts(5, seed=0)) == ("naïve", "hear", "stove", "story", "right", "care")
    assert chain.entropy(12) / chain.mean_bytes(12) == pytest.approx(0.63343, abs=1e-5)


def test_a_word_of_another_language_is_refused() -> None:
    with pytest.raises(ValueError, match="x"):
        SMALL.bits(("a", "x"))
