"""Recipe -> cells and stages with their identities. Executes nothing and loads no model.

A stage's identity is a digest of what decides its result (recipe values, sources, code, library versions) and of the
identities of its input stages, so that a plan knows it beforehand. Stages that mean the same are the same stage:
all methods share one teacher, one warm start and one set of teacher rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TypedDict, Unpack

from harness.base.code_closure import Sources
from harness.base.device import compute_dtype
from harness.base.errors import HarnessError
from harness.base.files import Json
from harness.data.rows import held_out
from harness.data.tokens import STUDENT
from harness.models.cache import source_digest
from harness.models.spec import ModelSpec
from harness.models.uri import parse_uri
from harness.plan.objectives import ObjectiveSpec, make_objectives
from harness.plan.stage_code import StageCodes, own_codes
from harness.plan.stages import Cell, Plan, Reference, Stage
from harness.recipe.load import name_to_call
from harness.recipe.lock import TuningMetric
from harness.recipe.schema import Recipe
from harness.recipe.training import Training
from harness.tasks.base import Task
from harness.tasks.build import data_folder
from methods.base import Start


def make_plan(recipe: Recipe, made: Mapping[str, Task] | None = None, sources: Sources | None = None) -> Plan:
    """The plan of a recipe.

    Args:
        made: its tasks by name, where they read other files than those below ``data.root``.
        sources: the code that the plan is about; by default the code that runs.

    Raises:
        HarnessError: a model URI or a data file is wrong, or a method lacks its teacher.
    """
    if made is None:
        if recipe.data.root:
            data_folder(recipe.data.root, name_to_call(recipe))
        made = {name: recipe.task(name) for name in recipe.tasks}
    objectives = make_objectives(recipe)
    codes = own_codes() if sources is None else StageCodes(sources)
    cells, references = [], []
    for task in made.values():
        builder = StageBuilder(recipe, task, codes)
        cells += [builder.cell(objective, seed) for seed in recipe.seeds_of(task.name) for objective in objectives]
        further = recipe.further_seeds(task.name)
        cells += [builder.cell(one, seed) for seed in further for one in objectives if is_baseline(recipe, one)]
        references += builder.references()
    codes.keep()
    return Plan(recipe, tuple(cells), made, tuple(references))


def model_sources(recipe: Recipe) -> dict[str, dict[str, Json]]:
    """What of each model of the pair decides results, by role."""
    return {role: model_identity(spec) for role, spec in recipe.models_by_role().items()}


class _About(TypedDict, total=False):
    """Attributes of a :class:`Stage` that say what it is about."""

    seed: int
    role: str
    objective: ObjectiveSpec


class _Further(_About, total=False):
    """And those of one that trains."""

    training: Training
    section: str
    steps: int


class StageBuilder:
    """Stages of one task."""

    def __init__(self, recipe: Recipe, task: Task, codes: StageCodes) -> None:
        self.recipe, self.task, self.codes = recipe, task, codes
        self.sources = model_sources(recipe)

    def trial(
        self, recipe: Recipe, objective: ObjectiveSpec, seed: int, metric: TuningMetric = "bits_per_byte"
    ) -> tuple[Cell, Stage]:
        """A cell of a recipe that differs from the builder's in a row's settings alone, and what it is judged by."""
        self.recipe = recipe
        cell = self.cell(objective, seed)
        judged = self._dev_bits if metric == "bits_per_byte" else self._dev_answers
        return cell, judged(cell.student, objective, seed)

    def cell(self, objective: ObjectiveSpec, seed: int) -> Cell:
        student = self._student(objective, seed)
        stages = self._evaluation(objective.name, {"student": student}, seed=seed, objective=objective)
        return Cell(self.task.name, seed, *stages, objective, student)

    def references(self) -> list[Reference]:
        """What the recipe wants to compare with; only the warm start has repetitions."""
        asked, seeds = self.recipe.evaluation.references, self.recipe.seeds_of(self.task.name)
        first = seeds[0]
        made = []
        if "untrained" in asked:
            stages = self._evaluation("the untrained student", {}, self.sources[STUDENT], seed=first)
            made.append(Reference(self.task.name, first, *stages, "untrained"))
        if "warm_start" in asked:
            for seed in seeds:
                stages = self._evaluation("the warm start", {"student": self._warm_start(seed)}, seed=seed)
                made.append(Reference(self.task.name, seed, *stages, "warm start"))
        if "teachers" in asked:
            for role in [role for role in self.sources if role != STUDENT]:
                made += [self._teacher_reference(role, own) for own in self.recipe.teacher.seeds or [None]]
        return made

    def _teacher_reference(self, role: str, own: int | None) -> Reference:
        """A fine-tuned teacher; ``own`` is the seed of its training where there are several."""
        seed = self.recipe.seeds_of(self.task.name)[0] if own is None else own
        title = f"the {role}-tokenizer teacher{_numbered(own)}"
        stages = self._evaluation(title, {"teacher": self._teacher(role, own)}, seed=seed, role=role)
        return Reference(self.task.name, seed, *stages, "teacher", role)

    def _evaluation(
        self, title: str, inputs: Mapping[str, Stage], model: Mapping[str, Json] | None = None, **more: Unpack[_About]
    ) -> tuple[Stage | None, Stage | None, Stage | None]:
        """Answers, scores and bits per byte of a model: one protocol for students, teachers and references.

        What the recipe does not ask for is None.

        Args:
            inputs: the stage that makes the model; none for a published one.
            model: what decides a published model.
        """
        published = {"model": model} if model is not None else {}
        answers = self._stage(
            "answers",
            f"answers of {title}",
            {
                "requests": self._test_values,
                **self._engine(),
                **published,
            },
            inputs,
            asked=self._asked(teacher="teacher" in inputs, answers=True),
            **more,
        )
        settings = {"settings": self.task.scoring_identity()}
        scores = self._stage("scores", f"scores of {title}", settings, {"answers": answers}, **more)
        bits = self._stage(
            "bits",
            f"bits per byte of {title}",
            {
                "references": self._test_values,
                "limits": self.recipe.limits.model_dump(),
                **(published | {"sides": self._sides()} if published else {}),  # the data of a trained model holds them
            },
            inputs,
            asked=[*self._asked(teacher="teacher" in inputs), "bits"],
            **more,
        )
        asked = self.recipe.evaluation
        return (*((answers, scores) if asked.answers else (None, None)), bits if asked.bits_per_byte else None)

    def _asked(self, *, teacher: bool, answers: bool = False) -> list[str]:
        """Code that the recipe asks for where a stage loads a fine-tuned teacher, and where it answers."""
        lora = ["lora"] if teacher and self.recipe.teacher.lora else []
        return lora + (["vllm"] if answers and self.recipe.evaluation.engine == "vllm" else [])

    def _engine(self) -> dict[str, Json]:
        """What generates, where it is not transformers: other numerics. A plan needs no engine, a run does."""
        if self.recipe.evaluation.engine == "hf":
            return {}
        from harness.generation import vllm as vllm_engine

        return {"engine": {"vllm": vllm_engine.installed()}}

    def _student(self, objective: ObjectiveSpec, seed: int) -> Stage:
        recipe = self.recipe
        inputs: dict[str, Stage] = {}
        training = objective.training.over(recipe.train)
        steps = training.total_steps(self.training_rows)
        if objective.start is Start.WARM_START:
            inputs["start"] = self._warm_start(seed)
            section = "train"
        else:
            section = "warm_start"
            training = objective.training.over(recipe.warm_start, keep_length=True)
            steps += recipe.warm_start.total_steps(self.training_rows)
        own = recipe.teacher_seed(self.task.name, seed)
        for role in objective.roles:
            live = objective.needs_live(role)
            inputs[role] = self._teacher(role, own) if live else self._rows(role, own, training)
        if objective.answers_of:
            inputs["said"] = self._said(objective.answers_of, own)
        return self._training(
            "student",
            f"training of {objective.name}",
            section,
            training,
            steps,
            {"objective": objective.identity(), "seed": seed}
            # also in what it reads; here for the seconds of a step, which depend on their sizes
            | {"teachers": {role: self.sources[role] for role in objective.roles}}
            | (self._rollout_values(training) if objective.samples else {}),
            inputs,
            seed=seed,
            objective=objective,
        )

    def _rollout_values(self, training: Training) -> dict[str, Json]:
        """What decides sampled responses: they are drawn a micro-batch at a time."""
        return {"micro_batch": training.drawn_together}

    def _warm_start(self, seed: int) -> Stage:
        steps = self.recipe.warm_start.total_steps(self.training_rows)
        title = "warm start of the student"
        training = self.recipe.warm_start
        return self._training("warm_start", title, "warm_start", training, steps, {"seed": seed}, {}, seed=seed)

    def _teacher(self, role: str, own: int | None) -> Stage:
        """A teacher; ``own``: the seed of its training, where there are several."""
        training = self.recipe.teacher
        steps = training.total_steps(self.training_rows)
        title = f"fine-tuning of the {role}-tokenizer teacher{_numbered(own)}"
        values: dict[str, Json] = {} if own is None else {"seed": own}
        return self._training("teacher", title, "teacher", training, steps, values, {}, role=role, seed=own or 0)

    def _rows(self, role: str, own: int | None, read_by: Training) -> Stage:
        title = f"rows of the {role}-tokenizer teacher{_numbered(own)}"
        values: dict[str, Json] = {
            "data": self._data_values,
            "dtype": compute_dtype(self.recipe.teacher.precision),
        }
        if read_by.rows:
            values |= {"rows": list(read_by.rows)}
        if kept := self.recipe.teacher_rows.identity():
            values |= {"kept": kept}
        asked = [*self._asked(teacher=True), *(["top_k"] if kept else [])]
        return self._stage("rows", title, values, {"teacher": self._teacher(role, own)}, asked=asked, role=role)

    def _said(self, role: str, own: int | None) -> Stage:
        """A teacher's answers to the training prompts."""
        title = f"what the {role}-tokenizer teacher says to training prompts{_numbered(own)}"
        values = {
            "data": self._data_values,
            "dtype": compute_dtype(self.recipe.teacher.precision),
            "new_tokens": self.task.settings.new_tokens,
            **self._engine(),
        }
        asked = self._asked(teacher=True, answers=True)
        return self._stage("said", title, values, {"teacher": self._teacher(role, own)}, asked=asked, role=role)

    def _training(
        self,
        kind: str,
        title: str,
        section: str,
        training: Training,
        steps: int,
        own: dict[str, Json],
        inputs: Mapping[str, Stage],
        **more: Unpack[_About],
    ) -> Stage:
        """A stage that trains with a section of the recipe.

        Args:
            training: the section's, with what a row has of its own.
            own: what decides its result beyond what all trainings have.
        """
        if not training.chosen(range(self.training_rows)):
            found, rows = f"{list(training.rows or ())}", f"rows below {self.training_rows}, which {self.task.name} has"
            raise HarnessError(f"{section}.rows", found, rows, f"Lower it, or raise {self.task.name}.train_items.")
        values = self._training_values(more.get("role") or STUDENT, training, steps) | own
        further: _Further = {**more, "training": training, "section": section, "steps": steps}
        read = {stage.kind for stage in inputs.values()}
        lora = training.lora or ("teacher" in read and self.recipe.teacher.lora)
        asked = [
            *(["lora"] if lora else []),
            *(["best_dev"] if training.select == "best_dev" else []),
            *(["top_k"] if "rows" in read and self.recipe.teacher_rows.identity() else []),
            *(["rollouts"] if "micro_batch" in values else []),
            *(["rewards"] if (objective := more.get("objective")) and objective.rewarded else []),
            *(["skd"] if objective and objective.corrected else []),
            *(["bits"] if self.recipe.dev.rows else []),
        ]
        return self._stage(kind, title, values, inputs, asked=asked, **further)

    def _training_values(self, role: str, training: Training, steps: int) -> dict[str, Json]:
        return {
            "model": self.sources[role],
            "training": training.identity(),
            "steps": steps,
            "dtype": compute_dtype(training.precision),
            "data": self._data_values,
        }

    @cached_property
    def _data_values(self) -> dict[str, Json]:
        """What decides the training tokens: rows, layout, limits, every tokenizer of the pair (cuts are common)."""
        return {
            "file": self.task.training_digest(),
            "settings": self.task.training_identity(),
            "limits": self.recipe.limits.model_dump(),
            "sides": self._sides(),
            **({"dev": self.recipe.dev.rows} if self.recipe.dev.rows else {}),
        }

    def _sides(self) -> dict[str, Json]:
        """What decides which rows are cut: every tokenizer of the pair."""
        return {role: {"source": its["source"], "template": its["template"]} for role, its in self.sources.items()}

    @cached_property
    def _test_values(self) -> dict[str, Json]:
        return {"files": self.task.test_digests(), "settings": self.task.identity()}

    @cached_property
    def training_rows(self) -> int:
        if not self.recipe.dev.rows:
            return self.task.training_count()
        return len(held_out(self.task.training_examples(), self.recipe.dev.rows, self.task.question)[0])

    def _dev_bits(self, student: Stage, objective: ObjectiveSpec, seed: int) -> Stage:
        """Bits per byte of a student on the training rows that are held out."""
        title = f"dev bits per byte of {objective.name}"
        values, inputs = {"dev": self._data_values}, {"student": student}
        return self._stage("bits", title, values, inputs, asked=["bits"], seed=seed, objective=objective)

    def _dev_answers(self, student: Stage, objective: ObjectiveSpec, seed: int) -> Stage:
        """A student's answers to the training rows that are held out."""
        title = f"dev answers of {objective.name}"
        values = {"dev": self._data_values, "new_tokens": self.task.settings.new_tokens, **self._engine()}
        asked = self._asked(teacher=False, answers=True)
        return self._stage("answers", title, values, {"student": student}, asked=asked, seed=seed, objective=objective)

    def _stage(
        self,
        kind: str,
        title: str,
        values: Mapping[str, Json],
        inputs: Mapping[str, Stage],
        asked: Collection[str] = (),
        **more: Unpack[_Further],
    ) -> Stage:
        """A stage with the code that makes it.

        Args:
            asked: code that runs only where a recipe asks for it, and does here.
        """
        objective = more.get("objective") if kind == "student" else None
        methods = objective.methods if objective else ()
        code = self.codes.of(kind, self.task, methods, sorted(asked))
        values = {**values, "code": code.digest, "versions": dict(code.versions)}
        return Stage(kind, title, self.task.name, values, inputs, code=code.files, **more)


def is_baseline(recipe: Recipe, objective: ObjectiveSpec) -> bool:
    """Whether all other rows are compared with this one; a dual teacher may be written with or without the space."""
    return objective.label.replace(" ", "") == (recipe.baseline or "").replace(" ", "")


def _numbered(own: int | None) -> str:
    """What tells one training of a teacher from another, where there are several."""
    return "" if own is None else f" {own}"


def model_identity(spec: ModelSpec) -> dict[str, Json]:
    """What of a model's entry decides results; its name in tables does not."""
    return {
        "source": source_digest(parse_uri(spec.model)),
        "layers": spec.layers,
        "template": spec.template,
        "attention": spec.attention,
    }
