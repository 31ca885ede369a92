"""What may be asked for: the fields of a recipe, their types, defaults and bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from harness.base.device import Precision
from harness.base.schema import Strict, as_list, as_names
from harness.models.spec import Lora, ModelSpec
from harness.models.top_rows import packed_bytes
from harness.tasks import tasks
from harness.tasks.base import Task, TaskSettings

Role = Literal["same", "cross"]
R = TypeVar("R")


class Teachers(Strict):
    """Teachers by what they share with the student."""

    same: ModelSpec | None = Field(None, description="teacher with the student's tokenizer: FKD, RKD")
    cross: ModelSpec | None = Field(None, description="teacher with another tokenizer: ULD and the other methods")


def _on_or_off(value: object) -> object:
    """YAML reads the words as booleans."""
    return ("on" if value else "off") if isinstance(value, bool) else value


class Training(Strict):
    """A training stage. What only changes speed or memory is marked; it is not part of a stage's identity."""

    steps: int | None = Field(None, ge=0, le=10**9, description="optimiser steps; wins over epochs")
    epochs: float | None = Field(None, gt=0, le=10**6, description="passes over the training rows")
    batch_size: int = Field(8, ge=1, le=10**6, description="responses per optimiser step, over all devices")
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[a, b]: of the task's training rows those from number a to before b; null for all"
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="(memory) the most responses per forward pass and device; fewer where so many don't fit in",
    )
    learning_rate: float = Field(2e-5, gt=0, description="AdamW's, at its highest")
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate goes on after the warm-up"
    )
    warmup: float = Field(0.0, ge=0, description="steps of warm-up, or a share of all steps where below 1")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's")
    adam_betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's β₁ and β₂")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients of a larger norm are scaled down to it")
    bucket: Literal["none", "length"] = Field(
        "none", description="length: steps of responses of like length, so that batches pad little; another order"
    )
    packing: bool = Field(
        False, description="(speed) sequences one behind the other instead of padded, where the model can"
    )
    precision: Precision = Field("auto", description="auto: bf16 where the GPU has it")
    lora: Lora | None = Field(None, description="train adapters only")
    gradient_checkpointing: bool = Field(False, description="(memory) recompute activations")
    chunk_rows: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="(memory) response rows whose logits exist at once; auto: by vocabularies and free memory"
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        "auto", description="(speed) losses through torch.compile; auto: on a GPU"
    )
    checkpoint_every: int | None = Field(None, ge=1, description="(safety) steps between checkpoints; null for none")
    report_to: tuple[str, ...] = Field((), description="trackers of transformers' Trainer, such as tensorboard")

    @model_validator(mode="after")
    def _has_length(self) -> Training:
        if self.steps is None and self.epochs is None:
            raise ValueError("set steps or epochs")
        return self

    @field_validator("rows")
    @classmethod
    def _are_some(cls, rows: tuple[int, int] | None) -> tuple[int, int] | None:
        if rows is not None and rows[0] >= rows[1]:
            raise ValueError("expected [a, b] with a below b")
        return rows

    def chosen(self, rows: Sequence[R]) -> Sequence[R]:
        """Those of a task's training rows that this training reads."""
        return rows if self.rows is None else rows[slice(*self.rows)]

    def total_steps(self, rows: int) -> int:
        """Optimiser steps, where a task has ``rows`` training rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        read = len(self.chosen(range(rows)))
        return max(1, round(self.epochs * -(-read // self.batch_size)))  # the last step of a pass may be a smaller one

    def micro_batch(self, processes: int = 1, sampled: bool = False) -> int:
        """Responses per forward pass and process: at most ``micro_batch_size``, whole numbers of them a step.

        Args:
            processes: that share a step's responses.
            sampled: whether the student samples some: no pass may hold responses of two draws.

        Raises:
            ValueError: the processes can't have equal shares; what was found and what was expected.
        """
        if self.batch_size % processes:
            raise ValueError(f"{self.batch_size}, for {processes} processes", f"a multiple of {processes}")
        share = self.batch_size // processes
        if sampled:
            return math.gcd(share, self.drawn_together)
        most = min(share, self.micro_batch_size or share)
        return next(size for size in range(most, 0, -1) if share % size == 0)

    @property
    def drawn_together(self) -> int:
        """How many responses of a step are sampled by the student or not by one draw, on any number of devices."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    def identity(self) -> dict[str, object]:
        """What changes results."""
        # precision "auto" means something only on a machine: plans say what it comes to
        speed = {
            "precision",
            "micro_batch_size",
            "packing",
            "gradient_checkpointing",
            "chunk_rows",
            "compile",
            "checkpoint_every",
            "report_to",
        }
        return self.model_dump(mode="json", exclude=speed if self.rows else speed | {"rows"})


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


class Data(Strict):
    """Where the data is."""

    root: str | None = Field(None, description="folder of the data sets; null for the samples that the project ships")


References = Annotated[tuple[Literal["untrained", "warm_start", "teachers"], ...], BeforeValidator(as_list)]


class Evaluation(Strict):
    """How students are evaluated, beyond each task's own settings."""

    batch_size: int = Field(16, ge=1, description="(speed) answers that are generated at a time")
    engine: Literal["hf", "vllm"] = Field("hf", description="what generates: transformers, or vLLM where installed")
    bits_per_byte: bool = Field(True, description="measure held-out bits per byte of the reference responses")
    references: References = Field(
        (), description="rows to compare with: untrained (the student as it was), warm_start, teachers (fine-tuned)"
    )


Names = Annotated[tuple[str, ...], BeforeValidator(as_names), Field(min_length=1)]
Only = Annotated[tuple[Literal["teacher"], ...], BeforeValidator(as_list)]
Columns = Annotated[tuple[str, ...], BeforeValidator(as_list)]
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


def _settings(given: tuple[str, object]) -> TaskSettings:
    """The settings of a task by its own schema."""
    name, values = given
    return tasks()[name].Settings.model_validate(values)


class Recipe(Strict):
    """A comparison: one pair of models, and the methods, tasks and seeds to cross.

    The settings of a task are fields of a recipe under the task's name, beside those that stand here:
    ``dolly.new_tokens=64``. Here they are :attr:`task_settings`, of every task that is installed.
    """

    name: Annotated[str, AfterValidator(_as_folder)] = Field(description="how runs of it are called")
    title: str = Field("", description="heading of the report")
    notes: tuple[str, ...] = Field((), description="sentences printed under the table")
    student: ModelSpec = Field(description="the model that learns")
    teachers: Teachers
    tasks: Names = Field(description="what students learn and are tested on, such as dolly")
    methods: Names = Field(description="rows of the table: methods by name (`harness methods`), variants, dual(A, B)")
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
        "gold's options and these",
    )
    seeds: Seeds = Field((0,), description="repetitions, each with its own order of rows, start and draws")
    baseline: str | None = Field(
        "control", description="the method that tests compare all others with; null for no tests"
    )
    primary: Columns = Field(
        (),
        description="columns that the comparison is made for, such as gsm8k.bits_per_byte: they alone are marked, and "
        "tests are corrected over rows and these columns together; empty: all that are printed",
    )
    paper: str | None = Field(None, description="the pair of models whose published numbers stand beside ours")
    data: Data = Data()
    limits: Limits = Limits()
    teacher: Training = Field(description="fine-tuning of the teachers on the task")
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
        known = tasks()
        if taken := known.keys() & cls.model_fields:
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
        return tasks()[name](self.settings_of(name), Path(self.data.root).expanduser() if self.data.root else None)

    def models_by_role(self) -> dict[str, ModelSpec]:
        """The models of the pair: "student", and "same" and "cross" where there is such a teacher."""
        roles = {"student": self.student, "same": self.teachers.same, "cross": self.teachers.cross}
        return {role: spec for role, spec in roles.items() if spec is not None}

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """The repetitions of a task: its own, else the recipe's."""
        own = self.settings_of(task).seeds
        return self.seeds if own is None else own

    def method_of(self, row: str) -> tuple[str, Options]:
        """The method behind a name in ``methods``, and the options that the recipe gives to it beyond `all`'s."""
        variant = self.variants.get(row, {"method": row})
        method = str(variant["method"])
        own = {name: value for name, value in variant.items() if name != "method"}
        return method, self.method_options.get(method, {}) | own
