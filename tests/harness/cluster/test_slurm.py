"""Slurm makes a run: what is asked of it, in which order, and that results are those of one process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

from harness import api
from harness.base.errors import HarnessError
from harness.base.progress import Silent
from harness.cluster import slurm, slurm_job
from harness.cluster.order import Order, Told, do
from harness.cluster.slurm import steps_of
from harness.plan.builder import make_plan
from harness.plan.costs.devices import GIB
from harness.plan.costs.jobs import NeedsOfJobs
from harness.plan.costs.stages import Coster
from harness.plan.jobs import jobs_of
from harness.plan.stages import Plan
from harness.recipe.load import RecipeError, validate
from harness.store.artefacts import Failure
from harness.store.store import Store
from tests.conftest import Command
from tests.harness.cluster import slurm_standin
from tests.harness.run.test_workers import stored

FIELDS: dict[str, Any] = {
    "name": "tiny",
    "tasks": ["dolly"],
    "methods": ["sft", "uld", "mined"],
    "baseline": None,
    "evaluation": {"bits_per_byte": False},
}
ON_CPUS = ("launch.executor=slurm", "launch.job.gpus=0")


def options(script: Path) -> list[str]:
    lines = script.read_text().splitlines()
    return [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --")]


@pytest.fixture(scope="module")
def plan(tiny_recipe: dict[str, Any]) -> Plan:
    return make_plan(validate("tiny", tiny_recipe | FIELDS))


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's, whose commands are on PATH."""
    folder = tmp_path / "slurm of a test"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{slurm_standin.install(folder)}{os.pathsep}{os.environ['PATH']}")
    return folder / "jobs"


@pytest.fixture
def recipe_file(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe | FIELDS))
    return path


# --- What is asked for ------------------------------------------------------------------------------------------------


def test_shared_stages_come_in_steps_by_their_depth(plan: Plan, tmp_path: Path) -> None:
    steps = steps_of(jobs_of(plan, Store(tmp_path)))
    named = {
        name: [job.name.split(" · ")[0 if job.place is None else 1] for job in jobs] for name, jobs in steps.items()
    }
    assert named == {
        "shared-1": ["warm start of the student", "fine-tuning of the cross-tokenizer teacher"],
        "shared-2": ["rows of the cross-tokenizer teacher"],
        "cells-0": ["sft"],
        "cells-2": ["uld", "mined"],
    }


def test_jobs_ask_for_what_the_plan_needs(plan: Plan, tmp_path: Path) -> None:
    """By hand: memory of the largest stage and 4 GiB, whole GiB; a quarter of an hour and twice the seconds."""
    store = Store(tmp_path)
    jobs = steps_of(jobs_of(plan, store))["cells-2"]
    coster = Coster(plan)
    costs = {stage.identity: coster.cost(stage) for stage in plan.stages()}
    memory = max(costs[made].memory for job in jobs for made in job.makes)
    needs = NeedsOfJobs(plan, store, gpus=1).of(jobs)
    assert needs.gibibytes == 4 + -(-memory // GIB)
    assert needs.minutes is not None
    assert 15 < needs.minutes <= 17  # tiny models
    assert NeedsOfJobs(plan, store, gpus=0).of(jobs).minutes is None  # nobody measured this CPU


def test_scripts_say_what_a_recipe_and_the_plan_say(recipe_file: Path, harness: Command, tmp_path: Path) -> None:
    asked = {"submit": "false", "partition": "gpu", "account": "lab", "gpu_type": "a100", "at_once": 4, "grace": 300}
    fields = [f"launch.slurm.{name}={value}" for name, value in asked.items()]
    fields += ["launch.slurm.options={qos: high, exclusive: true, nice: 5}", "launch.job.time=90m", "launch.job.cpus=8"]
    fields += [f"{name}.precision=bfloat16" for name in ("teacher", "warm_start", "train")]
    done = harness("run", f"recipe={recipe_file}", "launch.executor=slurm", *fields, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").glob("tiny-*/slurm")
    assert f"this submits them: bash {folder}/submit.sh" in done.out.replace("\n", "")
    own = options(folder / "cells-2.sbatch")
    assert own == [
        "array=0-1%4",
        "ntasks=1",
        "cpus-per-task=8",
        "gres=gpu:a100:1",
        next(option for option in own if option.startswith("mem=")),
        "time=01:30:00",
        "requeue",
        "open-mode=append",
        "signal=TERM@300",
        "partition=gpu",
        "account=lab",
        "qos=high",
        "exclusive",
        "nice=5",
    ]
    assert "gres" not in (folder / "collect.sbatch").read_text()
    for script in folder.glob("*.s*"):
        assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ({"partition": "gpu; rm -rf ~"}, "one word"),
        ({"account": "lab\n$(touch x)"}, "one word"),
        ({"gpu_type": "$HOME"}, "one word"),
        ({"options": {"qos": "`id`"}}, "one word"),
        ({"options": {"output": "/home/me/.bashrc"}}, "unknown option 'output'"),
        ({"options": {"export": "LD_PRELOAD=x"}}, "unknown option 'export'"),
        ({"options": {"qos=high\nwrap": "id"}}, "unknown option"),
    ],
)
def test_what_a_recipe_says_never_becomes_code(
    field: dict[str, Any], found: str, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=found):
        validate("tiny", tiny_recipe | FIELDS | {"launch": {"executor": "slurm", "slurm": field}})


PARTS = ("shared-1", "shared-1_2", "shared-2", "cells-0", "cells-2", "cells-2_2")


def test_names_and_folders_are_words_of_the_scripts(
    recipe_file: Path, harness: Command, queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe's name holds spaces and brackets, a folder whatever it likes: none is run. And arrays have an end."""
    monkeypatch.setattr(slurm, "_MOST_OF_AN_ARRAY", 1)
    odd = tmp_path / "it's $(touch made) 100% `touch made`"
    odd.mkdir()
    monkeypatch.chdir(odd)
    done = harness("run", f"recipe={recipe_file}", "name=a (b), c", *ON_CPUS, "--runs", "runs")
    assert done.code == 0, done.err
    submitted = slurm_standin.jobs(queue)
    assert {job["name"] for job in submitted.values()} == {f"a-b-c-{step}" for step in (*PARTS, "collect")}
    numbers = {job["name"].removeprefix("a-b-c-"): number for number, job in submitted.items()}
    waits = {name: submitted[number]["after"] for name, number in numbers.items()}
    assert waits["shared-2"] == [numbers["shared-1"], numbers["shared-1_2"]]
    assert waits["cells-2_2"] == [numbers["shared-2"]]
    assert waits["collect"] == [numbers[name] for name in PARTS]
    assert {job["chdir"] for job in submitted.values()} == {str(odd)}
    (folder,) = odd.glob("runs/*/slurm")
    assert {Path(job["output"].replace("%%", "%")).parent for job in submitted.values()} == {folder / "logs"}
    call = next(line for line in (folder / "collect.sbatch").read_text().splitlines() if line.startswith("srun"))
    assert shlex.split(call)[-2:] == [str(folder), "collect"]
    assert not list(tmp_path.rglob("made"))


def test_what_only_one_machine_does_is_refused(recipe_file: Path, harness: Command, tmp_path: Path) -> None:
    def refused(*fields: str) -> str:
        done = harness("run", f"recipe={recipe_file}", *fields, "--runs", tmp_path)
        assert done.code == 2
        return done.err

    assert "beside --stop-after" in refused(*ON_CPUS, "--stop-after", "1h")
    assert "beside launch.workers=2" in refused(*ON_CPUS, "launch.workers=2")
    assert "beside stages=['teacher']" in refused(*ON_CPUS, "stages=[teacher]")
    assert "teacher.precision: found auto, which is float32 on this machine" in refused("launch.executor=slurm")
    assert "no sbatch on this machine" in refused(*ON_CPUS)


# --- Submitting -------------------------------------------------------------------------------------------------------


def test_a_run_is_submitted_once_and_in_order(recipe_file: Path, harness: Command, queue: Path, tmp_path: Path) -> None:
    call = ["run", f"recipe={recipe_file}", *ON_CPUS, "--runs", tmp_path / "runs"]
    done = harness(*call)
    assert (done.code, done.err) == (0, "")
    assert "6 jobs are submitted (100, 101, 102, 103, 104)" in done.out
    assert "left to do: dolly · sft · seed 0, dolly · uld · seed 0" in done.out
    jobs = {job["name"]: (number, job["after"]) for number, job in slurm_standin.jobs(queue).items()}
    assert jobs == {
        "tiny-shared-1": ("100", [""]),
        "tiny-shared-2": ("101", ["100"]),
        "tiny-cells-0": ("102", [""]),
        "tiny-cells-2": ("103", ["101"]),
        "tiny-collect": ("104", ["100", "101", "102", "103"]),
    }
    again = harness(*call)
    assert "Slurm has jobs of this run (100, 101, 102, 103, 104)" in again.out
    assert len(slurm_standin.jobs(queue)) == 5


def test_what_slurm_refuses_leaves_nothing_in_its_queue(
    recipe_file: Path, harness: Command, queue: Path, tmp_path: Path
) -> None:
    call = ["run", f"recipe={recipe_file}", *ON_CPUS, "--runs", tmp_path / "runs"]
    said = harness(*call, "launch.slurm.partition=nowhere")
    assert said.code == 2
    assert "sbatch: found 'sbatch: error: invalid partition specified: nowhere'" in said.err
    assert not slurm_standin.jobs(queue)
    assert harness(*call, "launch.slurm.submit=false").code == 0
    (folder,) = (tmp_path / "runs").glob("tiny-*/slurm")
    script = folder / "cells-2.sbatch"
    script.write_text(script.read_text() + "#SBATCH --partition=nowhere\n")
    assert subprocess.run(["bash", folder / "submit.sh"], capture_output=True).returncode == 1
    assert [job.get("cancelled") for job in slurm_standin.jobs(queue).values()] == [True] * 3
    assert not (folder / "submitted").exists()


# --- What a job does --------------------------------------------------------------------------------------------------


def test_a_job_whose_input_was_lost_or_failed_is_a_row(plan: Plan, tmp_path: Path) -> None:
    """Its own machine would die at it again; and nothing is loaded for that."""
    store = Store(tmp_path)
    order = Order.of(plan, tmp_path, False)
    job = steps_of(jobs_of(plan, store))["cells-2"][0]
    told = do(order, plan, job, {}, Silent())
    assert set(told.failures) == set(job.ends)
    assert next(iter(told.failures.values())).reason.startswith("what it reads was not made: ")
    teacher = next(stage for stage in plan.stages() if stage.kind == "teacher")
    known = {teacher.identity: Failure(teacher.title, "no luck")}
    after = do(order, plan, job, known, Silent()).failures
    assert {after[end].reason for end in job.ends} == {"no luck"}
    assert Told.of(json.loads(json.dumps(told.plain()))) == told


def test_another_plan_than_the_one_that_was_submitted_is_refused(plan: Plan, tmp_path: Path) -> None:
    order = Order.of(plan, tmp_path, False)
    assert order.plan().identity == order.identity
    changed = Order({**order.recipe, "seeds": [1]}, order.identity, order.runs, False)
    with pytest.raises(HarnessError, match="the same code, libraries, models and data on all machines"):
        changed.plan()


# --- A whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_slurm_makes_what_one_process_makes(
    tiny_recipe: dict[str, Any], harness: Command, queue: Path, tmp_path: Path
) -> None:
    """One student's time is over while it trains: it gets SIGTERM, is queued again, and goes on from its checkpoint."""
    fields = tiny_recipe | FIELDS | {"train": tiny_recipe["train"] | {"steps": 40}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields))
    alone = api.run(validate("tiny", fields), runs=tmp_path / "alone")
    runs = tmp_path / "runs"
    call = ["run", f"recipe={path}", *ON_CPUS, "--runs", runs]
    assert harness(*call).code == 0
    stopped = []

    def watch(process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None and not stopped:
            if list(runs.glob("store/student/.work-*/checkpoint-*")):
                (step,) = psutil.Process(process.pid).children()
                step.terminate()
                stopped.append(step.pid)
            time.sleep(0.01)

    ran = slurm_standin.run_queue(queue, {"tiny-cells-2 0": watch}, harness)
    assert ran == [
        "tiny-shared-1 0",
        "tiny-shared-1 1",
        "tiny-shared-2 0",
        "tiny-cells-0 0",
        "tiny-cells-2 0",
        "tiny-cells-2 1",
        "tiny-cells-2 0",
        "tiny-collect 0",
    ]
    assert stopped
    (folder,) = runs.glob("tiny-*")
    logs = {log.name: log.read_text() for log in (folder / "slurm" / "logs").iterdir()}
    assert "the same command goes on where it stopped" in logs["tiny-cells-2-103_0.log"]
    assert "Files: " in logs["tiny-collect.log"], logs["tiny-collect.log"]
    made = api.open_run(folder)
    assert not made.failures
    pd.testing.assert_frame_equal(made.results(), alone.results())
    pd.testing.assert_frame_equal(made.items(), alone.items())
    assert stored(made) == stored(alone)
    after = harness(*call)
    assert after.code == 0
    assert "left to do" not in after.out
    assert len(slurm_standin.jobs(queue)) == 5
    assert slurm_job.collect(folder / "slurm", lambda text: None).failures == []
