"""The contract of every registered method, in every fidelity in which it differs, and with options that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from methods.base import Method, TeacherKind, registered
from tests.methods import contract

# Options that lead through code of their own, by method.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "gold": [
        {"merge": "observed"},
        {"merge": "product"},
        {"positions": "disagreement"},
        {"sort": "top_k", "top_k": 8},
        {"sort": "counted"},
    ],
    "uld": [{"pairing": "bytes"}, {"sort": "top_k", "top_k": 8}, {"sort": "counted"}],
}


# Methods that read ids as numbers, as documented.
BY_ID = {
    ("cdm", "released"): "drops candidates of one vocabulary by the ids of the other",
    ("mined", "described"): "maps to the lowest id at the minimum distance",
    ("mined", "released"): "reads the teacher's columns at the student's ids",
}


def _all_methods() -> list[Any]:
    made = []
    for name, kind in registered().items():
        fidelities = ("described", "released") if kind.fidelities_differ else ("described",)
        options = [{"fidelity": fidelity} for fidelity in fidelities] + VARIANTS.get(name, [])
        made += [pytest.param(kind(**given), id="-".join([name, *map(str, given.values())])) for given in options]
    return made


METHODS = pytest.mark.parametrize("method", _all_methods())


@METHODS
def test_loss_is_finite(method: Method) -> None:
    contract.check_finite_and_positive(method)


@METHODS
def test_gradient_reaches_the_student_only(method: Method) -> None:
    contract.check_gradient_reaches_the_student_only(method)


@METHODS
def test_kd_is_zero_when_student_and_teacher_are_one(method: Method) -> None:
    if method.teacher is TeacherKind.NONE or not method.zero_at_identity:
        pytest.skip(f"{method.name} does not promise it")
    contract.check_zero_at_identity(method)


@METHODS
def test_permuting_vocabulary_ids_changes_nothing(method: Method) -> None:
    if method.teacher is TeacherKind.NONE:
        pytest.skip(f"{method.name} has no teacher")
    if reason := BY_ID.get((method.name, method.options.fidelity)):
        pytest.skip(f"{method.name} {reason}")
    contract.check_permuting_ids_changes_nothing(method)


@METHODS
def test_batching_changes_nothing(method: Method) -> None:
    contract.check_batching_changes_nothing(method)


@METHODS
def test_a_batch_aligns_like_its_responses(method: Method) -> None:
    if method.teacher is TeacherKind.NONE:
        pytest.skip(f"{method.name} has no teacher")
    contract.check_a_batch_aligns_like_its_responses(method)


@METHODS
def test_nothing_is_mutated(method: Method) -> None:
    contract.check_nothing_is_mutated(method)


@METHODS
def test_masked_example_adds_nothing(method: Method) -> None:
    contract.check_masked_example_adds_nothing(method)


@METHODS
def test_gradient_equals_finite_differences(method: Method) -> None:
    contract.check_gradient_equals_finite_differences(method)


@METHODS
def test_accumulation_changes_nothing(method: Method, tmp_path: Path) -> None:
    contract.check_accumulation_changes_nothing(method, tmp_path)


@METHODS
def test_resumed_run_equals_a_straight_one(method: Method, tmp_path: Path) -> None:
    contract.check_resumed_equals_straight(method, tmp_path)
