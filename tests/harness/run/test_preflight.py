"""What is checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import HarnessError
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


@pytest.mark.parametrize("section", ["teacher", "warm_start", "train"])
def test_a_batch_that_processes_can_not_share_is_told_before_anything_runs(
    section: str, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {name: tiny_recipe[name] | {"batch_size": 8} for name in ("teacher", "warm_start", "train")}
    sizes[section] |= {"batch_size": 12}
    runner = alone(tiny_recipe, tmp_path, stages=[], **sizes)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(
        HarnessError, match=rf"^{section}\.batch_size: found 12, for 8 processes; expected a multiple of 8"
    ):
        preflight(runner.plan, runner.bench, Silent(), unsafe=False)
