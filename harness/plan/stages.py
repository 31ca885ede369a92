"""What a plan is made of: stages with their identities, and the cells and references that they end in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from harness.base.files import Json, digest_of
from harness.base.identity import seed_of
from harness.plan.objectives import KIND_OF_ROLE, ObjectiveSpec
from harness.recipe.schema import Recipe
from harness.store.store import FORMAT
from harness.tasks.base import Task
from methods.base import TeacherKind

if TYPE_CHECKING:
    from harness.recipe.training import Training
    from harness.store.store import Store


@dataclass(frozen=True, eq=False)
class Stage:
    """A step whose result is stored.

    Attributes:
        kind: "teacher", "warm_start", "rows", "said", "student", "answers", "bits" or "scores". Answers and bits
            are a model's: that of the input "student" or "teacher", or the published student where there is neither.
        title: what a person calls it.
        task: name of the task.
        values: what decides the result, beside the inputs.
        inputs: stages whose results it reads, by name.
        seed: repetition, where the stage depends on it.
        role: of the teacher, where the stage is about one.
        objective: what the stage trains or evaluates, where it is about a student.
        training: settings that it trains with, where it trains.
        section: of the recipe, where these stand: "teacher", "warm_start" or "train".
        steps: of the optimiser.
        code: what is used of each file of code, as digests: says which file changed where ``values["code"]`` did.
    """

    kind: str
    title: str
    task: str
    values: Mapping[str, Json]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    seed: int = 0
    role: str = ""
    objective: ObjectiveSpec | None = None
    training: Training | None = None
    section: str = ""
    steps: int = 0
    code: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        inputs = {name: stage.identity for name, stage in self.inputs.items()}
        return digest_of({"format": FORMAT, "kind": self.kind, "values": dict(self.values), "inputs": inputs})


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The stages that evaluate one model on one task: answers with their scores, bits per byte, or both."""

    task: str
    seed: int
    answers: Stage | None
    scores: Stage | None
    bits: Stage | None

    @property
    def ends(self) -> list[Stage]:
        """The stages that give its numbers."""
        return [end for end in (self.scores, self.bits) if end is not None]


@dataclass(frozen=True, eq=False)
class Cell(Evaluated):
    """One student: a task, an objective and a seed; its stages end with scores and bits per byte."""

    objective: ObjectiveSpec
    student: Stage

    @property
    def name(self) -> str:
        return f"{self.task} · {self.objective.name} · seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Reference(Evaluated):
    """A model that no method made, evaluated as students are: a row to compare with.

    Attributes:
        label: in tables: "untrained", "warm start" or "teacher".
        teacher: role of the teacher; empty for the student's own references.
    """

    label: str
    teacher: str = ""

    @property
    def role(self) -> str:
        """As tables call it."""
        return "teacher" if self.teacher else "reference"

    @property
    def teacher_kind(self) -> str:
        """As tables group rows."""
        return KIND_OF_ROLE[self.teacher].value if self.teacher else TeacherKind.NONE.value

    @property
    def row(self) -> str:
        """The label, with what tells one teacher from the other."""
        return f"{self.teacher}-tokenizer {self.label}" if self.teacher else self.label

    @property
    def name(self) -> str:
        return f"{self.task} · {self.row} · seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Plan:
    """All cells of a recipe and their stages."""

    recipe: Recipe
    cells: tuple[Cell, ...]
    tasks: Mapping[str, Task]
    references: tuple[Reference, ...] = ()

    @property
    def ends_alone(self) -> bool:
        """Whether stages are asked for by themselves, and no cell is to be scored."""
        return bool(self.recipe.stages)

    @property
    def evaluated(self) -> tuple[Reference | Cell, ...]:
        """All that gets numbers: every row of the table, seed by seed."""
        return (*self.references, *self.cells)

    @property
    def ends(self) -> list[Stage]:
        """The stages that are asked for; all others are made where these need them."""
        if self.recipe.stages:
            return [stage for stage in self.stages() if stage.kind in ("teacher", "rows", "said")]
        return [end for cell in self.evaluated for end in cell.ends]

    @cached_property
    def identity(self) -> str:
        return digest_of(sorted(stage.identity for stage in self.stages()))

    def stages(self) -> list[Stage]:
        """Every stage once, inputs before what reads them, task by task."""
        seen: dict[str, Stage] = {}
        for cell in self.evaluated:
            for end in cell.ends:
                for stage in with_inputs(end):
                    seen.setdefault(stage.identity, stage)
        return list(seen.values())


def order_seed(stage: Stage) -> int:
    """Seed of a stage's data order and dropout: the same for every method in the same repetition.

    Distillation does not begin with the rows that the warm start has just seen.
    """
    phase = "distillation" if "start" in stage.inputs else "fine-tuning"
    return seed_of("order", stage.task, phase, stage.seed)


def with_inputs(stage: Stage) -> Iterator[Stage]:
    """A stage after all that it reads, directly or not; what is read twice comes twice."""
    for needed in stage.inputs.values():
        yield from with_inputs(needed)
    yield stage


def demanded_stages(plan: Plan, store: Store) -> set[str]:
    """Identities of stages that would have to run, seen from those that are asked for."""
    demanded: set[str] = set()
    pending = plan.ends
    while pending:
        stage = pending.pop()
        if stage.identity not in demanded and store.find(stage.kind, stage.identity) is None:
            demanded.add(stage.identity)
            pending.extend(stage.inputs.values())
    return demanded


def stage_line(stage: Stage) -> str:
    """A stage in a progress line: teachers are the same for all seeds."""
    return " · ".join([stage.title, stage.task, *([] if stage.role else [f"seed {stage.seed}"])])
