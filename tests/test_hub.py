"""Data sets from the hub: what is written, and what is said of it. The hub itself is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness.errors import HarnessError
from harness.tasks.hub import SETS, download, rows_text
from tests.conftest import Command

ROWS = [{"question": "1 + 1? é", "answer": "2\n#### 2", "more": 0}, {"question": "2?", "answer": "#### 2", "more": 1}]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers every request with two rows and notes it."""
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_rows_come_as_the_task_reads_them_and_what_differs_is_said(hub: list[Any], tmp_path: Path) -> None:
    lines = download("gsm8k", tmp_path)
    written = (tmp_path / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == [{k: row[k] for k in ("question", "answer")} for row in ROWS]
    assert [(args, kwargs["split"]) for args, kwargs in hub] == [
        (("openai/gsm8k", "main"), "train"),
        (("openai/gsm8k", "main"), "test"),
    ]
    assert all("2 rows, other rows than its authors published" in line for line in lines)


def test_a_file_that_is_there_stays(hub: list[Any], tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").write_text("mine")
    download("gsm8k", tmp_path)
    assert (tmp_path / "gsm8k" / "train.jsonl").read_text() == "mine"
    assert len(hub) == 1


def test_a_hub_that_does_not_answer_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(HarnessError, match=r"no answer for openai/gsm8k \(ConnectionError: no route\)"):
        download("gsm8k", tmp_path)
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_the_command_downloads_and_lists(hub: list[Any], harness: Command, tmp_path: Path) -> None:
    done = harness("data", "--root", str(tmp_path), "--download", "gsm8k")
    assert done.code == 0
    assert len(hub) == 2
    assert "gsm8k/train.jsonl" in done.out
    wrong = harness("data", "--root", str(tmp_path), "--download", "gsm")
    assert wrong.code == 2
    assert "expected one of gsm8k" in wrong.err


@pytest.mark.shared_data
@pytest.mark.skipif("HARNESS_TEST_DATA" not in os.environ, reason="set HARNESS_TEST_DATA to the real data sets")
@pytest.mark.parametrize("file", SETS["gsm8k"].files)
def test_the_digests_are_those_of_the_published_rows(file: str) -> None:
    import hashlib

    rows = [json.loads(line) for line in (Path(os.environ["HARNESS_TEST_DATA"]) / file).read_text().splitlines()]
    text = rows_text(rows, SETS["gsm8k"].fields)
    assert hashlib.sha256(text.encode()).hexdigest() == SETS["gsm8k"].digests[file]
