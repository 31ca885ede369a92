"""The task whose truth is known: its texts, what the truth says of them, and how differently they are cut."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from harness.data.rows import held_out
from harness.data.templates import load_sides
from harness.data.tokens import STUDENT, tokenize
from harness.recipe.load import load_recipe
from harness.tasks.known_truth import KnownTruth, KnownTruthSettings
from methods.library.alignment import group_bytes

RECIPE = load_recipe("known_truth")


def made(**settings: int) -> KnownTruth:
    return KnownTruth(KnownTruthSettings(**settings), None)


def test_the_truth_of_the_references_is_their_own_probability() -> None:
    task = made(test_items=20, words=4)
    chain, bits, size = task.chain, 0.0, 0
    for example in task.reference_examples():
        words = [example.prompt, *example.response.split()]
        assert len(words) == 5
        assert example.response == "".join(f" {word}" for word in words[1:])
        for before, after in itertools.pairwise(words):
            weights = chain.weights[chain.words.index(before)]
            bits -= math.log2(weights[chain.words.index(after)] / sum(weights))
        size += len(example.response.encode())
    assert task.true_bits_per_byte == pytest.approx(bits / size, rel=1e-12)


def test_the_truth_of_many_references_is_the_entropy() -> None:
    task = made(test_items=4000)
    assert task.true_bits_per_byte == pytest.approx(task.entropy_per_byte, rel=5e-3)


def test_no_test_text_is_trained_on() -> None:
    task = made()
    trained, tested = (
        {(example.prompt, example.response) for example in examples}
        for examples in (task.training_examples(), task.reference_examples())
    )
    assert len(trained) == 4096
    assert len(tested) == 150
    assert not trained & tested


def test_held_out_texts_leave_those_that_begin_with_the_same_word() -> None:
    """All texts begin with one of 29 words: by their prompts alone, nothing would be left to train on."""
    task = KnownTruth(KnownTruthSettings(train_items=400), Path())
    train, dev = held_out(task.training_examples(), 40, task.question)
    assert (len(train), len(dev)) == (360, 40)
    assert {one.prompt for one in dev} <= {one.prompt for one in train}
    assert not {one.prompt + one.response for one in dev} & {one.prompt + one.response for one in train}


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        ("the cat and", 100.0),
        (" the  cat\nand ", 100.0),
        ("the cat", 0.0),
        ("the cat and so", 0.0),
        ("the cat xx", 0.0),
    ],
)
def test_a_well_formed_answer_has_so_many_known_words(answer: str, mark: float) -> None:
    task = made(test_items=1, words=3)
    (request,) = task.requests()
    scores = task.score({"student": {request.key: answer}}, Path(), False)
    assert scores["student"].values == {"well_formed": {request.id: mark}}


def test_two_tokenizers_cut_the_texts_differently() -> None:
    """As docs/known_truth.md says: about 11 % of the student's tokens are not 1-1, and bytes fall back."""
    sides = load_sides(RECIPE.models_by_role(), lambda line: None)
    assert {role: len(side.vocabulary) for role, side in sides.items()} == {STUDENT: 312, "same": 312, "cross": 327}
    assert sides[STUDENT].vocabulary.digest == sides["same"].vocabulary.digest
    examples = tokenize(made().reference_examples(), sides, RECIPE.limits.length)
    assert not any(example.cut for example in examples)
    tokens = sum(example.sides[STUDENT].response.size for example in examples)
    alike = sum(
        group_bytes(example.sides[STUDENT].ends, example.sides["cross"].ends).only_one_to_one().count
        for example in examples
    )
    assert 1 - alike / tokens == pytest.approx(0.11, abs=0.01)
    pieces = {token for example in examples for token in example.sides["cross"].response.tolist()}
    assert "<0xC3>" in {sides["cross"].tokenizer.convert_ids_to_tokens(token) for token in pieces}
