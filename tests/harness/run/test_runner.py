"""Runs of all methods on tiny models, through the command line: tables, resuming, what is kept. No network."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import tasks
from harness.base.files import gigabytes
from harness.models.resolve import resolve
from harness.results.evidence import collect_evidence
from harness.results.record import RunRecord, read_record
from harness.results.report import files_line
from harness.results.spent import collect_costs
from harness.store.store import Store
from methods.base import Need, TeacherKind, registered
from reports import write
from reports.training_costs import PARTS
from tests.conftest import Done
from tests.harness.run.place import STATUS, TASKS, Place
from tests.patches import replace_everywhere
from tests.reports.test_reports import NEARLY_EVERYTHING, context

SMALL = ["methods=[control,uld]", "tasks=[dolly,gsm8k]"]


def test_one_command_gives_the_whole_table(whole: tuple[Place, Done]) -> None:
    place, done = whole
    assert done.code == 0, done.out + done.err
    table = place.table(done)
    assert set(table) == set(place.fields["methods"])
    columns = ["dolly.rouge_l", "gsm8k.exact_match_strict", *(["codem.humaneval_plus"] if STATUS.available else [])]
    for row in table.values():
        for column in [*columns, *(f"{task}.bits_per_byte" for task in TASKS)]:
            assert row[f"{column}.status"] == "done"
            assert float(row[f"{column}.mean"]) >= 0
    assert len({row["dolly.bits_per_byte.mean"] for row in table.values()}) == len(table)  # they trained differently
    assert done.out.count("done  ") == len(table) * len(TASKS)
    assert {path.name for path in place.folder_of(done).iterdir()} == {
        "costs.csv", "figures", "items.csv.gz", "outcomes.csv", "report.html", "report.md", "report.tex", "results.csv",
        "run.json", "table.csv", "table.tex",
    }  # fmt: skip
    report = place.file(done, "report.md")
    assert all(words in report for words in ("ROUGE-L F1 with stemmer", "lm-eval", "samples that the project ships"))
    assert report.count("bits/byte: Σ -log2 p over Σ UTF-8 bytes") == len(TASKS)


@pytest.mark.slow
def test_the_methods_that_the_whole_run_leaves_out_run_as_well(place: Place) -> None:
    others = [
        name
        for name, kind in registered().items()
        if name not in place.fields["methods"] and Need.REWARDS not in kind().needs
    ]
    done = place.run(f"methods={others}")
    assert done.code == 0, done.out + done.err
    table = place.table(done)
    assert set(table) == set(others)
    assert {row["dolly.bits_per_byte.status"] for row in table.values()} == {"done"}
    assert len({row["dolly.bits_per_byte.mean"] for row in table.values()}) == len(table)


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
    record = read_record(place.folder_of(done)).record
    evidence, costs = collect_evidence(record, Store(place.runs)), collect_costs(record, Store(place.runs))
    methods = place.fields["methods"]
    rows = {(name, task) for name in methods for task in TASKS}
    for frame in (evidence.steps, costs):
        assert set(zip(frame["row"], frame["task"], strict=True)) == rows
    assert (costs["seconds"] > 0).all()
    steps = evidence.steps.groupby(["row", "task"])["step"].agg(list)
    assert all(steps[name, task] == ([1, 2, 3, 4] if name == "sft" else [1, 2]) for name, task in rows)
    distilling = {name for name in methods if registered()[name].teacher is not TeacherKind.NONE}
    assert set(evidence.steps.dropna(subset="kd")["row"]) == distilling
    answers = {item.task: [] for item in evidence.items}
    for item in evidence.items:
        assert [answer.row for answer in item.answers] == methods
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
        wanted = {example.id: example for example in task.reference_examples()}[item.id]
        assert item.reference == wanted.response.strip()
        if item.task != "codem":  # which asks for the rest of a function, and trains on instructions
            assert wanted.prompt in item.prompt
    assert all(len(a.student.tokens) == len(a.student.ends) for a in evidence.alignments)
    assert ("dolly", "dolly/0") in {(a.task, a.item) for a in evidence.alignments}
    assert len(place.file(done, "report.html").encode()) < 5_000_000


def test_every_method_is_compared_with_the_recipes_baseline(whole: tuple[Place, Done]) -> None:
    place, done = whole
    for method, row in place.table(done).items():
        assert bool(row["dolly.bits_per_byte.items_p_corrected"]) == (method != "control")
        assert row["dolly.bits_per_byte.low"]
        assert row["dolly.bits_per_byte.p_corrected"] == row["dolly.bits_per_byte.mark"] == ""  # one seed
    assert "one training seed, so that no row can be told" in " ".join(done.out.split())
    assert "## Appendix: other items, these students" in place.file(done, "report.md")


def test_a_copy_of_the_folder_without_its_store_loses_no_number(whole: tuple[Place, Done], tmp_path: Path) -> None:
    place, done = whole
    folder = tmp_path / "copy"
    shutil.copytree(place.folder_of(done), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    reported = place.harness("report", folder)
    assert reported.code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert "Built from results.csv and items.csv.gz" in " ".join(reported.out.split())
    for name in ("table.csv", "results.csv", "items.csv.gz", "outcomes.csv", "costs.csv"):
        assert (folder / "rebuilt" / name).read_bytes() == before[name], name
    compared = place.harness("compare", folder, place.folder_of(done))
    assert compared.code == 0
    assert "no stored result" not in compared.out
    for name in ("results.csv", "items.csv.gz"):
        (folder / name).unlink()
    refused = place.harness("report", folder)
    assert refused.code == 2
    assert "no stored result of this run, and no results.csv" in " ".join(refused.err.split())


def test_a_report_says_whom_to_cite_and_what_trainings_cost(whole: tuple[Place, Done]) -> None:
    place, done = whole
    text = place.file(done, "report.md")
    assert "eprint = {2402.12030}" in text
    assert "## Appendix: costs of training" in text
    costs = pd.read_csv(place.folder_of(done) / "costs.csv")
    assert (costs["tokens"] > 0).all()
    assert (costs["gpus"] == 0).all()
    assert {"control", "uld", "gold"} <= set(costs["row"])
    assert float(place.table(done)["uld"]["dolly.tokens_per_second"]) > 0


def test_another_baseline_makes_nothing_new(place: Place, made: list[str]) -> None:
    done = place.run("methods=[sft,uld]", "baseline=sft")
    assert made == []
    assert [bool(row["dolly.rouge_l.items_p"]) for row in place.table(done).values()] == [False, True]
    named = place.run("methods=[sft,uld]", "baseline=sft", "seeds=[0,1]", "primary=[dolly.bits_per_byte]")
    assert "Not named for the test, and without marks: dolly ROUGE-L." in place.file(named, "report.md")
    assert "- dolly bits/byte: 3 test items, so that no row can be told from another." in place.file(named, "report.md")
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
    monkeypatch.setattr("harness.run.trainings.store_rows", lambda *args, **more: 1 / 0)
    done = place.run("methods=[uld]", "teacher.steps=1", "stages=[teacher]")
    assert done.code == 1
    assert "ZeroDivisionError" in done.out


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


def test_seeds_are_repetitions_of_one_row(place: Place) -> None:
    done = place.run("methods=[control]", "seeds=[0,1]")
    row = place.table(done)["control"]
    assert row["seeds"] == "4"  # the baseline has as many again as the others
    assert float(row["dolly.bits_per_byte.std"]) > 0


def _without_costs(table: str) -> list[dict[str, str]]:
    """Rows of a table.csv less what differs between two trainings of the same: seconds and memory."""
    rows = list(csv.DictReader(table.splitlines()))
    assert all(any(name.endswith(f".{part}") for name in rows[0]) for part in PARTS)
    return [{name: value for name, value in row.items() if name.rpartition(".")[2] not in PARTS} for row in rows]


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
        pytest.param(
            _stage("student/.work-*/checkpoint-1/complete.json"),
            signal.SIGTERM,
            id="stopped by a scheduler",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_table(
    place: Place, tmp_path: Path, reached: Callable[[Path, str], bool], sent: int
) -> None:
    """The table to meet is from a run with other methods in between: numbers depend on what came before in no way."""
    expected = _without_costs(place.file(place.run(*SMALL)))
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
    assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 128 + sent), log.read_text()
    if sent != signal.SIGKILL:
        assert "goes on where it stopped" in log.read_text()
    before = {path: path.stat().st_mtime_ns for path in fresh.runs.glob("store/*/*/manifest.json")}
    assert before
    done = fresh.run(*SMALL)
    assert done.code == 0, done.out
    assert _without_costs(fresh.file(done)) == expected
    assert {folder.name: (folder / "answers.json").read_text() for folder in fresh.stored("answers")}.items() <= {
        folder.name: (folder / "answers.json").read_text() for folder in place.stored("answers")
    }.items()
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was stored was not made again
