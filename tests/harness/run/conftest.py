"""One whole run of all methods on tiny models, and copies of its store to go on from."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness import tasks
from harness.run.makers import Makers
from tests.conftest import Command, Done
from tests.harness.run.place import TASKS, Place


@pytest.fixture(scope="session")
def whole(
    tiny_recipe: dict[str, Any], harness: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Place, Done]:
    """The tiny recipe's methods on every task, run without interruption: once for all processes of a test run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "whole.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = shared / "whole" / "made.json"
        if not kept.exists():
            fields = copy.deepcopy(tiny_recipe) | {"tasks": TASKS}
            (shared / "whole").mkdir()
            done = harness(*Place(shared / "whole", fields, harness).command(), drawn=True)
            kept.write_text(json.dumps([fields, asdict(done)]))
        fields, done_fields = json.loads(kept.read_text())
    return Place(shared / "whole", fields, harness), Done(**done_fields)


@pytest.fixture
def place(whole: tuple[Place, Done], tmp_path: Path) -> Place:
    """A copy of the whole run's store, for one task: what a test asks for beyond it is all that has to be made."""
    shutil.copytree(whole[0].runs / "store", tmp_path / "runs" / "store")
    return Place(tmp_path, copy.deepcopy(whole[0].fields) | {"tasks": ["dolly"]}, whole[0].harness)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made from here on: kinds of stages, and "scores" for each call of a scorer."""
    kinds: list[str] = []

    def spied(own: Callable[..., Any], kind: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            kinds.append(kind(*args))
            return own(*args)

        return call

    monkeypatch.setattr(Makers, "make", spied(Makers.make, lambda makers, stage, folder: stage.kind))
    for task in tasks.tasks().values():
        monkeypatch.setattr(task, "score", spied(task.score, lambda *args: "scores"))
    return kinds
