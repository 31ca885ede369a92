"""What a job of Slurm does: one job of a run, or the table of all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import Json, read_json, write_json
from harness.base.heard_warnings import hear_warnings
from harness.base.progress import Progress, Silent
from harness.cluster.order import Order, Told, do, environment_of
from harness.cluster.scripts import LOGS
from harness.cluster.slurm import ORDER, TOLD, told_in
from harness.plan.jobs import Job, failed
from harness.plan.stages import Plan
from harness.results.readings import note_readings
from harness.results.record import run_folder, write_record
from harness.results.run import Run
from harness.run.leaders import Leaders
from harness.store.artefacts import Failure
from harness.store.store import Store

Watching = Callable[[Plan, Store], AbstractContextManager[Progress]]
"""Gives what is told how far a plan is."""


def slurm_job(folder: Path | str, step: str, index: int, watching: Watching) -> None:
    """Do one job of a run, and write down what failed.

    Args:
        folder: of the run's scripts.
        step: name of an array.
        index: of the job in it.

    Raises:
        HarnessError: there is no such job; or bad input, which is written down, too.
    """
    folder = Path(folder)
    order, steps = _read(folder)
    try:
        job = _job(steps[step][index])
    except (KeyError, IndexError) as error:
        raise HarnessError("job", f"{step} {index}", "a job of this run", f"See {folder / ORDER}.") from error
    path = folder / TOLD / f"{step}-{index}.json"
    known = {identity: failure for told in told_in(folder) for identity, failure in told.failures.items()}
    try:
        plan = order.plan()
        with watching(plan, Store(Path(order.runs))) as progress:
            write_json(path, do(order, plan, job, known, progress).plain())
    except HarnessError as error:
        write_json(path, Told(failed(job, str(error))).plain())
        raise


class _Spoken(Silent):
    """A progress of messages alone."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def message(self, text: str) -> None:
        self._say(text)


def collect(folder: Path | str, say: Callable[[str], None]) -> Run:
    """Make one run of what all jobs have made: its record, with a reason for each number that is not there.

    Args:
        say: is told what is to be known of it.
    """
    folder = Path(folder)
    order, _ = _read(folder)
    plan, store = order.plan(), Store(Path(order.runs))
    told = told_in(folder)
    failures = {identity: failure for one in told for identity, failure in one.failures.items()}
    with hear_warnings(say) as heard, store.in_use():
        for text in (text for one in told for text in one.warnings):
            warnings.warn(text, stacklevel=2)
        leaders = Leaders(plan, store, _Spoken(say))
        for cell in plan.evaluated:
            leaders.look(cell)
            for end in cell.ends:
                if store.find(end.kind, end.identity) is None:
                    said = f"its job ended before it could say why (see {folder.name}/{LOGS})"
                    failures.setdefault(end.identity, Failure(end.title, said))
        run = run_folder(Path(order.runs), plan)
        write_record(run, plan, failures, environment_of(told), heard, note_readings(plan, store))
    return Run(run, failures.values())


def _read(folder: Path) -> tuple[Order, Mapping[str, Json]]:
    try:
        read = read_json(folder / ORDER)
        return Order(**read["order"]), read["steps"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(str(folder / ORDER), f"none that can be read ({error})", "what a run wrote there") from error


def _job(plain: Mapping[str, Json]) -> Job:
    sets = {name: frozenset(plain[name]) for name in ("makes", "needs")}
    return Job(**{**plain, **sets, "ends": tuple(plain["ends"])})
