"""How stages train: the fields of a recipe's `teacher`, `warm_start` and `train`, and those that a row may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from harness.base.device import Precision
from harness.base.schema import Strict
from harness.models.spec import Lora

R = TypeVar("R")

AUTO_PARAMETERS, AUTO_TOKENS = 10**9, 2**15
"""The largest model and micro-batch whose CUDA graphs ``auto`` records: beyond, a kernel takes longer than its launch.
"""


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
    shard: bool = Field(
        False,
        description="(memory) weights, gradients and AdamW's state in pieces on the processes that torchrun starts, "
        "instead of whole on each: FSDP2; one process has nobody to share with",
    )
    chunk_rows: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="(memory) response rows whose logits exist at once; auto: by method, vocabularies and free memory",
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        "auto", description="(speed) losses through torch.compile; auto: on a GPU"
    )
    cuda_graphs: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        "auto",
        description="(speed) the layers' passes as CUDA graphs, two for each padded shape: a small model is bound by "
        "launches; auto: on a GPU, below 1B parameters and 32,768 tokens a pass",
    )
    checkpoint_every: int | None = Field(None, ge=1, description="(safety) steps between checkpoints; null for none")
    report_to: tuple[str, ...] = Field((), description="trackers of transformers' Trainer, such as tensorboard")
    select: Literal["last", "best_dev"] = Field(
        "last",
        description="which weights are kept: those after the last step, or the best on held-out training rows "
        "(dev.rows) of those that were looked at: early stopping",
    )
    evaluations: int = Field(4, ge=1, description="how often best_dev looks, at even distances, the last step included")

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
            "shard",
            "chunk_rows",
            "compile",
            "cuda_graphs",
            "checkpoint_every",
            "report_to",
            "seeds",  # of teachers: stands beside, for each
        }
        unasked = ({"select", "evaluations"} if self.select == "last" else set()) | (set() if self.rows else {"rows"})
        return self.model_dump(mode="json", exclude=speed | unasked)


class TeacherTraining(Training):
    """Fine-tuning of the teachers; a training stage as the others."""

    seeds: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="trainings of each teacher, which repetitions take in turn, so that a report can tell what another "
        "teacher would change; null: one teacher for all repetitions",
    )


class RowTraining(Strict):
    """Fields of `train` that a row has of its own: `variants.NAME.train` or `method_options.METHOD.train`.

    What decides which rows of data a step sees is the same for all.
    """

    steps: int | None = Field(None, ge=0, le=10**9, description="as train.steps")
    epochs: float | None = Field(None, gt=0, le=10**6, description="as train.epochs")
    learning_rate: float | None = Field(None, gt=0, description="as train.learning_rate")
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] | None = Field(
        None, description="as train.schedule"
    )
    warmup: float | None = Field(None, ge=0, description="as train.warmup")
    weight_decay: float | None = Field(None, ge=0, description="as train.weight_decay")
    max_grad_norm: float | None = Field(None, gt=0, description="as train.max_grad_norm")
    select: Literal["last", "best_dev"] | None = Field(None, description="as train.select")
    evaluations: int | None = Field(None, ge=1, description="as train.evaluations")

    @property
    def given(self) -> dict[str, object]:
        """What is set."""
        return self.model_dump(exclude_none=True)

    def over(self, training: Training, *, keep_length: bool = False) -> Training:
        """A training with these fields in place of its own.

        Args:
            keep_length: whether its steps and epochs stay, as of a warm start that a row trains through.
        """
        own = self.given
        length = {name: own.pop(name, None) for name in ("steps", "epochs")}
        if any(value is not None for value in length.values()) and not keep_length:
            own |= length  # steps in place of epochs, and the other way round
        return training.model_copy(update=own)
