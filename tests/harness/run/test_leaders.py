"""A teacher that is no better than a student without one is told of while the run goes on, and once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.plan.stages import Cell, Reference
from harness.run import leaders
from harness.store.artefacts import Bits

SPECS = {"student": None, "cross": SimpleNamespace(name="big", model="path:big")}


def made(kind: type, identity: str, **more: Any) -> Any:
    one = object.__new__(kind)
    for name, value in {"task": "gsm8k", "bits": SimpleNamespace(identity=identity), **more}.items():
        object.__setattr__(one, name, value)
    return one


@pytest.mark.parametrize(
    ("teacher", "start", "control", "said"),
    [(4.0, 8.0, 6.0, []), (4.0, 8.0, 3.0, ["control"]), (4.0, 4.0, 2.0, ["warm start", "control"])],
)
def test_whom_a_teacher_does_not_lead_is_said_once(
    teacher: float, start: float, control: float, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {name: [Bits("a", value, 8)] for name, value in (("t", teacher), ("w", start), ("c", control), ("u", 0.1))}
    monkeypatch.setattr(leaders, "BITS", SimpleNamespace(find=lambda store, kind, identity: stored.get(identity)))
    messages: list[str] = []
    recipe = SimpleNamespace(models_by_role=lambda: SPECS, baseline="control")
    found = leaders.Leaders(SimpleNamespace(recipe=recipe), None, SimpleNamespace(message=messages.append))  # type: ignore[arg-type]
    for one in (
        made(Reference, "w", label="warm start", teacher=""),
        made(Reference, "t", label="teacher", teacher="cross"),
        made(Cell, "u", objective=SimpleNamespace(label="uld")),  # that another row is better says nothing
        made(Cell, "c", objective=SimpleNamespace(label="control")),
        made(Cell, "gone", objective=SimpleNamespace(label="control")),
    ):
        found.look(one)
        found.look(one)
    assert [message.partition("no better than ")[2].partition("[/]")[0] for message in messages] == said
    assert all(message.startswith("[yellow]gsm8k: teacher big is") for message in messages)
