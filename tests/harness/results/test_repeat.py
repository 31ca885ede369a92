"""A run again from its run.json: the same recipe with the defaults of then, and every change since is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import api
from tests.conftest import Command


@pytest.fixture(scope="module")
def earlier(tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    folder = tmp_path_factory.mktemp("earlier")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe | {"tasks": ["gsm8k"], "methods": ["control"]}))
    return api.run(api.load_recipe(folder / "tiny.yaml", "train.learning_rate=3e-3"), runs=folder / "runs")


@pytest.fixture
def copied(earlier: api.Run, tmp_path: Path) -> Path:
    """Its run.json alone, on another machine so to speak."""
    path = tmp_path / "copy" / "run.json"
    path.parent.mkdir()
    path.write_text((earlier.folder / "run.json").read_text())
    return path


def test_the_same_recipe_has_the_same_identity(earlier: api.Run, copied: Path) -> None:
    recipe = api.recipe_of(api.open_run(copied))
    assert recipe.train.learning_rate == 3e-3
    plan = api.plan(recipe)
    assert plan.identity == earlier.recorded.record["identity"]
    assert api.changes_since(api.open_run(copied.parent), plan) == []


def test_every_change_is_named(copied: Path) -> None:
    record = json.loads(copied.read_text())
    record["environment"]["torch"] = "1.0"
    record["environment"]["plug-ins"] = "my-losses 1.2"
    record["sources"]["data"]["gsm8k"]["train"] = "another digest"
    copied.write_text(json.dumps(record))
    run = api.open_run(copied)
    changes = {change.name: change.values for change in api.changes_since(run, api.plan(api.recipe_of(run)))}
    assert set(changes) == {"environment.torch", "environment.plug-ins", "sources.data.gsm8k.train"}
    assert changes["environment.torch"][0] == "1.0"
    again = api.plan(api.recipe_of(run, "train.steps=3", train={"batch_size": 4}))
    names = {change.name for change in api.changes_since(run, again)}
    assert {"train.steps", "train.batch_size", "identity"} <= names


def test_the_command_line_repeats_a_run(earlier: api.Run, copied: Path, tmp_path: Path, harness: Command) -> None:
    same = harness("run", "--from", earlier.folder, "--runs", earlier.folder.parent)
    assert same.code == 0
    said = " ".join(same.out.split())  # whatever the terminal wraps
    assert f"Again {earlier.folder}: the same recipe, data, models and versions." in said
    assert "to run" not in said  # all of it is stored
    other = harness("run", "--from", copied, "train.steps=3", "--runs", tmp_path / "runs")
    assert other.code == 0
    assert "train.steps" in other.out
    assert "stages that mean something else are made anew" in other.out
    assert len(list((tmp_path / "runs").glob("*/table.csv"))) == 1


def test_a_record_of_other_fields_is_one_error(copied: Path, harness: Command, tmp_path: Path) -> None:
    record = json.loads(copied.read_text())
    record["recipe"]["train"]["stps"] = 3
    copied.write_text(json.dumps(record))
    done = harness("run", "--from", copied, "--runs", tmp_path / "runs")
    assert done.code == 2
    assert "train.stps: unknown key" in done.err
