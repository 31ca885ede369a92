"""What trained models are asked: answers, bits per byte, scores. One function for each kind of stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import set_seed

from harness.base.device import device
from harness.base.files import scratch_folder
from harness.base.progress import StageProgress
from harness.data.rows import answer_key, prompts_of
from harness.data.tokens import STUDENT
from harness.evaluate.bits_per_byte import measure
from harness.generation import vllm as vllm_engine
from harness.generation.answers import generate
from harness.plan.stages import Stage, order_seed
from harness.recipe.schema import Evaluation
from harness.run.workbench import Prompts, PublishedModels, Texts, TrainedModels, as_student
from harness.store.artefacts import ANSWERS, BITS, DETAILS, SCORES, Answer
from harness.tasks.base import ItemScores, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def make_answers(
    stage: Stage,
    folder: Path,
    task: Task,
    prompts: Prompts,
    published: PublishedModels,
    trained: TrainedModels,
    evaluation: Evaluation,
    progress: StageProgress,
) -> dict[str, object]:
    """Generate a model's answers to a task's prompts, or to its held-out training rows."""
    set_seed(order_seed(stage))  # an engine may draw beside our generators
    requests = prompts.of(stage.task, "dev" if "dev" in stage.values else "test")
    model = _evaluated(stage, published, trained)
    progress.begin(len(requests))
    answers = _engine(evaluation)(
        model,
        published.sides[stage.role or STUDENT],
        requests,
        new_tokens=task.settings.new_tokens,
        on_batch=progress.advance,
    )
    ANSWERS.write(folder, answers)
    return {"prompts_cut": sum(answer.prompt_cut for answer in answers)}


def make_said(
    stage: Stage,
    folder: Path,
    task: Task,
    published: PublishedModels,
    trained: TrainedModels,
    evaluation: Evaluation,
    progress: StageProgress,
) -> dict[str, object]:
    """Let a teacher answer the training prompts, greedily, in each model's own template as in training."""
    set_seed(order_seed(stage))
    requests = prompts_of(task.training_examples())
    model = trained.teacher(stage.inputs["teacher"])
    progress.begin(len(requests))
    answers = _engine(evaluation)(
        model,
        published.sides[stage.role],
        requests,
        new_tokens=task.settings.new_tokens,
        on_batch=progress.advance,
    )
    ANSWERS.write(folder, answers)
    return {"ended": sum(answer.stop == "eos" for answer in answers), "prompts": len(answers)}


def make_bits(
    stage: Stage,
    folder: Path,
    texts: Texts,
    published: PublishedModels,
    trained: TrainedModels,
    progress: StageProgress,
) -> dict[str, object]:
    """Measure a model's bits per byte on a task's reference responses, or on its held-out training rows."""
    model = _evaluated(stage, published, trained)
    role = stage.role or STUDENT
    split = "dev" if "dev" in stage.values else "test"
    examples = [as_student(example, role) for example in texts.examples(stage.task, split)]
    progress.begin(len(examples))
    pad = published.sides[role].tokenizer.pad_token_id
    student = stage.inputs.get("student")

    def keep(rows: Mapping[str, Tensor]) -> None:
        if student is not None and split == "test":
            trained.read.keep(student.identity, rows)

    items = measure(model, examples, pad=pad, on_batch=progress.advance, on_rows=keep)
    BITS.write(folder, items)
    return {"left_out": len(examples) - len(items), "rows": texts.counts(stage.task, split)}


def score_answers(task: Task, answers: Mapping[str, Sequence[Answer]], unsafe: bool) -> Mapping[str, ItemScores]:
    """Score the stored answers of all models of a task together: EvalPlus starts once.

    Args:
        answers: by the identity of the stage of their scores.
        unsafe: whether generated code may run without a sandbox.
    """
    outputs = {
        identity: {answer_key(answer.id, answer.seed): answer.output for answer in stored}
        for identity, stored in answers.items()
    }
    with scratch_folder("score") as work:
        return task.score(outputs, work, unsafe)


def store_scores(scores: ItemScores, folder: Path) -> dict[str, object]:
    """Store the scores of one model."""
    SCORES.write(folder, {k: dict(v) for k, v in scores.values.items()})
    if scores.details:
        DETAILS.write(folder, scores.details)
    return {"caveat": scores.caveat}


def _engine(evaluation: Evaluation) -> Callable[..., list[Answer]]:
    """What generates."""
    if evaluation.engine == "vllm":
        return vllm_engine.generate
    return partial(generate, batch_size=evaluation.batch_size, decoding=evaluation.decoding)


def _evaluated(stage: Stage, published: PublishedModels, trained: TrainedModels) -> PreTrainedModel:
    """The model that a stage of an evaluation is about."""
    if "teacher" in stage.inputs:
        trained.forget_student()
        return trained.teacher(stage.inputs["teacher"])
    if "student" in stage.inputs:
        return trained.student(stage.inputs["student"])
    return published.model(STUDENT).to(device())
