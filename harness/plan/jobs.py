"""A run cut into jobs that several processes can do at the same time, and which of them comes next."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count

from harness.plan.stages import Evaluated, Plan, Stage, demanded_stages, stage_line, with_inputs
from harness.store.artefacts import Failure
from harness.store.store import Store


@dataclass(frozen=True)
class Job:
    """What one process does at a time: a stage that several read or that is asked for by itself, or the rest of a cell.

    Attributes:
        name: of the stage or cell, for people.
        task: of the recipe.
        ends: identities of what is asked for of it.
        makes: identities of all that it has to make, as far as it is missing.
        needs: identities of the shared stages that must be there before.
        place: of the cell among those of the plan; None for a stage.
    """

    name: str
    task: str
    ends: tuple[str, ...]
    makes: frozenset[str]
    needs: frozenset[str]
    place: int | None = None


def jobs_of(plan: Plan, store: Store, *, by_seed: bool = False) -> list[Job]:
    """The jobs of a plan: shared stages that are missing, inputs first, then all cells, or stages that it ends with.

    Args:
        by_seed: whether cells come seed by seed, each after what it needs: for a run that may be cut.
    """
    evaluated = () if plan.ends_alone else plan.evaluated
    alone = {stage.identity: stage for stage in plan.ends} if plan.ends_alone else {}
    read = {cell: _read(cell) for cell in evaluated}
    every = [*read.values(), *(_identities([stage]) for stage in alone.values())]
    readers = Counter(identity for stages in every for identity in stages)
    missing = demanded_stages(plan, store)
    shared = [
        stage
        for stage in plan.stages()
        if stage.kind != "scores" and stage.identity in missing and readers[stage.identity] > 1
    ]
    known = {stage.identity for stage in shared}
    stages = []
    for stage in shared:
        own = frozenset([stage.identity])
        stages.append(Job(stage_line(stage), stage.task, tuple(own), own, _identities([stage]) & known - own))
    for identity, stage in alone.items():
        if identity in missing - known:
            needed = _identities([stage])
            stages.append(Job(stage_line(stage), stage.task, (identity,), needed & missing - known, needed & known))
    cells = []
    for place, cell in enumerate(evaluated):
        ends = tuple(end.identity for end in (cell.answers, cell.bits, cell.scores) if end is not None)
        makes = (read[cell] | set(ends)) & missing - known
        cells.append(Job(cell.name, cell.task, ends, makes, read[cell] & known, place))
    return _seed_by_seed(plan, stages, cells) if by_seed else [*stages, *cells]


def _seed_by_seed(plan: Plan, stages: Iterable[Job], cells: Iterable[Job]) -> list[Job]:
    seeds = list(dict.fromkeys(cell.seed for cell in plan.evaluated))
    ordered: dict[Job, None] = {}
    for cell in sorted(cells, key=lambda job: seeds.index(plan.evaluated[job.place or 0].seed)):
        ordered |= dict.fromkeys(stage for stage in stages if stage.makes <= cell.needs)
        ordered[cell] = None
    return list(ordered)


def _read(cell: Evaluated) -> frozenset[str]:
    return _identities([end for end in (cell.answers, cell.bits) if end is not None])


def _identities(stages: Iterable[Stage]) -> frozenset[str]:
    return frozenset(needed.identity for stage in stages for needed in with_inputs(stage))


class Schedule:
    """Which job comes next: the first that waits for nothing, shared stages before cells.

    Args:
        jobs: of a run.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.waiting = list(jobs)
        self._open = {end for job in self.waiting if job.place is None for end in job.ends}

    def take(self) -> Job | None:
        """A job that can be done now; None where all that is left waits for those that are being done."""
        for job in self.waiting:
            if not job.needs & self._open:
                self.waiting.remove(job)
                return job
        return None

    def give_back(self, job: Job) -> None:
        """What took a job did not come to its end: it comes next."""
        self.waiting.insert(0, job)

    def done(self, job: Job) -> None:
        """A job is done, failed or not: what waited for it can be taken."""
        self._open -= set(job.ends)


def wall_seconds(jobs: Iterable[Job], processes: int, seconds: Callable[[Job], float]) -> float:
    """How long so many processes take for all jobs, where each takes so long."""
    schedule, now = Schedule(jobs), 0.0
    at_work: list[tuple[float, int, Job]] = []  # by their ends; a number tells what ends together
    numbers = count()
    while True:
        while len(at_work) < processes and (job := schedule.take()) is not None:
            heapq.heappush(at_work, (now + seconds(job), next(numbers), job))
        if not at_work:
            return now
        now, _, ended = heapq.heappop(at_work)
        schedule.done(ended)


def failed(job: Job, reason: str) -> Mapping[str, Failure]:
    """What is noted of a job that nobody could do."""
    return dict.fromkeys(job.ends, Failure(job.name, reason))
