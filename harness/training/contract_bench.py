"""A student, a teacher and four responses to try a method on: tiny models of real architectures, made on the fly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from harness.data.batches import Batch, Collator
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.terms import AlignedExample, Term, align
from harness.data.tokens import STUDENT, tokenize
from harness.models import tiny
from harness.recipe.training import Training
from harness.training.loss import Distiller
from harness.training.objective import LossParts, Objective
from harness.training.rewards import rewarded_groups
from harness.training.rollouts import Rollouts, RolloutSettings
from harness.training.trainer import train
from methods.base import Method, Need, TeacherKind
from methods.library.vocabulary import TokenizerPair

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May. She sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    "def add(first, second):\n    return first + second\n",
    "Zürich, Malmö and São Paulo are cities; 北京 is one too. Crème brûlée costs 7 €.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\nName three colours of the rainbow.\n\n### Response:\nRed, green and violet 🌈.",
    "Question: A farmer has 201 sheep and buys 19 more. How many sheep has he now?\nAnswer: 201 + 19 = 220",
    "for index in range(10):\n    if index % 2 == 0:\n        print(index, index ** 2)\n",
)
SAMPLES = (
    ("What is 2 + 2?", "It is 4."),
    ("Name a city in Switzerland.", "Zürich, or maybe Genève 🇨🇭!"),
    ("Write a function that adds.", "def add(first, second):\n    return first + second\n"),
    ("How many sheep?", "201 + 19 = <<201+19=220>>220 sheep.\n#### 220"),
)

_ROLES = {TeacherKind.SAME_TOKENIZER: "same", TeacherKind.CROSS_TOKENIZER: "cross"}


@dataclass
class Bench:
    """A student, the teacher that the method wants, and four aligned examples."""

    method: Method
    student: PreTrainedModel
    teacher: PreTrainedModel | None
    role: str
    examples: list[AlignedExample]
    objective: Objective
    sides: dict[str, TextSide]

    def collator(self, **settings: Any) -> Collator:  # Any: the collator's own settings
        pad = {STUDENT: 0, "same": 0, "cross": 0}
        return Collator(self.objective.terms, pad, **settings)

    def distiller(self, student: PreTrainedModel | None = None) -> Distiller:
        teachers = {self.role: self.teacher} if self.teacher is not None else {}
        return Distiller(self.student if student is None else student, self.objective, teachers)

    # Any: the collator's own settings
    def batch(self, examples: Sequence[AlignedExample] | None = None, **settings: Any) -> Batch:
        return self.collator(**settings).collate(self.examples if examples is None else examples)

    def rollouts(self, collator: Collator) -> Rollouts | None:
        settings = RolloutSettings.of(self.objective.terms)
        if settings is None:
            return None
        teachers = {self.role: self.teacher} if self.teacher is not None else {}
        return Rollouts(settings, self.objective.terms, self.sides, collator, 128, 5, _length_in_eighths, teachers)

    def loss(self, batch: Batch, divisors: Sequence[float] | None = None) -> LossParts:
        wanted = self.objective.divisors(batch.counts) if divisors is None else divisors
        parts: LossParts = self.distiller()(batch, wanted)
        return parts


def bench(method: Method, *, dtype: torch.dtype = torch.float64, identical: bool = False) -> Bench:
    """Everything that a method needs; with ``identical`` the teacher is the student itself.

    In float64 both are OPT: it alone computes in the precision asked for, the others' norms are float32 at best.
    """
    student_kind, teacher_kind = ("opt", "opt") if dtype == torch.float64 else ("qwen2", "gemma2")
    role = _ROLES.get(method.teacher, "")
    student_side = TextSide(tiny_tokenizer("byte_level"), template="plain", name="student")
    sides = {STUDENT: student_side}
    student = tiny_model(student_kind, len(student_side.vocabulary), dtype=dtype)
    teacher: PreTrainedModel | None = None
    if role:
        family = "byte_level" if role == "same" or identical else "byte_fallback"
        sides[role] = TextSide(tiny_tokenizer(family), template="plain", name="teacher")
        size = len(sides[role].vocabulary)
        teacher = copy.deepcopy(student) if identical else tiny_model(teacher_kind, size, seed=1, dtype=dtype)
        method.prepare(TokenizerPair(student_side.vocabulary, sides[role].vocabulary))
    texts = [Example(f"x/{i}", prompt, response) for i, (prompt, response) in enumerate(SAMPLES)]
    rewarded = Need.REWARDS in method.needs
    terms: tuple[Term, ...] = (Term(method, role or STUDENT, 0.7),) if role or rewarded else ()
    tokens = tokenize(texts, sides, max_length=128)
    examples = [align(example, terms) for example in tokens]
    if rewarded:
        groups = rewarded_groups(terms[0], tokens, _length_in_eighths, student_side)
        examples = [AlignedExample(*each) for each in zip(tokens, zip(groups, strict=True), strict=True)]
        if Need.START in method.needs:
            role, teacher = STUDENT, tiny_model(student_kind, len(student_side.vocabulary), seed=1, dtype=dtype)
    return Bench(
        method, student, teacher, role, examples, Objective(method.name, 0.3, terms, method.label_smoothing), sides
    )


def _length_in_eighths(row: str, response: str) -> float:
    """A reward that most responses differ in."""
    return len(response) % 8 / 8


@cache
def tiny_tokenizer(family: str, size: int = 400, texts: tuple[str, ...] = TEXTS) -> PreTrainedTokenizerFast:
    """A tokenizer of the family, ``byte_level`` or ``byte_fallback``, trained on some texts."""
    made = {"byte_level": tiny.byte_level, "byte_fallback": tiny.byte_fallback}[family](texts * 4, size)
    pad, bos, eos = tiny.SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=pad)


def tiny_model(
    architecture: str, vocabulary: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 2
) -> PreTrainedModel:
    """A randomly initialised causal language model: 2 layers of width 64."""
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    wide = shape | {"intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config: PretrainedConfig = {
        "qwen2": lambda: Qwen2Config(**wide, tie_word_embeddings=True),
        "phi3": lambda: Phi3Config(**wide, tie_word_embeddings=False),
        "gemma2": lambda: Gemma2Config(**wide, head_dim=16, sliding_window=256),
        "llama": lambda: LlamaConfig(**wide, tie_word_embeddings=False),
        "opt": lambda: OPTConfig(
            **shape, ffn_dim=128, max_position_embeddings=512, word_embed_proj_dim=64, dropout=0.0
        ),
    }[architecture]()
    config.attention_dropout = 0.0
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if architecture == "gemma2" else "sdpa", dtype=dtype
    )
    with torch.no_grad():  # larger weights than usual, so that distributions differ visibly
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return made


class StoppedError(Exception):
    """Raised after a step by :func:`run`, as if the process had been stopped."""


# Any: of the training's fields, which check them
def run(method: Method, folder: Path, *, stop_after: int = 99, **settings: Any) -> list[dict[str, float]]:
    """Four optimiser steps on the tiny pair; the loss of each.

    Args:
        folder: for checkpoints.
        stop_after: raise :class:`StoppedError` after so many steps.
        settings: of the training, as in a recipe's ``train``.
    """
    made = bench(method, dtype=torch.float32)

    def on_step(step: dict[str, float]) -> None:
        if step["step"] >= stop_after:
            raise StoppedError

    collator = made.collator(chunk_rows=16)
    return train(
        made.distiller(),
        made.examples,
        collator,
        Training(steps=4, learning_rate=1e-3, **({"batch_size": 2} | settings)),
        steps=4,
        seed=3,
        work=folder,
        rollouts=made.rollouts(collator),
        on_step=on_step,
    )
