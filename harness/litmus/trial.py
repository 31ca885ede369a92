"""A litmus: rows trained as a run trains them, measured against the truth and their teachers, and broken on purpose."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.base.errors import HarnessError
from harness.base.progress import Progress, Silent, StageProgress
from harness.data.tokens import STUDENT, TokenizedExample
from harness.litmus.claims import claim_of, is_noticed, share_closed
from harness.litmus.distances import Said, bits_per_byte, chunk_difference, divergence, said
from harness.litmus.mutants import Mutant, mutants_of
from harness.litmus.settings import Setting, expanded, recipes_of, rows_of, settings_of
from harness.plan.builder import make_plan
from harness.plan.objectives import ObjectiveSpec, Part
from harness.plan.stages import Cell, Plan, Stage
from harness.run.demand import StageFailedError
from harness.run.preflight import preflight
from harness.run.runner import Runner
from harness.run.trainings import train_student
from harness.store.store import Store
from harness.tasks.known_truth import KnownTruth
from harness.training.trainer import DivergedError
from reports.known_truth import Broken, Claim, Learnt, Litmus

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Watched = Callable[[Plan, Store], AbstractContextManager[Progress]]
"""Who is told of a plan's training."""


class LitmusRun:
    """The rows of a recipe, trained on one kind of text, and what they learnt.

    Args:
        text: "many passes" or "fresh text".
        plan: of the recipe.
        settings: by the label of the plan's row.
        store: where trained students are.
        folder: for tracebacks of failures.
        progress: told what is trained and measured.
    """

    def __init__(
        self, text: str, plan: Plan, settings: Mapping[str, Setting], store: Store, folder: Path, progress: Progress
    ) -> None:
        self.text, self.plan, self.settings, self.progress = text, plan, settings, progress
        self.runner = Runner(plan, store, folder, progress)
        self.bench = self.runner.bench
        first = plan.recipe.seeds_of(KnownTruth.name)[0]
        self.cells = [cell for cell in plan.cells if cell.seed == first]  # a control may have more seeds than the rows

    def train(self) -> None:
        """Make every student that is not stored yet, as a run makes it; answers are asked of none.

        Raises:
            HarnessError: one failed: a table with holes shows nothing.
        """
        preflight(self.plan, self.bench, self.progress, unsafe=False)
        for cell in self.cells:
            try:
                self.runner.demand.need(cell.student)
            except StageFailedError as error:
                found, expected = error.failure.reason, "a student that is trained to the end"
                raise HarnessError(error.failure.stage, found, expected) from error

    @property
    def task(self) -> KnownTruth:
        """What the texts are of."""
        return cast(KnownTruth, self.plan.tasks[KnownTruth.name])

    def learnt(self) -> Iterator[Learnt]:
        """Each row's distances to the truth and to its teacher."""
        self.progress.begin(f"distances, {self.text}", len(self.cells))
        for number, cell in enumerate(self.cells):
            yield self._learnt(cell)
            self.progress.advance(number + 1)
        self.progress.finish()

    def shares(self, learnt: Sequence[Learnt]) -> dict[str, float]:
        """Of the way to its teacher, what each row goes by its KD term alone at the first temperature."""
        return {
            setting.row: self._closed(cell, one.truth)
            for cell, setting in self._alone()
            for one in learnt
            if (one.row, one.weights, one.temperature) == (setting.row, setting.weights, setting.temperature)
        }

    def claims(self, shares: Mapping[str, float]) -> Iterator[Claim]:
        """What became of each row's claim."""
        for cell, setting in self._alone():
            method = cell.objective.methods[0]
            yield claim_of(setting.row, method.name, method.teacher, shares[setting.row])

    def broken(self, shares: Mapping[str, float], claims: Sequence[Claim]) -> Iterator[Broken]:
        """Each method whose claim is kept, broken in every way, by the first of its rows that keeps it."""
        kept = {claim.row for claim in claims if claim.kept}
        first: dict[str, tuple[Cell, Setting]] = {}
        for cell, setting in self._alone():
            if setting.row in kept:
                first.setdefault(cell.objective.methods[0].name, (cell, setting))
        for cell, setting in first.values():
            for mutant in mutants_of(cell.objective.methods[0]):
                yield self.broken_row(cell, mutant, shares[setting.row])

    def broken_row(self, cell: Cell, mutant: Mutant, whole: float) -> Broken:
        """A row whose method is broken. Its student is stored nowhere.

        Args:
            whole: share of the way that it goes as it is.
        """
        row, method = self.settings[cell.objective.label].row, cell.objective.methods[0]
        try:
            end = self._above(self._broken_student(cell, mutant), STUDENT)
        except DivergedError:
            end = math.inf
        caught = is_noticed(self._closed(cell, end), whole, method.teacher)
        return Broken(row, mutant.how, end, caught, mutant.reason(method))

    def _broken_student(self, cell: Cell, mutant: Mutant) -> PreTrainedModel:
        (part,) = cell.objective.parts
        name = f"{cell.objective.label}, {mutant.how}"
        objective = ObjectiveSpec(name, (Part(mutant.broken(part.method), part.role, part.weight),), 0.0)
        stage = replace(cell.student, title=name, objective=objective)
        with tempfile.TemporaryDirectory(prefix="harness-litmus-") as work:
            tools = replace(self.runner.makers.tools, work=lambda _: Path(work))
            told = StageProgress(self.progress, name)
            model = train_student(stage, tools, self.runner.makers.lessons, told).model
        self.progress.finish()
        return model

    def known(self, learnt: Sequence[Learnt]) -> dict[str, Any]:
        """All that is known beside what the rows learnt, by its name in the result; breaks their methods."""
        shares = self.shares(learnt)
        claims = list(self.claims(shares))
        return {
            "entropy": self.task.entropy_per_byte,
            "truth": self.task.true_bits_per_byte,
            "start": self.start,
            "teachers": self.teachers(),
            "start_to_teachers": self.start_to_teachers(),
            "claims": claims,
            "broken": list(self.broken(shares, claims)),
        }

    @cached_property
    def start(self) -> float:
        """Bits per byte above the truth before distillation."""
        return self._above(self.bench.trained.student(self._start), STUDENT)

    def teachers(self) -> dict[str, float]:
        """Bits per byte above the truth of each teacher, by its role."""
        return {role: self._above_truth(of) for role, of in self._teachers.items()}

    def start_to_teachers(self) -> dict[str, float]:
        """The start's distance to each teacher."""
        ours = self._said(self.bench.trained.student(self._start), STUDENT)
        return {role: self._apart(role, ours) for role in self._teachers}

    # --- What is behind them ------------------------------------------------------------------------------------------

    def _alone(self) -> Iterator[tuple[Cell, Setting]]:
        """The first cell of each row that is trained by its KD term alone."""
        seen = set()
        for cell in self.cells:
            setting = self.settings[cell.objective.label]
            if setting.weights == "KD alone" and setting.row not in seen:
                seen.add(setting.row)
                yield cell, setting

    def _learnt(self, cell: Cell) -> Learnt:
        setting = self.settings[cell.objective.label]
        ours = self._said(self.bench.trained.student(cell.student), STUDENT)
        apart = [self._apart(role, ours) for role in cell.objective.roles]
        own = apart[0] if apart else None
        return Learnt(setting.row, setting.weights, self.text, setting.temperature, self._above_truth(ours), own)

    def _closed(self, cell: Cell, end: float) -> float:
        (role,) = cell.objective.roles
        return share_closed(self.start, end, self.teachers()[role])

    def _apart(self, role: str, ours: Sequence[Said]) -> float:
        if role == "same":
            return divergence(self._teachers[role], ours)
        return chunk_difference(self._teachers[role], ours, self._examples, role)

    def _above(self, model: PreTrainedModel, role: str) -> float:
        return self._above_truth(self._said(model, role))

    def _above_truth(self, of: Sequence[Said]) -> float:
        return bits_per_byte(of, self._examples) - self.task.true_bits_per_byte

    def _said(self, model: PreTrainedModel, role: str) -> list[Said]:
        return said(model, self._examples, role, self.bench.published.sides[role].tokenizer.pad_token_id)

    @cached_property
    def _examples(self) -> list[TokenizedExample]:
        return self.bench.texts.examples(KnownTruth.name, "test")

    @cached_property
    def _teachers(self) -> dict[str, list[Said]]:
        """What each teacher says of the test texts."""
        found = {}
        for stage in self.plan.stages():
            if stage.kind == "teacher":
                found[stage.role] = self._said(self.bench.trained.teacher(stage), stage.role)
                self.bench.trained.forget_teacher()
        return found

    @cached_property
    def _start(self) -> Stage:
        return next(stage for stage in self.plan.stages() if stage.kind == "warm_start")


def litmus(
    method: str | None,
    overrides: Sequence[str],
    runs: Path,
    watched: Watched | None = None,
) -> Litmus:
    """Train the rows of known_truth in all settings, measure them, and break their methods.

    Args:
        method: one method, also a plug-in's, or a row of the recipe; None for all.
        overrides: ``key=value`` of both recipes.
        runs: folder of results: what is stored there is not trained again.
        watched: who is told of a plan's training; None: nobody.

    Raises:
        HarnessError: no such method, a wrong override, or a training that fails.
    """
    recipes, store = recipes_of(overrides), Store(runs)
    rows = rows_of(next(iter(recipes.values())), method)
    learnt: list[Learnt] = []
    known: dict[str, Any] = {}
    for text, recipe in recipes.items():
        settings = {setting.label: setting for setting in settings_of(recipe, rows)}
        plan = make_plan(expanded(recipe, list(settings.values())))
        with nullcontext(Silent()) if watched is None else watched(plan, store) as progress:
            trial = LitmusRun(text, plan, settings, store, runs / "litmus", progress)
            trial.train()
            learnt += trial.learnt()
            known = known or trial.known(learnt)
    return Litmus(learnt=learnt, **known)
