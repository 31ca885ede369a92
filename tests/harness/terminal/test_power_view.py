"""harness power: from a run's folder to what its seeds find; the folder's files are enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.results.record import FORMAT, RECORD
from reports import write
from tests.conftest import Command
from tests.reports.test_analysis import BETTER, EASY, Frames, three_seeds
from tests.reports.test_reports import context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_of(three_seeds(up=20, down=-20), tmp_path / "run")


def run_of(frames: Frames, folder: Path, **record: Any) -> Path:
    """A run's folder as somebody copied it, without a store: a record without cells, and the report's files."""
    results, items = frames.frames
    write(results, context(), folder, frames.analyse(), items)
    said = {"identity": "0" * 64, "title": "", "baseline": "control", "paper": ""}
    empty: dict[str, Any] = {"cells": [], "notes": [], "settings": [], "failures": []}
    empty |= {name: {} for name in ("recipe", "protocol", "environment", "sources", "references")}
    known = {"format": FORMAT, **said, **empty, **record}
    (folder / RECORD).write_text(json.dumps(known), encoding="utf-8")
    return folder


def test_power_of_a_run(folder: Path, harness: Command) -> None:
    done = harness("power", folder, "--difference", "6")
    text = " ".join(done.out.split())
    assert done.code == 0
    for word in ("ROUGE-L", "bits/byte", "3 seeds", "seeds for 6", "would mark in 80 %"):
        assert word in text, word


def test_one_column(folder: Path, harness: Command) -> None:
    done = harness("power", folder, "--column", "dolly.rouge_l")
    assert "dolly" in done.out
    assert "gsm8k" not in done.out
    wrong = harness("power", folder, "--column", "dolly.rouge")
    assert wrong.code == 2
    assert "there are dolly.rouge_l, gsm8k.bits_per_byte" in " ".join(wrong.err.split())


def test_the_recipes_primary_columns(tmp_path: Path, harness: Command) -> None:
    made = run_of(three_seeds(up=20), tmp_path / "run", primary=["gsm8k.bits_per_byte", "gone.accuracy"])
    out = harness("power", made).out
    assert "gsm8k" in out
    assert "dolly" not in out


def test_one_seed_is_refused(tmp_path: Path, harness: Command) -> None:
    done = harness("power", run_of(Frames().add("control", EASY).add("uld", BETTER), tmp_path / "run"))
    assert done.code == 2
    assert "at least two, since one shows no noise" in " ".join(done.err.split())
