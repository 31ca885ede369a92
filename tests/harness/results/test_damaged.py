"""Records and stages that were damaged or that no run made: one error, or made again, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import api
from harness.base.errors import HarnessError
from harness.base.files import parse_json
from harness.data.rows import read_rows
from harness.store.store import FORMAT, Store

RECORDS = {
    "a format alone": '{"format": 2}',
    "cells that are none": '{"format": 2, "cells": 3}',
    "an empty cell": '{"format": 2, "cells": [{}]}',
    "deep": "[" * 100_000,
    "a number of 5,000 digits": '{"format": ' + "9" * 5000 + "}",
    "another encoding": "\xff",
    "a list": "[]",
    "no number": '{"format": NaN}',
}


@pytest.mark.parametrize("text", RECORDS.values(), ids=RECORDS.keys())
def test_a_record_that_is_none_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(HarnessError, match=r"run\.json: found .* expected .*Run the recipe again"):
        api.open_run(tmp_path)


def test_a_record_names_the_field_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 2, "identity": 3}')
    with pytest.raises(HarnessError, match="identity: Input should be a valid string"):
        api.open_run(tmp_path)


def test_a_folder_for_a_record_and_names_that_no_file_can_have_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    for name in (str(tmp_path), "a" * 400, "a\0b"):
        with pytest.raises(HarnessError, match="run"):
            api.open_run(name, tmp_path)


@pytest.mark.parametrize(
    "manifest",
    ["{", "[" * 100_000, "{}", "[]", "no outputs", "outputs that are none", "inputs that are none", "outside"],
)
def test_a_stage_with_a_manifest_that_is_none_is_made_again(tmp_path: Path, manifest: str) -> None:
    store, identity = Store(tmp_path), "1" * 64
    with store.create("kind", identity, {}) as folder:
        (folder / "file").touch()
    path = store.folder_of("kind", identity) / "manifest.json"
    whole = json.loads(path.read_text())
    changed = {
        "no outputs": {key: value for key, value in whole.items() if key != "outputs"},
        "outputs that are none": {**whole, "outputs": ["file"]},
        "inputs that are none": {**whole, "inputs": 3},
        "outside": {**whole, "outputs": {"../../other": "0" * 64}},
    }
    path.write_text(json.dumps(changed[manifest]) if manifest in changed else manifest)
    assert store.find("kind", identity) is None
    store.manifests("kind"), store.left_alone(), api.damaged_files(store), api.store_contents(store)
    with store.create("kind", identity, {}) as folder:
        (folder / "file").touch()
    assert store.find("kind", identity) is not None


def test_a_file_where_a_stages_folder_should_be_is_replaced(tmp_path: Path) -> None:
    store, identity = Store(tmp_path), "1" * 64
    path = store.folder_of("kind", identity)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format": FORMAT}))
    assert store.find("kind", identity) is None
    with store.create("kind", identity, {}) as folder:
        (folder / "file").touch()
    assert store.find("kind", identity) is not None


def test_a_file_where_a_kinds_folder_should_be_is_one_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.root.mkdir()
    (store.root / "kind").touch()
    with pytest.raises(HarnessError, match="a file where a folder has to be"), store.create("kind", "1" * 64, {}):
        pass


def test_a_row_that_is_nested_too_deep_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "x"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(HarnessError, match=r"line 2: found .*nested too deep"):
        read_rows(path)
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json('{"a":' * 100_000)
