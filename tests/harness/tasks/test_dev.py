"""Rows held out of training sets: together they are the training set, apart they share nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.base.errors import HarnessError
from harness.tasks import tasks
from harness.tasks.base import samples_folder
from harness.tasks.dev import write_dev_folder
from tests.conftest import Command


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_held_out_rows_and_the_others_are_the_training_set(tmp_path: Path) -> None:
    write_dev_folder(samples_folder(), tmp_path / "dev", items=20)
    for name in ("gsm8k", "dolly"):
        whole = lines(samples_folder() / f"{name}/train.jsonl")
        kept, held = lines(tmp_path / f"dev/{name}/train.jsonl"), lines(tmp_path / f"dev/{name}/test.jsonl")
        assert len(held) == 20
        assert sorted(map(json.dumps, kept + held)) == sorted(map(json.dumps, whole))
        assert [row for row in whole if row in held] == held  # in order, and from all parts of the file
        assert whole.index(held[0]) < 20
        assert whole.index(held[-1]) > len(whole) - 20


def test_no_more_than_a_fifth_is_held_out(tmp_path: Path) -> None:
    write_dev_folder(samples_folder(), tmp_path / "dev", items=10_000)
    assert len(lines(tmp_path / "dev/gsm8k/test.jsonl")) == len(lines(samples_folder() / "gsm8k/train.jsonl")) // 5


def test_tasks_read_it_and_never_a_test_row(tmp_path: Path) -> None:
    write_dev_folder(samples_folder(), tmp_path / "dev")
    for name in ("gsm8k", "dolly"):
        kind = tasks()[name]
        task, test = kind(kind.Settings(), tmp_path / "dev"), kind(kind.Settings(), None).reference_examples()
        seen = {(e.prompt, e.response) for e in [*task.training_examples(), *task.reference_examples()]}
        assert task.reference_examples()
        assert not seen & {(e.prompt, e.response) for e in test}


def test_dolly_has_development_rows_of_its_own_in_dskds_split(tmp_path: Path) -> None:
    rows = [{"instruction": str(number), "output": "x"} for number in range(30)]
    (tmp_path / "data/dolly").mkdir(parents=True)
    for name, part in (("train", rows[:20]), ("dev", rows[20:])):
        (tmp_path / f"data/dolly/{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    write_dev_folder(tmp_path / "data", tmp_path / "dev", items=4)
    assert lines(tmp_path / "dev/dolly/train.jsonl") == rows[:20]
    assert lines(tmp_path / "dev/dolly/test.jsonl") == rows[20:24]
    assert not (tmp_path / "dev/gsm8k").exists()


def test_the_hub_split_has_development_rows_of_its_own_too(tmp_path: Path) -> None:
    rows = [{"instruction": str(number), "input": "", "output": "x", "category": "y"} for number in range(30)]
    (tmp_path / "data/dolly_hub").mkdir(parents=True)
    for name, part in (("train", rows[:20]), ("dev", rows[20:28]), ("test", rows[28:])):
        (tmp_path / f"data/dolly_hub/{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    said = write_dev_folder(tmp_path / "data", tmp_path / "dev", items=4)
    assert said == ["dolly_hub: 20 rows to train on, 4 held out"]
    task = tasks()["dolly"](tasks()["dolly"].Settings(split="hub"), tmp_path / "dev")
    assert len(task.training_examples()) == 20
    assert lines(task.test_file) == rows[20:24]
    assert not (tmp_path / "dev/dolly").exists()


@pytest.mark.parametrize("asked", [["data.root=ROOT"], ["recipe=smoke", "data.root=ROOT"], ["--root", "ROOT"]])
def test_the_rows_that_are_held_out_are_those_of_the_folder_that_is_named(
    tmp_path: Path, harness: Command, asked: list[str]
) -> None:
    (tmp_path / "data/gsm8k").mkdir(parents=True)
    rows = [{"question": str(number), "answer": "#### 1"} for number in range(20)]
    (tmp_path / "data/gsm8k/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = harness("data", *(part.replace("ROOT", str(tmp_path / "data")) for part in asked), "--dev", tmp_path / "dev")
    assert made.code == 0, made.err
    assert "gsm8k: 16 rows to train on, 4 held out" in made.out
    assert not (tmp_path / "dev/dolly").exists()
    assert str(tmp_path / "dev") in made.out.replace("\n", "")


def test_what_is_there_is_not_overwritten_and_an_empty_root_is_named(tmp_path: Path, harness: Command) -> None:
    made = harness("data", "--dev", tmp_path / "dev")
    assert made.code == 0
    assert "gsm8k: 160 rows to train on, 40 held out" in made.out
    again = harness("data", "--dev", tmp_path / "dev")
    assert (again.code, "does not exist yet" in again.err) == (2, True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HarnessError, match="no training rows of dolly, dolly_hub, gsm8k"):
        write_dev_folder(tmp_path / "empty", tmp_path / "other")
