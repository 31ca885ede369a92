"""Several processes of one machine that make the cells of a run, each on a GPU of its own where there are GPUs.

The processes share the run's store; this one hands out jobs, shows what all of them tell, and takes in what failed.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.markup import escape

from harness.base.errors import HarnessError
from harness.base.progress import Progress
from harness.plan.jobs import Job, Schedule, failed
from harness.plan.stages import Plan
from harness.store.artefacts import Failure

_END_S = 10.0  # in which a process that is asked to stop must have stopped

Work = Callable[[Connection, "Orders"], None]
"""What a process does: reads jobs from a connection until it reads None, and writes what it tells."""


@runtime_checkable
class ManySided(Progress, Protocol):
    """A progress that has room for what several processes tell at once; to another they speak one through the other."""

    def beside(self, name: str) -> Progress:
        """For one of them."""


@dataclass(frozen=True)
class Orders:
    """What a process is told at its start.

    Attributes:
        plan: of the run.
        runs: folder of results.
        folder: the run's own.
        unsafe: whether generated code may run without a sandbox.
        loud: levels of loggers, as they are in this process.
    """

    plan: Plan
    runs: Path
    folder: Path
    unsafe: bool
    loud: Mapping[str, int]


@dataclass
class _Worker:
    number: int
    progress: Progress
    process: SpawnProcess | None = None
    connection: Connection | None = None
    job: Job | None = None


class Workers:
    """The processes of a run.

    Args:
        orders: see :class:`Orders`.
        work: see :data:`Work`.
        count: how many.
        progress: told what they tell.
    """

    def __init__(self, orders: Orders, work: Work, count: int, progress: Progress) -> None:
        self.orders, self.work, self.progress = orders, work, progress
        self.failures: dict[str, Failure] = {}
        self._places = places(count)
        self._workers = [_Worker(n, _beside(progress, f"worker {n}")) for n in range(1, count + 1)]
        self._tried: set[Job] = set()

    def run(self, schedule: Schedule, failures: dict[str, Failure], done: Callable[[Job], None]) -> None:
        """Have all jobs done.

        Args:
            failures: of the run; those that are met are added.
            done: called after each job.

        Raises:
            HarnessError: what one of the processes raised.
        """
        self.failures, self._schedule, self._done = failures, schedule, done
        try:
            while True:
                self._hand_out()
                busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
                if not busy:
                    break
                for ready in wait([connection for connection in busy if connection is not None]):
                    self._hear(busy[ready])  # type: ignore[index]
        finally:
            self._stop()

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.job is None and (job := self._schedule.take()) is not None:
                if worker.process is None:
                    self._start(worker)
                worker.job = job
                assert worker.connection is not None
                with contextlib.suppress(OSError):  # it died meanwhile: which is heard next
                    worker.connection.send((job, self.failures))

    def _start(self, worker: _Worker) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=self.work, args=(theirs, self.orders), name=f"worker {worker.number}")
        with _surroundings(self._places[worker.number - 1]), _no_interrupts():
            process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        worker.process, worker.connection = process, ours

    def _hear(self, worker: _Worker) -> None:
        assert worker.connection is not None
        assert worker.job is not None
        try:
            kind, *said = worker.connection.recv()
        except (EOFError, OSError):
            self._lost(worker)
            return
        if kind == "refused":
            raise HarnessError(*said)
        if kind == "warning":
            warnings.warn(said[0], stacklevel=2)
        elif kind == "done":
            self.failures.update(said[0])
            self._end_job(worker, worker.job)
        else:
            getattr(worker.progress, kind)(*said)

    def _lost(self, worker: _Worker) -> None:
        """A process died at its job: another takes it, once."""
        assert worker.process is not None
        assert worker.job is not None
        worker.process.join()
        job, how = worker.job, _in_words(worker.process.exitcode)
        worker.process = worker.connection = None
        said = f"[yellow]worker {worker.number} died[/] ({how}) at {escape(job.name)}"
        if job not in self._tried:
            self._tried.add(job)
            self.progress.message(f"{said}: it is tried again")
            worker.job = None
            worker.progress.finish()
            self._schedule.give_back(job)
            return
        self.progress.message(f"{said} again")
        self.failures.update(failed(job, f"its process died twice ({how})"))
        self._end_job(worker, job)

    def _end_job(self, worker: _Worker, job: Job) -> None:
        worker.job = None
        worker.progress.finish()
        self._schedule.done(job)
        self._done(job)

    def _stop(self) -> None:
        """End all of them: those without a job at once, the others as SIGTERM ends a run."""
        processes = [worker.process for worker in self._workers if worker.process is not None]
        for worker in self._workers:
            if worker.process is not None and worker.job is not None:
                worker.process.terminate()
            elif worker.connection is not None:
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
        until = time.monotonic() + _END_S
        try:
            for process in processes:
                process.join(max(until - time.monotonic(), 0.1))
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()


def _beside(progress: Progress, name: str) -> Progress:
    return progress.beside(name) if isinstance(progress, ManySided) else progress


def check_workers(count: int, ranks: int) -> None:
    """Whether a run can have so many processes.

    Raises:
        HarnessError: there are not as many GPUs, or a launcher has started processes that train together.
    """
    if count > 1 and ranks > 1:
        raise HarnessError("launch.workers", f"{count}, under a launcher of {ranks} processes", "one or the other")
    gpus = len(_gpus())
    if gpus and count > gpus:
        raise HarnessError("launch.workers", str(count), f"at most {gpus}, the GPUs of this machine")


def places(count: int) -> list[dict[str, str]]:
    """The environment of each process: its GPU; without GPUs, its share of the cores, where nobody set another."""
    gpus = _gpus()
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:count]]
    share = max(len(os.sched_getaffinity(0)) // count, 1)
    return [{} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(share)}] * count


def loudness() -> dict[str, int]:
    """Levels of the loggers that somebody has set."""
    known = {name: logging.getLogger(name) for name in logging.root.manager.loggerDict}
    return {name: logger.level for name, logger in known.items() if logger.level}


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return named[:count] or [str(number) for number in range(count)]


@contextlib.contextmanager
def _surroundings(added: Mapping[str, str]) -> Iterator[None]:
    """A block in which processes start with further variables: libraries read them when they are imported."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """A block in which processes start that Ctrl-C does not reach: a terminal sends it to all, this one stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _in_words(status: int | None) -> str:
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"exit code {status}"
