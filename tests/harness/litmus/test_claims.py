"""Claims: how far a student went, and what is made of it."""

from __future__ import annotations

import math

import pytest

from harness.litmus.claims import KNOWN_FAILURES, claim_of, is_noticed, share_closed
from methods.base import TeacherKind, registered

SAME, CROSS = TeacherKind.SAME_TOKENIZER, TeacherKind.CROSS_TOKENIZER


@pytest.mark.parametrize(("end", "share"), [(1.0, 0.0), (0.5, 1.0), (0.75, 0.5), (1.5, -1.0), (math.inf, -math.inf)])
def test_shares_of_the_way(end: float, share: float) -> None:
    assert share_closed(1.0, end, 0.5) == share


@pytest.mark.parametrize(
    ("kind", "closed", "kept"),
    [(SAME, 0.79, False), (SAME, 0.8, True), (CROSS, 0.09, False), (CROSS, 0.11, True), (CROSS, math.nan, False)],
)
def test_a_claim_is_kept_or_not(kind: TeacherKind, closed: float, kept: bool) -> None:
    claim = claim_of("row", "mine", kind, closed)
    assert claim.kept == claim.as_expected == kept


def test_a_teacher_that_knows_nothing_teaches_nothing() -> None:
    claim = claim_of("row", "mine", CROSS, share_closed(1.0, 0.9, 1.0))
    assert not claim.kept
    assert "no more than the start" in claim.found


@pytest.mark.parametrize(
    ("closed", "whole", "noticed"),
    [(0.33, 0.67, True), (0.6, 0.67, False), (0.09, 0.11, True), (-math.inf, 0.5, True), (0.9, 0.86, False)],
)
def test_a_broken_method_is_told_from_the_whole_one(closed: float, whole: float, noticed: bool) -> None:
    assert is_noticed(closed, whole, CROSS) == noticed


def test_a_failure_that_is_known_must_be_there() -> None:
    assert set(KNOWN_FAILURES) <= set(registered())
    assert claim_of("uld", "uld", CROSS, -0.5).as_expected
    assert not claim_of("uld", "uld", CROSS, 0.5).as_expected
