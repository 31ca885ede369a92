"""What steps say of rows: whose teacher is hardly heard."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.results import diagnostics


def cell(row: str, task: str, seed: int, weights: list[float], **more: Any) -> dict[str, Any]:
    return {
        "method": row, "fidelity": "", "role": "student", "task": task, "seed": seed, "weights": weights,
        "stages": {"student": f"{row}/{task}/{seed}"}, **more,
    }  # fmt: skip


RATIOS = {
    "gold/gsm8k/0": [[0.02, 0.06]],  # 0.04 and 0.08: 0.06 in the mean
    "gold/gsm8k/1": [[0.08, float("nan")]],  # a step without cross-entropy
    "gold/dolly/0": [[0.3, 0.1]],
    "uld/gsm8k/0": [[0.09, 0.09]],  # but its weight is three times the cross-entropy's
    "on_policy/gsm8k/0": [[0.01, 0.01]],  # no cross-entropy to be beside
    "dual/gsm8k/0": [[0.07, 0.07], [0.05, 0.05]],  # 0.5 of each: 0.06 of the whole weight
}
CELLS = [
    cell("gold", "gsm8k", 0, [0.5, 0.5]),
    cell("gold", "gsm8k", 1, [0.5, 0.5]),
    cell("gold", "dolly", 0, [0.5, 0.5]),
    cell("uld", "gsm8k", 0, [0.5, 1.5]),
    cell("on_policy", "gsm8k", 0, [0.0, 1.0]),
    cell("dual", "gsm8k", 0, [0.5, 0.25, 0.25]),
    cell("control", "gsm8k", 0, [1.0]),
    cell("teacher", "gsm8k", 0, [], stages={}),
]


def test_a_row_whose_kd_gradient_is_under_a_tenth_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(store: Any, kind: str, identity: str) -> list[dict[str, float]]:
        terms = RATIOS[identity]
        return [{f"kd_ce_ratio_{k}": ratios[step] for k, ratios in enumerate(terms)} for step in range(2)]

    monkeypatch.setattr(diagnostics, "STEPS", SimpleNamespace(kept=kept))
    notes = diagnostics.hardly_heard({"cells": CELLS}, None)  # type: ignore[arg-type]
    assert [note.partition(":")[0] for note in notes] == ["gold", "dual"]
    assert "(0.06 on gsm8k)" in notes[0]
    assert "(0.06 on gsm8k)" in notes[1]


def test_a_record_of_before_has_no_weights_and_no_footnotes() -> None:
    old = [{name: value for name, value in one.items() if name != "weights"} for one in CELLS]
    assert diagnostics.hardly_heard({"cells": old}, None) == []  # type: ignore[arg-type]
