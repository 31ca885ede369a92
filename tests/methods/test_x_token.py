"""X-Token against hand values in float64, and against its formula written out a group at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.tokens import STUDENT
from methods.base import AlignedChunk
from methods.library import projection as library
from methods.library.alignment import Groups
from methods.library.maps import Tables, exact_map
from methods.library.projection import projection
from methods.library.vocabulary import TokenizerPair
from methods.x_token import XToken
from tests.methods import contract

# (a, 201, b) of the student, (a, 2, 0, 1, b) of the teacher
STUDENT_LOGITS = torch.tensor([[0, 1, -1], [1, 0, 0]], dtype=torch.float64)
TEACHER_LOGITS = torch.tensor(
    [[0, 2, -1, 0, -1], [-1, 0, 2, 1, 0], [0, 0, 0, 2, -1], [1, 0, 0, 0, 0]], dtype=torch.float64
)
GROUPS = Groups.from_lists([[0], [1]], [[0, 1, 2], [3]])
LAST = Groups.from_lists([[1]], [[3]])


def by_hand(groups: Groups, **options: Any) -> float:
    method = XToken(**options)
    method.tables = Tables(
        student=torch.tensor([0, 1, 1, 1, 2]),
        teacher=torch.tensor([0, 1, 2, 3, 4]),
        weight=torch.tensor([1, 0.9 / 0.999, 0.09 / 0.999, 0.009 / 0.999, 1], dtype=torch.float64),
    )
    tokens = np.array([1, 0]), np.array([1, 2, 3, 0])
    return float(method.loss(AlignedChunk.of(groups, STUDENT_LOGITS, TEACHER_LOGITS, *tokens)).kd)


@pytest.mark.parametrize(
    ("groups", "options", "value"),
    [
        (GROUPS, {"fidelity": "released"}, (0.672283 + 0.721416) / 2),
        (GROUPS, {"fidelity": "released", "columns": 4}, (0.712995 + 0.832356) / 2),
        (LAST, {"fidelity": "released"}, 0.721416),
        (LAST, {}, 0.721416),
    ],
    ids=["all columns", "four columns", "one token", "one token described"],
)
def test_two_groups_by_hand(groups: Groups, options: dict[str, Any], value: float) -> None:
    assert by_hand(groups, **options) == pytest.approx(value, abs=1e-6)


def test_the_projection_is_written_in_the_teachers_tokens() -> None:
    """Against a text cut by transformers' own call, token by token."""
    made = contract.bench(XToken())
    ours, theirs = made.sides[STUDENT], made.sides[made.role]
    pair = TokenizerPair(ours.vocabulary, theirs.vocabulary)
    found = projection(pair)
    exact = exact_map(pair.student, pair.teacher)
    several = 0
    for index in range(len(pair.student)):
        here = found.student == index
        pieces, weights = found.teacher[here].tolist(), found.weight[here].tolist()
        if exact[index] >= 0:
            assert (pieces, weights) == ([exact[index]], [1.0])
        elif pieces:
            assert sum(weights) == pytest.approx(1)
            spelled = b"".join(pair.teacher.token_bytes[piece] for piece in pieces)
            assert pair.student.token_bytes[index].startswith(spelled)
            expected = theirs.tokenizer.encode("a" + ours.tokenizer.decode([index]), add_special_tokens=False)
            if spelled == pair.student.token_bytes[index] and spelled.startswith(b" "):
                assert pieces == expected[-len(pieces) :]
                several += 1
            assert weights == pytest.approx(
                [0.1**i / sum(0.1**j for j in range(len(pieces))) for i in range(len(pieces))]
            )
    assert several > 0


def test_the_weighted_map_takes_the_largest_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that a token of the teacher begins alike, the first by its bytes; one's second piece is none of it."""
    made = contract.bench(XToken())
    pair = TokenizerPair(made.sides[STUDENT].vocabulary, made.sides[made.role].vocabulary)
    a, b, c, d = (pair.student.byte_tokens[ord(letter)] for letter in "abcd")
    entries = [(a, 7, 1.0), (b, 8, 0.9), (b, 9, 0.1), (d, 8, 0.9), (c, 8, 0.9)]
    parts = (torch.tensor(part) for part in zip(*sorted(entries, key=lambda e: (e[0], -e[2])), strict=True))
    monkeypatch.setattr(library, "projection", lambda pair: library.Projection(*parts))
    mapped = library.weighted_map(pair)
    assert {int(t): int(mapped[t]) for t in np.flatnonzero(mapped >= 0)} == {7: a, 8: b}


def test_the_weighted_map_is_one_to_one_and_begins_with_what_is_equal() -> None:
    made = contract.bench(XToken())
    pair = TokenizerPair(made.sides[STUDENT].vocabulary, made.sides[made.role].vocabulary)
    mapped, exact = library.weighted_map(pair), exact_map(pair.teacher, pair.student)
    assert (mapped[exact >= 0] == exact[exact >= 0]).all()
    assert len(set(mapped[mapped >= 0].tolist())) == (mapped >= 0).sum()


@pytest.mark.parametrize(
    "options", [{}, {"columns": 20, "temperature": 2.0}, {"fidelity": "released", "columns": 50}], ids=str
)
def test_loss_equals_the_formula(options: dict[str, Any]) -> None:
    method = XToken(**options)
    made = contract.bench(method)
    pair = TokenizerPair(made.sides[STUDENT].vocabulary, made.sides[made.role].vocabulary)
    entries, size = projection(pair), len(pair.teacher)
    matrix = torch.zeros(len(pair.student), size, dtype=torch.float64)
    matrix.index_put_((entries.student, entries.teacher), entries.weight, accumulate=True)  # 11 is 1 and 1
    tau, most, total = options.get("temperature", 1.0), options.get("columns", 8192), 0.0
    for student, teacher in contract.seen(made):
        chunks = contract.chunks_by_walking(student.ends, teacher.ends)
        rows = [j for _, right in chunks for j in right]
        kept = teacher.rows[rows].max(0).values.topk(min(most, size)).indices
        value = 0.0
        for left, right in chunks:
            if options.get("fidelity") == "released":
                p = (torch.stack([student.rows[i].softmax(-1) for i in left]).mean(0) @ matrix)[kept]
                log_p = (p / (p.sum() + 1e-10) + 1e-10).log()
                log_q = torch.stack([teacher.rows[j][kept].log_softmax(-1) for j in right]).mean(0)
                value += float((log_q.exp() * (log_q - log_p)).sum()) / len(chunks)
                continue
            p, q = ((side.rows / tau).softmax(-1) for side in (student, teacher))
            path = [
                math.prod(max(float(side[i, seen.ids[i]]), 1e-8) for i in members[:-1])
                for side, seen, members in ((p, student, left), (q, teacher, right))
            ]
            ours, theirs = path[0] * p[left[-1]] @ matrix, path[1] * q[right[-1]]
            for t in theirs.topk(min(most, size)).indices:
                b, a = max(float(theirs[t]), 1e-10), max(float(ours[t]), 1e-10)
                value += tau**2 * b * math.log(b / a)
        total += value
    assert float(made.loss(made.batch()).kd[0]) == pytest.approx(total, rel=1e-8)
