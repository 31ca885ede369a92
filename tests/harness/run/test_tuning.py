"""A tuning from the command line, and the run that takes its settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from tests.harness.run.place import Place

pytestmark = pytest.mark.slow


def test_tune_writes_a_lock_that_run_takes(tiny_recipe: dict[str, Any], harness: Command, tmp_path: Path) -> None:
    fields = copy.deepcopy(tiny_recipe) | {"name": "tiny", "tasks": ["gsm8k"], "methods": ["control", "uld"]}
    fields["gsm8k"] |= {"train_items": 20}
    fields["keep_students"] = False
    place = Place(tmp_path, fields, harness)
    _, recipe, *rest = place.command()
    done = harness("tune", recipe, "budget=2", *rest)
    assert done.code == 0, done.err
    lock = json.loads((tmp_path / "tiny.lock.json").read_text())
    assert {row: len(one["trials"]) for row, one in lock["rows"].items()} == {"control": 2, "uld": 2}
    best = {
        row: min(range(2), key=[t["dev"]["gsm8k"] for t in one["trials"]].__getitem__)
        for row, one in lock["rows"].items()
    }
    assert {row: one["winner"] for row, one in lock["rows"].items()} == best
    assert not place.stored("answers")
    assert not place.stored("scores")
    trained = len(place.stored("warm_start")), len(place.stored("teacher"))
    again = harness("tune", recipe, "budget=2", *rest)  # nothing is made anew
    assert "0 stages" in again.out or "stages to run" not in again.out
    elsewhere = harness("tune", recipe, "budget=2", "launch.workers=2", "--runs", tmp_path / "two processes")
    assert elsewhere.code == 0, elsewhere.err
    assert json.loads((tmp_path / "tiny.lock.json").read_text()) == lock

    ran = place.run()
    assert ran.code == 0, ran.err
    assert "tiny.lock.json" in ran.out
    assert (len(place.stored("warm_start")), len(place.stored("teacher"))) == trained
    report = place.file(ran, "report.md")
    assert "## Appendix: settings that were tried" in report
    assert "best of 2 that were tried" in report

    scored = harness("tune", recipe, "budget=2", "metric=score", *rest)
    assert scored.code == 0, scored.err
    assert "dev score, %" in scored.out
    by_score = json.loads((tmp_path / "tiny.lock.json").read_text())
    assert by_score["metric"] == "score"
    assert all(0 <= t["dev"]["gsm8k"] <= 100 for one in by_score["rows"].values() for t in one["trials"])

    changed = place.run("train.learning_rate=2e-3")
    assert changed.code == 2
    assert "control: the recipe changed; uld: the recipe changed" in changed.err
    untuned = place.run("train.learning_rate=2e-3", "--untuned")
    assert untuned.code == 0, untuned.err
    assert "The test set was read before with other settings of this recipe" in place.file(untuned, "report.md")
