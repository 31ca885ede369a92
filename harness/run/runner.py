"""Walks a plan: makes what is missing, goes on where it stopped, turns failures into rows.

Demand comes from the end: a cell whose scores are stored needs nothing else, so removed weights are no loss.
"""

from __future__ import annotations

import math
import os
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from transformers import AutoConfig, set_seed

from harness.base.device import compute_dtype, device, release_memory
from harness.base.errors import HarnessError
from harness.base.files import write_json, write_text
from harness.base.identity import environment
from harness.base.progress import Progress
from harness.base.ranks import RankLostError, Ranks
from harness.data.rows import Request, answer_key
from harness.data.teacher_rows import StoredRows, store_rows
from harness.data.terms import AlignedExample, Term, align
from harness.data.text_side import TextSide, load_sides
from harness.data.tokens import STUDENT, Overlong, TokenizedExample, tokenize
from harness.evaluate.bits_per_byte import measure
from harness.evaluate.programs.sandbox import SandboxUnavailable
from harness.generation import vllm as vllm_engine
from harness.generation.answers import check_room, generate
from harness.models.heads import Head, check_head, check_packing
from harness.models.load import load_model, save_model
from harness.models.lora import add_lora, merge_lora
from harness.models.resolve import is_downloaded, resolve
from harness.models.spec import ModelSpec
from harness.models.top_rows import TopRowsHead, packer
from harness.models.uri import parse_uri
from harness.plan.alignments import KIND, shown
from harness.plan.stages import Cell, Plan, Reference, Stage, order_seed, stage_line, with_inputs
from harness.recipe.schema import Training
from harness.run.alignments import aligned, write_aligned
from harness.store.artefacts import ALIGNMENTS, TIMING, TRACES, Failure
from harness.store.store import Artefact, CorruptArtefactError, Store
from harness.training.checkpoints import latest_checkpoint
from harness.training.distil import TeacherSources, distil, pad_ids
from harness.training.objective import Objective
from harness.training.traces import Tracer, chosen
from methods.library.vocabulary import TokenizerPair


class StageFailedError(Exception):
    """An input of a stage failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(frozen=True)
class _Trainee:
    """A model that a stage trains.

    Attributes:
        model: causal language model, adapters in place.
        wrapper: peft's, where adapters are trained.
        roles: whose tokens the trained model and its teachers see; the first one is trained.
    """

    model: Any
    wrapper: Any
    training: Training
    terms: tuple[Term, ...]
    roles: tuple[str, ...]
    ce_weight: float


@dataclass(frozen=True)
class _Done:
    """What a training showed: its steps, how long it took here, and what traces the model that came out."""

    steps: list[dict[str, float]]
    seconds: float
    tracer: Tracer | None


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
        self.plan, self.store, self.folder, self.progress, self.unsafe = plan, store, folder, progress, unsafe
        self.ranks = ranks or Ranks()
        self.failures: dict[str, Failure] = {}
        self.recipe = plan.recipe
        self.device = device()
        self._tokenized: dict[str, list[TokenizedExample]] = {}
        self._read: dict[str, int] = {}  # rows of each, before limits left some out
        self._aligned: dict[tuple[str, str], list[AlignedExample]] = {}
        self._requests: dict[str, list[Request]] = {}
        self._pairs: dict[str, TokenizerPair] = {}
        self._student: tuple[str, Any] | None = None
        self._teacher: tuple[str, Any] | None = None
        self._heads: dict[str, Head] = {}
        self._checked_rows: set[str] = set()

    def run(self) -> None:
        """Make everything that the plan's cells need. Bad input raises; other failures become rows."""
        self.preflight()
        if self.recipe.stages:
            for stage in self.plan.ends:
                self._attempt(stage)
            self._forget()
            return
        for name in self.plan.tasks:
            cells = [cell for cell in self.plan.evaluated if cell.task == name]
            for cell in cells:
                if self._find(cell.scores) is None:
                    self._attempt(cell.answers)
                if cell.bits is not None:
                    self._attempt(cell.bits)
                if isinstance(cell, Cell):
                    self._drop_student(cell)
            self._score(cells)
            self._align([cell for cell in cells if isinstance(cell, Cell)])
            self._forget()

    def preflight(self) -> None:
        """Check before anything runs that models are there, tokenizers fit and data reads.

        Raises:
            HarnessError: on the first thing that is wrong.
        """
        if not self._missing_stages():
            return
        if self.recipe.evaluation.engine == "vllm" and not self.recipe.stages:
            vllm_engine.check_installed()
        self.store.sweep()
        for role, record in self.model_records.items():
            if "commit" in record and record["commit"] not in record["uri"]:
                self.progress.message(
                    f"[yellow]{role}: {escape(record['uri'])} names no commit[/]; this machine has {record['commit']}. "
                    f"Write @{record['commit']} into the recipe, so that it stays the same model."
                )
        for objective in {id(cell.objective): cell.objective for cell in self.plan.cells}.values():
            for method, role in zip(objective.methods, objective.roles, strict=False):
                if (reason := method.refuses(self.pair(role))) is not None:
                    raise HarnessError(
                        f"teachers.{role}",
                        reason,
                        "a teacher that the method can use",
                        "Name another, or leave it out.",
                    )
        self._check_rows()
        self._check_packing()
        for name, task in self.plan.tasks.items():
            self._check_lengths(name)
            self._check_rollouts(name)
            for warning in task.warnings(self.unsafe):
                self.progress.message(f"[yellow]{name}[/]: {escape(warning)}")

    def _check_lengths(self, task: str) -> None:
        """Every model of the pair must be able to read the task's rows, and what is evaluated its test prompts."""
        examples, length = self._examples(task, "train"), str(self.recipe.limits.length)
        if not examples:
            raise HarnessError("limits.length", length, f"room for a prompt of {task} and its response", "Raise it.")
        if self.recipe.evaluation.bits_per_byte:
            examples = examples + self._examples(task, "test")
        for role in self.specs:
            config = self._config(role)
            room = getattr(config.get_text_config(), "max_position_embeddings", None)
            if room is not None and max(example.sides[role].length for example in examples) > room:
                expected = f"at most {room}, which is what {self.sides[role].name} reads"
                raise HarnessError("limits.length", length, expected, f"Rows of {task} are longer: lower it.")
            if role == STUDENT or role in {reference.teacher for reference in self.plan.references}:
                new_tokens = self.plan.tasks[task].settings.new_tokens
                check_room(config, self.sides[role], self._prompts(task), new_tokens)

    def _check_rows(self) -> None:
        """No more tokens of a position can be kept than the teacher has."""
        k = self.recipe.teacher_rows.k
        for role in sorted({stage.role for stage in self.plan.stages() if stage.kind == "rows"} if self._packs else ()):
            tokens = self._config(role).get_text_config().vocab_size
            if k > tokens:
                raise HarnessError("teacher_rows.k", str(k), f"at most {tokens}, the tokens of {self.sides[role].name}")

    def _check_packing(self) -> None:
        """Models that are to be trained on packed sequences must keep them apart."""
        asked = (stage for end in self.plan.ends for stage in with_inputs(end))
        trainings = [stage for stage in asked if stage.kind in ("teacher", "warm_start", "student")]
        for role in sorted({stage.role or STUDENT for stage in trainings if self._training(stage).packing}):
            check_packing(self._published(self.specs[role]))

    def _check_rollouts(self, task: str) -> None:
        """The student must be able to read the longest prompt and what it may sample after it."""
        sampling = [method.sampling for cell in self.plan.cells for method in cell.objective.methods]
        asked = [options.rollout_tokens for options in sampling if options is not None]
        if not asked:
            return
        room = getattr(self._config(STUDENT).get_text_config(), "max_position_embeddings", None)
        longest = max(example.sides[STUDENT].prompt.size for example in self._examples(task, "train"))
        if room is not None and longest + max(asked) > room:
            raise HarnessError(
                "rollout_tokens",
                f"{max(asked)}, after a prompt of {task} with {longest} tokens",
                f"at most {room} together, which is what {self.sides[STUDENT].name} reads",
            )

    def _missing_stages(self) -> bool:
        return any(self._find(end) is None for end in self.plan.ends)

    def follow(self) -> None:
        """Train along with rank 0 until the run is over: what the other ranks do instead of :meth:`run`."""
        stages = {stage.identity: stage for stage in self.plan.stages()}
        task: str | None = None
        while (called := self.ranks.next_call()) is not None:
            stage = stages[called]
            failure: Exception | None = None  # of the last training, whose traceback holds its model
            if stage.task != task:
                self._forget()
                task = stage.task
            self._make_room(stage)
            try:
                set_seed(order_seed(stage))
                self._optimise(stage, self._trainee(stage))
            except Exception as error:  # rank 0 met it too, and reports it; else the ranks don't meet
                failure = error
            try:
                self.ranks.meet()
            except RankLostError as alone:
                raise (failure or alone) from alone

    # --- stages -----------------------------------------------------------------------------------------------------

    def _attempt(self, stage: Stage) -> None:
        """Make a stage and what it needs; note a failure instead of raising, but for bad input."""
        try:
            self._need(stage)
        except StageFailedError as error:
            self.failures.setdefault(stage.identity, error.failure)

    def _find(self, stage: Stage) -> Artefact | None:
        """The stored result of a stage. Small files are checked here, weights and rows when they are read."""
        found = self.store.find(stage.kind, stage.identity)
        if found is not None and stage.kind in ("answers", "bits", "scores") and not found.is_whole():
            self._discard(found)
            return None
        return found

    def _discard(self, artefact: Artefact) -> None:
        self.progress.message(f"[yellow]damaged[/] {escape(str(artefact.folder))}: made again")
        self._checked_rows.discard(str(artefact.manifest["identity"]))
        self.store.discard(artefact)

    def _need(self, stage: Stage) -> Artefact:
        """The stored result of a stage, made first where it is missing."""
        found = self._find(stage)
        if found is not None:
            return found
        if stage.identity in self.failures:
            raise StageFailedError(self.failures[stage.identity])
        for needed in stage.inputs.values():
            self._need(needed)
        try:
            return self._make(stage)
        except CorruptArtefactError as error:
            return self._remake(stage, error)
        except (HarnessError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise StageFailedError(self._fail(stage, error)) from error

    def _remake(self, stage: Stage, error: CorruptArtefactError) -> Artefact:
        """Something that the stage reads differs from its digest: throw away what is damaged and make it again."""
        stored = {one.identity: self.store.find(one.kind, one.identity) for one in with_inputs(stage)}
        damaged = [artefact for artefact in stored.values() if artefact is not None and not artefact.is_whole()]
        if not damaged:
            raise StageFailedError(self._fail(stage, error)) from error
        for artefact in damaged:
            self._discard(artefact)
        return self._need(stage)

    def _make(self, stage: Stage) -> Artefact:
        makers: dict[str, Callable[[Stage, Path], dict[str, Any]]] = {
            "teacher": self._make_teacher,
            "warm_start": self._make_warm_start,
            "rows": self._make_rows,
            "student": self._make_student,
            "answers": self._make_answers,
            "bits": self._make_bits,
        }
        if stage.kind in ("teacher", "warm_start", "rows", "student"):
            self._make_room(stage)
        manifest = self._manifest(stage)
        set_seed(order_seed(stage))  # what is drawn must not depend on what ran before in this process

        def waits() -> None:
            title = escape(stage_line(stage))
            self.progress.message(f"another process is at work on {title}: waiting for it")

        with self.store.work(stage.kind, stage.identity, waits):
            if (found := self._find(stage)) is not None:  # another process has just made it
                return found
            started = time.monotonic()
            with self.store.create(stage.kind, stage.identity, manifest) as folder:
                manifest |= makers[stage.kind](stage, folder)
                self._finish(manifest, started)
        self.progress.finish()
        artefact = self.store.find(stage.kind, stage.identity)
        assert artefact is not None
        return artefact

    def _make_room(self, stage: Stage) -> None:
        """Free what a stage does not use: the student that was evaluated last, any teacher but one that it calls."""
        self._student = None
        called = {needed.identity for needed in stage.inputs.values() if needed.kind == "teacher"}
        if self._teacher is not None and self._teacher[0] not in called:
            self._teacher = None
        release_memory()

    def _manifest(self, stage: Stage) -> dict[str, Any]:
        return {
            "title": stage.title,
            "task": stage.task,
            "seed": stage.seed,
            "values": dict(stage.values),
            "inputs": {name: {"kind": s.kind, "identity": s.identity} for name, s in stage.inputs.items()},
            "models": self.model_records,
        }

    def _finish(self, manifest: dict[str, Any], started: float) -> None:
        manifest |= {
            "environment": environment(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 2),
            "process_peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def _make_teacher(self, stage: Stage, folder: Path) -> dict[str, Any]:
        """Fine-tune a teacher: adapters are stored where LoRA trains, else the whole model."""
        trainee = self._train(stage, folder)
        if trainee.wrapper is not None:
            trainee.wrapper.save_pretrained(str(folder / "adapter"))
        else:
            save_model(trainee.model, self.sides[stage.role].tokenizer, folder / "model")
        return {}

    def _make_warm_start(self, stage: Stage, folder: Path) -> dict[str, Any]:
        self._train_student(stage, folder)
        return {}

    def _make_rows(self, stage: Stage, folder: Path) -> dict[str, Any]:
        model = self._tuned_teacher(stage.inputs["teacher"])
        examples = self._rows_examples(stage.task)
        self.progress.begin(stage_line(stage), len(examples))
        side = self.sides[stage.role]
        size = store_rows(
            model,
            stage.role,
            examples,
            folder,
            pad=side.tokenizer.pad_token_id,
            on_batch=self.progress.advance,
            pack=packer(Head.of(model), self.recipe.teacher_rows.k) if self._packs else None,
        )
        if not self._packs:
            self._teacher_head(stage.inputs["teacher"])  # while the model is here: what trains with the rows needs it
        return {"bytes": size}

    def _make_student(self, stage: Stage, folder: Path) -> dict[str, Any]:
        self._student = stage.identity, self._train_student(stage, folder)
        return {"rows": self._counts(stage.task, "train")}

    def _train_student(self, stage: Stage, folder: Path) -> Any:
        """Train and store a student; adapters are merged into it."""
        trainee = self._train(stage, folder)
        trained = trainee.model if trainee.wrapper is None else trainee.wrapper.merge_and_unload()
        save_model(trained, self.sides[STUDENT].tokenizer, folder / "model")
        return trained

    def _train(self, stage: Stage, folder: Path) -> _Trainee:
        """Train a stage's model; what the steps showed, and what the terms compare, goes into the folder."""
        resumed = latest_checkpoint(self.store.work_folder(stage.kind, stage.identity)) is not None
        with self.ranks.together(stage.identity):
            trainee = self._trainee(stage)
            done = self._optimise(stage, trainee)
        if done.seconds and not resumed:  # else the seconds before the interruption are not known
            write_json(folder / TIMING, {"seconds": round(done.seconds, 2)})
        diverged = [int(step["step"]) for step in done.steps if not math.isfinite(step["loss"])]
        if diverged:
            raise FloatingPointError(f"the training diverged: the loss of step {diverged[0]} is not finite")
        write_json(folder / "steps.json", done.steps)
        if done.tracer is not None and trainee.terms and stage.seed == self.recipe.seeds_of(stage.task)[0]:
            self._trace(stage, done.tracer, trainee.terms, folder)
        return trainee

    def _trainee(self, stage: Stage) -> _Trainee:
        """What a stage trains, before its first step."""
        training = self._training(stage)
        terms: tuple[Term, ...] = ()
        roles: tuple[str, ...] = (STUDENT,)
        ce_weight = 1.0
        if stage.kind == "teacher":
            roles = (stage.role,)
        if stage.objective is not None:
            objective = stage.objective
            # a method without a teacher has no role, and no term
            for method, role, weight in zip(objective.methods, objective.roles, objective.kd_weights, strict=False):
                method.prepare(self.pair(role))
                terms += (Term(method, role, weight),)
            roles, ce_weight = (STUDENT, *objective.roles), objective.ce_weight
        start = stage.inputs.get("start")
        if start is None:
            model = self._load(self.specs[roles[0]])
        else:
            model = self._load_folder(self._need(start).checked() / "model")
        wrapper, model = add_lora(model, training.lora) if training.lora else (None, model)
        if training.gradient_checkpointing and training.lora:
            model.enable_input_require_grads()
        return _Trainee(model, wrapper, training, terms, roles, ce_weight)

    def _training(self, stage: Stage) -> Training:
        """The recipe's settings that a stage trains with."""
        name = "teacher" if stage.kind == "teacher" else "train" if "start" in stage.inputs else "warm_start"
        training: Training = getattr(self.recipe, name)
        return training

    def _optimise(self, stage: Stage, trainee: _Trainee) -> _Done:
        """All steps of a stage's training; on every rank the same, and no files but checkpoints."""
        count = int(stage.values["steps"])
        self.progress.begin(stage_line(stage), count)
        if count == 0:
            return _Done([], 0.0, None)
        training, terms = trainee.training, trainee.terms
        trained, *teachers = trainee.roles
        aligned = self._aligned_rows(stage, trained, terms)
        given = self._teachers_of(stage, teachers)
        sides = {**self.sides, STUDENT: self.sides[trained]}
        model = trainee.model.to(self.device)
        started = time.monotonic()
        steps = distil(
            model,
            Objective(stage.title, trainee.ce_weight, terms),
            given,
            aligned,
            training,
            sides=sides,
            max_length=self.recipe.limits.length,
            steps=count,
            seed=order_seed(stage),
            work=self.store.work_folder(stage.kind, stage.identity),
            on_step=lambda step: self.progress.advance(int(step["step"])),
        )
        seconds = time.monotonic() - started
        release_memory()  # optimiser state hangs in a cycle of the Trainer's
        tracer = Tracer(model.eval(), given.live, given.heads, given.stored, pad_ids(sides), self.sides)
        return _Done(steps, seconds, tracer)

    def _aligned_rows(self, stage: Stage, trained: str, terms: tuple[Term, ...]) -> list[AlignedExample]:
        """Training rows with the groups of every term; made once for all seeds of a row of the table."""
        key = (stage.task, trained if stage.objective is None else stage.objective.name)
        if key not in self._aligned:
            examples = [_as_student(example, trained) for example in self._examples(stage.task, "train")]
            self._aligned[key] = [align(example, terms) for example in examples]
        return self._aligned[key]

    def _trace(self, stage: Stage, tracer: Tracer, terms: tuple[Term, ...], folder: Path) -> None:
        """Store what the terms compare in a few held-out responses. A training is not lost over a picture of it."""
        try:
            made = tracer.trace(self._traced(stage.task), terms)
        except Exception as error:
            self.progress.message(f"[yellow]no alignments to show[/] of {escape(f'{stage.title}: {error!r}')}")
        else:
            write_json(folder / TRACES, made)

    def _teachers_of(self, stage: Stage, roles: list[str]) -> TeacherSources:
        """Live teachers, stored rows and heads by role, as the stage's inputs say."""
        given = TeacherSources()
        for role in roles:
            source = stage.inputs[role]
            if source.kind == "rows":
                given.stored[role] = self._stored_rows(source)
                given.heads[role] = self._rows_head(source)
            else:
                given.live[role] = self._tuned_teacher(source)
        return given

    def _stored_rows(self, stage: Stage) -> StoredRows:
        """The rows of a stage. They can be hundreds of GB: their digests are checked once, not for every student."""
        artefact = self._need(stage)
        if stage.identity not in self._checked_rows:
            artefact.checked()
            self._checked_rows.add(stage.identity)
        return StoredRows(artefact.folder)

    def _make_answers(self, stage: Stage, folder: Path) -> dict[str, Any]:
        task = self.plan.tasks[stage.task]
        requests = self._prompts(stage.task)
        model = self._evaluated_model(stage)
        self.progress.begin(stage_line(stage), len(requests))
        evaluation = self.recipe.evaluation
        engine = (
            vllm_engine.generate if evaluation.engine == "vllm" else partial(generate, batch_size=evaluation.batch_size)
        )
        answers = engine(
            model,
            self.sides[stage.role or STUDENT],
            requests,
            new_tokens=task.settings.new_tokens,
            on_batch=self.progress.advance,
        )
        write_json(folder / "answers.json", [answer.to_dict() for answer in answers])
        return {"prompts_cut": sum(answer.prompt_cut for answer in answers)}

    def _make_bits(self, stage: Stage, folder: Path) -> dict[str, Any]:
        model = self._evaluated_model(stage)
        role = stage.role or STUDENT
        examples = [_as_student(example, role) for example in self._examples(stage.task, "test")]
        self.progress.begin(stage_line(stage), len(examples))
        pad = self.sides[role].tokenizer.pad_token_id
        items = measure(model, examples, pad=pad, on_batch=self.progress.advance)
        write_json(folder / "bits.json", [vars(item) for item in items])
        return {"left_out": len(examples) - len(items), "rows": self._counts(stage.task, "test")}

    def _score(self, cells: list[Reference | Cell]) -> None:
        """Score all students of a task together, and what they are compared with: EvalPlus starts once."""
        answers: dict[str, dict[str, str]] = {}
        stages: dict[str, Stage] = {}
        for cell in cells:
            stage = cell.scores
            if self._find(stage) is not None:
                continue
            if (failure := self.failures.get(cell.answers.identity)) is not None:
                self.failures[stage.identity] = failure
                continue
            stored = self._need(cell.answers).json("answers.json")
            answers[stage.identity] = {answer_key(each["id"], each["seed"]): each["output"] for each in stored}
            stages[stage.identity] = stage
        if not stages:
            return
        first = next(iter(stages.values()))
        started, load = time.monotonic(), os.getloadavg()[0]
        self.progress.begin(f"scores of {first.task}", len(stages))
        try:
            with tempfile.TemporaryDirectory(prefix="harness-score-") as work:
                scores = self.plan.tasks[first.task].score(answers, Path(work), self.unsafe)
        except SandboxUnavailable as error:
            failure = Failure(first.title, str(error), skipped=True)
            self.failures |= dict.fromkeys(stages, failure)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            failure = self._fail(first, error)
            self.failures |= dict.fromkeys(stages, failure)
        else:
            for identity, stage in stages.items():
                manifest = self._manifest(stage)
                with self.store.create(stage.kind, identity, manifest) as folder:
                    write_json(folder / "scores.json", {k: dict(v) for k, v in scores[identity].values.items()})
                    if scores[identity].details:
                        write_json(folder / "details.json", scores[identity].details)
                    manifest |= {"caveat": scores[identity].caveat}
                    # a busy machine can make a timeout of a pass
                    manifest |= {"machine": {"cores": os.cpu_count(), "load": [load, os.getloadavg()[0]]}}
                    self._finish(manifest, started)
        self.progress.finish()

    def _align(self, cells: list[Cell]) -> None:
        """Store what methods compare in the test responses. Nothing is downloaded, and no run ends, for a picture."""
        missing = {
            one.identity: (cell, one)
            for cell in cells
            for one in shown(self.plan, cell)
            if self.store.find(KIND, one.identity) is None
        }
        if not missing or not all(is_downloaded(parse_uri(s.model)) for s in self.specs.values()):
            return
        for identity, (cell, one) in missing.items():
            started = time.monotonic()
            manifest = {"title": f"alignments of {cell.objective.name}", "task": cell.task, "method": one.method.name}
            try:
                one.method.prepare(self.pair(one.role))
                made = aligned(self._examples(cell.task, "test"), one.method, one.role, self.sides)
                with self.store.create(KIND, identity, manifest) as folder:
                    write_aligned(folder / ALIGNMENTS, made)
                    self._finish(manifest, started)
            except Exception as error:
                self.progress.message(f"[yellow]no alignments to show[/] of {escape(f'{cell.name}: {error!r}')}")

    def _fail(self, stage: Stage, error: Exception) -> Failure:
        """Note a failure with its traceback in the run's folder."""
        path = self.folder / "failures" / f"{stage.kind}-{stage.identity[:12]}.txt"
        write_text(path, f"{stage.title} ({stage.task}, seed {stage.seed})\n\n{traceback.format_exc()}")
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''} ({path.relative_to(self.folder)})"
        failure = Failure(stage.title, reason)
        self.failures[stage.identity] = failure
        self.progress.message(f"[red]failed[/] {stage.task} · {escape(f'{stage.title}: {reason}')}")
        self.progress.finish()
        return failure

    # --- what stages read -------------------------------------------------------------------------------------------

    @cached_property
    def specs(self) -> dict[str, ModelSpec]:
        """Models of the pair by role."""
        specs: dict[str, ModelSpec] = self.recipe.models_by_role()
        return specs

    @cached_property
    def sides(self) -> dict[str, TextSide]:
        """Tokenizers of the pair by role."""
        return load_sides(self.specs, self.progress.message)

    @cached_property
    def model_records(self) -> dict[str, dict[str, str]]:
        """URI of each model by role, and the commit or digest that it came to on this machine."""
        records: dict[str, dict[str, str]] = {}
        for role, spec in self.specs.items():
            local = resolve(parse_uri(spec.model), report=self.progress.message)
            records[role] = {"uri": spec.model}
            records[role] |= {k: str(v) for k, v in local.manifest.items() if k in ("commit", "sha256")}
        return records

    def pair(self, role: str) -> TokenizerPair:
        """The vocabularies of the student and one teacher, as far as their logits go: one object for the whole run."""
        if role not in self._pairs:
            student, teacher = (
                self.sides[name].vocabulary.within(self._config(name).get_text_config().vocab_size)
                for name in (STUDENT, role)
            )
            self._pairs[role] = TokenizerPair(student, teacher, self.store.root / "maps")
        return self._pairs[role]

    def _config(self, role: str) -> Any:
        folder = resolve(parse_uri(self.specs[role].model)).folder
        return AutoConfig.from_pretrained(folder, local_files_only=True)

    def _examples(self, task: str, split: str) -> list[TokenizedExample]:
        """Tokenised rows, cut at a boundary that all models of the pair share."""
        key = f"{task}/{split}"
        if key not in self._tokenized:
            source = self.plan.tasks[task]
            examples = source.training_examples() if split == "train" else source.reference_examples()
            limits = self.recipe.limits
            overlong: Overlong = limits.overlong if split == "train" else "drop"
            self._tokenized[key] = tokenize(examples, self.sides, limits.length, overlong)
            self._read[key] = len(examples)
        return self._tokenized[key]

    def _counts(self, task: str, split: str) -> dict[str, int]:
        """Rows that were read, those of them that a limit left out, and those whose response it cut."""
        kept = self._examples(task, split)
        read = self._read[f"{task}/{split}"]
        return {"read": read, "left_out": read - len(kept), "cut": sum(example.cut for example in kept)}

    def _rows_examples(self, task: str) -> list[TokenizedExample]:
        """Whose teacher rows are stored."""
        return self._examples(task, "train") + self._traced(task)

    def _traced(self, task: str) -> list[TokenizedExample]:
        """The held-out responses whose alignment a report shows; their teacher rows are stored with the others."""
        return chosen(self._examples(task, "test")) if self.recipe.evaluation.bits_per_byte else []

    def _prompts(self, task: str) -> list[Request]:
        """Prompts of a task's test items."""
        if task not in self._requests:
            self._requests[task] = self.plan.tasks[task].requests()
        return self._requests[task]

    def _load(self, spec: ModelSpec) -> Any:
        """A model to train or to evaluate, in float32: steps add to float32 weights, whatever computes them."""
        return self._published(spec).to(self.device)

    def _published(self, spec: ModelSpec) -> Any:
        """A model as it was published, pruned where the recipe says so, on the CPU; its head is checked."""
        local = resolve(parse_uri(spec.model), report=self.progress.message)
        model = load_model(local.folder, attention=spec.attention, layers=spec.layers)
        check_head(model, spec.name or spec.model)
        return model

    def _load_folder(self, folder: Path) -> Any:
        return load_model(folder, attention=self.specs[STUDENT].attention).to(self.device)

    def _evaluated_model(self, stage: Stage) -> Any:
        """The model that a stage of an evaluation is about."""
        if "teacher" in stage.inputs:
            self._student = None
            return self._tuned_teacher(stage.inputs["teacher"])
        if "student" in stage.inputs:
            return self._trained_student(stage.inputs["student"])
        return self._load(self.specs[STUDENT])

    def _trained_student(self, stage: Stage) -> Any:
        """The student that a stage trained; the last one is kept in memory."""
        if self._student is None or self._student[0] != stage.identity:
            self._student = None
            release_memory()
            self._student = (stage.identity, self._load_folder(self._need(stage).checked() / "model"))
        return self._student[1]

    def _tuned_teacher(self, stage: Stage) -> Any:
        """The fine-tuned teacher of a stage; the last one is kept in memory."""
        if self._teacher is None or self._teacher[0] != stage.identity:
            self._teacher = None
            release_memory()
            folder = self._need(stage).checked()
            if (folder / "adapter").is_dir():
                model = merge_lora(self._published(self.specs[stage.role]), folder / "adapter")
            else:
                model = load_model(folder / "model", attention=self.specs[stage.role].attention)
            # Merged in float32; a GPU holds it in what it computes with, and never twice as large.
            dtype = getattr(torch, compute_dtype(self.recipe.teacher.precision))
            self._teacher = (stage.identity, model.to(dtype).to(self.device).eval().requires_grad_(False))
        return self._teacher[1]

    @property
    def _packs(self) -> bool:
        """Whether teacher rows are stored as their likeliest tokens."""
        return self.recipe.teacher_rows.keep == "top_k"

    def _rows_head(self, stage: Stage) -> Head:
        """What makes logits of a stage's stored rows."""
        if self._packs:
            return TopRowsHead.over(self._config(stage.role).get_text_config().vocab_size, self.device)
        return self._teacher_head(stage.inputs["teacher"])

    def _teacher_head(self, stage: Stage) -> Head:
        """The head of a fine-tuned teacher without the rest of the model."""
        if stage.identity not in self._heads:
            head = Head.of(self._tuned_teacher(stage))
            self._heads[stage.identity] = head
            self._teacher = None  # its layers are not needed: the rows are stored
            release_memory()
        return self._heads[stage.identity]

    def _drop_student(self, cell: Cell) -> None:
        """Remove a student's weights once everything that reads them is stored, where the recipe says so."""
        ends = [stage for stage in (cell.answers, cell.bits) if stage is not None]
        done = all(self.store.find(stage.kind, stage.identity) is not None for stage in ends)
        artefact = self.store.find(cell.student.kind, cell.student.identity)
        if done and artefact is not None and not self.recipe.keep_students:
            self.store.drop_files(artefact, keep={"steps.json", TIMING, TRACES})

    def _forget(self) -> None:
        """Free what the next task does not need."""
        self._student, self._teacher = None, None
        self._heads.clear()
        self._aligned.clear()
        release_memory()


def _as_student(example: TokenizedExample, role: str) -> TokenizedExample:
    """The example with the trained model's tokens under the role "student": a teacher is trained like a student."""
    if role == STUDENT:
        return example
    sides: Mapping[str, Any] = {**example.sides, STUDENT: example.sides[role]}
    return TokenizedExample(example.id, sides, example.cut, example.response_bytes)
