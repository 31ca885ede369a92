"""What a store holds, what is damaged in it, and what goes when it is pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import api
from harness.base.errors import HarnessError
from harness.store.store import Store
from tests.conftest import Command

NAMES = ("teacher", "student", "scores", "other", "distance", "rows")
IDENTITIES = {name: f"{number}" * 64 for number, name in enumerate(NAMES)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run that names scores, made from a student, made from a teacher, and a distance; a stage of no run; litter."""
    store = Store(tmp_path)

    def make(kind: str, name: str, **inputs: tuple[str, str]) -> None:
        named = {key: {"kind": kind, "identity": IDENTITIES[name]} for key, (kind, name) in inputs.items()}
        with store.create(kind, IDENTITIES[name], {"inputs": named}) as folder:
            (folder / "file").write_bytes(b"x" * 1000)

    make("teacher", "teacher")
    make("student", "student", taught=("teacher", "teacher"))
    make("scores", "scores")
    make("student", "other")
    make("held_out", "rows")
    make("apart", "distance", rows=("held_out", "rows"))
    stages = {"scores": IDENTITIES["scores"], "student": IDENTITIES["student"]}
    cell = {"stages": stages, "apart": {"a teacher": IDENTITIES["distance"]}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"cells": [cell]}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text('{"cells": [1]}')
    with store.work("student", "7" * 64) as work:
        (work / "checkpoint").write_bytes(b"x" * 500)
    (store.scratch / ".score-x").mkdir(parents=True)
    return store


def test_all_is_listed_with_what_it_is_there_for(store: Store) -> None:
    found = {(one.kind, one.path.name[:7]): one for one in api.store_contents(store)}
    assert {key: one.state for key, one in found.items()} == {
        ("teacher", "0000000"): "named by a run",  # through the student that was made from it
        ("student", "1111111"): "named by a run",
        ("scores", "2222222"): "named by a run",
        ("apart", "4444444"): "named by a run",
        ("held_out", "5555555"): "named by a run",
        ("student", "3333333"): "named by no run",
        ("student", ".work-7"): "checkpoints",
        ("scratch", ".score-"): "left by a killed process",
    }
    folder = found["teacher", "0000000"].path
    assert found["teacher", "0000000"].size == 1000 + (folder / "manifest.json").stat().st_size
    assert found["student", ".work-7"].size == 500


def test_nothing_goes_before_it_is_said_twice(store: Store, harness: Command) -> None:
    runs = store.root.parent
    before = {one.path for one in api.store_contents(store)}
    done = harness("store", "--prune", "--runs", runs)
    assert "3 folders" in done.out
    assert "--prune --yes" in done.out
    assert {one.path for one in api.store_contents(store)} == before
    with store.in_use(), pytest.raises(HarnessError, match="a run at work"):
        api.prune_store(store, dry=False)
    assert harness("store", "--prune", "--yes", "--runs", runs).code == 0
    assert [one.state for one in api.store_contents(store)] == ["named by a run"] * 5
    assert "names every stage" in harness("store", "--prune", "--runs", runs).out


def test_every_digest_is_read(store: Store, harness: Command) -> None:
    runs = store.root.parent
    assert harness("store", "--verify", "--runs", runs).code == 0
    student = store.find("student", IDENTITIES["student"])
    assert student is not None
    store.drop_files(student, keep=set())  # weights that were dropped on purpose are no damage
    assert api.damaged_files(store) == []
    teacher = store.folder_of("teacher", IDENTITIES["teacher"])
    (teacher / "file").write_bytes(b"y" * 1000)
    (store.folder_of("scores", IDENTITIES["scores"]) / "manifest.json").write_text("{")
    done = harness("store", "--verify", "--runs", runs)
    assert done.code == 1
    assert [line.split()[0] for line in api.damaged_files(store)] == [
        str(store.folder_of("scores", IDENTITIES["scores"]) / "manifest.json"),
        str(teacher / "file"),
    ]
    assert "made again" in done.out


def test_an_empty_folder_of_results_has_an_empty_store(tmp_path: Path, harness: Command) -> None:
    done = harness("store", "--verify", "--prune", "--runs", tmp_path)
    assert done.code == 0
    assert list(tmp_path.iterdir()) == []
