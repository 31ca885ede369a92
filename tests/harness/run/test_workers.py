"""Several processes that make the cells of one run: every cell once, the same results, sooner."""

from __future__ import annotations

import heapq
import json
import multiprocessing
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
import yaml

from harness import api
from harness.base.errors import HarnessError
from harness.base.progress import Silent
from harness.plan.builder import make_plan
from harness.plan.jobs import Job, Schedule, jobs_of, wall_seconds
from harness.plan.stages import Plan
from harness.plan.tuning import TuningSettings, make_tuning_plan
from harness.recipe.load import validate
from harness.run import workers
from harness.run.workers import Workers
from harness.store.store import Store
from tests.conftest import Command
from tests.harness.run.light_work import LightJob, work

FIELDS: dict[str, Any] = {
    "name": "tiny",
    "tasks": ["dolly"],
    "methods": ["sft", "uld"],
    "seeds": [0, 1, 2, 3],
    "baseline": None,
    "evaluation": {"references": ["teachers"]},
}


def test_each_trial_of_a_tuning_is_a_job_once_what_they_share_is_there(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = validate("tiny", tiny_recipe | FIELDS | {"tasks": ["gsm8k"], "methods": ["control", "uld"]})
    plan = make_tuning_plan(recipe, TuningSettings(3))
    names = [job.name.partition(" · ")[0] for job in jobs_of(plan, Store(tmp_path))]
    assert sorted(names[:3]) == [
        "fine-tuning of the cross-tokenizer teacher",
        "rows of the cross-tokenizer teacher",
        "warm start of the student",
    ]
    assert names[3:] == [f"dev bits per byte of {row} [{n}]" for n in (1, 2, 3) for row in ("control", "uld")]
    alone = planned(tiny_recipe, stages=["teacher"])
    assert {job.place for job in jobs_of(alone, Store(tmp_path))} == {None}
    assert {end for job in jobs_of(alone, Store(tmp_path)) for end in job.ends} == {end.identity for end in alone.ends}


def planned(recipe: dict[str, Any], **changed: Any) -> Plan:
    return make_plan(validate("tiny", recipe | FIELDS | changed))


# --- which job comes next ---------------------------------------------------------------------------------------------


def walked(jobs: Sequence[Job], processes: int, seconds: Callable[[Job], float]) -> tuple[float, list[Job]]:
    """By a clock that is set forward to the next end of a job: when all are done, and in which order they began."""
    schedule, at_work, now, begun = Schedule(jobs), [], 0.0, []  # type: ignore[var-annotated]
    while True:
        while len(at_work) < processes and (job := schedule.take()) is not None:
            begun.append(job)
            heapq.heappush(at_work, (now + seconds(job), len(begun), job))
        if not at_work:
            return now, begun
        now, _, job = heapq.heappop(at_work)
        schedule.done(job)


def test_eight_cells_take_four_processes_under_a_third_of_the_time(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """A teacher of 8 s and its rows of 2 s; cells of 40 s each, and the answers of two teachers, of 10 s."""
    plan = planned(tiny_recipe)
    jobs = jobs_of(plan, Store(tmp_path))
    assert [job.name.split(" · ")[0] for job in jobs if job.place is None] == [
        "fine-tuning of the cross-tokenizer teacher",
        "rows of the cross-tokenizer teacher",
    ]
    times = {"fine-tuning": 8.0, "rows": 2.0}

    def seconds(job: Job) -> float:
        if job.place is None:
            return times[job.name.split(" of ")[0]]
        return 10.0 if job.place < len(plan.references) else 40.0

    alone, in_order = walked(jobs, 1, seconds)
    assert in_order == jobs
    assert alone == 8 + 2 + 2 * 10 + 8 * 40
    together, order = walked(jobs, 4, seconds)
    assert sorted(order, key=jobs.index) == jobs
    assert together < 0.35 * alone
    assert walked(jobs, 2, seconds)[0] < 0.6 * alone
    assert [wall_seconds(jobs, n, seconds) for n in (1, 4)] == [alone, together]
    made = Counter(identity for job in jobs for identity in job.makes)
    assert made == Counter(stage.identity for stage in plan.stages())  # each by one job


def test_a_plan_says_how_long_its_processes_take(tiny_recipe: dict[str, Any], harness: Command, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe | FIELDS))
    said = harness("plan", f"recipe={tmp_path / 'tiny.yaml'}", "launch.workers=4", "--runs", tmp_path).out
    assert re.search(r"launch\.workers: 4 processes at a time, each on a GPU of its own: (< )?\d+ min on ", said)


def test_no_job_begins_before_what_it_needs(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    plan = planned(tiny_recipe, tasks=["dolly", "gsm8k"], methods=["sft", "fkd", "uld", "dual(fkd, uld)"])
    jobs = jobs_of(plan, Store(tmp_path))
    needed = {stage.identity: stage for stage in plan.stages()}
    for job in jobs:
        if job.place is not None:
            cell = plan.evaluated[job.place]
            teachers = {
                stage.identity for stage in needed.values() if stage.kind == "teacher" and stage.task == cell.task
            }
            asked = {"sft": 0, "fkd": 1, "uld": 1, "dual(fkd, uld)": 2}
            if not hasattr(cell, "label"):
                assert len(job.needs & teachers) == asked[cell.objective.name]
    schedule = Schedule(jobs)
    first = [schedule.take() for _ in jobs]
    assert not any(job is not None and job.needs for job in first)
    taken = [job for job in first if job is not None]
    schedule.give_back(taken[3])
    assert schedule.take() == taken[3]
    for job in taken:
        schedule.done(job)
    assert schedule.take() is not None


def test_cells_come_seed_by_seed_where_time_is_short(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """And a teacher only before the first cell that it teaches."""
    plan = planned(tiny_recipe, tasks=["dolly", "gsm8k"], seeds=[0, 1], evaluation={})
    jobs = jobs_of(plan, Store(tmp_path), by_seed=True)
    seeds = [plan.evaluated[job.place].seed for job in jobs if job.place is not None]
    assert seeds == [0, 0, 0, 0, 1, 1, 1, 1]
    tasks = [job.task for job in jobs]
    assert tasks == ["dolly"] * 4 + ["gsm8k"] * 4 + ["dolly"] * 2 + ["gsm8k"] * 2
    assert sorted(map(str, jobs)) == sorted(map(str, jobs_of(plan, Store(tmp_path))))


def test_more_processes_than_gpus_and_a_launcher_beside_them_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert workers.places(2) == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    with pytest.raises(HarnessError, match=r"launch\.workers: found 3; expected at most 2, the GPUs"):
        workers.check_workers(3, 1)
    with pytest.raises(HarnessError, match=r"launch\.workers: found 2, under a launcher of 4 processes"):
        workers.check_workers(2, 4)


# --- processes --------------------------------------------------------------------------------------------------------


class Told(Silent):
    """A progress that keeps what it is told."""

    def __init__(self, name: str = "", whole: Told | None = None) -> None:
        self.name = name
        self.begun: list[tuple[str, str]] = [] if whole is None else whole.begun
        self.messages: list[str] = [] if whole is None else whole.messages

    def beside(self, name: str) -> Told:
        return Told(name, self)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def begin(self, stage: str, total: int) -> None:
        self.begun.append((self.name, stage))


def test_a_process_that_dies_is_told_and_its_job_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    jobs: list[Any] = [LightJob("stage", place=None), LightJob("once", 1), LightJob("always", 9), LightJob("whole")]
    jobs.append(LightJob("after", needs=frozenset(["stage"])))
    told, done, failures = Told(), [], {}  # type: ignore[var-annotated]
    Workers(tmp_path, work, 2, told).run(Schedule(jobs), failures, done.append)  # type: ignore[arg-type]
    assert sorted(job.name for job in done) == sorted(job.name for job in jobs)
    assert Counter(path.name.split("-")[0] for path in tmp_path.iterdir()) == {
        "stage": 1,
        "once": 2,
        "always": 2,
        "whole": 1,
        "after": 1,
    }
    assert {path.name.split("-")[2] for path in tmp_path.iterdir()} == {"3"}
    assert sorted(text.partition("[/] (SIGKILL) at ")[2] for text in told.messages) == [
        "always again",
        "always: it is tried again",
        "once: it is tried again",
    ]
    assert failures.keys() == {"always"}  # and processes are told of it
    assert not multiprocessing.active_children()


def test_what_stops_a_run_ends_its_processes(tmp_path: Path) -> None:
    class Stopped(Told):
        def beside(self, name: str) -> Stopped:
            return self

        def begin(self, stage: str, total: int) -> None:
            raise KeyboardInterrupt

    jobs: list[Any] = [LightJob("hang"), LightJob("hang", 1)]
    with pytest.raises(KeyboardInterrupt):
        Workers(tmp_path, work, 2, Stopped()).run(Schedule(jobs), {}, lambda job: None)  # type: ignore[arg-type]
    assert not multiprocessing.active_children()


SMALL: dict[str, Any] = FIELDS | {"seeds": [0, 1], "evaluation": {"bits_per_byte": False}}


def made_by(count: int, recipe: dict[str, Any], runs: Path) -> tuple[api.Run, Told]:
    told = Told()
    return api.run(validate("tiny", recipe | SMALL | {"launch": {"workers": count}}), told, runs=runs), told


@pytest.fixture(scope="module")
def alone(tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[api.Run]:
    """The run of one process, in one thread as the others are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield made_by(1, tiny_recipe, tmp_path_factory.mktemp("alone"))[0]
    torch.set_num_threads(threads)


OTHER = ("timing.json", "adapter/adapter_config.json")
"""Files that differ from process to process: how long it took, and a set of names in the order of their hashes."""


def stored(run: api.Run) -> dict[tuple[str, str], dict[str, str]]:
    """Digests of all that a run has stored, weights included."""
    found = {}
    for path in run.store.root.glob("*/[!.]*/manifest.json"):
        manifest = json.loads(path.read_text())
        digests = {name: digest for name, digest in manifest["outputs"].items() if name not in OTHER}
        found[manifest["kind"], manifest["identity"]] = digests
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_several_processes_make_what_one_makes(
    count: int, alone: api.Run, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    run, told = made_by(count, tiny_recipe, tmp_path)
    pd.testing.assert_frame_equal(run.results(), alone.results())
    pd.testing.assert_frame_equal(run.items(), alone.items())
    assert stored(run) == stored(alone)
    stages = Counter(stage for _, stage in told.begun if not stage.startswith("scores"))
    assert set(stages.values()) == {1}, stages
    assert {
        f"training of {method} · dolly · seed {seed}" for method in ("sft", "uld") for seed in (0, 1)
    } <= stages.keys()
    assert 2 <= len({worker for worker, _ in told.begun}) <= count
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.nightly), signal.SIGTERM, signal.SIGKILL]
)
def test_a_run_that_is_stopped_takes_its_processes_with_it(
    number: signal.Signals, tiny_recipe: dict[str, Any], tmp_path: Path, hangups: None
) -> None:
    fields = tiny_recipe | SMALL | {"train": tiny_recipe["train"] | {"steps": 100_000}, "methods": ["sft"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(fields | {"launch": {"workers": 2}}))
    call = [sys.executable, "-m", "harness", "run", f"recipe={tmp_path / 'tiny.yaml'}", "--runs", str(tmp_path)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        said = []
        while "sft · dolly" not in (line := run.stdout.readline()):
            said.append(line)
            assert line, said
        processes = psutil.Process(run.pid).children(recursive=True)
        assert len(processes) >= 2, said
        run.send_signal(number)
        said.append(run.stdout.read())
    assert run.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    if number != signal.SIGKILL:
        assert "the same command goes on where it stopped" in said[-1]
        assert list(tmp_path.glob("tiny-*/run.json"))
