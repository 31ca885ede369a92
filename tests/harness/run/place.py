"""A recipe of tiny models and its runs folder, through the command line or a runner."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.base.progress import Silent
from harness.evaluate.programs.sandbox import probe
from harness.plan.builder import make_plan
from harness.recipe.load import validate
from harness.run.runner import Runner
from harness.store.store import Store
from tests.conftest import Command, Done

STATUS = probe()
TASKS = ["dolly", "gsm8k", *(["codem"] if STATUS.available else [])]


@dataclass
class Place:
    """A recipe and a runs folder."""

    folder: Path
    fields: dict[str, Any]
    harness: Command

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def command(self, *overrides: str) -> list[str]:
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(self.fields))
        return ["run", f"recipe={path}", *overrides, "--runs", str(self.runs)]

    def run(self, *overrides: str) -> Done:
        return self.harness(*self.command(*overrides))

    def folder_of(self, done: Done) -> Path:
        """The folder of the run that has just ended."""
        return Path(done.out.replace("\n", "").partition("Files: ")[2].partition(", ")[0]).parent

    def file(self, done: Done, name: str = "table.csv") -> str:
        return (self.folder_of(done) / name).read_text()

    def table(self, done: Done) -> dict[str, dict[str, str]]:
        """Rows of the table by method."""
        return {row["method"]: row for row in csv.DictReader(self.file(done).splitlines())}

    def stored(self, kind: str, **values: Any) -> list[Path]:
        """Folders of finished stages whose manifest has these values."""
        found = []
        for path in sorted(self.runs.glob(f"store/{kind}/*/manifest.json")):
            manifest = json.loads(path.read_text())
            if manifest.items() >= values.items() and not manifest.get("dropped"):
                found.append(path.parent)
        return found


def alone(
    recipe: dict[str, Any], folder: Path, *, stages: list[str], packed: Sequence[str] = (), **changes: Any
) -> Runner:
    """A runner of a small part of the tiny recipe, with a store of its own."""
    fields = copy.deepcopy(recipe) | {"name": "tiny", "tasks": ["dolly"], "methods": ["fkd", "uld"], "stages": stages}
    fields |= changes
    for training in packed:
        fields[training]["packing"] = True
    return Runner(make_plan(validate("tiny", fields)), Store(folder), folder, Silent())
