"""What is checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.base.progress import Silent
from harness.run.preflight import preflight
from tests.harness.run.place import alone


@pytest.mark.parametrize(
    ("packed", "stages", "checked"),
    [
        (["warm_start", "train"], ["teacher"], []),
        (["teacher"], ["teacher"], ["cross", "same"]),
        (["warm_start"], [], ["student"]),
        (["train"], [], ["student"]),
        ([], [], []),
    ],
)
def test_packing_is_checked_with_the_models_that_it_trains(
    packed: list[str],
    stages: list[str],
    checked: list[str],
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("harness.run.preflight.check_packing", lambda model: seen.append(Path(model.name_or_path).name))
    runner = alone(tiny_recipe, tmp_path, stages=stages, packed=packed)
    preflight(runner.plan, runner.bench, Silent(), unsafe=False)
    assert seen == checked
