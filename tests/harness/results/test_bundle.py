"""Runs as files: what is exported is imported; what a stranger changed in a file is named, and nothing lands."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import api
from harness.base.errors import HarnessError
from harness.store.store import Store
from tests.conftest import Command

Files = dict[str, bytes]
METRIC = {"name": "em", "unit": "%", "headline": True, "higher_is_better": True}


def cell(seed: int) -> dict[str, Any]:
    stages = {kind: hashlib.sha256(f"{kind}{seed}".encode()).hexdigest() for kind in ("scores", "answers", "student")}
    names = {"method": "uld", "fidelity": "", "role": "student", "teacher_kind": "cross-tokenizer", "teacher": "big"}
    return {
        **names,
        "name": f"gsm8k · uld · seed {seed}",
        "task": "gsm8k",
        "seed": seed,
        "student": "small",
        "metrics": [METRIC],
        "stages": stages,
        "failures": {},
    }


def record(*seeds: int) -> dict[str, Any]:
    texts = {"identity": "0" * 64, "title": "Study", "baseline": "", "paper": ""}
    empty: dict[str, Any] = {name: {} for name in ("environment", "sources", "references")}
    lists: dict[str, Any] = {"notes": [], "settings": [], "cells": [cell(seed) for seed in seeds]}
    return {"format": 2, "recipe": {"name": "study"}, "protocol": {"gsm8k": ["5-shot"]}, **texts, **empty, **lists}


def make_run(runs: Path, seed: int, score: float = 50.0) -> Path:
    """A run of one cell: a teacher, rows, a student with weights, answers, scores."""
    store, stages = Store(runs), cell(seed)["stages"]
    taught = {"rows": {"kind": "rows", "identity": "a" * 64}}
    for kind, identity, inputs, files in (
        ("teacher", "b" * 64, {}, {"model/weights.safetensors": "teacher"}),
        ("rows", "a" * 64, {"teacher": {"kind": "teacher", "identity": "b" * 64}}, {"rows-00000.safetensors": "rows"}),
        ("student", stages["student"], taught, {"model/weights.safetensors": "student", "steps.json": "[]"}),
        ("answers", stages["answers"], {}, {"answers.json": "[]"}),
        ("scores", stages["scores"], {}, {"scores.json": json.dumps({"em": {"1": score, "2": 100.0}})}),
    ):
        manifest = {"title": kind, "inputs": inputs, "models": {}, "created": "2026-11-26", "seconds": 1.0}
        with store.create(kind, identity, manifest) as folder:
            for name, text in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text)
    folder = runs / f"study-{seed}"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record(seed)))
    return folder


def export(folder: Path, file: Path, **options: bool) -> Path:
    run = api.open_run(folder)
    return api.export_run(run.recorded, run.store, file, **options)


def tables(folder: Path) -> list[dict[str, Any]]:
    return api.open_run(folder).results().to_dict("records")


def test_a_bundle_opens_elsewhere_without_models(tmp_path: Path, harness: Command) -> None:
    here = make_run(tmp_path / "here", 0)
    file = tmp_path / "elsewhere" / "study.zip"
    file.parent.mkdir()
    assert harness("export", here, file).code == 0
    expected = tables(here)
    shutil.rmtree(tmp_path / "here")
    done = harness("report", file)
    assert done.code == 0
    assert "75" in done.out
    assert tables(file.parent / "study" / "study-0") == expected
    assert (file.parent / "study" / "study-0" / "report.html").is_file()
    assert api.open_bundle(file) == file.parent / "study" / "study-0"  # again: what is there is taken
    assert api.damaged_files(Store(file.parent / "study")) == []


def test_weights_and_rows_go_in_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = make_run(tmp_path, 0)
    names = {
        (students, rows): [n for n in zipfile.ZipFile(file).namelist() if n.endswith("safetensors")]
        for students in (False, True)
        for rows in (False, True)
        for file in [export(folder, tmp_path / f"{students}{rows}.zip", students=students, rows=rows)]
    }
    kinds = {key: sorted(name.split("/")[1] for name in value) for key, value in names.items()}
    assert kinds == {
        (False, False): [],
        (True, False): ["student"],
        (False, True): ["rows"],
        (True, True): ["rows", "student"],
    }
    first = (tmp_path / "FalseFalse.zip").read_bytes()
    assert export(folder, tmp_path / "again.zip").read_bytes() == first  # the same results are the same bundle


def test_cells_of_machines_that_share_no_disk_meet_in_one_table(tmp_path: Path, harness: Command) -> None:
    files = [
        export(make_run(tmp_path / str(seed), seed, score), tmp_path / f"{seed}.zip")
        for seed, score in ((0, 0.0), (1, 50.0))
    ]
    runs = tmp_path / "together"
    done = harness("import", *files, "--runs", runs)
    assert done.code == 0
    assert "5 stages are new, 0 were here" in done.out
    assert "3 stages are new, 2 were here" in done.out  # teacher and rows are those of both
    (runs / "whole").mkdir()
    (runs / "whole" / "run.json").write_text(json.dumps(record(0, 1)))
    table = api.open_run(runs / "whole").table()
    assert table["gsm8k.em.mean"].tolist() == [(50.0 + 75.0) / 2]
    assert table["gsm8k.em.n"].tolist() == [2]
    again = harness("import", *files, "--runs", runs)
    assert again.out.count("0 stages are new, 5 were here") == 2


def test_weights_that_are_here_stay_and_missing_ones_come(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "here", 0)
    whole, slim = export(folder, tmp_path / "whole.zip", students=True), export(folder, tmp_path / "slim.zip")
    runs, student = tmp_path / "there", cell(0)["stages"]["student"]
    api.import_bundle(slim, runs)
    assert Store(runs).find("student", student) is None
    api.import_bundle(whole, runs)
    assert Store(runs).find("student", student) is not None
    api.import_bundle(slim, runs)
    found = Store(runs).find("student", student)
    assert found is not None
    assert found.is_whole()


def test_other_results_of_the_same_stage_are_named_and_nothing_is_imported(tmp_path: Path) -> None:
    make_run(tmp_path / "here", 0, 0.0)
    file = export(make_run(tmp_path / "there", 0, 50.0), tmp_path / "there.zip")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "here").rglob("*.json")}
    with pytest.raises(HarnessError, match=r"1 stages with other results .*scores of scores: scores\.json"):
        api.import_bundle(file, tmp_path / "here")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "here").rglob("*.json")} == before


def test_a_damaged_stage_is_not_exported(tmp_path: Path) -> None:
    folder = make_run(tmp_path, 0)
    path = Store(tmp_path).folder_of("scores", cell(0)["stages"]["scores"]) / "scores.json"
    path.write_text("{}")
    with pytest.raises(HarnessError, match="differs from its manifest"):
        export(folder, tmp_path / "study.zip")
    assert not list(tmp_path.glob("*.zip"))


# --- What strangers may put into a file -------------------------------------------------------------------------------


def _listed(files: Files, name: str, content: bytes) -> None:
    """Put a file in as if the export had."""
    index = json.loads(files["bundle.json"])
    index["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files[name] = content
    files["bundle.json"] = json.dumps(index).encode()


def _index(files: Files, **changed: object) -> None:
    files["bundle.json"] = json.dumps(json.loads(files["bundle.json"]) | changed).encode()


def _scores(files: Files) -> str:
    return next(name for name in files if name.endswith("scores.json"))


def _manifest(files: Files, **changed: object) -> None:
    name = _scores(files).replace("scores.json", "manifest.json")
    _listed(files, name, json.dumps(json.loads(files[name]) | changed).encode())


ATTACKS: dict[str, Callable[[Files], object]] = {
    "up and out": lambda files: _listed(files, "store/../../evil", b"x"),
    "an absolute path": lambda files: _listed(files, "/evil", b"x"),
    "a path of another system": lambda files: _listed(files, "store\\..\\..\\evil", b"x"),
    "a file beside the run": lambda files: _listed(files, "evil", b"x"),
    "a file that no stage knows": lambda files: _listed(files, "store/scores/evil", b"x"),
    "a file in a stage": lambda files: _listed(files, _scores(files).replace("scores.json", "evil.py"), b"x"),
    "not listed": lambda files: files.__setitem__("store/evil", b"x"),
    "listed, not there": lambda files: files.pop(_scores(files)),
    "changed": lambda files: files.__setitem__(_scores(files), b'{"em": {"1": 100.0}}'),
    "changed with its listing": lambda files: _listed(files, _scores(files), b'{"em": {"1": 100.0}}'),
    "under another identity": lambda files: _manifest(files, identity="f" * 64),
    "of another kind": lambda files: _manifest(files, kind="answers"),
    "a manifest that leads out": lambda files: _manifest(files, outputs={"../../../evil": "0" * 64}),
    "a run called ..": lambda files: _index(files, run=".."),
    "a run called store": lambda files: _index(files, run="store"),
    "another format": lambda files: _index(files, format=2),
    "no index": lambda files: files.pop("bundle.json"),
    "an index that is none": lambda files: files.__setitem__("bundle.json", b"[" * 100_000),
    "a record that is none": lambda files: _listed(files, "study-0/run.json", b'{"format": 2}'),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_was_changed_in_a_file_is_one_error_and_nothing_lands(
    tmp_path: Path, attack: Callable[[Files], object]
) -> None:
    file = export(make_run(tmp_path / "made", 0), tmp_path / "study.zip")
    with zipfile.ZipFile(file) as bundle:
        files = {name: bundle.read(name) for name in bundle.namelist()}
    attack(files)
    with zipfile.ZipFile(file, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    for take in (api.open_bundle, lambda path: api.import_bundle(path, tmp_path / "runs")):
        with pytest.raises(HarnessError, match=r"study\.zip"):
            take(file)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(tmp_path / "made")]
    assert {path.name for path in left} <= {"study.zip", "lock"}
    assert not (tmp_path.parent / "evil").exists()


def test_escape_sequences_of_a_stranger_never_reach_the_terminal(tmp_path: Path, harness: Command) -> None:
    folder = make_run(tmp_path, 0)
    sequence = "\x1b[2J\x1b]0;owned\x07\x9b31m"
    (folder / "run.json").write_text(json.dumps(record(0) | {"notes": [f"note{sequence}"]}))
    done = harness("report", folder)
    assert done.code == 0
    assert "note[2J" in done.out
    assert not set(done.out + done.err) & {"\x1b", "\x07", "\x9b"}
    for part in ("method", "student", "name"):
        changed = record(0)
        changed["cells"][0][part] += sequence
        (folder / "run.json").write_text(json.dumps(changed))
        refused = harness("report", folder)
        assert "control characters" in refused.err
        assert not set(refused.out + refused.err) & {"\x1b", "\x07", "\x9b"}


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = export(make_run(tmp_path / "made", 0), tmp_path / "study.zip")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as bundle:
        bundle.writestr("bundle.json", b"{}")
    with pytest.raises(HarnessError, match=r"study\.zip"):
        api.open_bundle(file)


def test_what_is_no_zip_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 no")
    for path in (tmp_path / "a.zip", tmp_path / "none.zip", tmp_path):
        with pytest.raises(HarnessError, match="no zip file"):
            api.open_bundle(path)
