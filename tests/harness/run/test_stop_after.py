"""Runs with a limit on their time: seed by seed, stopped before it is over, gone on with later."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.base.errors import HarnessError
from harness.base.stopping import OutOfTimeError, alarm, check_stop_after, seconds_of
from harness.plan.stages import Stage
from harness.run.demand import Demand
from harness.store.store import Store
from tests.conftest import Command


def test_times_are_read() -> None:
    assert [seconds_of(text) for text in ("90s", "11m", "1h30m", "0.5h")] == [90, 660, 5400, 1800]
    for text in ("", "11", "m", "11 m", "-1m", "0s", "1d", "1m junk", "infm", "nans", "9" * 5000 + "s"):
        with pytest.raises(HarnessError, match="90s, 11m or 1h30m"):
            seconds_of(text)


def test_an_alarm_interrupts_what_takes_too_long_and_nothing_else() -> None:
    start = time.monotonic()
    with pytest.raises(OutOfTimeError), alarm(0.05):
        time.sleep(60)
    assert time.monotonic() - start < 10
    with alarm(0.05):
        pass
    time.sleep(0.1)


def test_processes_that_train_together_are_not_stopped_alone() -> None:
    with pytest.raises(HarnessError, match="2 processes"):
        check_stop_after(60, 2)
    check_stop_after(None, 2)


def test_a_run_that_is_cut_has_whole_seeds_and_goes_on(
    tiny_recipe: dict[str, Any], harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over while the second seed's first cell is made: both tasks have their first seed."""
    path, runs = tmp_path / "tiny.yaml", tmp_path / "runs"
    evaluation = {**tiny_recipe.get("evaluation", {}), "bits_per_byte": False}
    wanted = {"tasks": ["dolly", "gsm8k"], "methods": ["control"], "seeds": [0, 1], "baseline_seeds": "same"}
    path.write_text(yaml.safe_dump(tiny_recipe | wanted | {"evaluation": evaluation}))
    make, asked = Demand.attempt, []

    def attempt(demand: Demand, stage: Stage) -> None:
        asked.append((stage.seed, stage.task))
        if stage.seed == 1:
            raise OutOfTimeError
        make(demand, stage)

    with monkeypatch.context() as patched:
        patched.setattr(Demand, "attempt", attempt)
        done = harness("run", f"recipe={path}", "--stop-after", "1h", "--runs", runs)
    assert done.code == 0, done
    assert list(dict.fromkeys(asked)) == [(0, "dolly"), (0, "gsm8k"), (1, "dolly")]
    assert "left to do: dolly · control · seed 1, gsm8k · control · seed 1" in done.out
    made = {(one["task"], one["seed"]) for one in Store(runs).manifests("scores")}
    assert made == {("dolly", 0), ("gsm8k", 0)}
    assert harness("run", f"recipe={path}", "--runs", runs).code == 0
    assert {(one["task"], one["seed"]) for one in Store(runs).manifests("scores")} == {
        *made,
        ("dolly", 1),
        ("gsm8k", 1),
    }
