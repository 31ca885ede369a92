"""How teachers, warm starts, teacher rows and students are made: one function for each kind of stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from transformers import set_seed

from harness.base.device import device, forget_gpu_peak, gpu_peak_bytes, release_memory
from harness.base.progress import StageProgress
from harness.base.ranks import Ranks
from harness.data.teacher_rows import store_rows
from harness.data.terms import Term
from harness.data.tokens import STUDENT, TokenizedExample
from harness.models.heads import Head
from harness.models.load import save_model
from harness.models.lora import add_lora
from harness.models.top_rows import packer
from harness.plan.stages import Stage, order_seed
from harness.recipe.schema import TeacherRows
from harness.run.workbench import AlignedRows, Fetch, Pairs, PublishedModels, TeacherSignal, Texts, TrainedModels
from harness.store.artefacts import ADAPTER, MODEL, STEPS, TIMING, TRACES, Timing
from harness.tasks.base import Task
from harness.training.checkpoints import latest_checkpoint
from harness.training.distil import TeacherSources, distil, pad_ids
from harness.training.objective import Objective
from harness.training.rewards import Reward, reward_of
from harness.training.sharding import blank_copy, gather_into, shards
from harness.training.traces import Tracer, chosen
from methods.base import Need

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WATCHED = 4  # rows that a teacher reads before and after its training


@dataclass(frozen=True)
class TrainingTools:
    """What all trainings of a run share.

    Attributes:
        published: the models of the pair.
        aligned: the rows.
        max_length: the most tokens of prompt and response together.
        work: where a stage's checkpoints are.
        ranks: the processes that train together.
    """

    published: PublishedModels
    aligned: AlignedRows
    max_length: int
    work: Callable[[Stage], Path]
    ranks: Ranks


@dataclass(frozen=True)
class StudentTools:
    """What the training of a student takes beside that.

    Attributes:
        need: see :data:`~harness.run.workbench.Fetch`.
        pairs: vocabularies.
        signal: what teachers give.
        texts: rows, of which some are traced.
        traces: whether held-out responses are read at all.
        tasks: by name.
    """

    need: Fetch
    pairs: Pairs
    signal: TeacherSignal
    texts: Texts
    traces: bool
    tasks: Mapping[str, Task]


@dataclass(frozen=True)
class Trained:
    """A model after its training.

    Attributes:
        model: causal language model, adapters in place.
        wrapper: peft's, where adapters were trained.
        terms: of the loss.
        teachers: what they gave.
        steps: what each step showed.
        seconds: of the steps, on this machine.
        watched, halved: see :class:`~harness.training.distil.Trajectory`.
    """

    model: PreTrainedModel
    wrapper: PeftModel | None
    terms: tuple[Term, ...]
    teachers: TeacherSources
    steps: list[dict[str, float]]
    seconds: float
    watched: tuple[float, float] | None = None
    halved: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, object]:
        """What the manifest tells of how it was trained."""
        return {"halved": {name: list(sizes) for name, sizes in self.halved.items()}} if self.halved else {}


def make_teacher(stage: Stage, folder: Path, tools: TrainingTools, progress: StageProgress) -> dict[str, object]:
    """Fine-tune a teacher: adapters are stored where LoRA trains, else the whole model."""
    trained = _recorded(stage, folder, tools, lambda: train_published(stage, tools, progress))
    if trained.watched and trained.watched[1] > trained.watched[0]:
        before, after = trained.watched
        progress.message(
            f"[yellow]a poor teacher[/]: {escape(stage.title)} on {stage.task} ended worse than it began: the "
            f"cross-entropy of the same {WATCHED} training rows rose from {before:.3f} to {after:.3f} nats a token"
        )
    if trained.wrapper is not None:
        trained.wrapper.save_pretrained(str(folder / ADAPTER))
    else:
        save_model(trained.model, tools.published.sides[stage.role].tokenizer, folder / MODEL)
    return trained.told


def make_warm_start(stage: Stage, folder: Path, tools: TrainingTools, progress: StageProgress) -> dict[str, object]:
    """Fine-tune the student that distillation starts from."""
    trained = _recorded(stage, folder, tools, lambda: train_published(stage, tools, progress))
    _store_student(trained, tools, folder)
    return trained.told


def make_student(
    stage: Stage,
    folder: Path,
    tools: TrainingTools,
    lessons: StudentTools,
    kept: TrainedModels,
    progress: StageProgress,
    *,
    traced: bool,
) -> dict[str, object]:
    """Train a student; it stays in memory for what is asked of it next.

    Args:
        traced: whether to store what its terms compare in a few held-out responses.
    """
    trained = _recorded(stage, folder, tools, lambda: train_student(stage, tools, lessons, progress))
    taught = [term for term in trained.terms if term.teacher != STUDENT]
    if traced and trained.steps and taught:
        _trace(stage, trained, taught, tools, lessons, folder, progress)
    kept.keep_student(stage, _store_student(trained, tools, folder))
    return {"rows": lessons.texts.counts(stage.task, "train"), **trained.told}


def make_rows(
    stage: Stage,
    folder: Path,
    published: PublishedModels,
    texts: Texts,
    kept: TrainedModels,
    signal: TeacherSignal,
    keep: TeacherRows,
    progress: StageProgress,
    *,
    traces: bool,
) -> dict[str, object]:
    """Store a teacher's rows, once for all that learn from it.

    Args:
        keep: what is stored of a position.
        traces: whether held-out responses are read at all.
    """
    teacher = stage.inputs["teacher"]
    model = kept.teacher(teacher)
    examples = texts.examples(stage.task, "train")
    if isinstance(read := stage.values.get("rows"), list):
        examples = examples[slice(*read)]
    examples = examples + _to_trace(texts, stage.task, traces)
    progress.begin(len(examples))
    size = store_rows(
        model,
        stage.role,
        examples,
        folder,
        pad=published.sides[stage.role].tokenizer.pad_token_id,
        on_batch=progress.advance,
        pack=packer(Head.of(model), keep.k) if keep.keep == "top_k" else None,
    )
    if keep.keep == "hidden":
        signal.head(teacher)  # while the model is here: what trains with the rows needs it
    return {"bytes": size}


# --- Trainings, on every rank the same --------------------------------------------------------------------------------


def train_published(stage: Stage, tools: TrainingTools, progress: StageProgress) -> Trained:
    """Fine-tune a teacher or the student as it was published; no files but checkpoints."""
    set_seed(order_seed(stage))  # what is drawn must not depend on what ran before in this process
    role = stage.role or STUDENT
    model = tools.published.model(role).to(device())
    return _train(stage, model, role, Objective(stage.title, 1.0), TeacherSources, tools, progress)


def train_student(stage: Stage, tools: TrainingTools, lessons: StudentTools, progress: StageProgress) -> Trained:
    """Train a student with its objective, from the warm start or as it was published; no files but checkpoints."""
    set_seed(order_seed(stage))
    asked = stage.objective
    assert asked is not None
    for part in asked.taught:
        part.method.prepare(lessons.pairs.of(part.role))
    terms = tuple(Term(part.method, part.role or STUDENT, part.weight) for part in asked.losses)

    def beginning() -> PreTrainedModel:
        """The student as training finds it."""
        start = stage.inputs.get("start")
        if start is None:
            return tools.published.model(STUDENT).to(device())
        return tools.published.trained(STUDENT, lessons.need(start).checked() / MODEL).to(device())

    def given() -> TeacherSources:
        sources = lessons.signal.sources(stage, asked.roles)
        if any(Need.START in term.method.needs for term in terms):
            sources.live[STUDENT] = beginning()
        return sources

    return _train(
        stage,
        beginning(),
        STUDENT,
        Objective(stage.title, asked.ce_weight, terms, asked.label_smoothing),
        given,
        tools,
        progress,
        reward_of(lessons.tasks[stage.task]) if asked.rewarded else None,
    )


def _train(
    stage: Stage,
    model: PreTrainedModel,
    role: str,
    objective: Objective,
    teachers: Callable[[], TeacherSources],
    tools: TrainingTools,
    progress: StageProgress,
    reward: Reward | None = None,
) -> Trained:
    """All steps of a stage's training of the model of a role."""
    training = stage.training
    assert training is not None
    wrapper = None
    if training.lora:
        wrapper, model = add_lora(model, training.lora)
        if training.gradient_checkpointing:
            model.enable_input_require_grads()
    progress.begin(stage.steps)
    if stage.steps == 0:
        return Trained(model, wrapper, objective.terms, TeacherSources(), [], 0.0)
    aligned = tools.aligned.of(stage, role, objective.terms)
    given = teachers()
    model = model.to(device())
    owner = model if wrapper is None else wrapper
    blank = blank_copy(owner) if shards(training) and tools.ranks.rank == 0 else None
    started = time.monotonic()
    done = distil(
        model,
        objective,
        given,
        aligned,
        training,
        sides={**tools.published.sides, STUDENT: tools.published.sides[role]},
        max_length=tools.max_length,
        steps=stage.steps,
        seed=order_seed(stage),
        work=tools.work(stage),
        on_step=lambda step: progress.advance(int(step["step"]), step["loss"]),
        say=lambda text: progress.message(f"[yellow]{escape(f'{stage.title} on {stage.task}: {text}')}[/]"),
        watch=WATCHED if stage.kind == "teacher" else 0,
        dev=tools.aligned.dev(stage.task, role) if training.select == "best_dev" else (),
        reward=reward,
    )
    seconds = time.monotonic() - started
    release_memory()  # optimiser state hangs in a cycle of the Trainer's
    if shards(training):
        gather_into(blank, owner)
    if blank is not None:  # whole from here on: what is stored and asked of it is this process's alone
        model = blank.to(device()) if wrapper is None else blank.to(device()).get_base_model()
        wrapper = None if wrapper is None else blank
    return Trained(model.eval(), wrapper, objective.terms, given, done.steps, seconds, done.watched, done.halved)


# --- What is stored of them -------------------------------------------------------------------------------------------


def _recorded(stage: Stage, folder: Path, tools: TrainingTools, train: Callable[[], Trained]) -> Trained:
    """Train on all ranks, and store what the steps showed."""
    resumed = latest_checkpoint(tools.work(stage)) is not None
    forget_gpu_peak()
    with tools.ranks.together(stage.identity):
        trained = train()
    if trained.seconds and not resumed:  # else the seconds before the interruption are not known
        peak = gpu_peak_bytes()
        gpus = 0 if peak is None else tools.ranks.world
        TIMING.write(folder, Timing(round(trained.seconds, 2), gpus, peak))
    STEPS.write(folder, trained.steps)
    return trained


def _store_student(trained: Trained, tools: TrainingTools, folder: Path) -> PreTrainedModel:
    """Store a student, its adapters merged into it."""
    model = trained.model if trained.wrapper is None else trained.wrapper.merge_and_unload()
    save_model(model, tools.published.sides[STUDENT].tokenizer, folder / MODEL)
    return model


def _to_trace(texts: Texts, task: str, traces: bool) -> list[TokenizedExample]:
    """The held-out responses whose alignment a report shows; their teacher rows are stored with the others."""
    return chosen(texts.examples(task, "test")) if traces else []


def _trace(
    stage: Stage,
    trained: Trained,
    terms: Sequence[Term],
    tools: TrainingTools,
    lessons: StudentTools,
    folder: Path,
    progress: StageProgress,
) -> None:
    """Store what the terms compare in a few held-out responses. A training is not lost over a picture of it."""
    sides, given = tools.published.sides, trained.teachers
    tracer = Tracer(trained.model, given.live, given.heads, given.stored, pad_ids(sides), sides)
    try:
        made = tracer.trace(_to_trace(lessons.texts, stage.task, lessons.traces), terms)
    except Exception as error:
        progress.message(f"[yellow]no alignments to show[/] of {escape(f'{stage.title}: {error!r}')}")
    else:
        TRACES.write(folder, made)
