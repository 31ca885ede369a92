"""Bits per byte against a direct computation from the model's own logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.tokens import STUDENT, TokenizedExample, tokenize
from harness.evaluate.bits_per_byte import Bits, corpus_bits_per_byte, measure
from tests import tiny

EXAMPLES = [Example(f"x/{i}", prompt, response) for i, (prompt, response) in enumerate(tiny.SAMPLES)]
PAIRS = [("qwen2", "byte_level"), ("gemma2", "byte_fallback"), ("opt", "unigram")]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair[0])
def pair(request: pytest.FixtureRequest) -> tuple[Any, TextSide]:
    architecture, family = request.param
    side = TextSide(tiny.tokenizer(family), template="plain", name=family)
    return tiny.model(architecture, len(side.vocabulary)).eval(), side


def direct(model: Any, example: TokenizedExample) -> float:
    """Bits of the response without its EOS, from the whole sequence alone and unpadded."""
    tokens = example.sides[STUDENT]
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens.sequence)[None]).logits[0].double()
    log_probs = logits.log_softmax(-1)
    places = range(tokens.prompt.size, tokens.length - 1)  # the last token is EOS
    return -sum(float(log_probs[place - 1, tokens.sequence[place]]) for place in places) / math.log(2)


def test_bits_equal_a_direct_computation(pair: tuple[Any, TextSide]) -> None:
    model, side = pair
    examples = tokenize(EXAMPLES, {STUDENT: side}, max_length=200)
    found = measure(model, examples, pad=0)
    assert [item.id for item in found] == [example.id for example in EXAMPLES]
    assert [item.bytes for item in found] == [len(example.response.encode()) for example in EXAMPLES]
    for item, example in zip(found, examples, strict=True):
        assert item.bits == pytest.approx(direct(model, example), rel=2e-6)


def test_batches_and_chunks_change_nothing(pair: tuple[Any, TextSide]) -> None:
    model, side = pair
    examples = tokenize(EXAMPLES, {STUDENT: side}, max_length=200)
    expected = [item.bits for item in measure(model, examples, pad=0)]
    for batch_size, chunk_rows in ((1, 256), (3, 5)):
        found = measure(model, examples, pad=0, batch_size=batch_size, chunk_rows=chunk_rows)
        assert [item.bits for item in found] == pytest.approx(expected, rel=1e-5)


def test_responses_that_a_limit_cuts_are_left_out(pair: tuple[Any, TextSide]) -> None:
    """A cut response would be measured on its easier beginning, and at another place for every tokenizer."""
    model, side = pair
    sizes = [example.sides[STUDENT].length for example in tokenize(EXAMPLES, {STUDENT: side}, max_length=200)]
    examples = tokenize(EXAMPLES, {STUDENT: side}, max_length=max(sizes) - 1)
    done: list[int] = []
    found = measure(model, examples, pad=0, on_batch=done.append)
    assert {item.id for item in found} == {e.id for e, size in zip(EXAMPLES, sizes, strict=True) if size < max(sizes)}
    assert done == [len(found)]


def test_the_corpus_counts_bytes_not_responses() -> None:
    assert corpus_bits_per_byte([Bits("a", 10.0, 10), Bits("b", 90.0, 30)]) == 2.5
    assert math.isnan(corpus_bits_per_byte([]))
