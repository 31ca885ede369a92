"""What trained models are asked: test sets and sampling seeds, references, scorers and the sandbox."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import tasks
from harness.data.tokens import TokenizedExample
from harness.evaluate.programs import sandbox
from harness.evaluate.programs.sandbox import SandboxStatus
from harness.evaluate.references import reference_rows
from tests.harness.run.place import STATUS, Place


def test_scores_are_means_over_answers_that_are_kept_seed_by_seed(place: Place, made: list[str]) -> None:
    """Against two runs with a seed each; a test set without a file is named in the report and is no column."""
    scored, said = {}, {}
    for seeds in ("10", "20", "[10,20]"):
        done = place.run("methods=[control]", f"dolly.sampling_seeds={seeds}", "dolly.sets=[dolly,vicuna]")
        assert done.code == 0, done.out + done.err
        (cell,) = json.loads(place.file(done, "run.json"))["cells"]
        stored = {kind: place.runs / "store" / kind / cell["stages"][kind][:24] for kind in ("scores", "answers")}
        scored[seeds] = json.loads((stored["scores"] / "scores.json").read_text())
        said[seeds] = json.loads((stored["answers"] / "answers.json").read_text())
    assert made == ["answers", "bits", "scores"] * 3
    assert said["[10,20]"] == said["10"] + said["20"]
    assert [answer["output"] for answer in said["10"]] != [answer["output"] for answer in said["20"]]
    for item, value in scored["[10,20]"]["rouge_l"].items():
        assert value == pytest.approx((scored["10"]["rouge_l"][item] + scored["20"]["rouge_l"][item]) / 2)
    report = place.file(done, "report.md")
    assert "mean over the seeds 10, 20" in report
    assert "no such file: Vicuna (vicuna/valid.jsonl)" in report
    assert "rouge_l_vicuna" not in place.file(done)


def test_teachers_and_the_student_before_distillation_are_rows(
    place: Place, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the stages that are stored already, and with each model's own tokenizer.

    Distances from teachers are made of the rows that bits per byte read.
    """
    read_again: list[int] = []

    def reading(model: Any, examples: Sequence[TokenizedExample], **options: Any) -> Any:
        read_again.append(sum(not example.cut for example in examples))
        return reference_rows(model, examples, **options)

    monkeypatch.setattr("harness.evaluate.divergence.reference_rows", reading)
    asked = ["methods=[uld,fkd]", "evaluation.references=[untrained,warm_start,teachers]", "dolly.decoding=greedy"]
    done = place.run(*asked)
    assert done.code == 0, done.out + done.err
    assert set(made) == {"answers", "bits", "scores"}
    assert made.count("scores") == 1  # of all rows together
    assert read_again == [0, 0, 0]  # of the warm start and two students
    rows = list(csv.DictReader(place.file(done).splitlines()))
    named = [(row["teacher_kind"], row["role"], row["method"], row["teacher"]) for row in rows]
    assert named == [
        ("none", "reference", "untrained", ""),
        ("none", "reference", "warm start", ""),
        ("same-tokenizer", "teacher", "teacher", "same teacher"),
        ("same-tokenizer", "student", "fkd", "same teacher"),
        ("cross-tokenizer", "teacher", "teacher", "cross teacher"),
        ("cross-tokenizer", "student", "uld", "cross teacher"),
    ]
    for row in rows:
        assert (row["dolly.rouge_l.status"], row["dolly.bits_per_byte.status"]) == ("done", "done")
    assert len({row["dolly.bits_per_byte.mean"] for row in rows}) == len(rows)
    report = place.file(done, "report.md")
    assert "| untrained |" in report
    assert "Nothing is bold" in report  # of one seed
    assert not [line for line in report.splitlines() if "**" in line and line.startswith("| ")]
    made.clear()
    assert place.file(place.run(*asked)) == place.file(done)
    assert made == []
    text = place.harness("plan", *place.command(*asked)[1:]).out
    assert "cross-tokenizer teacher" in text
    assert "would run" not in text


def test_the_start_of_all_students_is_measured_against_teachers_that_come_after_it(place: Place) -> None:
    """As in a run that was stopped and goes on, where they are there when it is read again."""
    for kind in ("teacher", "apart", "held_out"):
        shutil.rmtree(place.runs / "store" / kind)
    done = place.run("methods=[fkd]", "evaluation.references=[warm_start,teachers]")
    assert done.code == 0, done.out + done.err
    cells = json.loads(place.file(done, "run.json"))["cells"]
    (start,) = [cell for cell in cells if cell["method"] == "warm start"]
    assert start["apart"].keys() == {"cross teacher", "same teacher"}
    for cell in cells:
        for identity in cell["apart"].values():
            assert (place.runs / "store" / "apart" / identity[:24] / "manifest.json").is_file(), cell["name"]


def test_a_reference_says_what_its_model_says(place: Place, tiny_models: Path) -> None:
    """The untrained student and the cross teacher through transformers alone, each with its own tokenizer."""
    asked = ["methods=[uld]", "evaluation.references=[untrained,teachers]", "dolly.decoding=greedy", "teacher.steps=0"]
    done = place.run(*asked)
    assert done.code == 0, done.out + done.err
    for title, folder in (("the untrained student", "student"), ("the cross-tokenizer teacher", "cross")):
        (answers,) = place.stored("answers", title=f"answers of {title}")
        for answer in json.loads((answers / "answers.json").read_text()):
            assert answer["output"] == _greedy(tiny_models / folder, answer["prompt"], 8)
        (bits,) = place.stored("bits", title=f"bits per byte of {title}")
        references = {
            e.id: e for e in tasks.tasks()["dolly"](tasks.tasks()["dolly"].Settings(), None).reference_examples()
        }
        for item in json.loads((bits / "bits.json").read_text()):
            example = references[item["id"]]
            assert item["bytes"] == len(example.response.encode())
            expected = _bits(tiny_models / folder, example.prompt, example.response)
            assert item["bits"] == pytest.approx(expected, rel=1e-4)


def _greedy(folder: Path, prompt: str, new_tokens: int) -> str:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"][:, :256]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def _bits(folder: Path, prompt: str, response: str) -> float:
    """-log2 of the probability of a response after a prompt, tokenised apart."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
    with torch.no_grad():
        logits = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
    picked = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])
    return float(-picked.double().sum()) / math.log(2)


def test_a_teacher_that_can_not_be_tuned_is_a_row_without_numbers(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.run.workbench.merge_lora", lambda *args: 1 / 0)
    done = place.run("methods=[control]", "evaluation.references=[warm_start,teachers]")
    assert done.code == 1
    rows = {(row["role"], row["teacher"]): row for row in csv.DictReader(place.file(done).splitlines())}
    assert rows["teacher", "cross teacher"]["dolly.rouge_l.status"] == "failed"
    assert rows["reference", ""]["dolly.rouge_l.status"] == rows["student", ""]["dolly.rouge_l.status"] == "done"


def test_a_scorer_that_fails_leaves_the_other_tasks_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.evaluate.rouge.score", lambda *args: 1 / 0)
    done = place.run("tasks=[dolly,gsm8k]", "methods=[control]", "dolly.new_tokens=7")
    assert done.code == 1
    row = place.table(done)["control"]
    assert (row["dolly.rouge_l.status"], row["gsm8k.exact_match_strict.status"]) == ("failed", "done")
    assert row["dolly.bits_per_byte.status"] == "done"


def test_without_a_sandbox_code_is_not_run_and_the_rest_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    none = SandboxStatus(False, None, "", "user namespaces are forbidden here")
    monkeypatch.setattr(sandbox, "probe", lambda: none)
    asked = ["tasks=[codem,dolly]", "methods=[control]", "codem.new_tokens=7"]
    done = place.run(*asked)
    row = place.table(done)["control"]
    assert (row["codem.humaneval_plus.status"], row["dolly.rouge_l.status"]) == ("skipped", "done")
    assert row["codem.bits_per_byte.status"] == "done"
    assert "user namespaces are forbidden here" in place.file(done, "report.md")
    assert done.code == 0  # nothing went wrong
    assert "codem: generated code will not be run: user namespaces are forbidden here" in done.out  # at the start
    if STATUS.available:
        monkeypatch.setattr(sandbox, "probe", lambda: STATUS)
        again = place.run(*asked)
        assert (again.code, place.table(again)["control"]["codem.humaneval_plus.status"]) == (0, "done")
        (cell,) = [cell for cell in json.loads(place.file(again, "run.json"))["cells"] if cell["task"] == "codem"]
        folder = place.runs / "store" / "scores" / cell["stages"]["scores"][:24]
        details = json.loads((folder / "details.json").read_text())
        assert details["ran_in"] == STATUS.version
        assert set(details["statuses"]["humaneval"].values()) <= {"pass", "fail", "timeout"}
        assert "without a sandbox" not in place.file(again, "report.md")


def test_the_table_shows_that_code_ran_without_a_sandbox(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    none = SandboxStatus(False, None, "", "user namespaces are forbidden here")
    monkeypatch.setattr(sandbox, "probe", lambda: none)
    done = place.run("tasks=[codem]", "methods=[control]", "codem.new_tokens=7", "--unsafe-execution")
    assert (done.code, place.table(done)["control"]["codem.humaneval_plus.status"]) == (0, "done")
    words = "Generated code ran without a sandbox (--unsafe-execution)"
    assert words in " ".join(done.out.split())  # whatever the terminal wraps
    assert words in place.file(done, "report.md")
