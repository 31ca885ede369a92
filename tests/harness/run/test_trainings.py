"""How stages train: adapters or all weights, live teachers, precision, a training that diverges."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from harness.training.traces import Tracer
from methods.base import AlignedChunk, LossSums
from methods.mined import MinED
from methods.uld import ULD
from tests.harness.broken import replace_loss
from tests.harness.run.place import Place


def test_a_training_is_not_lost_over_its_traces(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Tracer, "trace", fail)
    done = place.run("methods=[uld]", "seeds=[7]")
    assert done.code == 0
    assert "no alignments to show" in done.out
    assert "no memory left" in done.out
    assert '"traced":true' not in place.file(done, "report.html")


def test_a_training_that_diverges_is_a_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken model still answers something, and gets a score that looks like one."""
    replace_loss(monkeypatch, ULD, lambda self, chunk: LossSums(kd=chunk.student.logits.sum() * float("nan")))
    done = place.run("methods=[uld]", "method_options.uld.kd_weight=0.63")
    assert done.code == 1
    assert place.table(done)["uld"]["dolly.rouge_l.status"] == "failed"
    assert "DivergedError: the loss of step 1 is nan" in place.file(done, "report.md")


def test_a_row_that_does_not_fit_into_memory_says_so_and_the_others_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One loss has room for a few rows of logits, the other for none."""

    def within(rows: int, own: Callable[..., LossSums]) -> Callable[..., LossSums]:
        def loss(method: object, chunk: AlignedChunk) -> LossSums:
            if chunk.student.logits.shape[0] > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return own(method, chunk)

        return loss

    replace_loss(monkeypatch, ULD, within(0, ULD.loss))
    replace_loss(monkeypatch, MinED, within(12, MinED.loss))
    weights = [f"method_options.{name}.kd_weight=0.63" for name in ("uld", "mined")]
    done = place.run("methods=[uld,mined]", "seeds=[7]", "evaluation.bits_per_byte=false", *weights)
    assert done.code == 1
    table = place.table(done)
    assert [table[row]["dolly.rouge_l.status"] for row in ("uld", "mined")] == ["failed", "done"]
    reason = "DoesNotFitError: step 1 does not fit into memory, one response at a time, in chunks of 8 rows: CUDA out"
    assert reason in place.file(done, "report.md")
    assert done.out.replace("\n", " ").count("which was done again with") == 1
    made = [json.loads((folder / "manifest.json").read_text()) for folder in place.stored("student", seed=7)]
    ((before, after),) = [one["halved"]["chunk_rows"] for one in made if "halved" in one]
    assert after <= 12 < before


def test_a_row_that_diverged_is_no_score_and_never_kept(place: Place, made: list[str]) -> None:
    """A last step that threw the weights away was scored 0.00, in bold; the other row has its score."""
    for _ in range(2):
        made.clear()
        done = place.run("methods=[sft,uld]", "tasks=[dolly]", "train.learning_rate=1e30", "train.steps=1")
        assert done.code == 1
        assert "student" in made  # tried again: a failure is not kept
        table, report = place.table(done), place.file(done, "report.md")
        assert [table[row]["dolly.rouge_l.status"] for row in ("sft", "uld")] == ["done", "failed"]
        assert table["uld"]["dolly.rouge_l.mean"] == ""
        (row,) = (line for line in report.splitlines() if line.startswith("| uld") and "–" in line)
        assert not re.search(r"\d\.\d", row)
        assert "after the last step (1)" in report


@pytest.mark.parametrize(("rate", "worse"), [(1e-3, False), (30.0, True)])
def test_a_teacher_that_ends_worse_than_it_began_is_told_when_it_is_made(
    rate: float, worse: bool, place: Place
) -> None:
    """By the same rows before and after: the batches of two steps differ by their rows."""
    done = place.run("methods=[fkd]", "tasks=[dolly]", f"teacher.learning_rate={rate}", "stages=[teacher]")
    assert done.code == 0, done.out
    told = re.findall(r"ended worse than it began: .* rose from ([\d.]+) to ([\d.]+) nats", " ".join(done.out.split()))
    assert bool(told) == worse
    assert all(float(before) < float(after) for before, after in told)


def test_a_method_that_scores_the_prompt_runs_its_teacher_live(place: Place, made: list[str]) -> None:
    done = place.run("methods=[fkd,rkd]", "fidelity=[released]", "teacher.steps=1")
    assert done.code == 0, done.out
    assert "rows" not in made
    assert made.count("teacher") == 1
    assert all(row["dolly.rouge_l.status"] == "done" for row in place.table(done).values())


@pytest.mark.parametrize("stage", ["train", "teacher"])
def test_adapters_or_all_weights_are_trained_as_asked(place: Place, stage: str) -> None:
    """LoRA students used to be trained whole."""
    other = "train.lora={rank: 2}" if stage == "train" else "teacher.lora=null"
    plain = place.table(place.run("methods=[uld]"))["uld"]
    done = place.run("methods=[uld]", other, "limits.length=399")
    row = place.table(done)["uld"]
    assert done.code == 0, done.out
    assert row["dolly.bits_per_byte.mean"] != plain["dolly.bits_per_byte.mean"]
    if stage == "train":
        start, student = (place.stored(kind, task="dolly") for kind in ("warm_start", "student"))
        assert start
        names = {name for folder in student for name in _tensors(folder / "model" / "model.safetensors")}
        assert not [name for name in names if "lora" in name]  # merged
    else:
        assert [folder for folder in place.stored("teacher") if (folder / "model" / "model.safetensors").is_file()]


def test_frozen_teachers_run_in_bfloat16_and_students_keep_float32(place: Place) -> None:
    done = place.run("methods=[uld]", "teacher.precision=bfloat16", "train.precision=bfloat16")
    assert done.code == 0, done.out
    assert place.table(done)["uld"]["dolly.bits_per_byte.status"] == "done"
    rows = {folder: next(folder.glob("rows-*.safetensors")) for folder in place.stored("rows", task="dolly")}
    half = [folder for folder, path in rows.items() if _dtypes(path) == {torch.bfloat16}]
    assert len(half) == 1
    full = [json.loads((folder / "manifest.json").read_text()) for folder in rows.keys() - set(half)]
    (told,) = (json.loads((folder / "manifest.json").read_text()) for folder in half)
    assert {each["bytes"] for each in full if each["title"] == told["title"]} == {2 * told["bytes"]}
    for folder in place.stored("student", task="dolly"):
        assert _dtypes(folder / "model" / "model.safetensors") == {torch.float32}


def _dtypes(path: Path) -> set[torch.dtype]:
    with safe_open(path, framework="pt") as file:
        return {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - a handle, no mapping


def _tensors(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def test_a_control_says_under_the_table_that_its_term_moves_nothing(place: Place) -> None:
    done = place.run("methods=[mined]", "fidelity=[described,released]")
    assert done.code == 0, done.out + done.err
    report = place.file(done, "report.md")
    assert "mined (released): both sides of the KD term are the teacher's" in report
    ratios = {
        folder: [step["kd_ce_ratio_0"] for step in json.loads((folder / "steps.json").read_text())]
        for folder in place.stored("student")
        if json.loads((folder / "manifest.json").read_text())["title"] == "training of mined (released)"
    }
    assert list(ratios.values()) == [[0.0, 0.0]]
