"""Each way to break a method changes what it computes, and what it leaves whole is named with the reason."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from harness.data.terms import Term, align
from harness.litmus.mutants import MUTANTS, Mutant, mutants_of
from harness.training.contract_bench import bench
from harness.training.objective import LossParts, Objective
from methods.base import find
from methods.library.alignment import Groups
from methods.library.vocabulary import TokenizerPair

METHODS = ("fkd", "one_to_one", "cdm", "mined", "gold", "uld")
PAIRS = [(name, mutant) for name in METHODS for mutant in mutants_of(find(name)())]
PAIRS += [("alm", mutant) for mutant in mutants_of(find("alm")())]
PAIRS += [("dskd", mutant) for mutant in MUTANTS if mutant.of == "dskd" or "dskd" in dict(mutant.blind)]


@cache
def whole(name: str) -> tuple[float, torch.Tensor]:
    return computed(name, None)


def computed(name: str, mutant: Mutant | None) -> tuple[float, torch.Tensor]:
    """The method's term on four responses, and its gradient at the student's head."""
    made = bench(find(name)())
    method = made.method if mutant is None else mutant.broken(made.method)
    if mutant is not None:
        method.prepare(TokenizerPair(made.sides["student"].vocabulary, made.sides[made.role].vocabulary))
    made.objective = Objective(name, 0.0, (Term(method, made.role, 1.0),))
    made.examples = [align(one.example, made.objective.terms) for one in made.examples]
    parts: LossParts = made.loss(made.batch())
    parts.loss.backward()  # type: ignore[no-untyped-call]
    gradient = made.student.get_output_embeddings().weight.grad
    assert gradient is not None
    return float(parts.kd[0]), gradient


def test_there_are_as_many_as_were_asked_for() -> None:
    assert len(MUTANTS) >= 8
    assert len({mutant.how for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(("name", "mutant"), PAIRS, ids=[f"{name}: {mutant.how}" for name, mutant in PAIRS])
def test_a_broken_method_computes_something_else(name: str, mutant: Mutant) -> None:
    value, gradient = whole(name)
    found, other = computed(name, mutant)
    blind = dict(mutant.blind).get(name)
    same = torch.allclose(gradient, other, rtol=1e-6, atol=1e-12)
    assert same == bool(blind)
    if blind:
        assert found == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("how", "factor"), [("the gradient's sign flipped", -1.0), ("the term 10 times as large", 10.0)]
)
def test_scaled_terms_are_scaled(how: str, factor: float) -> None:
    (mutant,) = (one for one in MUTANTS if one.how == how)
    value, gradient = whole("cdm")
    found, other = computed("cdm", mutant)
    assert found == pytest.approx(factor * value, rel=1e-9)
    assert torch.allclose(other, factor * gradient, rtol=1e-9, atol=1e-15)


def test_a_broken_method_leaves_the_whole_one_whole() -> None:
    method = find("mined")()
    (mutant,) = (one for one in MUTANTS if one.of == "mined")
    broken = mutant.broken(method)
    assert isinstance(broken, type(method))
    assert type(method).prepare is not type(broken).prepare
    assert type(find("mined")()) is type(method)


def test_one_group_off() -> None:
    """By hand: three groups, of which the second has two teacher tokens."""
    groups = Groups.from_lists([[0], [1], [2, 3]], [[0], [1, 2], [3]])

    class Fixed(find("fkd")):  # type: ignore[misc]
        def align(self, response: object) -> Groups:
            return groups

    found = {mutant.how: mutant.broken(Fixed()).align(None) for mutant in MUTANTS[:3]}  # type: ignore[arg-type]
    later, earlier, off = (found[mutant.how].to_lists() for mutant in MUTANTS[:3])
    assert later == ([[0], [1], [2, 3]], [[1], [2, 3], [3]])
    assert earlier == ([[0], [0], [1, 2]], [[0], [1, 2], [3]])
    assert off == ([[0], [1]], [[1, 2], [3]])
    assert np.array_equal(groups.teacher_index, [0, 1, 2, 3])
