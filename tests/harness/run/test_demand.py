"""Stages that are damaged or fail: what is made again, what is a row without numbers, what a manifest tells."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.results.kept import REBUILT, REBUILT_NOTE
from methods.uld import ULD
from tests.conftest import Done
from tests.harness.broken import replace_loss
from tests.harness.run.place import Place


def test_a_manifest_tells_where_a_result_is_from(whole: tuple[Place, Done]) -> None:
    place, _ = whole
    for kind, inputs in {"rows": {"teacher"}, "answers": {"student"}, "scores": {"answers"}, "teacher": set()}.items():
        for folder in place.stored(kind):
            manifest = json.loads((folder / "manifest.json").read_text())
            assert set(manifest["inputs"]) == inputs
            assert manifest["seconds"] >= 0
            assert manifest["environment"]["torch"]
            assert all((folder / name).is_file() for name in manifest["outputs"])
    assert not list(place.runs.glob("store/*/.*"))  # no leftovers, no checkpoints


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "pattern", "remade"),
    [
        ("rows", "rows-*.safetensors", ["rows"]),
        ("warm_start", "model/model.safetensors", ["warm_start"]),
        ("teacher", "adapter/adapter_model.safetensors", ["teacher"]),  # read for its head, though rows are stored
    ],
)
def test_a_damaged_input_is_made_again(
    place: Place, made: list[str], kind: str, pattern: str, remade: list[str]
) -> None:
    (file,) = [
        path
        for folder in place.stored(kind, task="dolly")
        if "same" not in json.loads((folder / "manifest.json").read_text())["title"]
        for path in folder.glob(pattern)
    ]
    content = file.read_bytes()
    _damage(file)
    done = place.run("methods=[uld]", "method_options.uld.kd_weight=0.7")
    assert done.code == 0, done.out
    assert "damaged" in done.out
    assert [name for name in made if name not in ("student", "answers", "bits", "scores")] == remade
    assert file.read_bytes() == content  # made again, it is the same to the bit
    assert not list(place.runs.glob("store/*/.*"))  # and no stage left its checkpoints with another


@pytest.mark.parametrize(
    ("kind", "remade"), [("scores", ["scores"]), ("bits", ["bits"]), ("answers", []), ("student", [])]
)
def test_a_damaged_result_is_made_again_where_it_is_needed(
    place: Place, made: list[str], kind: str, remade: list[str]
) -> None:
    before = place.run("methods=[uld]")
    expected = place.file(before)
    for folder in place.stored(
        kind, title=f"{ {'bits': 'bits per byte', 'student': 'training'}.get(kind, kind) } of uld"
    ):
        for path in folder.glob("*.json"):
            if path.name != "manifest.json":
                _damage(path)
    if remade:
        own = place.file(before, "report.md")
        report = place.harness("report", place.folder_of(before))
        assert report.code == 0  # the report says so instead of failing, and stands beside the one that says more
        assert REBUILT_NOTE in place.file(before, f"{REBUILT}/report.md")
        assert place.file(before, "report.md") == own
    done = place.run("methods=[uld]")
    assert done.code == 0, done.out
    assert made == remade
    assert place.file(done) == expected


def test_damaged_answers_are_generated_again_when_scores_are_missing(place: Place, made: list[str]) -> None:
    expected = place.file(place.run("methods=[uld]"))
    for folder in place.stored("answers", task="dolly"):
        _damage(folder / "answers.json")
    for folder in place.stored("scores", task="dolly"):
        shutil.rmtree(folder)
    done = place.run("methods=[uld]")
    assert made == ["answers", "scores"]
    assert place.file(done) == expected


def test_a_failing_method_is_a_row_and_is_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["methods=[sft,uld]", "method_options.uld.kd_weight=0.6"]
    with monkeypatch.context() as patch:
        replace_loss(patch, ULD, lambda self, chunk: 1 / 0)
        done = place.run(*asked)
    assert done.code == 1
    table = place.table(done)
    assert (table["uld"]["dolly.rouge_l.status"], table["uld"]["dolly.rouge_l.mean"]) == ("failed", "")
    assert (table["uld"]["dolly.bits_per_byte.status"], table["sft"]["dolly.rouge_l.status"]) == ("failed", "done")
    report = place.file(done, "report.md")
    assert "–" in report
    assert "ZeroDivisionError" in report
    (trace,) = (place.folder_of(done) / "failures").iterdir()
    assert str(trace.relative_to(place.folder_of(done))) in report
    assert "Traceback" in trace.read_text()
    assert "1 / 0" in trace.read_text()
    assert not list(place.runs.glob("store/student/.[!w]*"))  # nothing half-made is left
    again = place.run(*asked)
    assert again.code == 0
    assert place.table(again)["uld"]["dolly.rouge_l.status"] == "done"


def test_a_failure_may_say_anything(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are markup to the terminal; a message must not break the run that reports it."""

    def loss(self: ULD, chunk: Any) -> Any:
        raise RuntimeError("[/tmp/x] shape [batch, length]\nsecond line | pipe")

    replace_loss(monkeypatch, ULD, loss)
    done = place.run("methods=[uld]", "method_options.uld.kd_weight=0.61")
    assert done.code == 1
    assert "[/tmp/x] shape [batch, length]" in done.out
    assert "[/tmp/x] shape [batch, length]" in place.file(done, "results.csv")


def test_what_a_shared_stage_fails_for_all_its_cells_say(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried once, not once a cell."""
    calls = []

    def fail(*args: Any, **more: Any) -> None:
        calls.append(args)
        raise RuntimeError("no rows today")

    monkeypatch.setattr("harness.run.trainings.store_rows", fail)
    done = place.run("methods=[uld,fkd,control]", "teacher.steps=1", "fidelity=[described,released]")
    assert done.code == 1
    rows = list(csv.DictReader(place.file(done).splitlines()))
    failed = [(row["method"], row["fidelity"]) for row in rows if row["dolly.rouge_l.status"] == "failed"]
    assert sorted(failed) == [("fkd", "described"), ("uld", "described"), ("uld", "released")]
    assert len(calls) == 2  # of each teacher
    assert place.file(done, "report.md").count("no rows today") == 2
