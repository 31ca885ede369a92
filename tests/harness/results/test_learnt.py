"""What stands beside the scores: distances, ends, gradients and masses, by hand; what a reader is warned of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from harness.results import learnt
from harness.store.artefacts import Apart
from tests.harness.results.test_diagnostics import cell
from tests.harness.results.test_outcomes import COUNTED

DIAGNOSTICS = pd.DataFrame(
    [
        {"method": "gold", "task": "codem", "KD/CE gradient norm": 0.125, "teacher mass covered": 0.83},
        {"method": "dual", "task": "codem", "KD/CE gradient norm": 2.0, "second KD/CE gradient norm": 0.5},
        {"method": "one_to_one", "task": "codem", "KD/CE gradient norm": 1.0, "teacher mass covered": 0.95},
    ]
)
STORED = {
    "g0": [Apart("a", 3.0, 2, None, 5), Apart("b", 1.0, 6, None, 5)],  # 4 bits over 8 bytes
    "g1": [Apart("a", 8.0, 8, None, 5)],
    "s0": [Apart("a", 2.0, 8, 4.0, 2), Apart("b", 2.0, 8, 2.0, 4)],  # 6 bits over 6 tokens
}


def values(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    found = SimpleNamespace(find=lambda store, kind, identity: STORED.get(identity))
    monkeypatch.setattr(learnt, "APART", found)
    frame = learnt.collect_learnt(record, None, COUNTED, DIAGNOSTICS)  # type: ignore[arg-type]
    return {(line["row"], line["measure"]): line["value"] for _, line in frame.iterrows()}


def test_measures_are_means_over_seeds_of_corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [
        cell("gold", "codem", 0, [0.5, 0.5], apart={"big": "g0", "same": "s0"}),
        cell("gold", "codem", 1, [0.5, 0.5], apart={"big": "g1"}),
        cell("uld", "codem", 0, [0.5, 0.5], apart={"big": "not stored"}),
        cell("fkd", "codem", 0, [0.5, 0.5]),
    ]
    found = values({"cells": cells}, monkeypatch)
    assert found["gold", "apart from big, bits/byte"] == "0.750"  # of 0.5 and 1
    assert found["gold", "apart from same, bits/byte"] == "0.250"
    assert found["gold", "KL from same, bits/token"] == "1.000"
    assert not [key for key in found if key[0] in ("uld", "fkd")]
    assert found["sft", "answers that ended, %"] == "69"  # 11 of 16
    assert (found["gold", "KD/CE gradients"], found["dual", "KD/CE gradients"]) == ("0.12", "2 + 0.5")
    assert found["gold", "teacher mass covered"] == "0.83"


def test_a_map_that_leaves_a_tenth_out_is_told() -> None:
    (note,) = learnt.hardly_covered(DIAGNOSTICS)
    assert note.startswith("gold: its map covers a share of the teacher's probability under 0.9 (0.83 on codem)")
    assert learnt.hardly_covered(None) == learnt.hardly_covered(DIAGNOSTICS[["method", "task"]]) == []


def test_answers_that_were_cut_are_counted_row_by_row() -> None:
    (note,) = learnt.cut_answers(COUNTED)
    assert note.endswith("scored as far as they go: sft 5 of 16.")
    assert note.startswith("codem: ")
    assert learnt.cut_answers(COUNTED[COUNTED["outcome"] != "length limit"]) == []
