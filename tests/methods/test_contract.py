"""The contract of every registered method, in every fidelity in which it differs, and with options that matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.training import contract
from methods.base import AlignedChunk, LossSums, Method, registered
from methods.fkd import FKD

# Options that lead through code of their own, by method.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "cdm": [{"alignment": "bytes"}, {"pieces": "first"}, {"pieces": "mean"}],
    "grpo": [{"beta": 0.5, "normalize": "samples"}],
    "gold": [
        {"merge": "observed"},
        {"merge": "product"},
        {"positions": "disagreement"},
        {"unmatched": "rest"},
        {"sort": "top_k", "top_k": 8},
        {"sort": "counted"},
    ],
    "uld": [{"pairing": "bytes"}, {"sort": "top_k", "top_k": 8}, {"sort": "counted"}],
    "x_token": [{"projection": "learnt"}, {"fidelity": "released", "columns": 40}],
}


def _all_methods() -> list[Any]:
    made = []
    for name, kind in registered().items():
        fidelities = ("described", "released") if kind.fidelities_differ else ("described",)
        options = [{"fidelity": fidelity} for fidelity in fidelities] + VARIANTS.get(name, [])
        made += [pytest.param(kind(**given), id="-".join([name, *map(str, given.values())])) for given in options]
    return made


METHODS = pytest.mark.parametrize("method", _all_methods())


TRAINED = ("accumulation does not matter", "a resumed training equals a straight one")


def _promises() -> list[Any]:
    """Every promise of every method; trainings, which take seconds, of a method's further forms at night."""
    made, seen = [], set()
    for method in _all_methods():
        (kept,) = method.values
        for promise in contract.PROMISES:
            marks = [pytest.mark.slow, pytest.mark.nightly] if promise in TRAINED and kept.name in seen else []
            made.append(pytest.param(kept, promise, id=f"{method.id}-{promise}", marks=marks))
        seen.add(kept.name)
    return made


@pytest.mark.parametrize(("method", "promise"), _promises())
def test_a_method_keeps_its_promises(method: Method, promise: str, tmp_path: Path) -> None:
    if reason := contract.not_promised(promise, method):
        pytest.skip(reason)
    contract.keep(promise, method, tmp_path)


class Liar(FKD):
    """Breaks one promise after the other, as ``lie`` says."""

    name, fidelities_differ, lie = "liar", False, ""

    def loss(self, chunk: AlignedChunk) -> LossSums:
        sums, student = super().loss(chunk), chunk.student.logits
        if self.lie == "is infinite":
            return replace(sums, kd=sums.kd / 0)
        if self.lie == "takes a mean":
            return LossSums(sums.kd / chunk.groups)
        if self.lie == "hides its gradient":
            return LossSums.closed(student, sums.kd.detach(), 0.9 * sums.gradient)
        if self.lie == "reads ids":
            return LossSums(sums.kd * student[:, 7].exp().sum())
        if self.lie == "writes":
            chunk.teacher.logits.mul_(2)
            chunk.student.targets.fill_(3)
        if self.lie == "remembers":
            Liar.calls += 1
            return LossSums(sums.kd * Liar.calls)
        if self.lie == "fails":
            raise RuntimeError("no such luck")
        return sums

    calls = 0


@pytest.mark.parametrize(
    ("lie", "broken"),
    [
        ("is infinite", {"the loss is finite"}),
        ("takes a mean", {"batching does not matter", "accumulation does not matter"}),
        ("hides its gradient", {"the gradient equals finite differences"}),
        ("reads ids", {"ids of tokens do not matter"}),
        ("writes", {"nothing is changed"}),
        ("remembers", {"nothing is changed", "batching does not matter"}),
        ("fails", set(contract.PROMISES) - {"a batch aligns like its responses"}),
    ],
)
def test_a_broken_promise_is_told(monkeypatch: pytest.MonkeyPatch, lie: str, broken: set[str]) -> None:
    """What `check_method` says of a plug-in; of one that keeps its word nothing."""
    monkeypatch.setattr(contract, "find", lambda name: Liar)
    monkeypatch.setattr(Liar, "lie", lie)
    found = {promise: detail for promise, ok, detail in contract.check_method("liar") if ok is False}
    assert found.keys() >= broken
    assert all(found.values())
    if lie == "fails":
        assert found["the loss is finite"] == "RuntimeError: no such luck"


def test_a_method_that_keeps_its_word_is_told_so() -> None:
    checked = list(contract.check_method("control"))
    assert [promise for promise, ok, _ in checked if ok is False] == []
    assert {detail for _, ok, detail in checked if ok is None} == {"control has no teacher"}
    assert sum(bool(ok) for _, ok, _ in checked) == len(contract.PROMISES) - 3
