"""Data sets from the hub: what is written, and what is said of it. The hub itself is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness.base.errors import HarnessError
from harness.tasks import tasks
from harness.tasks.hub import download, hub_sets, rows_text
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
    assert "expected one of dolly_hub, gsm8k" in wrong.err


def test_what_can_be_downloaded_is_found_by_its_files() -> None:
    gsm8k, dolly = tasks()["gsm8k"], tasks()["dolly"]
    assert "--download gsm8k`" in gsm8k.how_to_get(["elsewhere.jsonl", "gsm8k/test.jsonl"])
    assert "--download dolly_hub`" in dolly.how_to_get(["dolly_hub/dev.jsonl"])
    assert dolly.how_to_get(["dolly/train.jsonl", "dolly/train_subset_union.jsonl"]) == ""  # DSKD's: by hand


def test_a_row_without_a_field_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"question": "?", "instruction": "Do."}])
    for name, field in (("gsm8k", "answer"), ("dolly_hub", "context")):
        with pytest.raises(HarnessError, match=f"a row without the field '{field}'"):
            download(name, tmp_path)
    assert list(tmp_path.rglob("*.jsonl")) == []


# --- Dolly in a split of ours -----------------------------------------------------------------------------------------


def asked(instruction: str, response: str, context: str = "", category: str = "open_qa") -> dict[str, Any]:
    """A row as the hub has it."""
    return {"instruction": instruction, "context": context, "response": response, "category": category}


def digest(instruction: str, context: str = "") -> str:
    return hashlib.sha256(json.dumps([instruction, context]).encode()).hexdigest()


PROMPTS = sorted((f"What is {number}? é" for number in range(1600)), key=digest)
TWICE = {PROMPTS[499], PROMPTS[700], PROMPTS[1498], PROMPTS[1599]}  # the first is the 500th: one row over


@pytest.fixture
def dolly(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The rows of a hub that gives 1,600 prompts, four of them with a second response, in some order."""
    rows = [asked(prompt, response) for prompt in PROMPTS for response in ("this", "that")[: 1 + (prompt in TWICE)]]
    random.Random(0).shuffle(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    return rows


def parts(root: Path) -> dict[str, list[dict[str, str]]]:
    return {
        name: [json.loads(line) for line in (root / f"dolly_hub/{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "dev", "test")
    }


def test_prompts_stay_whole_and_follow_their_digests(dolly: list[dict[str, str]], tmp_path: Path) -> None:
    lines = download("dolly_hub", tmp_path)
    found = parts(tmp_path)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 102, "dev": 1001, "test": 501}
    ours = "rows, a split of this project, not DSKD's"
    assert lines == [
        f"{tmp_path}/dolly_hub/train.jsonl: 102 {ours}",
        f"{tmp_path}/dolly_hub/dev.jsonl: 1,001 {ours}",
        f"{tmp_path}/dolly_hub/test.jsonl: 501 {ours}",
    ]
    prompts = {name: list(dict.fromkeys(row["instruction"] for row in rows)) for name, rows in found.items()}
    assert prompts == {"test": PROMPTS[:500], "dev": PROMPTS[500:1499], "train": PROMPTS[1499:]}
    written = [row for rows in found.values() for row in rows]
    assert {tuple(row) for row in written} == {("instruction", "input", "output", "category")}
    assert sorted(tuple(row.values()) for row in written) == sorted(tuple(row.values()) for row in dolly)


def test_the_order_of_the_hubs_rows_does_not_matter(dolly: list[dict[str, str]], tmp_path: Path) -> None:
    dolly += [asked(PROMPTS[0], "this", category=category) for category in ("closed_qa", "summarization")]
    download("dolly_hub", tmp_path / "one")
    random.Random(1).shuffle(dolly)
    download("dolly_hub", tmp_path / "other")
    assert parts(tmp_path / "one") == parts(tmp_path / "other")
    assert [row["category"] for row in parts(tmp_path / "one")["test"] if row["instruction"] == PROMPTS[0]] == [
        "closed_qa"
    ]


def test_rows_that_say_nothing_or_the_same_are_left_out(dolly: list[dict[str, str]], tmp_path: Path) -> None:
    download("dolly_hub", tmp_path / "plain")
    dolly += [asked("  ", "x"), asked("Without a response", "\n "), asked("And another", "x") | {"response": None}]
    dolly += [asked(PROMPTS[3], "this"), asked(PROMPTS[3], "this", category="zzz")]
    download("dolly_hub", tmp_path / "more")
    assert parts(tmp_path / "more") == parts(tmp_path / "plain")


def test_white_space_around_a_prompt_makes_no_other_prompt(dolly: list[dict[str, str]], tmp_path: Path) -> None:
    """A context does: the row stands where its own digest belongs."""
    dolly += [asked(f" {PROMPTS[0]}\n", "spaced"), asked(f"{PROMPTS[1599]} ", "spaced")]
    dolly += [asked(PROMPTS[0], "in context", f"context {number}") for number in range(40)]
    download("dolly_hub", tmp_path)
    found = parts(tmp_path)
    where = {row["instruction"]: name for name, rows in found.items() for row in rows if row["output"] == "spaced"}
    assert where == {f" {PROMPTS[0]}\n": "test", f"{PROMPTS[1599]} ": "train"}
    last = {
        name: max(digest(row["instruction"].strip(), row["input"]) for row in found[name]) for name in ("test", "dev")
    }
    for name, rows in found.items():
        for row in rows:
            own = digest(row["instruction"].strip(), row["input"])
            assert name == ("test" if own <= last["test"] else "dev" if own <= last["dev"] else "train")
    assert {name for name, rows in found.items() for row in rows if row["output"] == "in context"} >= {"dev", "test"}


def test_parts_of_two_splits_do_not_mix(dolly: list[dict[str, str]], tmp_path: Path) -> None:
    """The hub's rows may change between two downloads: then a test row of one is a training row of the other."""
    download("dolly_hub", tmp_path)
    before = parts(tmp_path)
    folder = tmp_path / "dolly_hub"
    (folder / "test.jsonl").unlink()
    lines = download("dolly_hub", tmp_path)
    assert parts(tmp_path) == before
    assert [line.endswith("is there already") for line in lines] == [True, True, False]
    (folder / "test.jsonl").unlink()
    del dolly[:30]
    with pytest.raises(HarnessError, match=r"dolly_hub/train\.jsonl: found other rows than .* Move dolly_hub/train"):
        download("dolly_hub", tmp_path)
    assert not (folder / "test.jsonl").exists()
    assert [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()] == before["dev"]


def test_too_few_rows_are_no_data_set(dolly: list[dict[str, str]], tmp_path: Path) -> None:
    del dolly[1400:]
    with pytest.raises(HarnessError, match=r"found 1,400 different rows .* expected more than 1,500"):
        download("dolly_hub", tmp_path)
    assert not (tmp_path / "dolly_hub").exists()


def test_it_is_downloaded_once_and_the_task_reads_it(
    monkeypatch: pytest.MonkeyPatch, harness: Command, dolly: list[dict[str, str]], tmp_path: Path
) -> None:
    asked_of_hub: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked_of_hub.append((args, kwargs))
        return dolly

    monkeypatch.setattr(datasets, "load_dataset", load)
    for _ in range(2):
        done = harness("data", "--root", str(tmp_path), "--download", "dolly_hub")
        assert done.code == 0, done.err
    assert asked_of_hub == [(("databricks/databricks-dolly-15k", None), {"split": "train"})]
    kind = tasks()["dolly"]
    task = kind(kind.Settings(split="hub", sampling_seeds=(1, 2)), tmp_path)
    found = parts(tmp_path)
    assert [row.response for row in task.training_examples()] == [row["output"] for row in found["train"]]
    assert [row.response for row in task.reference_examples()] == [row["output"] for row in found["test"]]
    assert [row.id for row in task.reference_examples()][:2] == ["dolly_hub/0", "dolly_hub/1"]
    assert len(task.requests()) == 2 * 501
    assert not {row.prompt for row in task.training_examples()} & {row.prompt for row in task.requests()}


# --- Real data --------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.skipif("HARNESS_TEST_DATA" not in os.environ, reason="set HARNESS_TEST_DATA to the real data sets")
@pytest.mark.parametrize("file", hub_sets()["gsm8k"].digests)
def test_the_digests_are_those_of_the_published_rows(file: str) -> None:
    rows = [json.loads(line) for line in (Path(os.environ["HARNESS_TEST_DATA"]) / file).read_text().splitlines()]
    text = rows_text(rows, hub_sets()["gsm8k"].fields)
    assert hashlib.sha256(text.encode()).hexdigest() == hub_sets()["gsm8k"].digests[file]
