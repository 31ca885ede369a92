"""The distillation terms of an objective, and examples aligned for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.tokens import TokenizedExample
from methods.base import Method, Need
from methods.library.alignment import AlignedResponse, Groups


@dataclass(frozen=True)
class Term:
    """One distillation term of an objective.

    Attributes:
        method: its loss.
        teacher: role of the teacher it learns from; the student's own where it has none.
        weight: factor of its KD sum in the total loss.
    """

    method: Method
    teacher: str
    weight: float


@dataclass(frozen=True)
class AlignedExample:
    """A tokenised example with the groups of every term, or what a term will align at the step."""

    example: TokenizedExample
    groups: tuple[Groups | AlignedResponse, ...]


def align(example: TokenizedExample, terms: Sequence[Term]) -> AlignedExample:
    """Align an example for every term; done once, but for the methods that need a model's entropies for it."""
    groups: list[Groups | AlignedResponse] = []
    for term in terms:
        response = example.aligned(term.teacher)
        groups.append(response if Need.ENTROPY in term.method.needs else term.method.align(response))
    return AlignedExample(example, tuple(groups))


def pairs(groups: Groups, before: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Members of each group as token numbers of the response; groups of the prompt are left out."""
    sides = [
        [[int(i) - first for i in members if i >= first] for members in lists]
        for lists, first in zip(groups.to_lists(), before, strict=True)
    ]
    return [(student, teacher) for student, teacher in zip(*sides, strict=True) if student and teacher]
