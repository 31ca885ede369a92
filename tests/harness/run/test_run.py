"""Runs of all methods on tiny models, through the command line: tables, resuming, damage, failures. No network."""

from __future__ import annotations

import copy
import csv
import gc
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import tasks
from harness.base.files import gigabytes
from harness.base.progress import Silent
from harness.data.terms import align
from harness.evaluate.programs import sandbox
from harness.evaluate.programs.sandbox import SandboxStatus, probe
from harness.models.resolve import is_downloaded, resolve
from harness.plan.builder import make_plan
from harness.plan.stages import Stage
from harness.recipe.load import validate
from harness.results.evidence import collect_evidence
from harness.results.record import RunRecord, files_line, read_record
from harness.run.runner import Runner
from harness.store.store import Store
from harness.training.traces import Tracer
from methods.base import LossSums, TeacherKind, registered
from methods.library.warping import EditDistances
from methods.uld import ULD
from reports import write
from tests.conftest import Command, Done
from tests.patches import replace_everywhere
from tests.reports.test_reports import NEARLY_EVERYTHING, context

STATUS = probe()
TASKS = ["dolly", "gsm8k", *(["codem"] if STATUS.available else [])]


@dataclass
class Place:
    """A recipe and a runs folder."""

    folder: Path
    fields: dict[str, Any]
    harness: Command

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def command(self, *overrides: str) -> list[str]:
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(self.fields))
        return ["run", f"recipe={path}", *overrides, "--runs", str(self.runs)]

    def run(self, *overrides: str) -> Done:
        return self.harness(*self.command(*overrides))

    def folder_of(self, done: Done) -> Path:
        """The folder of the run that has just ended."""
        return Path(done.out.replace("\n", "").partition("Files: ")[2].partition(", ")[0]).parent

    def file(self, done: Done, name: str = "table.csv") -> str:
        return (self.folder_of(done) / name).read_text()

    def table(self, done: Done) -> dict[str, dict[str, str]]:
        """Rows of the table by method."""
        return {row["method"]: row for row in csv.DictReader(self.file(done).splitlines())}

    def stored(self, kind: str, **values: Any) -> list[Path]:
        """Folders of finished stages whose manifest has these values."""
        found = []
        for path in sorted(self.runs.glob(f"store/{kind}/*/manifest.json")):
            manifest = json.loads(path.read_text())
            if manifest.items() >= values.items() and not manifest.get("dropped"):
                found.append(path.parent)
        return found


@pytest.fixture(scope="module")
def whole(
    tiny_recipe: dict[str, Any], harness: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Place, Done]:
    """Every method on every task, run once without interruption."""
    place = Place(tmp_path_factory.mktemp("whole"), copy.deepcopy(tiny_recipe) | {"tasks": TASKS}, harness)
    return place, place.run()


@pytest.fixture
def place(whole: tuple[Place, Done], tmp_path: Path) -> Place:
    """A copy of the whole run's store, for one task: what a test asks for beyond it is all that has to be made."""
    shutil.copytree(whole[0].runs / "store", tmp_path / "runs" / "store")
    return Place(tmp_path, copy.deepcopy(whole[0].fields) | {"tasks": ["dolly"]}, whole[0].harness)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made from here on: kinds of stages, and "scores" for each call of a scorer."""
    kinds: list[str] = []

    def spied(own: Callable[..., Any], kind: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            kinds.append(kind(*args))
            return own(*args)

        return call

    monkeypatch.setattr(Runner, "_make", spied(Runner._make, lambda runner, stage: stage.kind))
    for task in tasks.tasks().values():
        monkeypatch.setattr(task, "score", spied(task.score, lambda *args: "scores"))
    return kinds


# --- A whole run ------------------------------------------------------------------------------------------------------


def test_one_command_gives_the_whole_table(whole: tuple[Place, Done]) -> None:
    place, done = whole
    assert done.code == 0, done.out + done.err
    table = place.table(done)
    assert set(table) == set(registered())
    columns = ["dolly.rouge_l", "gsm8k.exact_match_strict", *(["codem.humaneval_plus"] if STATUS.available else [])]
    for row in table.values():
        for column in [*columns, *(f"{task}.bits_per_byte" for task in TASKS)]:
            assert row[f"{column}.status"] == "done"
            assert float(row[f"{column}.mean"]) >= 0
    assert len({row["dolly.bits_per_byte.mean"] for row in table.values()}) == len(table)  # they trained differently
    assert done.out.count("done  ") == len(table) * len(TASKS)
    assert {path.name for path in place.folder_of(done).iterdir()} == {
        "figures", "items.csv.gz", "outcomes.csv", "report.html", "report.md", "report.tex", "results.csv", "run.json",
        "table.csv",
    }  # fmt: skip
    report = place.file(done, "report.md")
    assert all(words in report for words in ("ROUGE-L F1 with stemmer", "lm-eval", "samples that the project ships"))
    assert report.count("bits/byte: Σ -log2 p over Σ UTF-8 bytes") == len(TASKS)


def test_items_are_those_of_the_stored_stages_and_give_the_scores(whole: tuple[Place, Done]) -> None:
    place, done = whole
    items = pd.read_csv(place.folder_of(done) / "items.csv.gz")
    results = pd.read_csv(place.folder_of(done) / "results.csv").query("value.notna()")
    for row in results.itertuples():
        part = items[(items["cell"] == row.cell) & (items["metric"] == row.metric)]
        assert len(part) == row.n_items
        assert np.average(part["value"], weights=part["weight"]) == pytest.approx(row.value)
    bits = {item["bytes"] for path in place.stored("bits") for item in json.loads((path / "bits.json").read_text())}
    assert set(items.query("metric == 'bits_per_byte'")["weight"]) == bits
    assert set(items.query("metric != 'bits_per_byte'")["weight"]) == {1}


def test_outcomes_are_those_of_the_stored_stages(whole: tuple[Place, Done]) -> None:
    place, done = whole
    counted = pd.read_csv(place.folder_of(done) / "outcomes.csv")
    for task in TASKS:
        stored = [json.loads((path / "answers.json").read_text()) for path in place.stored("answers", task=task)]
        stops = pd.Series([answer["stop"] for answers in stored for answer in answers]).value_counts()
        named = {"eos": "EOS", "length": "length limit"}
        part = counted[(counted["task"] == task) & (counted["of"] == "answers")]
        assert part.groupby("outcome")["count"].sum().to_dict() == {named.get(k, k): v for k, v in stops.items()}
        rows = counted[(counted["task"] == task) & (counted["of"] == "training rows")]
        assert set(rows.groupby("row")["count"].sum()) == {place.fields[task]["train_items"]}
    if "codem" in TASKS:
        (first, *_) = place.stored("scores", task="codem")
        statuses = json.loads((first / "details.json").read_text())["statuses"]["humaneval_plus"]
        part = counted[counted["of"] == "humaneval_plus"]
        assert set(part.groupby("row")["count"].sum()) == {len(statuses)}
        machine = json.loads((first / "manifest.json").read_text())["machine"]
        assert f"Programs ran in {STATUS.version}, on {machine['cores']} core" in place.file(done, "report.md")
        assert "Limits of one program: 8 GiB of addresses" in place.file(done, "report.md")


def test_rows_that_a_limit_leaves_out_or_cuts_are_counted(place: Place) -> None:
    """Against the training file's rows, in the student's tokens."""
    length = 100
    done = place.run("methods=[control]", f"limits.length={length}", "evaluation.bits_per_byte=false")
    assert done.code == 0, done.out + done.err
    task = tasks.tasks()["dolly"](tasks.tasks()["dolly"].Settings(train_items=8), None)
    sides = {
        role: AutoTokenizer.from_pretrained(spec["model"].removeprefix("path:"))
        for role, spec in (("student", place.fields["student"]), *place.fields["teachers"].items())
    }
    expected = {"whole": 0, "cut": 0, "left out": 0}
    for example in task.training_examples():
        sizes = [
            [len(side(text, add_special_tokens=False)["input_ids"]) for text in (example.prompt, example.response)]
            for side in sides.values()
        ]
        bos = [side("a")["input_ids"][0] == side.bos_token_id for side in sides.values()]
        room = [length - 1 - prompt - extra for (prompt, _), extra in zip(sizes, bos, strict=True)]
        if min(room) < 1:
            expected["left out"] += 1
        elif all(response <= free for (_, response), free in zip(sizes, room, strict=True)):
            expected["whole"] += 1
        else:
            expected["cut"] += 1
    counted = pd.read_csv(place.folder_of(done) / "outcomes.csv").query("of == 'training rows'")
    assert counted.set_index("outcome")["count"].to_dict() == expected
    assert min(expected["left out"], expected["cut"] + expected["whole"]) > 0


def test_the_line_of_files_names_all_that_stands_in_the_runs_folder(tmp_path: Path) -> None:
    files = write(NEARLY_EVERYTHING, context(), tmp_path)
    (tmp_path / "run.json").touch()
    figures = len(list((tmp_path / "figures").glob("*.svg")))
    assert figures > 1
    line = files_line(RunRecord(tmp_path, {}), files)
    assert line.startswith(f"Files: {tmp_path / 'report.html'}, ")
    assert line.endswith(f", {tmp_path / 'figures'}/ ({figures} SVG), {tmp_path / 'run.json'}")
    named = line.removeprefix("Files: ").replace(f"/ ({figures} SVG)", "").split(", ")
    assert sorted(named) == sorted(map(str, tmp_path.iterdir()))


def test_the_page_shows_training_answers_and_alignments_of_every_row(whole: tuple[Place, Done]) -> None:
    """From stored files alone: the students' weights are dropped."""
    place, done = whole
    evidence = collect_evidence(read_record(place.folder_of(done)).record, Store(place.runs))
    rows = {(name, task) for name in registered() for task in TASKS}
    for frame in (evidence.steps, evidence.costs):
        assert set(zip(frame["row"], frame["task"], strict=True)) == rows
    assert (evidence.costs["seconds"] > 0).all()
    steps = evidence.steps.groupby(["row", "task"])["step"].agg(list)
    assert all(steps[name, task] == ([1, 2, 3, 4] if name == "sft" else [1, 2]) for name, task in rows)
    distilling = {name for name, kind in registered().items() if kind.teacher is not TeacherKind.NONE}
    assert set(evidence.steps.dropna(subset="kd")["row"]) == distilling
    answers = {item.task: [] for item in evidence.items}
    for item in evidence.items:
        assert [answer.row for answer in item.answers] == list(registered())
        answers[item.task].append(tuple(answer.text for answer in item.answers))
    outputs = [json.loads((path / "answers.json").read_text()) for path in place.stored("answers", task="dolly")]
    assert sorted(zip(*answers["dolly"], strict=True)) == sorted(tuple(a["output"] for a in made) for made in outputs)
    pairs = {(a.row, a.task) for a in evidence.alignments}
    assert pairs == {(row, task) for row, task in rows if row in distilling}
    assert evidence.aligned == [(task, 3, 3) for task in TASKS]  # all test items, of all rows
    assert len(evidence.alignments) == 3 * len(pairs)
    assert {a.row for a in evidence.alignments if a.stand_in} <= {"cdm"}
    for item in evidence.items:
        task = tasks.tasks()[item.task](tasks.tasks()[item.task].Settings(), None)
        wanted = {example.id: example for example in task.reference_examples()}[item.id.replace("/test/", "/")]
        assert item.reference == wanted.response.strip()
        if item.task != "codem":  # which asks for the rest of a function, and trains on instructions
            assert wanted.prompt in item.prompt
    assert all(len(a.student.tokens) == len(a.student.ends) for a in evidence.alignments)
    assert ("dolly", "dolly/0") in {(a.task, a.item) for a in evidence.alignments}
    assert len(place.file(done, "report.html").encode()) < 5_000_000


def test_alignments_that_are_lost_are_made_again_where_the_models_are(
    place: Place, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is made with them, and nothing is downloaded for them."""
    (folder,) = place.stored("alignments", method="one_to_one", task="dolly")
    before = (folder / "alignments.json").read_text()
    shutil.rmtree(folder)
    replace_everywhere(monkeypatch, is_downloaded, lambda uri: False)
    assert place.run("methods=[one_to_one]").code == 0
    assert not folder.exists()
    monkeypatch.undo()
    assert place.run("methods=[one_to_one]").code == 0
    assert (folder / "alignments.json").read_text() == before
    monkeypatch.setattr(Runner, "pair", None)  # what breaks is a message
    shutil.rmtree(folder)
    done = place.run("methods=[one_to_one]")
    assert done.code == 0
    assert "no alignments to show" in done.out
    assert made == []


def test_a_training_is_not_lost_over_its_traces(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Tracer, "trace", fail)
    done = place.run("methods=[uld]", "seeds=[7]")
    assert done.code == 0
    assert "no alignments to show" in done.out
    assert "no memory left" in done.out
    assert '"traced":true' not in place.file(done, "report.html")


def test_every_method_is_compared_with_the_recipes_baseline(whole: tuple[Place, Done]) -> None:
    place, done = whole
    for method, row in place.table(done).items():
        assert bool(row["dolly.bits_per_byte.p_corrected"]) == (method != "control")
        assert row["dolly.bits_per_byte.low"]
    assert "worse than control" in " ".join(done.out.split())
    assert "## Appendix: tests against control" in place.file(done, "report.md")


def test_another_baseline_makes_nothing_new(place: Place, made: list[str]) -> None:
    done = place.run("methods=[sft,uld]", "baseline=sft")
    assert made == []
    assert [bool(row["dolly.rouge_l.p"]) for row in place.table(done).values()] == [False, True]
    none = place.run("methods=[sft,uld]", "baseline=null")
    assert "significance" not in place.file(none, "report.md")
    left_out = place.run("methods=[sft,uld]")
    assert (
        "No marks of significance: no row here has item-level scores to compare with those of 'control'"
        in place.file(left_out, "report.md")
    )


def test_a_paper_stands_beside_the_run_that_names_it(place: Place, made: list[str]) -> None:
    done = place.run("methods=[sft,uld]", "paper=phi_qwen")
    assert made == []
    rows = list(csv.DictReader(place.file(done, "published.csv").splitlines()))
    ours = place.table(done)
    assert [(row["row"], row["column"], row["theirs"]) for row in rows] == [
        ("sft", "dolly.rouge_l", "24.66"), ("uld", "dolly.rouge_l", "26.43")
    ]  # fmt: skip
    for row in rows:
        mean = float(ours[row["row"]]["dolly.rouge_l.mean"])
        assert float(row["difference"]) == pytest.approx(mean - float(row["theirs"]))
    report = place.file(done, "report.md")
    assert "Settings differ: " in report
    for difference in ("(theirs hf:Qwen/Qwen2-0.5B or", "train.epochs none (theirs 7)", "items 3 (theirs 500)"):
        assert difference in report
    assert "gsm8k" not in report.partition("Settings differ")[2].partition("\n")[0]  # a task that is not shown
    assert not (place.folder_of(place.run("methods=[sft]")) / "published.csv").exists()


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


def test_a_second_run_makes_nothing(
    whole: tuple[Place, Done], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, done = whole
    files = {name: place.file(done, name) for name in ("table.csv", "results.csv", "report.md")}
    replace_everywhere(monkeypatch, resolve, None)  # not even the models have to be there
    again = place.run()
    assert again.code == 0
    assert made == []
    assert {name: place.file(again, name) for name in files} == files
    assert "stages to run" not in again.out


def test_speed_settings_and_other_methods_make_nothing_new(place: Place, made: list[str]) -> None:
    speed = ["train.chunk_rows=3", "train.micro_batch_size=1", "evaluation.batch_size=1", "train.checkpoint_every=null"]
    assert place.run("methods=[uld,sft]", *speed, "student.name=other").code == 0
    assert made == []


def test_a_report_needs_no_model_and_no_recipe(whole: tuple[Place, Done], monkeypatch: pytest.MonkeyPatch) -> None:
    place, done = whole
    folder = place.folder_of(done)
    expected = place.file(done)
    (folder / "table.csv").unlink()
    replace_everywhere(monkeypatch, resolve, None)
    monkeypatch.chdir(folder)
    for name in (folder, Path(), Path("../") / folder.name):
        assert place.harness("report", name).code == 0
        assert (folder / "table.csv").read_text() == expected
    monkeypatch.chdir("/")
    assert place.harness("report", folder.name, "--runs", place.runs).code == 0


def test_a_plan_says_what_is_stored(place: Place) -> None:
    command = ["plan", *place.command("methods=[uld]")[1:]]
    assert "would run" not in place.harness(*command).out
    text = place.harness(*command, "method_options.uld.kd_weight=0.9").out
    assert "7 stages: 3 stored, 4 would run" in text
    assert "Nothing was executed" in text


# --- Test sets and sampling seeds -------------------------------------------------------------------------------------


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


# --- References -------------------------------------------------------------------------------------------------------


def test_teachers_and_the_student_before_distillation_are_rows(place: Place, made: list[str]) -> None:
    """From the stages that are stored already, and with each model's own tokenizer."""
    asked = ["methods=[uld,fkd]", "evaluation.references=[untrained,warm_start,teachers]", "dolly.decoding=greedy"]
    done = place.run(*asked)
    assert done.code == 0, done.out + done.err
    assert set(made) == {"answers", "bits", "scores"}
    assert made.count("scores") == 1  # of all rows together
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
    bold = [line for line in report.splitlines() if "**" in line and line.startswith("| ")]
    assert bold
    assert all(line.startswith(("| fkd", "| uld")) for line in bold)  # references do not compete
    made.clear()
    assert place.file(place.run(*asked)) == place.file(done)
    assert made == []
    text = place.harness("plan", *place.command(*asked)[1:]).out
    assert "cross-tokenizer teacher" in text
    assert "would run" not in text


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
    monkeypatch.setattr("harness.run.runner.merge_lora", lambda *args: 1 / 0)
    done = place.run("methods=[control]", "evaluation.references=[warm_start,teachers]")
    assert done.code == 1
    rows = {(row["role"], row["teacher"]): row for row in csv.DictReader(place.file(done).splitlines())}
    assert rows["teacher", "cross teacher"]["dolly.rouge_l.status"] == "failed"
    assert rows["reference", ""]["dolly.rouge_l.status"] == rows["student", ""]["dolly.rouge_l.status"] == "done"


# --- Teachers alone ---------------------------------------------------------------------------------------------------


def test_teachers_and_their_rows_can_be_made_alone(whole: tuple[Place, Done], tmp_path: Path, made: list[str]) -> None:
    """The rows are those of a whole run, and a later run only reads them; the plan counts them until they are there."""
    place = Place(tmp_path, whole[0].fields | {"tasks": ["dolly"]}, whole[0].harness)
    asked = ["methods=[uld,fkd,control]"]
    command = ["plan", *place.command(*asked)[1:]]
    said = " ".join(place.harness(*command).out.split())
    done = place.run(*asked, "stages=[teacher]")
    assert done.code == 0, done.out + done.err
    assert made == ["teacher", "rows"] * 2
    assert not list(place.runs.glob("*/run.json"))
    assert "Run the same without stages" in " ".join(done.out.split())
    rows = {json.loads((folder / "manifest.json").read_text())["bytes"]: folder for folder in place.stored("rows")}
    for size, folder in rows.items():
        digests = json.loads((folder / "manifest.json").read_text())["outputs"]
        assert folder.name[:12] in done.out
        assert gigabytes(size) in done.out
        whole_run = whole[0].runs / "store" / "rows" / folder.name / "manifest.json"
        assert json.loads(whole_run.read_text())["outputs"] == digests
    for line in ("dolly: .*; ", "Disk: "):
        estimated = re.search(rf"{line}(\S+) MB of teacher rows", said)
        assert estimated is not None
        assert 0 < 1e6 * float(estimated[1]) < sum(rows)  # a tiny tokenizer's tokens are shorter than is assumed
    assert "Disk: 0 GB of teacher rows" in " ".join(place.harness(*command).out.split())
    again = place.run(*asked, "stages=[teacher]")
    assert (again.code, made) == (0, ["teacher", "rows"] * 2)
    made.clear()
    assert place.run(*asked).code == 0
    assert set(made) == {"warm_start", "student", "answers", "bits", "scores"}


def test_a_teacher_that_fails_alone_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.run.runner.store_rows", lambda *args, **more: 1 / 0)
    done = place.run("methods=[uld]", "teacher.steps=1", "stages=[teacher]")
    assert done.code == 1
    assert "ZeroDivisionError" in done.out


def test_a_teachers_fine_tuning_has_the_memory_of_the_teacher_before(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first one, whose rows have just been made, nothing is left when what was freed is given back."""
    known: list[weakref.ref[Any]] = []
    alive: list[list[bool]] = []

    def release() -> None:
        gc.collect()
        alive[-1:] = [[there() is not None for there in known]]

    own_teacher, own_make = Runner._tuned_teacher, Runner._make_teacher

    def tuned(self: Runner, stage: Stage) -> Any:
        model = own_teacher(self, stage)
        known.append(weakref.ref(model))
        return model

    def make(self: Runner, stage: Stage, folder: Path) -> dict[str, Any]:
        found.append(alive[-1])
        return own_make(self, stage, folder)

    found: list[list[bool]] = []
    monkeypatch.setattr("harness.run.runner.release_memory", release)
    monkeypatch.setattr(Runner, "_tuned_teacher", tuned)
    monkeypatch.setattr(Runner, "_make_teacher", make)
    alone(tiny_recipe, tmp_path, stages=["teacher"]).run()
    first, second = found
    assert not first
    assert second
    assert not any(second)


@pytest.mark.parametrize("keep", ["hidden", "top_k"])
def test_no_training_has_a_teacher_beside_it_that_it_does_not_call(
    keep: str, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that was evaluated or made rows before; but a live one stays."""
    beside: dict[str, bool] = {}
    own = Runner._optimise

    def optimise(self: Runner, stage: Stage, trainee: Any) -> Any:
        done = own(self, stage, trainee)
        beside[stage.objective.name if stage.objective else stage.kind] = self._teacher is not None
        return done

    monkeypatch.setattr(Runner, "_optimise", optimise)
    alone(
        tiny_recipe,
        tmp_path,
        stages=[],
        methods=["gold", "control", "uld"],
        method_options={"gold": {"rollout_share": 0.5, "rollout_tokens": 4}},
        teacher_rows={"keep": keep, "k": 8},
        evaluation={"references": ["teachers"]},
    ).run()
    assert beside == {"teacher": False, "warm_start": False, "gold": True, "control": False, "uld": False}


@pytest.mark.parametrize(
    ("packed", "stages", "checked"),
    [
        (["warm_start", "train"], ["teacher"], []),
        (["teacher"], ["teacher"], ["cross", "same"]),
        (["warm_start"], [], ["student"]),
        (["train"], [], ["student"]),
        ([], [], []),
    ],
)
def test_packing_is_checked_with_the_models_that_it_trains(
    packed: list[str],
    stages: list[str],
    checked: list[str],
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("harness.run.runner.check_packing", lambda model: seen.append(Path(model.name_or_path).name))
    alone(tiny_recipe, tmp_path, stages=stages, packed=packed).preflight()
    assert seen == checked


def test_all_trainings_of_a_run_share_what_methods_keep_of_a_pair(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    runner = alone(tiny_recipe, tmp_path, stages=[])
    kept = [runner.pair(role).shared(EditDistances) for role in ("cross", "same", "cross")]
    assert kept[0] is kept[2]
    assert kept[0] is not kept[1]


def alone(
    recipe: dict[str, Any], folder: Path, *, stages: list[str], packed: Sequence[str] = (), **changes: Any
) -> Runner:
    """A runner of a small part of the tiny recipe, with a store of its own."""
    fields = copy.deepcopy(recipe) | {"name": "tiny", "tasks": ["dolly"], "methods": ["fkd", "uld"], "stages": stages}
    fields |= changes
    for training in packed:
        fields[training]["packing"] = True
    return Runner(make_plan(validate("tiny", fields)), Store(folder), folder, Silent())


# --- Interruptions ----------------------------------------------------------------------------------------------------

SMALL = ["methods=[control,uld]", "tasks=[dolly,gsm8k]"]


def _stage(pattern: str) -> Callable[[Path, str], bool]:
    return lambda runs, out: any(runs.glob(f"store/{pattern}"))


@pytest.mark.parametrize(
    ("reached", "sent"),
    [
        pytest.param(_stage("rows/*/manifest.json"), signal.SIGKILL, id="killed when the rows are stored"),
        pytest.param(
            lambda runs, out: "done  " in out, signal.SIGKILL, id="killed after the first cells", marks=pytest.mark.slow
        ),
        pytest.param(
            _stage("student/.work-*/checkpoint-1/complete.json"),
            signal.SIGINT,
            id="interrupted at a checkpoint",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_table(
    place: Place, tmp_path: Path, reached: Callable[[Path, str], bool], sent: int
) -> None:
    """The table to meet is from a run with other methods in between: numbers depend on what came before in no way."""
    expected = place.file(place.run(*SMALL))
    fresh = Place(tmp_path / "fresh", place.fields, place.harness)
    fresh.folder.mkdir()
    command = [sys.executable, "-c", "from harness.cli import main; main()", *fresh.command(*SMALL)]
    log = fresh.folder / "log"
    # a shell ignores Ctrl-C in what it starts in the background, tests too
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=heeds) as process:
        deadline = time.monotonic() + 300
        while not reached(fresh.runs, log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(sent)
        code = process.wait()
    assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 130), log.read_text()
    if sent == signal.SIGINT:
        assert "goes on where it stopped" in log.read_text()
    before = {path: path.stat().st_mtime_ns for path in fresh.runs.glob("store/*/*/manifest.json")}
    assert before
    done = fresh.run(*SMALL)
    assert done.code == 0, done.out
    assert fresh.file(done) == expected
    assert {folder.name: (folder / "answers.json").read_text() for folder in fresh.stored("answers")}.items() <= {
        folder.name: (folder / "answers.json").read_text() for folder in place.stored("answers")
    }.items()
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was stored was not made again


# --- Damage -----------------------------------------------------------------------------------------------------------


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
        report = place.harness("report", place.folder_of(before))
        assert report.code == 0  # the report says so instead of failing
        assert "run the recipe (again)" in place.file(before, "report.md")
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


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_method_is_a_row_and_is_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["methods=[sft,uld]", "method_options.uld.kd_weight=0.6"]
    with monkeypatch.context() as patch:
        patch.setattr(ULD, "loss", lambda self, chunk: 1 / 0)
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

    monkeypatch.setattr(ULD, "loss", loss)
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

    monkeypatch.setattr("harness.run.runner.store_rows", fail)
    done = place.run("methods=[uld,fkd,control]", "teacher.steps=1", "fidelity=[described,released]")
    assert done.code == 1
    rows = list(csv.DictReader(place.file(done).splitlines()))
    failed = [(row["method"], row["fidelity"]) for row in rows if row["dolly.rouge_l.status"] == "failed"]
    assert sorted(failed) == [("fkd", "described"), ("uld", "described"), ("uld", "released")]
    assert len(calls) == 2  # of each teacher
    assert place.file(done, "report.md").count("no rows today") == 2


def test_a_training_that_diverges_is_a_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken model still answers something, and gets a score that looks like one."""
    monkeypatch.setattr(ULD, "loss", lambda self, chunk: LossSums(kd=chunk.student.logits.sum() * float("nan")))
    done = place.run("methods=[uld]", "method_options.uld.kd_weight=0.63")
    assert done.code == 1
    assert place.table(done)["uld"]["dolly.rouge_l.status"] == "failed"
    assert "the training diverged: the loss of step 1 is not finite" in place.file(done, "report.md")


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


# --- What is kept, and other ways to train ----------------------------------------------------------------------------


def test_students_that_are_not_kept_are_not_missed(place: Place, made: list[str]) -> None:
    asked = ["methods=[uld]", "method_options.uld.kd_weight=0.62", "keep_students=false"]
    first = place.run(*asked)
    assert first.code == 0
    (identity,) = [c["stages"]["student"] for c in json.loads(place.file(first, "run.json"))["cells"]]
    folder = place.runs / "store" / "student" / identity[:24]
    assert not list(folder.rglob("*.safetensors"))
    assert (folder / "steps.json").is_file()  # the report's appendix reads it
    made.clear()
    again = place.run(*asked)
    assert (again.code, made) == (0, [])
    assert place.file(again) == place.file(first)
    assert place.file(again, "report.md") == place.file(first, "report.md")
    place.run(*asked, "dolly.new_tokens=5")
    assert made == ["student", "answers", "bits", "scores"]  # new answers need the weights again


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


def test_a_map_that_is_slow_to_make_is_kept_with_the_runs(whole: tuple[Place, Done]) -> None:
    """MinED's, over all tasks; exact maps are made in no time."""
    kept = list(whole[0].runs.glob("store/maps/*"))
    assert [path.name.partition("-")[0] for path in kept] == ["nearest"]


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


def test_training_rows_are_aligned_once_for_all_seeds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = []

    def noted(example: Any, terms: Any) -> Any:
        if terms:
            aligned.append((example.id, terms[0].method.name))
        return align(example, terms)

    monkeypatch.setattr("harness.run.runner.align", noted)
    place.run("methods=[uld,gold]", "seeds=[7,8]")
    assert {method for _, method in aligned} == {"uld", "gold"}
    assert len(aligned) == len(set(aligned))


def test_seeds_are_repetitions_of_one_row(place: Place) -> None:
    done = place.run("methods=[control]", "seeds=[0,1]")
    row = place.table(done)["control"]
    assert row["seeds"] == "2"
    assert float(row["dolly.bits_per_byte.std"]) > 0
