"""What a job of a plan needs of the machine that does it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from harness.base.errors import HarnessError
from harness.plan.costs.devices import DEVICES, GIB, Cost
from harness.plan.costs.measured import Measured, costs_here
from harness.plan.costs.stages import Coster
from harness.plan.jobs import Job
from harness.plan.stages import Plan
from harness.store.store import Store

_OF_PYTHON = 4 * GIB  # of a process without a model: libraries, rows, what a file is read through
_START_S, _MARGIN = 900.0, 2.0  # of a job: to load what it needs; estimates err by a factor of two either way


@dataclass(frozen=True)
class JobNeeds:
    """Attributes are None where nobody can say.

    Attributes:
        gibibytes: of main memory.
        minutes: that are enough.
    """

    gibibytes: int | None
    minutes: int | None


class NeedsOfJobs:
    """Estimates needs of jobs, by the stages that they make.

    Args:
        plan: of the jobs.
        store: of what was measured.
        gpus: of a job.
    """

    def __init__(self, plan: Plan, store: Store, gpus: int) -> None:
        self._stages = {stage.identity: stage for stage in plan.stages()}
        try:
            coster = Coster(plan)
        except HarnessError:  # a model whose shape nobody knows
            self._costs: dict[str, Cost] = {}
        else:
            self._costs = {identity: coster.cost(stage) for identity, stage in self._stages.items()}
        self._on_gpus = gpus > 0
        self._here = (
            {} if gpus or not self._costs else costs_here(list(self._stages.values()), self._costs, Measured(store))
        )

    def of(self, jobs: Iterable[Job]) -> JobNeeds:
        """What is enough for each of some jobs."""
        if not self._costs:
            return JobNeeds(None, None)
        made = [[identity for identity in job.makes if identity in self._costs] for job in jobs]
        memory = max((self._costs[identity].memory for job in made for identity in job), default=0.0)
        seconds = [self._seconds(job, memory) for job in made]
        known = [each for each in seconds if each is not None]
        minutes = math.ceil((_START_S + _MARGIN * max(known)) / 60) if known and len(known) == len(seconds) else None
        return JobNeeds(math.ceil((_OF_PYTHON + memory) / GIB), minutes)

    def _seconds(self, made: list[str], memory: float) -> float | None:
        """Of one job: on the slowest GPU that has room, or as trainings like it took on a machine like this one."""
        if not self._on_gpus:
            return sum(self._here[identity] for identity in made) if self._here else None
        device = next((device for device in reversed(DEVICES) if memory <= device.memory), DEVICES[0])
        return sum(self._costs[identity].seconds(device) for identity in made)
