"""Files of stages: what is written is what is read, and what is damaged or missing is not read at all."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from harness.store import artefacts
from harness.store.artefacts import (
    ANSWERS,
    BITS,
    KEPT_OF_STUDENTS,
    STEPS,
    TIMING,
    Answer,
    Apart,
    Bits,
    JsonFile,
    Timing,
    rows_shard,
)
from harness.store.store import CorruptArtefactError, Store

ONE = "1" * 64
SAID = [Answer("dolly/0", 10, "Why?", "Weil ü", 3, "eos", False)]
WHAT = {"name": "student", "tokens": ["a"], "ends": [1]}
SEEN = {"item": "dolly/0", "student": WHAT, "teacher": WHAT, "groups": [[[0], [0]]]}
VALUES: list[tuple[JsonFile[Any], Any]] = [
    (artefacts.STEPS, [{"step": 1.0, "loss": 0.5}]),
    (artefacts.TIMING, Timing(2.5, 1, 4096)),
    (artefacts.TRACES, [{**SEEN, "method": "uld", "kd": [None, 0.5]}]),
    (artefacts.ALIGNMENTS, {"of": 3, "method": "uld", "items": [{**SEEN, "cut": False, "stand_in": True}]}),
    (artefacts.ANSWERS, SAID),
    (artefacts.BITS, [Bits("dolly/0", 8.25, 3)]),
    (artefacts.APART, [Apart("dolly/0", 1.5, 3, None, 2)]),
    (artefacts.SCORES, {"rouge_l": {"dolly/0": 12.5}}),
    (artefacts.DETAILS, {"ran_in": "a sandbox"}),
]


def test_every_file_is_listed_here() -> None:
    listed = {file.name for file, _ in VALUES}
    files = [value for value in vars(artefacts).values() if isinstance(value, JsonFile)]
    assert sorted(file.name for file in files) == sorted(listed)


@pytest.mark.parametrize(("file", "value"), VALUES, ids=[file.name for file, _ in VALUES])
def test_what_is_written_is_read(file: JsonFile[Any], value: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.create("kind", ONE, {}) as folder:
        file.write(folder, value)
        assert file.load(folder) == value
    artefact = store.find("kind", ONE)
    assert artefact is not None
    assert file.read(artefact) == value
    assert file.find(store, "kind", ONE) == file.kept(store, "kind", ONE) == value


def test_records_are_stored_by_the_names_of_their_fields(tmp_path: Path) -> None:
    """As they were stored before there were readers."""
    ANSWERS.write(tmp_path, SAID)
    assert json.loads((tmp_path / "answers.json").read_text()) == [
        {
            "id": "dolly/0",
            "seed": 10,
            "prompt": "Why?",
            "output": "Weil ü",
            "tokens": 3,
            "stop": "eos",
            "prompt_cut": False,
        }
    ]
    (tmp_path / "timing.json").write_text('{"seconds": 2.5}')
    assert TIMING.load(tmp_path) == Timing(2.5)


def test_a_damaged_or_missing_file_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert BITS.find(store, "bits", ONE) is BITS.kept(store, "bits", ONE) is None
    with store.create("bits", ONE, {}) as folder:
        BITS.write(folder, [])
    assert BITS.find(store, "bits", ONE) == []
    assert ANSWERS.find(store, "bits", ONE) is ANSWERS.kept(store, "bits", ONE) is None
    artefact = store.find("bits", ONE)
    assert artefact is not None
    (artefact.folder / BITS.name).write_text("[1]")
    assert BITS.find(store, "bits", ONE) is BITS.kept(store, "bits", ONE) is None
    with pytest.raises(CorruptArtefactError):
        BITS.read(artefact)


def test_what_reports_read_of_a_student_outlives_its_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.create("student", ONE, {}) as folder:
        STEPS.write(folder, [{"step": 1.0}])
        (folder / "weights").write_text("large")
    artefact = store.find("student", ONE)
    assert artefact is not None
    store.drop_files(artefact, keep=KEPT_OF_STUDENTS)
    assert not (artefact.folder / "weights").exists()
    assert STEPS.find(store, "student", ONE) is None  # the stage is not finished any more
    assert STEPS.kept(store, "student", ONE) == [{"step": 1.0}]


def test_files_of_rows_sort_by_their_number() -> None:
    names = [rows_shard(number) for number in (0, 2, 10, 99999)]
    assert names == sorted(names)
    assert fnmatch.filter(names, artefacts.ROWS_SHARDS) == names
