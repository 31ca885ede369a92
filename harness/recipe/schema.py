"""What may be asked for: the fields of a recipe, their types, defaults and bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from harness.base.files import expanded
from harness.base.schema import Strict, as_list, as_names
from harness.models.spec import ModelSpec
from harness.models.top_rows import packed_bytes
from harness.recipe.launch import Launch
from harness.recipe.training import RowTraining, TeacherTraining, Training
from harness.tasks import tasks
from harness.tasks.base import Task, TaskSettings
from harness.tasks.custom import Custom, CustomSettings
from methods.base import TeacherKind
from methods.library.dual import is_dual

Role = Literal["same", "cross"]


class Teachers(Strict):
    """Teachers by what they share with the student."""

    same: ModelSpec | None = Field(None, description="teacher with the student's tokenizer: FKD, RKD")
    cross: ModelSpec | None = Field(None, description="teacher with another tokenizer: ULD and the other methods")


ROLE_OF_KIND = {TeacherKind.SAME_TOKENIZER: "same", TeacherKind.CROSS_TOKENIZER: "cross"}


class Limits(Strict):
    """Lengths, in tokens."""

    length: int = Field(512, ge=2, description="prompt and response together, EOS included, on every side")
    overlong: Literal["error", "drop"] = Field(
        "error", description="a prompt that leaves no room: stop, or leave it out"
    )
    unreadable: Literal["error", "drop"] = Field(
        "error", description="a response that a tokenizer changes, as by normalising it: stop, or leave it out"
    )


class TeacherRows(Strict):
    """What is stored of a teacher at each position of a response, once for all methods."""

    keep: Literal["hidden", "top_k"] = Field(
        "hidden", description="hidden: the last hidden row, exact; top_k: the likeliest k tokens, the rest as one mass"
    )
    k: int = Field(256, ge=1, description="tokens of a position with top_k, 6 bytes each, and 8 for the rest")

    def row_bytes(self, hidden: int, itemsize: int) -> int:
        """Bytes of a position, of hidden rows with so many numbers of so many bytes."""
        return hidden * itemsize if self.keep == "hidden" else packed_bytes(self.k)

    def identity(self) -> dict[str, object]:
        """What changes results; nothing where rows are exact."""
        return {} if self.keep == "hidden" else self.model_dump(mode="json")


class Dev(Strict):
    """Training rows that nothing trains on: checkpoints and settings are chosen on them, never on a test set."""

    rows: int = Field(0, ge=0, description="how many of each task's training rows are held out, evenly spaced")


class Data(Strict):
    """Where the data is."""

    root: str | None = Field(
        None,
        description="folder of the data sets; null for the samples that the project ships, and for files that a recipe "
        "names, the working folder",
    )


References = Annotated[tuple[Literal["untrained", "warm_start", "teachers"], ...], BeforeValidator(as_list)]


class Evaluation(Strict):
    """How students are evaluated, beyond each task's own settings."""

    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="(speed) answers that are generated at a time; auto: 16, on a GPU what its free memory holds",
    )
    engine: Literal["hf", "vllm"] = Field("hf", description="what generates: transformers, or vLLM where installed")
    decoding: Literal["auto", "batch", "slots"] = Field(
        "auto",
        description="(speed) batch: rows come and go; slots: rows of fixed size, on a GPU one CUDA graph a token; "
        "auto: slots on a GPU",
    )
    answers: bool = Field(True, description="answer the test prompts, and score what was answered")
    bits_per_byte: bool = Field(True, description="measure held-out bits per byte of the reference responses")
    references: References = Field(
        (), description="rows to compare with: untrained (the student as it was), warm_start, teachers (fine-tuned)"
    )


Names = Annotated[tuple[str, ...], BeforeValidator(as_names), Field(min_length=1)]
Only = Annotated[tuple[Literal["teacher"], ...], BeforeValidator(as_list)]
ColumnNames = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Seeds = Annotated[tuple[int, ...], BeforeValidator(as_list), Field(min_length=1)]
Fidelities = Annotated[tuple[Literal["described", "released"], ...], BeforeValidator(as_list), Field(min_length=1)]


def _as_folder(name: str) -> str:
    """A run's folder is called like the recipe: it must stay inside the folder of runs."""
    if not re.fullmatch(r"\w[\w .()+,=-]{0,99}", name) or name != name.strip():
        raise ValueError(
            "expected at most 100 letters, digits and _ . - + , = ( ) with spaces inside: it names a folder"
        )
    return name


Options = dict[str, object]
"""Options of a method, as a recipe gives them; the method's own schema checks them."""

BESIDE_OPTIONS = ("train", "tune")
"""What else may stand among a row's options: fields of its training, and what may be tuned of it."""


def _spellings(options: Mapping[str, Options], row: str) -> list[str]:
    """The keys that hold options of a dual teacher, however its name is spaced; the most special last."""
    return ["dual", *(name for name in options if name.replace(" ", "") == row.replace(" ", ""))]


def _settings(given: tuple[str, object]) -> TaskSettings:
    """The settings of a task by its own schema."""
    name, values = given
    return tasks().get(name, Custom).Settings.model_validate(values)


def own_tasks(values: object) -> list[str]:
    """Names of tasks that a recipe makes itself: parts that say of which kind they are, `tickets: {task: custom}`."""
    if not isinstance(values, Mapping):
        return []
    known = {*tasks(), *Recipe.model_fields}
    parts = {name: part for name, part in values.items() if isinstance(name, str) and name not in known}
    return [name for name, part in parts.items() if isinstance(part, Mapping) and "task" in part]


class Recipe(Strict):
    """A comparison: one pair of models, and the methods, tasks and seeds to cross.

    The settings of a task are fields of a recipe under the task's name, beside those that stand here:
    ``dolly.new_tokens=64``. Here they are :attr:`task_settings`, of every task that is installed, and of those that the
    recipe makes itself.
    """

    name: Annotated[str, AfterValidator(_as_folder)] = Field(description="how runs of it are called")
    title: str = Field("", description="heading of the report")
    notes: tuple[str, ...] = Field((), description="sentences printed under the table")
    student: ModelSpec = Field(description="the model that learns")
    teachers: Teachers
    tasks: Names = Field(description="what students learn and are tested on, such as dolly")
    methods: Names = Field(
        description="rows of the table: methods by name (`harness methods`), variants, dual(A, B); all: every method"
    )
    fidelity: Fidelities = Field(
        ("described",),
        description="methods as papers describe them, or as their authors' code computes them; both: two rows",
    )
    method_options: dict[str, Options] = Field(
        default_factory=dict,
        description="options by method; those under `all` go to every method that starts from the warm start",
    )
    variants: dict[str, Options] = Field(
        default_factory=dict,
        description="further names for `methods`: {gold_on_policy: {method: gold, rollout_share: 0.5}} is a row with "
        "gold's options and these. `train` in it are fields of train that the row has of its own",
    )
    tuned: dict[str, Options] = Field(
        default_factory=dict,
        description="options, and `train`, that `harness tune` found, by row: they win over those above",
    )
    tuning: dict[str, object] = Field(
        default_factory=dict, description="how `tuned` was found, as `harness tune` wrote it into the lock file"
    )
    seeds: Seeds = Field((0,), description="repetitions, each with its own order of rows, start and draws")
    baseline: str | None = Field(
        "control", description="the method that tests compare all others with; null for no tests"
    )
    baseline_seeds: Literal["twice", "same"] | Seeds = Field(
        "twice",
        description="repetitions of the baseline, which is in every difference: as many again as the others have, "
        "where these are two or more; the same; or these beside the others'",
    )
    primary: ColumnNames = Field(
        (),
        description="columns that the comparison is made for, such as gsm8k.bits_per_byte: they alone are marked, and "
        "tests are corrected over rows and these columns together; empty: all that are printed",
    )
    paper: str | None = Field(None, description="the pair of models whose published numbers stand beside ours")
    data: Data = Data()
    limits: Limits = Limits()
    dev: Dev = Dev()
    launch: Launch = Launch()
    teacher: TeacherTraining = Field(description="fine-tuning of the teachers on the task")
    warm_start: Training = Field(description="fine-tuning of the student before distillation")
    train: Training = Field(description="distillation")
    teacher_rows: TeacherRows = TeacherRows()
    evaluation: Evaluation = Evaluation()
    stages: Only = Field((), description="[teacher]: make the teachers and their rows, and stop; empty: everything")
    keep_students: bool = Field(True, description="keep trained weights; their scores are kept in any case")
    task_settings: Mapping[str, Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_settings)]]

    @classmethod
    def written_fields(cls) -> Mapping[str, FieldInfo]:
        """The fields, with one for each task."""
        own = {name: field for name, field in cls.model_fields.items() if name != "task_settings"}
        return own | {
            name: FieldInfo(annotation=task.Settings, default_factory=task.Settings, description=f"settings of {name}")
            for name, task in tasks().items()
        }

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, values: object) -> object:
        """Settings stand under the tasks' names, beside the fields."""
        if not isinstance(values, Mapping):
            return values
        known = [*tasks(), *own_tasks(values)]
        if taken := set(known) & cls.model_fields.keys():
            raise ValueError(f"a task can't be called {', '.join(taken)}, as fields of a recipe are")
        fields = {key: value for key, value in values.items() if key not in known}
        given = {name: values[name] for name in known if values.get(name) is not None}
        return fields | {"task_settings": {name: (name, given.get(name, {})) for name in known}}

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """As :meth:`_gather_settings` takes it."""
        fields: dict[str, object] = handler(self)
        settings = fields.pop("task_settings", None)
        return fields | (settings if isinstance(settings, dict) else {})

    def settings_of(self, task: str) -> TaskSettings:
        """What the recipe sets of a task."""
        return self.task_settings[task]

    def task(self, name: str) -> Task:
        """The task with its settings and data folder."""
        settings, root = self.settings_of(name), expanded(self.data.root) if self.data.root else None
        if isinstance(settings, CustomSettings):
            return Custom(settings, root, name)
        return tasks()[name](settings, root)

    def models_by_role(self) -> dict[str, ModelSpec]:
        """The models of the pair: "student", and "same" and "cross" where there is such a teacher."""
        roles = {"student": self.student, "same": self.teachers.same, "cross": self.teachers.cross}
        return {role: spec for role, spec in roles.items() if spec is not None}

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """The repetitions of a task: its own, else the recipe's."""
        own = self.settings_of(task).seeds
        return self.seeds if own is None else own

    def further_seeds(self, task: str) -> tuple[int, ...]:
        """Repetitions of a task that the baseline alone has."""
        own = self.seeds_of(task)
        if isinstance(self.baseline_seeds, tuple):
            return tuple(seed for seed in self.baseline_seeds if seed not in own)
        if self.baseline_seeds == "same" or len(own) < 2:  # with one no difference is tested
            return ()
        return tuple(range(max(own) + 1, max(own) + 1 + len(own)))

    def teacher_seed(self, task: str, seed: int) -> int | None:
        """Which training of its teachers a repetition takes; None where there is one for all."""
        if self.teacher.seeds is None:
            return None
        place = (*self.seeds_of(task), *self.further_seeds(task)).index(seed)
        return self.teacher.seeds[place % len(self.teacher.seeds)]

    def method_of(self, row: str) -> tuple[str, Options]:
        """The method behind a name in ``methods``, and the options that the recipe gives to it beyond `all`'s."""
        given = self._given(row)
        method = str(given.get("method", row))
        return method, {name: value for name, value in given.items() if name not in ("method", *BESIDE_OPTIONS)}

    def training_of(self, row: str) -> RowTraining:
        """The fields of `train` that a name in ``methods`` has of its own."""
        return RowTraining.model_validate(self._given(row).get("train", {}))

    def tuning_of(self, row: str) -> Mapping[str, object]:
        """What the recipe says may be tuned of a row, in place of what its method says."""
        tune = self._given(row).get("tune", {})
        assert isinstance(tune, Mapping)
        return tune

    def _given(self, row: str) -> Options:
        """All that is said of a row: of its method, its variant, and what was tuned; `train` is merged."""
        variant = self.variants.get(row, {})
        names = _spellings(self.method_options, row) if is_dual(row) else [str(variant.get("method", row))]
        tuned = [self.tuned[name] for name in self.tuned if name.replace(" ", "") == row.replace(" ", "")]
        given = [*(self.method_options.get(name, {}) for name in names), variant, *tuned]
        made = {name: value for part in given for name, value in part.items()}
        merged: Options = {}
        for own in (part.get("train") for part in given):
            if isinstance(own, Mapping):
                length = ("steps", "epochs") if {"steps", "epochs"} & set(own) else ()  # the later one counts
                merged = {name: value for name, value in merged.items() if name not in length} | dict(own)
        return made | ({"train": merged} if merged else {})
