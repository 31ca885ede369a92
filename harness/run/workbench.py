"""What a run has loaded and keeps: tokenizers, tokenised rows, models, and what teachers give.

Each part by itself: what makes a stage is handed no more than its result depends on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.base.device import Precision, compute_dtype, device, release_memory
from harness.base.identity import seed_of
from harness.data.rows import Request, held_out, prompts_of
from harness.data.teacher_rows import StoredRows
from harness.data.templates import TextSide, load_sides
from harness.data.terms import AlignedExample, Term, align
from harness.data.tokens import STUDENT, LeftOut, OnBadRow, TokenizedExample, tokenize
from harness.evaluate.references import RowsRead
from harness.models.cache import Report
from harness.models.heads import Head, check_head
from harness.models.load import load_config, load_model
from harness.models.lora import merge_lora
from harness.models.publisher import decoding_wishes
from harness.models.resolve import resolve
from harness.models.spec import ModelSpec
from harness.models.top_rows import TopRowsHead
from harness.models.uri import parse_uri
from harness.plan.stages import Plan, Stage
from harness.recipe.schema import Limits, TeacherRows
from harness.store.artefacts import ADAPTER, ANSWERS, MODEL, Answer
from harness.store.store import Artefact
from harness.tasks.base import Task
from harness.training.distil import TeacherSources
from methods.library.vocabulary import TokenizerPair

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Fetch = Callable[[Stage], Artefact]
"""The stored result of a stage, made first where it is missing."""


class PublishedModels:
    """The models of the pair as they were published, by role. Weights are read anew at each call.

    Args:
        specs: as the recipe names them.
        report: told about downloads.
    """

    def __init__(self, specs: Mapping[str, ModelSpec], report: Report) -> None:
        self.specs, self.report = specs, report

    @cached_property
    def sides(self) -> dict[str, TextSide]:
        """Tokenizers by role."""
        return load_sides(self.specs, self.report)

    def config(self, role: str) -> PretrainedConfig:
        """A model's config."""
        folder = resolve(parse_uri(self.specs[role].model)).folder
        return load_config(folder)

    def vocabulary_size(self, role: str) -> int:
        """How many logits a model gives."""
        size: int = self.config(role).get_text_config().vocab_size
        return size

    def model(self, role: str) -> PreTrainedModel:
        """In float32, pruned where the recipe says so, on the CPU; its head is checked."""
        spec = self.specs[role]
        local = resolve(parse_uri(spec.model), report=self.report)
        model = load_model(local.folder, attention=spec.attention, layers=spec.layers)
        check_head(model, spec.name or spec.model)
        return model

    def trained(self, role: str, folder: Path) -> PreTrainedModel:
        """A model that a stage has trained and stored whole: in float32, on the CPU."""
        return load_model(folder, attention=self.specs[role].attention)


def model_records(published: PublishedModels) -> dict[str, dict[str, str]]:
    """URI of each model by role, the commit or digest that it came to on this machine, and what is set aside of it.

    ``set_aside`` is what its publisher asks of decoding, where there is something.
    """
    records: dict[str, dict[str, str]] = {}
    for role, spec in published.specs.items():
        local = resolve(parse_uri(spec.model), report=published.report)
        records[role] = {"uri": spec.model}
        records[role] |= {k: str(v) for k, v in local.manifest.items() if k in ("commit", "sha256")}
        if wishes := decoding_wishes(local.folder):
            records[role]["set_aside"] = wishes
    return records


class Pairs:
    """The vocabularies of the student and one teacher, as far as their logits go: one object for the whole run.

    Args:
        published: the models.
        maps: folder in which vocabulary maps are kept between runs.
    """

    def __init__(self, published: PublishedModels, maps: Path) -> None:
        self._published, self._maps = published, maps
        self._made: dict[str, TokenizerPair] = {}

    def of(self, role: str) -> TokenizerPair:
        """The student and the teacher of that role."""
        if role not in self._made:
            student, teacher = (
                self._published.sides[name].vocabulary.within(self._published.vocabulary_size(name))
                for name in (STUDENT, role)
            )
            self._made[role] = TokenizerPair(student, teacher, self._maps)
        return self._made[role]


class Texts:
    """The tasks' rows in tokens.

    Args:
        tasks: by name.
        published: the models of the pair.
        limits: of lengths.
        dev_rows: training rows of each task that are held out.
    """

    def __init__(
        self, tasks: Mapping[str, Task], published: PublishedModels, limits: Limits, dev_rows: int = 0
    ) -> None:
        self._tasks, self._published, self._limits, self._dev_rows = tasks, published, limits, dev_rows
        self._tokenized: dict[str, list[TokenizedExample]] = {}
        self._left_out: dict[str, dict[str, LeftOut]] = {}  # rows of each, and why

    def examples(self, task: str, split: str) -> list[TokenizedExample]:
        """Tokenised rows of "train", "dev" or "test", cut at a boundary that all models of the pair share."""
        key = f"{task}/{split}"
        if key not in self._tokenized:
            source = self._tasks[task]
            if split == "test":
                examples = source.reference_examples()
            else:
                train, dev = held_out(source.training_examples(), self._dev_rows, source.question)
                examples = train if split == "train" else dev
            limits, why = self._limits, self._left_out.setdefault(key, {})
            # what bits per byte alone would read stops no other score
            bad: tuple[OnBadRow, OnBadRow] = ("drop", "drop")
            if split == "train":
                bad = limits.overlong, limits.unreadable
            self._tokenized[key] = tokenize(examples, self._published.sides, limits.length, *bad, why)
        return self._tokenized[key]

    def said(self, task: str, answers: Sequence[Answer], share: float) -> list[TokenizedExample]:
        """Training rows of which some have a teacher's answer in the place of their response.

        Args:
            answers: to all prompts; those that came to no end, or that a tokenizer changes, are not taken.
            share: of the prompts that have one, chosen by their ids.
        """
        own = {answer.id: answer.output for answer in answers if answer.stop == "eos" and answer.output.strip()}
        chosen = [
            replace(example, response=own[example.id])
            for example in self._tasks[task].training_examples()
            if example.id in own and seed_of("said", example.id) < share * 2**31
        ]
        made = tokenize(chosen, self._published.sides, self._limits.length, "drop", "drop")
        told = {example.id: example for example in made}
        return [told.get(example.id, example) for example in self.examples(task, "train")]

    def counts(self, task: str, split: str) -> dict[str, int]:
        """Rows that were read, those of them that were left out, by reason, and those whose response a limit cut."""
        kept = self.examples(task, split)
        why = Counter(self._left_out[f"{task}/{split}"].values())
        left_out = {"left_out": why["overlong"], "unreadable": why["unreadable"]}
        return {"read": len(kept) + why.total(), **left_out, "cut": sum(example.cut for example in kept)}


class Prompts:
    """What is asked of models: the tasks' test items, and training rows that are held out, as they are trained on.

    Args:
        tasks: by name.
        dev_rows: training rows of each task that are held out.
    """

    def __init__(self, tasks: Mapping[str, Task], dev_rows: int = 0) -> None:
        self._tasks, self._dev_rows = tasks, dev_rows
        self._made: dict[tuple[str, str], list[Request]] = {}

    def of(self, task: str, split: str = "test") -> list[Request]:
        """Of one task; ``split`` is "test" or "dev"."""
        if (task, split) not in self._made:
            it, rows = self._tasks[task], self._dev_rows
            dev = [] if split == "test" else held_out(it.training_examples(), rows, it.question)[1]
            self._made[task, split] = it.requests() if split == "test" else prompts_of(dev)
        return self._made[task, split]


def as_student(example: TokenizedExample, role: str) -> TokenizedExample:
    """The example with the trained model's tokens under the role "student": a teacher is trained like a student."""
    if role == STUDENT:
        return example
    sides = {**example.sides, STUDENT: example.sides[role]}
    return TokenizedExample(example.id, sides, example.cut, example.response_bytes)


class AlignedRows:
    """Training rows with the groups of every term.

    Args:
        texts: the rows.
        need: see :data:`Fetch`; for the teachers' answers that stand in for some.
    """

    def __init__(self, texts: Texts, need: Fetch) -> None:
        self._texts, self._need = texts, need
        self._made: dict[tuple[str, str, str], list[AlignedExample]] = {}

    def of(self, stage: Stage, trained: str, terms: Sequence[Term]) -> list[AlignedExample]:
        """Of a training of the model of role ``trained``; made once for all seeds of a row of the table."""
        assert stage.training is not None
        objective, said = stage.objective, stage.inputs.get("said")
        key = (stage.task, trained if objective is None else objective.name, "" if said is None else said.identity)
        if key not in self._made:
            examples = self._texts.examples(stage.task, "train")
            if said is not None and objective is not None:
                answers = ANSWERS.read(self._need(said))
                examples = self._texts.said(stage.task, answers, objective.answers_share)
            self._made[key] = [
                align(as_student(example, trained), terms) for example in stage.training.chosen(examples)
            ]
        return self._made[key]

    def dev(self, task: str, trained: str) -> list[TokenizedExample]:
        """Held-out training rows, for the model of role ``trained``."""
        return [as_student(example, trained) for example in self._texts.examples(task, "dev")]

    def forget(self) -> None:
        """Free what the next task does not need."""
        self._made.clear()


class TrainedModels:
    """The student and the teacher that stages trained and that were used last, on the device.

    Args:
        published: the models of the pair.
        need: see :data:`Fetch`.
        precision: that frozen teachers compute in.
    """

    def __init__(self, published: PublishedModels, need: Fetch, precision: Precision) -> None:
        self._published, self._need, self._precision = published, need, precision
        self._student: tuple[str, PreTrainedModel] | None = None
        self._teacher: tuple[str, PreTrainedModel] | None = None
        self.read = RowsRead()

    def keep_student(self, stage: Stage, model: PreTrainedModel) -> None:
        """The student that a stage has just trained."""
        self._student = (stage.identity, model)

    def student(self, stage: Stage) -> PreTrainedModel:
        """The student that a stage trained, in float32."""
        if self._student is None or self._student[0] != stage.identity:
            self.forget_student()
            folder = self._need(stage).checked() / MODEL
            self._student = (stage.identity, self._published.trained(STUDENT, folder).to(device()))
        return self._student[1]

    def teacher(self, stage: Stage) -> PreTrainedModel:
        """The fine-tuned teacher of a stage, frozen."""
        if self._teacher is None or self._teacher[0] != stage.identity:
            self.forget_teacher()
            folder = self._need(stage).checked()
            if (folder / ADAPTER).is_dir():
                model = merge_lora(self._published.model(stage.role), folder / ADAPTER)
            else:
                model = self._published.trained(stage.role, folder / MODEL)
            # Merged in float32; a GPU holds it in what it computes with, and never twice as large.
            dtype = getattr(torch, compute_dtype(self._precision))
            self._teacher = (stage.identity, model.to(dtype).to(device()).eval().requires_grad_(False))
        return self._teacher[1]

    def make_room(self, stage: Stage) -> None:
        """Free what a stage does not use: the student that was evaluated last, any teacher but one that it calls."""
        self.forget_student()
        called = {needed.identity for needed in stage.inputs.values() if needed.kind == "teacher"}
        if self._teacher is not None and self._teacher[0] not in called:
            self.forget_teacher()

    def forget_student(self) -> None:
        """Let the student go."""
        self._student = None
        release_memory()

    def forget_teacher(self) -> None:
        """Let the teacher go."""
        self._teacher = None
        release_memory()


class TeacherSignal:
    """What students learn from: stored rows with the heads that make logits of them, or live teachers.

    Args:
        published: the models of the pair.
        trained: the models that stages trained.
        need: see :data:`Fetch`.
        kept: what is stored of a position.
    """

    def __init__(self, published: PublishedModels, trained: TrainedModels, need: Fetch, kept: TeacherRows) -> None:
        self._published, self._trained, self._need, self._kept = published, trained, need, kept
        self._heads: dict[str, Head] = {}
        self._checked: set[str] = set()

    def sources(self, stage: Stage, roles: Sequence[str]) -> TeacherSources:
        """Live teachers, stored rows and heads by role, as the stage's inputs say."""
        given = TeacherSources()
        for role in roles:
            source = stage.inputs[role]
            if source.kind == "rows":
                given.stored[role] = self._stored_rows(source)
                given.heads[role] = self._rows_head(source)
            else:
                given.live[role] = self._trained.teacher(source)
        return given

    def head(self, stage: Stage) -> Head:
        """The head of a fine-tuned teacher without the rest of the model, which is read again if it is to embed."""
        if stage.identity not in self._heads:
            self._heads[stage.identity] = Head.of(self._trained.teacher(stage)).alone(partial(self._embeddings, stage))
            self._trained.forget_teacher()  # its layers are not needed: the rows are stored
        return self._heads[stage.identity]

    def _embeddings(self, stage: Stage) -> torch.nn.Module:
        layer: torch.nn.Module = self._trained.teacher(stage).get_input_embeddings()
        self._trained.forget_teacher()
        return layer

    def forget(self) -> None:
        """Free what the next task does not need."""
        self._heads.clear()

    def _stored_rows(self, stage: Stage) -> StoredRows:
        """The rows of a stage. They can be hundreds of GB: their digests are checked once, not for every student."""
        artefact = self._need(stage)
        if stage.identity not in self._checked:
            artefact.checked()
            self._checked.add(stage.identity)
        return StoredRows(artefact.folder)

    def _rows_head(self, stage: Stage) -> Head:
        """What makes logits of a stage's stored rows."""
        if self._kept.keep == "top_k":
            return TopRowsHead.over(self._published.vocabulary_size(stage.role), device())
        return self.head(stage.inputs["teacher"])


@dataclass(frozen=True)
class Workbench:
    """All of it, for one run."""

    published: PublishedModels
    pairs: Pairs
    texts: Texts
    prompts: Prompts
    aligned: AlignedRows
    trained: TrainedModels
    signal: TeacherSignal

    @classmethod
    def of(cls, plan: Plan, published: PublishedModels, need: Fetch, maps: Path) -> Workbench:
        """An empty one for a plan; vocabulary maps are kept in the folder ``maps`` between runs."""
        texts = Texts(plan.tasks, published, plan.recipe.limits, plan.recipe.dev.rows)
        trained = TrainedModels(published, need, plan.recipe.teacher.precision)
        return cls(
            published=published,
            pairs=Pairs(published, maps),
            texts=texts,
            prompts=Prompts(plan.tasks, plan.recipe.dev.rows),
            aligned=AlignedRows(texts, need),
            trained=trained,
            signal=TeacherSignal(published, trained, need, plan.recipe.teacher_rows),
        )

    def forget(self) -> None:
        """Free what the next task does not need."""
        self.signal.forget()
        self.aligned.forget()
        self.trained.forget_student()
        self.trained.forget_teacher()
