"""Jobs for processes that start at once: nothing here imports the harness."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path


@dataclass(frozen=True)
class LightJob:
    """As :class:`harness.plan.jobs.Job`; dies so many times where it is tried."""

    name: str
    dies: int = 0
    needs: frozenset[str] = frozenset()
    place: int | None = 0

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.name,)


def work(connection: Connection, folder: Path) -> None:
    """Note who did what, tell of it, or die at it; a job called "hang" never ends."""
    while (given := connection.recv()) is not None:
        job, failures = given
        tries = len(list(folder.glob(f"{job.name}-*")))
        (folder / f"{job.name}-{os.getpid()}-{os.environ['OMP_NUM_THREADS']}").touch()
        connection.send(("begin", job.name, 1))
        if job.name == "hang":
            time.sleep(600)
        if tries < job.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        connection.send(("done", dict.fromkeys(failures, "seen")))
