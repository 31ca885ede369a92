"""Walks a plan: makes what is missing, goes on where it stopped, turns failures into rows.

Demand comes from the end: a cell whose scores are stored needs nothing else, so removed weights are no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from rich.markup import escape

from harness.base.compilation import keep_compiled
from harness.base.device import keep_freed_memory, pass_over_libraries
from harness.base.identity import environment
from harness.base.progress import Progress
from harness.base.ranks import RankLostError, Ranks
from harness.base.stopping import OutOfTimeError, alarm, check_stop_after
from harness.plan.jobs import Job
from harness.plan.stages import Cell, Plan, Reference, Stage
from harness.run.alignments import make_alignments
from harness.run.apart import DistanceMaker
from harness.run.demand import Demand
from harness.run.leaders import Leaders
from harness.run.makers import Makers
from harness.run.preflight import preflight
from harness.run.workbench import PublishedModels, Workbench, model_records
from harness.store.artefacts import KEPT_OF_STUDENTS, Failure
from harness.store.store import Store

_SCORING_S = 60.0  # of a run that is stopped in time, at most


class Runner:
    """Executes a plan.

    Args:
        plan: what to make.
        store: where results are.
        folder: the run's own folder, for tracebacks of failures.
        progress: told about every stage.
        unsafe: whether generated code may run without a sandbox.
        ranks: the processes of the run.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        folder: Path,
        progress: Progress,
        unsafe: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.plan, self.store, self.progress, self.unsafe = plan, store, progress, unsafe
        self.ranks = ranks or Ranks()
        keep_compiled(store.root / "compiled")
        published = PublishedModels(plan.recipe.models_by_role(), progress.message)
        self.demand = Demand(
            store,
            folder,
            progress,
            free=lambda stage: self.makers.free(stage),
            make=lambda stage, made: self.makers.make(stage, made),
            models=lambda: model_records(published),
        )
        self.bench = Workbench.of(plan, published, self.demand.need, store.root / "maps")
        self.makers = Makers(plan, self.bench, self.demand, self.ranks)
        self._task = ""  # of the last job

    @property
    def failures(self) -> dict[str, Failure]:
        """What failed, by the identity of the stage."""
        return self.demand.failures

    def environment(self) -> Mapping[str, object]:
        """Where the cells are made, for the run's record."""
        return environment()

    def run(self, seconds: float | None = None) -> None:
        """Make everything that the plan's cells need. Bad input raises; other failures become rows.

        Args:
            seconds: to stop before; then cells come seed by seed, so that what is done compares methods. What has been
                answered by then is scored.
        """
        check_stop_after(seconds, self.ranks.world)
        pass_over_libraries()
        keep_freed_memory()
        if seconds is None:
            self._make(by_seed=False)
            return
        scoring = min(_SCORING_S, seconds / 5)
        try:
            with alarm(seconds - scoring):
                self._make(by_seed=True)
        except OutOfTimeError:
            self.progress.finish()
            with suppress(OutOfTimeError), alarm(scoring * 0.8):  # the rest is for the record
                for cells in self._groups(by_seed=False):
                    answered = [cell for cell in cells if cell.answers and self.demand.find(cell.answers) is not None]
                    self.makers.score(answered, self.unsafe)

    def _make(self, *, by_seed: bool) -> None:
        if any(self.demand.find(end) is None for end in self.plan.ends):
            self.store.sweep()
            if left := self.store.left_alone():
                self.progress.message(escape(left))
            preflight(self.plan, self.bench, self.progress, self.unsafe)
        if self.plan.ends_alone:
            self._make_ends()
            return
        self._walk(by_seed=by_seed)

    def _walk(self, *, by_seed: bool) -> None:
        """Make the plan's cells."""
        for cells in self._groups(by_seed=by_seed):
            self._run_cells(cells)

    def _groups(self, *, by_seed: bool) -> list[list[Reference | Cell]]:
        """Cells that are scored together: those of a task, or of a seed and a task."""
        seeds = dict.fromkeys(cell.seed for cell in self.plan.evaluated) if by_seed else [None]
        return [
            [cell for cell in self.plan.evaluated if cell.task == task and seed in (None, cell.seed)]
            for seed in seeds
            for task in self.plan.tasks
        ]

    def _make_ends(self) -> None:
        """Stages that are asked for by themselves: teachers and rows, or what trials of settings came to."""
        for task in self.plan.tasks:
            for stage in (end for end in self.plan.ends if end.task == task):
                self._make_alone(stage)
            self.bench.forget()

    def _make_alone(self, stage: Stage) -> None:
        """A stage for which no cell asks; a student that was trained for it alone goes when it is there."""
        student = stage.inputs.get("student")
        mine = student is not None and self.store.find(student.kind, student.identity) is None
        self.demand.attempt(stage)
        if student is not None:  # of a trial, whose rows no other reads
            self.bench.aligned.forget()
            if mine:  # a student of a run stays
                self._drop(student, [stage])

    def _run_cells(self, evaluated: Sequence[Reference | Cell]) -> None:
        """Cells of a task: each is answered before the next is trained, and all are scored together."""
        leaders = Leaders(self.plan, self.store, self.progress)
        for cell in evaluated:
            self._answer(cell)
            leaders.look(cell)
        self._conclude(evaluated)
        self.bench.forget()

    def _answer(self, cell: Reference | Cell) -> None:
        """What a cell's model says, with all that it needs for that."""
        if cell.answers is not None and cell.scores is not None and self.demand.find(cell.scores) is None:
            self.demand.attempt(cell.answers)
        if cell.bits is not None:
            self.demand.attempt(cell.bits)
        self._apart.measure(cell)
        if isinstance(cell, Cell):
            self._drop_student(cell)

    def _conclude(self, evaluated: Sequence[Reference | Cell]) -> None:
        """Score what was answered, together, and store what was compared."""
        self.makers.score(evaluated, self.unsafe)
        tasks = {cell.task for cell in evaluated}
        for reference in self.plan.references:  # the start that students share was there before its teachers
            if reference.task in tasks:
                self._apart.measure(reference)
        cells = [cell for cell in evaluated if isinstance(cell, Cell)]
        make_alignments(self.plan, cells, self.bench, self.store, self.progress)

    @cached_property
    def _apart(self) -> DistanceMaker:
        return DistanceMaker(self.plan, self.bench, self.store, self.progress)

    def make(self, job: Job) -> None:
        """Do one job of the plan, as :mod:`harness.plan.jobs` cuts it; a task's next one finds what this one loaded."""
        if job.task != self._task:
            self.bench.forget()
            self._task = job.task
        if job.place is None:
            self._make_alone(next(stage for stage in self.plan.stages() if stage.identity in job.ends))
            return
        cell = self.plan.evaluated[job.place]
        self._answer(cell)
        self._conclude([cell])

    def follow(self) -> None:
        """Train along with rank 0 until the run is over: what the other ranks do instead of :meth:`run`."""
        stages = {stage.identity: stage for stage in self.plan.stages()}
        task: str | None = None
        while (called := self.ranks.next_call()) is not None:
            stage = stages[called]
            failure: Exception | None = None  # of the last training, whose traceback holds its model
            if stage.task != task:
                self.bench.forget()
                task = stage.task
            self.makers.free(stage)
            try:
                self.makers.train(stage)
            except Exception as error:  # rank 0 met it too, and reports it; else the ranks don't meet
                failure = error
            try:
                self.ranks.meet()
            except RankLostError as alone:
                raise (failure or alone) from alone

    def _drop_student(self, cell: Cell) -> None:
        """Remove a student's weights once everything that reads them is stored, where the recipe says so."""
        if not self.plan.recipe.keep_students:
            self._drop(cell.student, [stage for stage in (cell.answers, cell.bits) if stage is not None])

    def _drop(self, student: Stage, readers: Sequence[Stage]) -> None:
        """Remove a student's weights once all that reads them is stored."""
        done = all(self.store.find(stage.kind, stage.identity) is not None for stage in readers)
        artefact = self.store.find(student.kind, student.identity)
        if done and artefact is not None:
            self.store.drop_files(artefact, keep=KEPT_OF_STUDENTS)
