"""SimCT against hand values, and against its formula written out a unit at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.data.tokens import STUDENT
from methods.base import AlignedChunk
from methods.library.alignment import AlignedResponse, Groups
from methods.library.maps import Tables, exact_map
from methods.simct import SimCT
from tests.methods import contract

EACH = pytest.mark.parametrize("fidelity", ["described", "released"])


def by_hand(fidelity: str, added: float = 0.0) -> float:
    """Shared ids 0 to 2. The first unit is token 0 on both sides; the second 3 of the student, 1 and 4 of the teacher.

    Args:
        added: to all logits of the teacher's last row.
    """
    method = SimCT(fidelity=fidelity)
    shared = torch.arange(3)
    method.tables = Tables(ours=shared, theirs=shared, student_of_teacher=torch.tensor([0, 1, 2, -1, -1]))
    student = torch.tensor([[2, 0, 1, -1], [0, 1, 0, 2]], dtype=torch.float64)
    teacher = torch.tensor([[1, 0, 1, -1, 0], [0, 2, 0, 0, 1], [0, 0, 0, 1, 3]], dtype=torch.float64)
    teacher[2] += added
    groups = Groups.from_lists([[0], [1]], [[0], [1, 2]])
    return float(method.loss(AlignedChunk.of(groups, student, teacher, np.array([0, 3]), np.array([0, 1, 4]))).kd)


@pytest.mark.parametrize(
    ("fidelity", "added", "value"),
    [
        ("described", 0, 0.119630 + 0.077564),
        ("described", 5, 0.119630 + 0.077564),
        ("released", 0, 0.119630 + 0.047901),
        ("released", 5, 0.119630 + 0.512128),
    ],
)
def test_two_units_by_hand(fidelity: str, added: float, value: float) -> None:
    """A constant in a later row changes what the released code computes, and nothing else."""
    assert by_hand(fidelity, added) == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "described", "released"),
    [
        ("a b c d", "ab c d", [("a b", "ab"), ("c", "c"), ("d", "d")], [("a b c", "ab c"), ("d", "d")]),
        ("a b cd", "ab c d", [("a b", "ab"), ("cd", "c d")], []),
    ],
    ids=["swallows the next", "finds nothing"],
)
def test_released_units_end_with_tokens_that_both_have(
    ours: str, theirs: str, described: list[tuple[str, str]], released: list[tuple[str, str]]
) -> None:
    texts = sorted({*ours.split(), *theirs.split()})
    sides = [[texts.index(token) for token in side.split()] for side in (ours, theirs)]
    ends = [np.cumsum([len(token) for token in side.split()]) for side in (ours, theirs)]
    response = AlignedResponse(np.asarray(sides[0]), np.asarray(sides[1]), ends[0], ends[1])
    for fidelity, expected in (("described", described), ("released", released)):
        method = SimCT(fidelity=fidelity)
        method._student_of_teacher = np.arange(len(texts))
        lists = method.align(response).to_lists()
        words = [
            tuple(
                " ".join(side.split()[i] for i in members) for side, members in zip((ours, theirs), unit, strict=True)
            )
            for unit in zip(*lists, strict=True)
        ]
        assert words == expected


@EACH
def test_loss_equals_the_formula(fidelity: str) -> None:
    method = SimCT(fidelity=fidelity)
    made = contract.bench(method)
    mapping = exact_map(made.sides[made.role].vocabulary, made.sides[STUDENT].vocabulary)
    shared = [(int(s), t) for t, s in enumerate(mapping) if s >= 0]
    total, several = 0.0, 0
    for pair in contract.seen(made):
        for unit in units(pair, mapping, fidelity):
            alone = len(unit[0]) == len(unit[1]) == 1 and mapping[pair[1].ids[unit[1][0]]] == pair[0].ids[unit[0][0]]
            several += not alone
            scores = []
            for column, (side, members) in enumerate(zip(pair, unit, strict=True)):
                rows = side.rows if fidelity == "released" else side.rows.log_softmax(-1)
                found = [rows[members[0], both[column]] for both in shared]
                if not alone:
                    found.append(sum(rows[i, side.ids[i]] for i in members) / len(members))
                scores.append(torch.stack(found).log_softmax(-1))
            total += float((scores[0].exp() * (scores[0] - scores[1])).sum())
    parts = made.loss(made.batch())
    assert float(parts.kd[0]) == pytest.approx(total, rel=1e-9)
    assert float(parts.diagnostics["units of several tokens"][0]) == several > 5


def units(
    pair: tuple[contract.Seen, contract.Seen], mapping: np.ndarray, fidelity: str
) -> list[tuple[list[int], list[int]]]:
    chunks = contract.chunks_by_walking(pair[0].ends, pair[1].ends)
    if fidelity == "described":
        return chunks
    made: list[tuple[list[int], list[int]]] = []
    ours: list[int] = []
    theirs: list[int] = []
    for left, right in chunks:
        ours, theirs = ours + left, theirs + right
        if len(left) == len(right) == 1 and mapping[pair[1].ids[right[0]]] == pair[0].ids[left[0]]:
            made.append((ours, theirs))
            ours, theirs = [], []
    return made
