"""A plan that Slurm's jobs make: writes them and has them submitted; Slurm decides where and when each runs."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from harness.base.errors import HarnessError
from harness.base.files import disk_errors, read_json, write_json, write_text
from harness.cluster.order import Order, Told, check_cluster
from harness.cluster.runner import ClusterRunner
from harness.cluster.scripts import (
    COLLECT,
    LOGS,
    SUBMIT,
    SUBMITTED,
    Step,
    array_script,
    collecting_script,
    submit_script,
)
from harness.plan.costs.jobs import NeedsOfJobs
from harness.plan.jobs import Job
from harness.run.runner import Runner

FOLDER = "slurm"
"""Of a run's folder: scripts, logs, what the jobs tell."""
ORDER = "order.json"
TOLD = "told"
_MOST_OF_AN_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless somebody raised it
_ANSWERS_S = 60.0  # of Slurm's commands


class SlurmRunner(ClusterRunner):
    """Has a plan's stages and cells made by Slurm: an array for each step, and a job that collects.

    The same call later, when none is left in the queue, makes a table of what is done and submits what is not.
    """

    def run(self, seconds: float | None = None) -> None:
        check_cluster(self.plan, seconds, self.ranks.world, _gpus(self.plan.recipe.launch.job.gpus))
        folder = self.demand.folder / FOLDER
        left = queued(folder)
        self._told = told_in(folder)
        for told in self._told:
            self.failures.update(told.failures)
            for text in told.warnings:
                warnings.warn(text, stacklevel=2)
        if left:
            self.progress.message(
                f"Slurm has jobs of this run ({', '.join(left)}): `squeue --me` says how far they are"
            )
            return
        self.failures.clear()  # all that is missing is tried again
        super().run()

    def _hand_out(self, jobs: list[Job]) -> None:
        folder = (self.demand.folder / FOLDER).absolute()
        script = write_jobs(folder, Order.of(self.plan, self.store.root.parent, self.unsafe), steps_of(jobs), self)
        if not self.plan.recipe.launch.slurm.submit:
            self.progress.message(f"{len(jobs)} jobs are written; this submits them: bash {escape(str(script))}")
            return
        ids = submit(script)
        self.progress.message(
            f"{len(jobs)} jobs are submitted ({', '.join(ids)}); their logs: {escape(str(folder / LOGS))}"
        )


def steps_of(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Jobs that can run at the same time, by the name of their step; shared stages by their depth, then cells.

    "cells-0" waits for nothing, "cells-2" for "shared-2", which waits for "shared-1".
    """
    depth: dict[str, int] = {}
    steps: dict[str, list[Job]] = {}
    for job in jobs:  # inputs first
        before = max((depth[identity] for identity in job.needs if identity in depth), default=0)
        if job.place is None:
            depth |= dict.fromkeys(job.ends, before + 1)
            name = f"shared-{before + 1}"
        else:
            name = f"cells-{before}"
        steps.setdefault(name, []).append(job)
    return dict(sorted(steps.items(), key=lambda step: (step[0].startswith("cells"), int(step[0].split("-")[1]))))


def write_jobs(folder: Path, order: Order, steps: dict[str, list[Job]], runner: Runner) -> Path:
    """Write the scripts of a run, in place of those of an earlier call.

    Returns:
        The one that submits all.
    """
    if "\\" in str(folder):
        raise HarnessError("--runs", str(folder), "a path without \\", "Slurm reads it otherwise: choose another.")
    launch = runner.plan.recipe.launch
    needs = NeedsOfJobs(runner.plan, runner.store, _gpus(launch.job.gpus))
    made: list[Step] = []
    written: dict[str, list[Job]] = {}
    for name, jobs in steps.items():
        kind, _, depth = name.partition("-")
        above = f"shared-{int(depth) - 1 if kind == 'shared' else int(depth)}"
        after = tuple(step.name for step in made if step.name.split("_")[0] == above)
        for first in range(0, len(jobs), _MOST_OF_AN_ARRAY):
            part = jobs[first : first + _MOST_OF_AN_ARRAY]
            own = f"{name}_{first // _MOST_OF_AN_ARRAY + 1}" if first else name
            written[own] = part
            made.append(Step(own, len(part), after, needs.of(part)))
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / LOGS).mkdir(parents=True)
    plain = {name: [_plain(job) for job in jobs] for name, jobs in written.items()}
    write_json(folder / ORDER, {"order": asdict(order), "steps": plain})
    for step in made:
        write_text(folder / f"{step.name}.sbatch", array_script(step, folder, launch.job, launch.slurm))
    write_text(folder / f"{COLLECT}.sbatch", collecting_script(folder, launch.slurm))
    write_text(folder / SUBMIT, submit_script(made, folder, runner.plan.recipe.name))
    return folder / SUBMIT


def submit(script: Path) -> list[str]:
    """Submit what was written.

    Returns:
        Numbers of the jobs.

    Raises:
        HarnessError: Slurm is not there, or refuses; then nothing is left in its queue.
    """
    if shutil.which("sbatch") is None:
        raise HarnessError(
            "launch.executor",
            "slurm, and no sbatch on this machine",
            "a machine that submits jobs",
            f"Run it there; or launch.slurm.submit=false, and `bash {script}` there.",
        )
    done = subprocess.run(["bash", script], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = lines[0] if lines else f"exit code {done.returncode}"
        raise HarnessError("sbatch", f"{said!r:.300}", "jobs that Slurm takes", f"See {script}, and launch.slurm.")
    return (script.parent / SUBMITTED).read_text(encoding="utf-8").split()


def queued(folder: Path) -> list[str]:
    """Numbers of a run's jobs that wait or run.

    Raises:
        HarnessError: some were submitted, and Slurm does not answer.
    """
    try:
        ours = (folder / SUBMITTED).read_text(encoding="utf-8").split()
    except OSError:
        return []
    call = ["squeue", "--noheader", "--me", "--format=%F"]
    try:
        done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWERS_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _silent(folder, str(error)) from error
    if done.returncode:
        raise _silent(folder, done.stderr.strip())
    there = set(done.stdout.split())
    return [number for number in ours if number in there]


def _silent(folder: Path, said: str) -> HarnessError:
    fix = f"Ask again where Slurm is; if no job of this run is left, remove {folder / SUBMITTED}."
    return HarnessError("squeue", f"{said!r:.200}", "Slurm's queue, which had jobs of this run", fix)


def told_in(folder: Path) -> list[Told]:
    """What jobs have told so far."""
    return [Told.of(read_json(path)) for path in sorted((folder / TOLD).glob("*.json"))]


def _plain(job: Job) -> dict[str, object]:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(job).items()}


def _gpus(asked: int | None) -> int:
    return 1 if asked is None else asked
