"""Which function makes which kind of stage, and what each is handed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from harness.base.progress import StageProgress
from harness.base.ranks import Ranks
from harness.evaluate.programs.sandbox import SandboxUnavailable
from harness.plan.stages import Evaluated, Plan, Stage, stage_line
from harness.run.demand import Demand, Make
from harness.run.evaluations import make_answers, make_bits, make_said, score_answers, store_scores
from harness.run.trainings import (
    StudentTools,
    TrainingTools,
    make_rows,
    make_student,
    make_teacher,
    make_warm_start,
    train_published,
    train_student,
)
from harness.run.workbench import Workbench
from harness.store.artefacts import ANSWERS, Answer, Failure


class Makers:
    """Makes the stages of a plan from what is on the workbench.

    Args:
        plan: whose stages.
        bench: what is loaded and kept.
        demand: which stages are stored, and what failed.
        ranks: the processes of the run.
    """

    def __init__(self, plan: Plan, bench: Workbench, demand: Demand, ranks: Ranks) -> None:
        self.plan, self.bench, self.demand, self.ranks = plan, bench, demand, ranks

    def free(self, stage: Stage) -> None:
        """Free memory that a stage does not use; what evaluates keeps the student that was just trained."""
        if stage.kind in ("teacher", "warm_start", "rows", "said", "student"):
            self.bench.trained.make_room(stage)

    def make(self, stage: Stage, folder: Path) -> dict[str, object]:
        """Make a stage whose inputs are stored; returns what its manifest tells of it.

        What makes one kind of stage stands in a function of its own, so that its code counts for no other kind.
        """
        maker: Make = getattr(self, f"make_{stage.kind}")
        return maker(stage, folder)

    def make_teacher(self, stage: Stage, folder: Path) -> dict[str, object]:
        return make_teacher(stage, folder, self.tools, self._told(stage))

    def make_warm_start(self, stage: Stage, folder: Path) -> dict[str, object]:
        return make_warm_start(stage, folder, self.tools, self._told(stage))

    def make_rows(self, stage: Stage, folder: Path) -> dict[str, object]:
        bench, keep, told = self.bench, self.plan.recipe.teacher_rows, self._told(stage)
        published, texts, trained, signal = bench.published, bench.texts, bench.trained, bench.signal
        return make_rows(stage, folder, published, texts, trained, signal, keep, told, traces=self.traces)

    def make_said(self, stage: Stage, folder: Path) -> dict[str, object]:
        bench, task, evaluation = self.bench, self.plan.tasks[stage.task], self.plan.recipe.evaluation
        return make_said(stage, folder, task, bench.published, bench.trained, evaluation, self._told(stage))

    def make_student(self, stage: Stage, folder: Path) -> dict[str, object]:
        trained, told = self.bench.trained, self._told(stage)
        traced = stage.seed == self.plan.recipe.seeds_of(stage.task)[0]
        return make_student(stage, folder, self.tools, self.lessons, trained, told, traced=traced)

    def make_answers(self, stage: Stage, folder: Path) -> dict[str, object]:
        bench, task, evaluation = self.bench, self.plan.tasks[stage.task], self.plan.recipe.evaluation
        told = self._told(stage)
        return make_answers(stage, folder, task, bench.prompts, bench.published, bench.trained, evaluation, told)

    def make_bits(self, stage: Stage, folder: Path) -> dict[str, object]:
        bench, told = self.bench, self._told(stage)
        return make_bits(stage, folder, bench.texts, bench.published, bench.trained, told)

    @cached_property
    def tools(self) -> TrainingTools:
        """What trainings share."""
        bench, store = self.bench, self.demand.store
        return TrainingTools(
            bench.published,
            bench.aligned,
            self.plan.recipe.limits.length,
            lambda stage: store.work_folder(stage.kind, stage.identity),
            self.ranks,
        )

    @cached_property
    def lessons(self) -> StudentTools:
        """What the training of a student takes beside that."""
        bench = self.bench
        return StudentTools(self.demand.need, bench.pairs, bench.signal, bench.texts, self.traces, self.plan.tasks)

    @property
    def traces(self) -> bool:
        """Whether held-out responses are read at all."""
        return self.plan.recipe.evaluation.bits_per_byte

    def train(self, stage: Stage) -> None:
        """What the other ranks do of a stage while rank 0 makes it."""
        if stage.kind == "student":
            train_student(stage, self.tools, self.lessons, self._told(stage))
        else:
            train_published(stage, self.tools, self._told(stage))

    def _told(self, stage: Stage) -> StageProgress:
        return StageProgress(self.demand.progress, stage_line(stage))

    def score(self, cells: Sequence[Evaluated], unsafe: bool) -> None:
        """Score all students of a task together, and what they are compared with.

        Args:
            unsafe: whether generated code may run without a sandbox.
        """
        demand = self.demand
        stages: dict[str, Stage] = {}
        answers: dict[str, list[Answer]] = {}
        for cell in cells:
            if cell.answers is None or cell.scores is None or demand.find(cell.scores) is not None:
                continue
            if (failure := demand.failures.get(cell.answers.identity)) is not None:
                demand.failures[cell.scores.identity] = failure
                continue
            answers[cell.scores.identity] = ANSWERS.read(demand.need(cell.answers))
            stages[cell.scores.identity] = cell.scores
        if not stages:
            return
        first = next(iter(stages.values()))
        started, load = time.monotonic(), os.getloadavg()[0]
        demand.progress.begin(f"scores of {first.task}", len(stages))
        try:
            scores = score_answers(self.plan.tasks[first.task], answers, unsafe)
        except SandboxUnavailable as error:
            demand.failures |= dict.fromkeys(stages, Failure(first.title, str(error), skipped=True))
        except KeyboardInterrupt:
            raise
        except Exception as error:
            demand.failures |= dict.fromkeys(stages, demand.fail(first, error))
        else:
            for identity, stage in stages.items():
                with demand.storing(stage, started) as (folder, manifest):
                    manifest |= store_scores(scores[identity], folder)
                    # a busy machine can make a timeout of a pass
                    manifest |= {"machine": {"cores": os.cpu_count(), "load": [load, os.getloadavg()[0]]}}
        demand.progress.finish()
