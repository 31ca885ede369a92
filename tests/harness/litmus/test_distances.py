"""Distances to the truth and to a teacher: by hand, and against the engine's own bits per byte."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.data.tokens import STUDENT, SideTokens, TokenizedExample
from harness.evaluate.bits_per_byte import corpus_bits_per_byte, measure
from harness.litmus.distances import Said, bits_per_byte, chunk_difference, divergence, said
from harness.run.workbench import as_student
from harness.training.contract_bench import bench
from methods.base import find


def says(*probabilities: list[float], tokens: list[int]) -> Said:
    return Said(torch.tensor(probabilities, dtype=torch.float64).log(), torch.tensor(tokens))


def example(student: list[int], teacher: list[int], size: int) -> TokenizedExample:
    """Of tokens that end on these bytes."""
    nothing = np.zeros(1, dtype=np.int64)
    sides = {
        role: SideTokens(nothing, np.zeros(len(ends), dtype=np.int64), np.asarray(ends, dtype=np.int64))
        for role, ends in ((STUDENT, student), ("cross", teacher))
    }
    return TokenizedExample("x", sides, False, size)


def test_divergence_by_hand() -> None:
    teacher, student = says([0.5, 0.5], tokens=[0]), says([0.25, 0.75], tokens=[1])
    assert divergence([teacher], [student]) == pytest.approx(0.5 * 1 + 0.5 * math.log2(0.5 / 0.75))
    assert divergence([teacher], [teacher]) == 0


def test_chunks_by_hand() -> None:
    """Bytes 3 and 5 are common; the teacher's second token ends inside the first chunk; the ends are left out."""
    student = says([0.5, 0.5], [0.25, 0.75], [0.01, 0.99], tokens=[0, 0, 0])
    teacher = says([0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1], tokens=[0, 0, 1, 1])
    one = example([3, 5, 5], [2, 3, 5, 5], 5)
    # log2 of the chunks: student -1 and -2; teacher -2 and -1
    assert chunk_difference([teacher], [student], [one], "cross") == pytest.approx(2 / 5)
    assert bits_per_byte([student], [one]) == pytest.approx(3 / 5)
    assert bits_per_byte([teacher], [one]) == pytest.approx(3 / 5)


@pytest.mark.parametrize("role", [STUDENT, "cross"])
def test_bits_are_those_of_a_run(role: str) -> None:
    made = bench(find("one_to_one")(), dtype=torch.float32)
    model = made.student if role == STUDENT else made.teacher
    examples = [aligned.example for aligned in made.examples]
    run = corpus_bits_per_byte(measure(model, [as_student(one, role) for one in examples], pad=0))
    assert bits_per_byte(said(model, examples, role, 0), examples) == pytest.approx(run, rel=1e-5)
