"""CSD against a hand value, and against its formula written out over every pair of tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.data.tokens import STUDENT
from methods.base import AlignedChunk
from methods.csd import CSD
from methods.library.alignment import Groups
from methods.library.vocabulary import TokenizerPair, TokenKind, Vocabulary
from tests.methods import contract


def test_a_token_over_two_by_hand() -> None:
    """Student 20 or 21, teacher 2 and then 0 or 1: what begins with 2 is compared, the rest is one mass."""
    texts = ("20", "21", "2", "x"), ("2", "0", "1", "x")
    ours, theirs = (
        Vocabulary(name, tuple(t.encode() for t in side), np.full(4, TokenKind.ORDINARY, np.int8), (), name, (), side)
        for name, side in zip(("student", "teacher"), texts, strict=True)
    )
    method = CSD(merged_weight=0.5)
    method.prepare(TokenizerPair(ours, theirs))
    student = torch.tensor([[0.5, 0.2, 0.1, 0.2]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.8, 0.1, 0.05, 0.05], [0.1, 0.6, 0.2, 0.1]], dtype=torch.float64).log()
    chunk = AlignedChunk.of(Groups.from_lists([[0]], [[0, 1]]), student, teacher, np.array([0]), np.array([0, 1]))
    p, q = (0.5, 0.2, 0.3), (0.8 * 0.6, 0.8 * 0.2, 1 - 0.8 * 0.8)
    expected = 0.5 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert float(method.loss(chunk).kd) == pytest.approx(expected, rel=1e-12)


def test_loss_equals_the_formula() -> None:
    """Supports found by comparing the bytes of every token of one side with those of every other."""
    method = CSD(merged_weight=0.7)
    made = contract.bench(method)
    ours, theirs = (made.sides[role].vocabulary for role in (STUDENT, made.role))
    total, kinds = 0.0, {"1-1": 0, "1-n": 0, "n-1": 0, "n-m": 0}
    for student, teacher in contract.seen(made):
        for left, right in contract.chunks_by_walking(student.ends, teacher.ends):
            kind = "-".join("1" if len(side) == 1 else letter for side, letter in ((left, "n"), (right, "m")))
            kinds[kind.replace("1-m", "1-n")] += 1
            paths = [
                math.exp(sum(side.realised[i] for i in members[:-1]))
                for side, members in ((student, left), (teacher, right))
            ]
            before = [
                b"".join(v.token_bytes[side.ids[i]] for i in members[:-1])
                for v, side, members in ((ours, student, left), (theirs, teacher, right))
            ]
            own = student.ids[left[-1]], teacher.ids[right[-1]]
            pairs = {own} if kind != "1-1" else set()
            if kind != "n-m":
                pairs |= same_text(ours, theirs, before[0], before[1])
            p, q = student.rows[left[-1]].softmax(-1), teacher.rows[right[-1]].softmax(-1)
            ps = [paths[0] * float(p[u]) for u, _ in pairs]
            qs = [paths[1] * float(q[k]) for _, k in pairs]
            ps, qs = [*ps, 1 - sum(ps)], [*qs, 1 - sum(qs)]
            assert min(ps[-1], qs[-1]) > 1e-7
            value = sum(b * math.log(b / a) for a, b in zip(ps, qs, strict=True))
            assert value >= 0
            total += value * (1 if kind == "1-1" else 0.7)
    assert min(kinds[kind] for kind in ("1-1", "n-1")) > 2, kinds
    assert float(made.loss(made.batch()).kd[0]) == pytest.approx(total, rel=1e-8)


def same_text(ours: Vocabulary, theirs: Vocabulary, left: bytes, right: bytes) -> set[tuple[int, int]]:
    """Pairs of tokens that spell the same behind what precedes them; special ones by their name, and first."""
    spelled: dict[bytes, int] = {}
    for kind in (TokenKind.ORDINARY, TokenKind.FALLBACK):
        for k in np.flatnonzero(theirs.kinds == kind):
            spelled.setdefault(right + theirs.token_bytes[k], int(k))
    found = {
        (int(u), spelled[left + ours.token_bytes[u]])
        for u in np.flatnonzero(ours.kinds == TokenKind.ORDINARY)
        if left + ours.token_bytes[u] in spelled
    }
    if left or right:
        return found
    special = {theirs.token_bytes[k]: int(k) for k in np.flatnonzero(theirs.kinds == TokenKind.SPECIAL)}
    for u in np.flatnonzero(ours.kinds == TokenKind.SPECIAL):
        found.add((int(u), special[ours.token_bytes[u]]))
    return found
