"""harness.results.kept: numbers of a run's folder outlive its store; citation and costs from a record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.base.errors import HarnessError
from harness.results.citation import bibtex, command_line
from harness.results.kept import kept_frame, with_kept
from methods.base import registered
from reports import analyse, write
from tests.reports.test_analysis import Frames, three_seeds
from tests.reports.test_reports import context

EMPTY = pd.DataFrame({"cell": [], "metric": [], "item": [], "value": [], "weight": []})


def gone(results: pd.DataFrame, which: Any = slice(None)) -> pd.DataFrame:
    """The results as a store gives them that lacks some stages."""
    lost = results.copy()
    lost.loc[lost.index[which], ["value", "n_items", "status", "reason"]] = [float("nan"), 0, "failed", "no result"]
    return lost


def folder_with(frames: Frames, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    results, items = frames.frames
    write(results, context(), folder, frames.analyse(), items)
    return results, items


def test_a_folder_without_its_store_gives_the_same_analysis(tmp_path: Path) -> None:
    frames = three_seeds(up=20, down=-20)
    results, _ = folder_with(frames, tmp_path)
    again, items, rebuilt = with_kept(tmp_path, gone(results), EMPTY, failed=False)
    assert rebuilt
    assert again["status"].tolist() == ["done"] * len(results)
    assert again[["cell", "metric"]].equals(results[["cell", "metric"]])
    assert analyse(again, items, "control") == frames.analyse()


def test_only_what_the_store_lacks_comes_from_the_folder(tmp_path: Path) -> None:
    frames = three_seeds(up=20)
    results, items = folder_with(frames, tmp_path)
    fresh = gone(results, slice(0, 3)).assign(n_items=77)
    of_store = items[items["cell"].isin(results["cell"].iloc[3:])]
    merged, all_items, rebuilt = with_kept(tmp_path, fresh, of_store, failed=False)
    assert rebuilt
    assert merged["n_items"].tolist() == [60] * 3 + [77] * (len(results) - 3)
    counted = all_items.groupby(["cell", "metric"]).size()
    assert counted.max() <= 60


def test_a_store_that_has_everything_is_all_that_counts(tmp_path: Path) -> None:
    frames = three_seeds(up=20)
    folder_with(three_seeds(up=5), tmp_path)
    results, items = frames.frames
    got, got_items, rebuilt = with_kept(tmp_path, results, items, failed=False)
    assert (got is results, got_items is items, rebuilt) == (True, True, False)


def test_a_run_without_any_number_is_refused_unless_it_failed(tmp_path: Path) -> None:
    results, _ = three_seeds(up=20).frames
    with pytest.raises(HarnessError, match=r"no stored result of this run, and no results\.csv"):
        with_kept(tmp_path, gone(results), EMPTY, failed=False)
    assert with_kept(tmp_path, gone(results), EMPTY, failed=True)[2] is False


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    results, _ = folder_with(three_seeds(up=20), tmp_path)
    (tmp_path / "results.csv").write_text("cell,metric\na,b\n")
    with pytest.raises(HarnessError, match="damaged file"):
        with_kept(tmp_path, gone(results), EMPTY, failed=False)


def test_a_longer_file_is_kept(tmp_path: Path) -> None:
    old = pd.DataFrame({"row": ["a", "b"], "count": [1, 2]})
    old.to_csv(tmp_path / "outcomes.csv", index=False)
    assert kept_frame(tmp_path, "outcomes.csv", old.iloc[:0]).equals(old)
    longer = pd.concat([old, old])
    assert kept_frame(tmp_path, "outcomes.csv", longer) is longer
    assert kept_frame(tmp_path, "none.csv", longer) is longer


# --- Citation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_method_with_a_paper_has_an_entry(name: str) -> None:
    method = registered()[name]
    entries = bibtex([(name, method.paper)])
    if name in ("sft", "control"):  # cross-entropy has no paper
        assert entries == []
        return
    (entry,) = entries
    number = method.paper.removeprefix("arXiv ")
    assert number in entry or name == "gold"
    assert entry.startswith("@")
    assert entry.count("{") == entry.count("}")
    assert "keywords" not in entry


def test_an_entry_stands_once_and_a_plug_in_gets_what_its_number_gives() -> None:
    assert len(bibtex([("fkd", "arXiv 1503.02531")] * 2)) == 1
    assert bibtex([("my-loss", "Doe, arXiv 2601.00001, section 3")]) == [
        "@misc{myloss,\n  eprint = {2601.00001},\n  archivePrefix = {arXiv}\n}"
    ]
    assert bibtex([("mine", "a note")]) == []


def test_the_command_is_the_harness_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/harness", "run", "recipe=a", "notes=[two words]"])
    assert command_line() == "harness run recipe=a 'notes=[two words]'"
    monkeypatch.setattr(sys, "argv", ["/somewhere/harness/__main__.py", "run"])
    assert command_line() == "harness run"
    monkeypatch.setattr(sys, "argv", ["notebook.py", "run"])
    assert command_line() == ""
