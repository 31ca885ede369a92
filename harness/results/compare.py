"""Two runs beside each other, from their records and the store: no model, no recipe."""

from __future__ import annotations

import os
from pathlib import Path

from harness.results.layout import Record
from harness.results.record import RECORD, RunRecord
from harness.results.report import gather
from harness.store.store import Store
from reports import RunComparison, compare


def compare_runs(first: RunRecord, second: RunRecord) -> RunComparison:
    """Settings, versions and digests that differ, and all numbers of both runs; each reads the store beside it."""
    runs = (first, second)
    names = [run.folder.name for run in runs] if first.folder.name != second.folder.name else [r.folder for r in runs]
    results = [gather(run, Store(run.folder.absolute().parent)).results for run in runs]
    return compare(
        (str(names[0]), str(names[1])), (_settings(first.record), _settings(second.record)), (results[0], results[1])
    )


def folder_of(run: Path, runs: Path) -> Path:
    """The folder of a run that is named by its path, by its run.json, or by its name within ``runs``."""
    if run.name == RECORD:
        run = run.parent
    # os.path says no of a name that no file can have, where Path raises
    return run if os.path.exists(run) or not os.path.exists(runs / run) else runs / run


def _settings(record: Record) -> dict[str, object]:
    """What may explain a difference, most likely first; a recipe's fields have the names that overrides have."""
    return {
        **record["recipe"],
        "sources": record["sources"],  # of data and models
        "protocol": {task: " ".join(lines) for task, lines in record["protocol"].items()},
        "environment": record["environment"],
    }
