"""Recipe -> cells and stages with their identities. Executes nothing and loads no model.

A stage's identity is a digest of what decides its result (recipe values, sources, code, library versions) and of the
identities of its input stages, so that a plan knows it beforehand. Stages that mean the same are the same stage:
all methods share one teacher, one warm start and one set of teacher rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import models
from harness.device import compute_dtype
from harness.errors import HarnessError
from harness.files import digest_of
from harness.identity import code_digest, imported_modules, seed_of, versions
from harness.recipe import ModelSpec, Training, recipe_names
from harness.tasks import Task, tasks
from harness.tokens import STUDENT
from methods.base import Method, Need, Rows, Start, TeacherKind, find
from methods.dual import DualOptions, is_dual, parts_of

_TOKENS = (
    "harness.batches",
    "harness.heads",
    "harness.models",
    "harness.tokens",
    "methods.alignment",
    "methods.vocabulary",
)
_TRAINING = (
    *_TOKENS,
    "harness.loss",
    "harness.train",
    "harness.teacher",
    "harness.identity",
    "methods.base",
    "methods.closed_form",
)
_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate")

ROLE_OF_KIND = {TeacherKind.SAME_TOKENIZER: "same", TeacherKind.CROSS_TOKENIZER: "cross"}
KIND_OF_ROLE = {role: kind for kind, role in ROLE_OF_KIND.items()}


@dataclass(frozen=True, eq=False)
class Stage:
    """A step whose result is stored.

    Attributes:
        kind: "teacher", "warm_start", "rows", "student", "answers", "bits" or "scores". Answers and bits are a
            model's: that of the input "student" or "teacher", or the published student where there is neither.
        title: what a person calls it.
        task: name of the task.
        values: what decides the result, beside the inputs.
        inputs: stages whose results it reads, by name.
        seed: repetition, where the stage depends on it.
        role: of the teacher, where the stage is about one.
        objective: what the stage trains or evaluates, where it is about a student.
    """

    kind: str
    title: str
    task: str
    values: Mapping[str, Any]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    seed: int = 0
    role: str = ""
    objective: ObjectiveSpec | None = None

    @cached_property
    def identity(self) -> str:
        inputs = {name: stage.identity for name, stage in self.inputs.items()}
        return digest_of({"kind": self.kind, "values": dict(self.values), "inputs": inputs})


@dataclass(frozen=True)
class ObjectiveSpec:
    """A row of the table: a method with its options, or the two methods of a dual teacher.

    Attributes:
        label: in tables; the name that the recipe calls the row by.
        methods: built with the recipe's options; one, or two.
        ce_weight: factor of the cross-entropy.
        kd_weights: factor of each method's distillation term.
    """

    label: str
    methods: tuple[Method, ...]
    ce_weight: float
    kd_weights: tuple[float, ...]

    @classmethod
    def of(cls, label: str, method: Method) -> ObjectiveSpec:
        """One method with its own weights."""
        return cls(label, (method,), method.options.ce_weight, (method.options.kd_weight,))

    @property
    def fidelity(self) -> str:
        return str(self.methods[0].options.fidelity) if len(self.methods) == 1 else "described"

    @property
    def fidelities_differ(self) -> bool:
        return len(self.methods) == 1 and self.methods[0].fidelities_differ

    @property
    def name(self) -> str:
        """The label, with the fidelity where it is not the default."""
        return f"{self.label} (released)" if self.fidelity == "released" else self.label

    @property
    def start(self) -> Start:
        return self.methods[0].start

    @property
    def roles(self) -> tuple[str, ...]:
        """Role of the teacher of each method that has one."""
        return tuple(ROLE_OF_KIND[m.teacher] for m in self.methods if m.teacher in ROLE_OF_KIND)

    @property
    def teacher_kind(self) -> str:
        """As tables group rows."""
        return "both" if len(self.methods) > 1 else self.methods[0].teacher.value

    def needs_live(self, role: str) -> bool:
        """Whether stored rows are not enough: a method scores the prompt too, or what the student samples."""
        return any(
            ROLE_OF_KIND.get(m.teacher) == role and (m.rows is Rows.ALL or Need.ROLLOUTS in m.needs)
            for m in self.methods
        )

    @property
    def samples(self) -> bool:
        """Whether the student samples responses while it trains."""
        return any(Need.ROLLOUTS in m.needs for m in self.methods)

    def identity(self) -> dict[str, Any]:
        weights = {"ce_weight", "kd_weight"}  # those that count stand below; a dual teacher's parts have others
        return {
            "methods": [
                {"method": m.name, "options": m.options.model_dump(mode="json", exclude=weights), "code": _code_of(m)}
                for m in self.methods
            ],
            "weights": [self.ce_weight, *self.kd_weights],
        }


def _code_of(method: Method) -> str:
    bases = [c.__module__ for c in type(method).__mro__ if issubclass(c, Method) and c is not Method]
    return code_digest(*sorted({module for base in bases for module in imported_modules(base)}))


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The stages that evaluate one model on one task."""

    task: str
    seed: int
    answers: Stage
    scores: Stage
    bits: Stage | None


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

    recipe: Any
    cells: tuple[Cell, ...]
    tasks: Mapping[str, Task]
    references: tuple[Reference, ...] = ()

    @property
    def evaluated(self) -> tuple[Reference | Cell, ...]:
        """All that gets numbers: every row of the table, seed by seed."""
        return (*self.references, *self.cells)

    @property
    def ends(self) -> list[Stage]:
        """The stages that are asked for; all others are made where these need them."""
        if self.recipe.stages:
            return [stage for stage in self.stages() if stage.kind in ("teacher", "rows")]
        return [end for cell in self.evaluated for end in (cell.scores, cell.bits) if end is not None]

    @cached_property
    def identity(self) -> str:
        return digest_of(sorted(stage.identity for stage in self.stages()))

    def stages(self) -> list[Stage]:
        """Every stage once, inputs before what reads them, task by task."""
        seen: dict[str, Stage] = {}
        for cell in self.evaluated:
            for last in (cell.scores, cell.bits):
                if last is not None:
                    for stage in with_inputs(last):
                        seen.setdefault(stage.identity, stage)
        return list(seen.values())


def make_plan(recipe: Any, made: Mapping[str, Task] | None = None) -> Plan:
    """The plan of a recipe.

    Args:
        made: its tasks by name, where they read other files than those below ``data.root``.

    Raises:
        HarnessError: a model URI or a data file is wrong, or a method lacks its teacher.
    """
    if made is None:
        if recipe.data.root:
            data_folder(recipe.data.root, name_to_call(recipe))
        made = {name: task_of(recipe, name) for name in recipe.tasks}
    objectives = make_objectives(recipe)
    cells, references = [], []
    for task in made.values():
        builder = _Builder(recipe, task)
        cells += [builder.cell(objective, seed) for seed in recipe.seeds_of(task.name) for objective in objectives]
        references += builder.references()
    return Plan(recipe, tuple(cells), made, tuple(references))


def name_to_call(recipe: Any) -> str:
    """What the user calls the recipe; NAME where it is a file of theirs."""
    return recipe.name if recipe.name in recipe_names() else "NAME"


def data_folder(root: str, recipe: str = "NAME") -> Path:
    """The folder that ``data.root`` names.

    Args:
        recipe: what the user calls the recipe.

    Raises:
        HarnessError: it is no folder.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise HarnessError(
            "data.root",
            f"no folder {folder}" + ("" if folder.is_absolute() else f" in {Path.cwd()}"),
            "a folder with the files of the data sets",
            f"`harness data recipe={recipe}` lists them. Set data.root=FOLDER to where they are, or data.root=null for "
            "the built-in samples.",
        )
    return folder


def task_of(recipe: Any, name: str) -> Task:
    """The task with its settings and data folder."""
    root = recipe.data.root
    return tasks()[name](getattr(recipe, name), Path(root).expanduser() if root else None)


def make_objectives(recipe: Any) -> list[ObjectiveSpec]:
    """Methods and variants with their options: a row for each fidelity in which they differ."""
    objectives = []
    for name in recipe.methods:
        if is_dual(name):
            objectives.append(_dual(recipe, name))
            continue
        kind = find(recipe.method_of(name)[0])
        own = _own_fidelity(recipe, name)
        # "released" of a method whose code does what its paper says is the same row
        wanted = ((own,) if own else recipe.fidelity) if kind.fidelities_differ else ("described",)
        objectives += [ObjectiveSpec.of(name, _method(recipe, name, fidelity)) for fidelity in wanted]
    return objectives


def _dual(recipe: Any, name: str) -> ObjectiveSpec:
    """Two methods under one cross-entropy; their own weights give way to the pair's."""
    same, cross = parts_of(name)
    shared = {k: v for k, v in recipe.method_options.get("all", {}).items() if k in DualOptions.model_fields}
    given = [recipe.method_options.get(key, {}) for key in dict.fromkeys(("dual", name, f"dual({same}, {cross})"))]
    options = DualOptions.model_validate(shared | {k: v for part in given for k, v in part.items()})
    methods = tuple(_method(recipe, part, _own_fidelity(recipe, part) or "described") for part in (same, cross))
    parts = [f"{m.name} (released)" if _is_released(m) else m.name for m in methods]
    share = options.same_weight
    weights = options.kd_weight * share, options.kd_weight * (1 - share)
    return ObjectiveSpec(f"dual({', '.join(parts)})", methods, options.ce_weight, weights)


def _own_fidelity(recipe: Any, name: str) -> str | None:
    """The fidelity that a recipe's options ask of a method, if they do; it wins over the recipe's list."""
    asked: str | None = (recipe.method_options.get("all", {}) | recipe.method_of(name)[1]).get("fidelity")
    return asked


def _is_released(method: Method) -> bool:
    return method.fidelities_differ and method.options.fidelity == "released"


def _method(recipe: Any, name: str, fidelity: str) -> Method:
    """A method or variant with the recipe's options.

    Raises:
        HarnessError: the recipe names no teacher for it.
    """
    method, own = recipe.method_of(name)
    kind = find(method)
    role = ROLE_OF_KIND.get(kind.teacher)
    if role is not None and getattr(recipe.teachers, role) is None:
        raise HarnessError(
            f"teachers.{role}", "none", f"a teacher for method {name}", "Name a model, or leave the method out."
        )
    shared = {k: v for k, v in recipe.method_options.get("all", {}).items() if k in kind.Options.model_fields}
    if kind.teacher is TeacherKind.NONE:
        # the control is a distillation run without its KD term: all else that `all` says holds for it too
        shared = {k: v for k, v in shared.items() if kind.start is Start.WARM_START and k != "kd_weight"}
    given = shared | own
    return kind(kind.Options.model_validate(given | {"fidelity": fidelity}))


def model_sources(recipe: Any) -> dict[str, dict[str, Any]]:
    """What of each model of the pair decides results, by role."""
    return {role: model_identity(spec) for role, spec in recipe.models_by_role().items()}


class _Builder:
    """Stages of one task."""

    def __init__(self, recipe: Any, task: Task) -> None:
        self.recipe, self.task = recipe, task
        self.sources = model_sources(recipe)

    def cell(self, objective: ObjectiveSpec, seed: int) -> Cell:
        student = self._student(objective, seed)
        stages = self._evaluation(objective.name, {"student": student}, seed=seed, objective=objective)
        return Cell(self.task.name, seed, *stages, objective, student)

    def references(self) -> list[Reference]:
        """What the recipe wants to compare with; only the warm start has repetitions."""
        wanted, seeds = self.recipe.evaluation.references, self.recipe.seeds_of(self.task.name)
        first = seeds[0]
        made = []
        if "untrained" in wanted:
            model = {
                "source": self.sources[STUDENT],
                "code": code_digest(*_TOKENS),  # loading and pruning
                "versions": versions(*_LIBRARIES),
            }
            stages = self._evaluation("the untrained student", {}, model, seed=first)
            made.append(Reference(self.task.name, first, *stages, "untrained"))
        if "warm_start" in wanted:
            for seed in seeds:
                stages = self._evaluation("the warm start", {"student": self._warm_start(seed)}, seed=seed)
                made.append(Reference(self.task.name, seed, *stages, "warm start"))
        if "teachers" in wanted:
            for role in [role for role in self.sources if role != STUDENT]:
                title, inputs = f"the {role}-tokenizer teacher", {"teacher": self._teacher(role)}
                stages = self._evaluation(title, inputs, seed=first, role=role)
                made.append(Reference(self.task.name, first, *stages, "teacher", role))
        return made

    def _evaluation(
        self, title: str, inputs: Mapping[str, Stage], model: Mapping[str, Any] | None = None, **more: Any
    ) -> tuple[Stage, Stage, Stage | None]:
        """Answers, scores and bits per byte of a model: one protocol for students, teachers and references.

        Args:
            inputs: the stage that makes the model; none for a published one.
            model: what decides a published model.
        """
        published = {"model": model} if model is not None else {}
        answers = self._stage(
            "answers",
            f"answers of {title}",
            {
                "requests": self._test_values(),
                "code": code_digest(
                    "harness.evaluate.generate",
                    "harness.evaluate.decoding",
                    "harness.identity",
                    *self._task_modules(),
                    *self.task.askers,
                ),
                "versions": versions(*(self.task.libraries if self.task.askers else ())),
                **self._engine(),
                **published,
            },
            inputs,
            **more,
        )
        scores = self._stage(
            "scores",
            f"scores of {title}",
            {"code": code_digest(*self._task_modules(), *self._scorers()), "versions": versions(*self.task.libraries)},
            {"answers": answers},
            **more,
        )
        bits = self._stage(
            "bits",
            f"bits per byte of {title}",
            {
                "references": self._test_values(),
                "limits": self.recipe.limits.model_dump(),
                "code": code_digest("harness.evaluate.bits_per_byte", *self._task_modules(), *_TOKENS),
                **(published | {"sides": self._sides()} if published else {}),  # the data of a trained model holds them
            },
            inputs,
            **more,
        )
        return answers, scores, bits if self.recipe.evaluation.bits_per_byte else None

    def _engine(self) -> dict[str, Any]:
        """What generates, where it is not transformers: other numerics. A plan needs no engine, a run does."""
        if self.recipe.evaluation.engine == "hf":
            return {}
        from harness.evaluate import vllm_engine

        return {"engine": {"vllm": vllm_engine.installed(), "code": code_digest("harness.evaluate.vllm_engine")}}

    def _student(self, objective: ObjectiveSpec, seed: int) -> Stage:
        recipe = self.recipe
        inputs: dict[str, Stage] = {}
        rows = self.training_rows
        if objective.start is Start.WARM_START:
            inputs["start"] = self._warm_start(seed)
            training, steps = recipe.train, recipe.train.total_steps(rows)
        else:
            training = recipe.warm_start
            steps = recipe.warm_start.total_steps(rows) + recipe.train.total_steps(rows)
        for role in objective.roles:
            inputs[role] = self._teacher(role) if objective.needs_live(role) else self._rows(role)
        return self._stage(
            "student",
            f"training of {objective.name}",
            self._training_values(STUDENT, training, steps)
            | {"objective": objective.identity(), "seed": seed}
            # also in what it reads; here for the seconds of a step, which depend on their sizes
            | {"teachers": {role: self.sources[role] for role in objective.roles}}
            | (self._rollout_values(training) if objective.samples else {}),
            inputs,
            seed=seed,
            objective=objective,
        )

    def _rollout_values(self, training: Training) -> dict[str, Any]:
        """What decides sampled responses: they are drawn a micro-batch at a time."""
        return {
            "micro_batch": training.micro_batch_size or training.batch_size,
            "rollouts": code_digest("harness.rollouts", "harness.evaluate.decoding"),
        }

    def _warm_start(self, seed: int) -> Stage:
        training = self.recipe.warm_start
        steps = training.total_steps(self.training_rows)
        values = self._training_values(STUDENT, training, steps) | {"seed": seed}
        return self._stage("warm_start", "warm start of the student", values, {}, seed=seed)

    def _teacher(self, role: str) -> Stage:
        training = self.recipe.teacher
        values = self._training_values(role, training, training.total_steps(self.training_rows))
        title = f"fine-tuning of the {role}-tokenizer teacher"
        return self._stage("teacher", title, values, {}, role=role)

    def _rows(self, role: str) -> Stage:
        title = f"rows of the {role}-tokenizer teacher"
        values = {
            "code": code_digest("harness.teacher", *_TOKENS),
            "data": self._data_values(),
            "dtype": compute_dtype(self.recipe.teacher.precision),
        }
        if kept := self.recipe.teacher_rows.identity():
            values |= {"kept": kept | {"code": code_digest("harness.top_rows")}}
        return self._stage("rows", title, values, {"teacher": self._teacher(role)}, role=role)

    def _training_values(self, role: str, training: Training, steps: int) -> dict[str, Any]:
        return {
            "model": self.sources[role],
            "training": training.identity(),
            "steps": steps,
            "dtype": compute_dtype(training.precision),
            "data": self._data_values(),
            "code": code_digest(*_TRAINING),
            "versions": versions(*_LIBRARIES, *(["peft"] if training.lora else [])),
        }

    def _data_values(self) -> dict[str, Any]:
        """What decides the training tokens: rows, layout, limits, every tokenizer of the pair (cuts are common)."""
        return {
            "file": self.task.training_digest(),
            "settings": self.task.training_identity(),
            "limits": self.recipe.limits.model_dump(),
            "sides": self._sides(),
            "code": code_digest(*self._task_modules()),
        }

    def _sides(self) -> dict[str, Any]:
        """What decides which rows are cut: every tokenizer of the pair."""
        return {role: {"source": its["source"], "template": its["template"]} for role, its in self.sources.items()}

    def _test_values(self) -> dict[str, Any]:
        return {"files": self.task.test_digests(), "settings": self.task.identity()}

    def _task_modules(self) -> list[str]:
        return ["harness.tasks.base", "harness.tasks.alpaca", type(self.task).__module__]

    def _scorers(self) -> list[str]:
        return list(self.task.scorers)

    @cached_property
    def training_rows(self) -> int:
        return len(self.task.training_examples())

    def _stage(
        self, kind: str, title: str, values: Mapping[str, Any], inputs: Mapping[str, Stage], **more: Any
    ) -> Stage:
        return Stage(kind, title, self.task.name, values, inputs, **more)


def model_identity(spec: ModelSpec) -> dict[str, Any]:
    """What of a model's entry decides results; its name in tables does not."""
    return {
        "source": models.source_digest(models.parse_uri(spec.model)),
        "layers": spec.layers,
        "template": spec.template,
        "attention": spec.attention,
    }


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
