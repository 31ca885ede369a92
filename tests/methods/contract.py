"""What any method must keep, on two tiny models with different tokenizers.

``test_method_contract.py`` runs this for every registered method, so an installed plug-in is held to it too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.data.batches import Batch, Collator
from harness.data.chunks import TEACHER_ROWS, row_bounds
from harness.data.rows import Example
from harness.data.terms import AlignedExample, Term, align
from harness.data.text_side import TextSide
from harness.data.tokens import STUDENT, SideTokens, TokenizedExample, tokenize
from harness.models.heads import Head
from harness.recipe.schema import Training
from harness.training.chunk_walk import ChunkWalk
from harness.training.loss import Distiller
from harness.training.objective import LossParts, Objective
from harness.training.rollouts import Rollouts, RolloutSettings
from harness.training.trainer import train
from methods.base import Method, Rows, TeacherKind
from methods.library.alignment import Groups
from methods.library.vocabulary import TokenizerPair, Vocabulary
from tests import tiny

ROLES = {TeacherKind.SAME_TOKENIZER: "same", TeacherKind.CROSS_TOKENIZER: "cross"}


@dataclass
class Bench:
    """A student, the teacher that the method wants, and four aligned examples."""

    method: Method
    student: Any
    teacher: Any | None
    role: str
    examples: list[AlignedExample]
    objective: Objective
    sides: dict[str, TextSide]

    def collator(self, **settings: Any) -> Collator:
        pad = {STUDENT: 0, "same": 0, "cross": 0}
        return Collator(self.objective.terms, pad, **settings)

    def distiller(self, student: Any | None = None) -> Distiller:
        teachers = {self.role: self.teacher} if self.teacher is not None else {}
        return Distiller(self.student if student is None else student, self.objective, teachers)

    def batch(self, examples: Sequence[AlignedExample] | None = None, **settings: Any) -> Batch:
        return self.collator(**settings).collate(self.examples if examples is None else examples)

    def rollouts(self, collator: Collator) -> Rollouts | None:
        settings = RolloutSettings.of(self.objective.terms)
        return settings and Rollouts(settings, self.objective.terms, self.sides, collator, 128, 5)

    def loss(self, batch: Batch, divisors: Sequence[float] | None = None) -> LossParts:
        wanted = self.objective.divisors(batch.counts) if divisors is None else divisors
        return self.distiller()(batch, wanted)


def bench(method: Method, *, dtype: torch.dtype = torch.float64, identical: bool = False) -> Bench:
    """Everything that a method needs; with ``identical`` the teacher is the student itself.

    In float64 both are OPT: it alone computes in the precision asked for, the others' norms are float32 at best.
    """
    student_kind, teacher_kind = ("opt", "opt") if dtype == torch.float64 else ("qwen2", "gemma2")
    role = ROLES.get(method.teacher, "")
    student_side = TextSide(tiny.tokenizer("byte_level"), template="plain", name="student")
    sides = {STUDENT: student_side}
    student = tiny.model(student_kind, len(student_side.vocabulary), dtype=dtype)
    teacher: Any | None = None
    if role:
        family = "byte_level" if role == "same" or identical else "byte_fallback"
        sides[role] = TextSide(tiny.tokenizer(family), template="plain", name="teacher")
        size = len(sides[role].vocabulary)
        teacher = copy.deepcopy(student) if identical else tiny.model(teacher_kind, size, seed=1, dtype=dtype)
        method.prepare(TokenizerPair(student_side.vocabulary, sides[role].vocabulary))
    texts = [Example(f"x/{i}", prompt, response) for i, (prompt, response) in enumerate(tiny.SAMPLES)]
    terms = (Term(method, role, 0.7),) if role else ()
    examples = [align(example, terms) for example in tokenize(texts, sides, max_length=128)]
    return Bench(method, student, teacher, role, examples, Objective(method.name, 0.3, terms), sides)


def loss_of_logits(
    method: Method,
    examples: Sequence[TokenizedExample],
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    groups: Sequence[Groups] | None = None,
) -> tuple[float, list[torch.Tensor]]:
    """The engine's KD loss of given logits: heads are identity matrices, so that rows are logits.

    Args:
        examples: with sides "student" and "cross".
        student, teacher: [length, vocabulary] of each example's whole sequence.
        groups: of each example; None: as the method aligns.

    Returns:
        The loss, and its gradient at each example's student logits.
    """
    term = Term(method, "cross", 1.0)
    found = [method.align(e.aligned("cross")) for e in examples] if groups is None else groups
    aligned = [AlignedExample(e, (g,)) for e, g in zip(examples, found, strict=True)]
    stored = {
        e.id: logits[slice(*row_bounds(e.sides["cross"], TEACHER_ROWS))]
        for e, logits in zip(examples, teacher, strict=True)
    }
    collator = Collator((term,), {STUDENT: 0}, chunk_rows=16, stored={"cross": stored.__getitem__})
    batch = collator.collate(aligned)
    padded = torch.nn.utils.rnn.pad_sequence(list(student), batch_first=True)
    heads = [torch.eye(side[0].shape[-1], dtype=side[0].dtype) for side in (student, teacher)]
    objective = Objective(method.name, 0.0, (term,))
    divisors = objective.divisors(batch.counts)
    rows = padded.flatten(0, 1).index_select(0, batch.row_index)
    teacher_rows = batch.teachers["cross"].stored
    assert teacher_rows is not None
    walk = ChunkWalk(objective, Head(heads[0]), {"cross": Head(heads[1])}, {"cross": teacher_rows}, batch, divisors)
    parts, (of_rows, _) = walk.run(rows, [heads[0]], [True, False])
    assert of_rows is not None
    gradient = torch.zeros_like(padded).flatten(0, 1).index_copy(0, batch.row_index, of_rows).view_as(padded)
    return float(parts.loss), [g[: len(s)] for g, s in zip(gradient, student, strict=True)]


def check_finite_and_positive(method: Method) -> None:
    parts = bench(method, dtype=torch.float32)
    loss = parts.loss(parts.batch())
    assert torch.isfinite(loss.loss)
    assert float(loss.ce) > 0
    if method.teacher is not TeacherKind.NONE:
        assert float(loss.kd[0]) != 0


def check_gradient_reaches_the_student_only(method: Method) -> None:
    made = bench(method)
    made.loss(made.batch()).loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in made.student.parameters())
    if made.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in made.teacher.parameters())
        assert not any(name.startswith("teacher") for name, _ in made.distiller().named_parameters())


def check_zero_at_identity(method: Method) -> None:
    """Of the loss only: a distance that is no square has no gradient at its minimum (ULD's L1)."""
    made = bench(method, identical=True)
    parts = made.loss(made.batch())
    assert abs(float(parts.kd[0])) < 1e-9 * float(parts.ce)


def check_permuting_ids_changes_nothing(method: Method) -> None:
    """Other ids for the same tokens, on both sides; control tokens keep theirs, since 0 pads."""
    made = bench(method)
    expected = made.loss(made.batch())
    orders = {role: _new_ids(len(side.vocabulary), seed=len(role)) for role, side in made.sides.items()}
    if made.role == "same":
        orders["same"] = orders[STUDENT]
    vocabularies = [_renumbered(made.sides[role].vocabulary, orders[role]) for role in (STUDENT, made.role)]
    method.prepare(TokenizerPair(*vocabularies))
    for role, model in ((STUDENT, made.student), (made.role, made.teacher)):
        with torch.no_grad():
            for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
                weight[torch.from_numpy(orders[role])] = weight.clone()
    examples = [
        replace(
            aligned.example,
            sides={
                role: SideTokens(orders[role][side.prompt], orders[role][side.response], side.ends)
                for role, side in aligned.example.sides.items()
            },
        )
        for aligned in made.examples
    ]
    made.examples = [align(example, made.objective.terms) for example in examples]
    found = made.loss(made.batch())
    assert abs(float(found.ce - expected.ce)) < 1e-9 * float(expected.ce)
    assert abs(float(found.kd[0] - expected.kd[0])) < 1e-9 * abs(float(expected.kd[0]))
    assert abs(float(found.kd_gradient[0] - expected.kd_gradient[0])) <= 1e-8 * float(expected.kd_gradient[0])


def _new_ids(size: int, seed: int) -> np.ndarray:
    """int64 [size]: the new id of each token."""
    return np.concatenate([np.arange(3), 3 + np.random.default_rng(seed).permutation(size - 3)])


def _renumbered(vocabulary: Vocabulary, new_ids: np.ndarray) -> Vocabulary:
    old = np.argsort(new_ids)
    return replace(
        vocabulary,
        token_bytes=tuple(vocabulary.token_bytes[i] for i in old),
        kinds=vocabulary.kinds[old],
        pieces=tuple(vocabulary.pieces[i] for i in old),
    )


def check_batching_changes_nothing(method: Method) -> None:
    """Chunk size, padding side, order and batch split give the same loss and the same gradients."""
    made = bench(method)
    whole = made.batch()
    divisors = made.objective.divisors(whole.counts)
    expected = _loss_and_gradient(made, [whole], divisors)
    variants = {
        "chunks of one row": [made.batch(chunk_rows=1)],
        "chunks of seven rows": [made.batch(chunk_rows=7)],
        "left padding": [made.batch(padding_side="left")],
        "reversed": [made.batch(made.examples[::-1])],
        "one at a time": [made.batch([example]) for example in made.examples],
        "three and one": [made.batch(made.examples[:3]), made.batch(made.examples[3:], chunk_rows=5)],
    }
    for name, batches in variants.items():
        loss, gradient = _loss_and_gradient(made, batches, divisors)
        assert abs(loss - expected[0]) < 1e-10 * abs(expected[0]), name
        torch.testing.assert_close(gradient, expected[1], rtol=1e-9, atol=1e-11, msg=name)


def _loss_and_gradient(made: Bench, batches: Sequence[Batch], divisors: Sequence[float]) -> tuple[float, torch.Tensor]:
    made.student.zero_grad()
    total = 0.0
    for batch in batches:
        parts = made.loss(batch, divisors)
        parts.loss.backward()
        total += float(parts.loss.detach())
    return total, torch.cat([p.grad.flatten() for p in made.student.parameters()])


def check_a_batch_aligns_like_its_responses(method: Method) -> None:
    """Groups and notes, with random entropies where the method reads them; the shortest response is one token."""
    made = bench(method)
    random = np.random.default_rng(0)
    responses = [aligned.example.aligned(made.role) for aligned in made.examples]
    first = responses[0]
    fields = ("student_ids", "teacher_ids", "student_ends", "teacher_ends")
    responses.append(replace(first, **{name: getattr(first, name)[:1] for name in fields}))
    responses = [
        replace(
            one,
            student_entropy=random.random(len(one.student_ids)),
            teacher_entropy=random.random(len(one.teacher_ids)),
        )
        for one in responses
    ]
    for whole, response in zip(method.align_all(responses), responses, strict=True):
        _assert_same(whole, method.align(response))
    assert method.align_all([]) == []


def check_nothing_is_mutated(method: Method) -> None:
    made = bench(method)
    batch = made.batch()
    before = copy.deepcopy(batch)
    weights = copy.deepcopy(made.student.state_dict())
    teacher = copy.deepcopy(made.teacher.state_dict()) if made.teacher is not None else {}
    first = made.loss(batch).loss
    first.backward()
    again = made.loss(batch).loss
    assert torch.equal(first.detach(), again.detach())
    _assert_same(before, batch)
    for name, value in made.student.state_dict().items():
        assert torch.equal(value, weights[name])
    for name, value in teacher.items():
        assert torch.equal(value, made.teacher.state_dict()[name])  # type: ignore[union-attr]


def _assert_same(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        for key in left:
            _assert_same(left[key], right[key])
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right)
    elif isinstance(left, list | tuple):
        for a, b in zip(left, right, strict=True):
            _assert_same(a, b)
    elif hasattr(left, "__dataclass_fields__"):
        for name in left.__dataclass_fields__:
            _assert_same(getattr(left, name), getattr(right, name))
    else:
        assert left == right


def check_masked_example_adds_nothing(method: Method) -> None:
    """An example whose response is masked out altogether; methods that score the prompt are held to CE alone."""
    made = bench(method)
    empty = np.zeros(0, dtype=np.int64)
    first = made.examples[0].example
    masked = replace(
        first, id="masked", sides={role: SideTokens(side.prompt, empty, empty) for role, side in first.sides.items()}
    )
    extra = align(masked, made.objective.terms)
    plain = made.batch()
    divisors = made.objective.divisors(plain.counts)
    alone, more = made.loss(plain, divisors), made.loss(made.batch([*made.examples, extra]), divisors)
    assert abs(float(alone.ce) - float(more.ce)) < 1e-9 * float(alone.ce)
    if method.rows is not Rows.ALL and method.teacher is not TeacherKind.NONE:
        assert abs(float(alone.kd[0]) - float(more.kd[0])) < 1e-9 * abs(float(alone.kd[0]))


def check_gradient_equals_finite_differences(method: Method) -> None:
    """In float64, along random directions of every parameter."""
    made = bench(method)
    batch = made.batch(chunk_rows=20)
    made.student.zero_grad()
    made.loss(batch).loss.backward()
    generator = torch.Generator().manual_seed(0)
    step = 1e-6
    for name, parameter in list(made.student.named_parameters())[::3]:
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        direction /= direction.norm()
        predicted = float((parameter.grad * direction).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append(float(made.loss(batch).loss.detach()))
                parameter.sub_(sign * step * direction)
        measured = (values[0] - values[1]) / (2 * step)
        assert abs(measured - predicted) < 1e-5 * max(abs(predicted), 1e-2), name


def check_accumulation_changes_nothing(method: Method, folder: Path) -> None:
    """Four responses at once, or one by one: the same losses and gradient norms, step by step."""
    at_once = run(method, folder / "a", batch_size=4, micro_batch_size=4)
    one_by_one = run(method, folder / "b", batch_size=4, micro_batch_size=1)
    assert len(at_once) == len(one_by_one) == 4
    for left, right in zip(at_once, one_by_one, strict=True):
        for key in ("loss", "ce", "grad_norm", *(["kd_0"] if "kd_0" in left else [])):
            assert abs(left[key] - right[key]) < 2e-5 * max(abs(left[key]), 1e-3), (key, left["step"])


def check_resumed_equals_straight(method: Method, folder: Path) -> None:
    """Stopped after the second step and resumed in a new trainer: loss by loss the same as without a stop."""
    straight = run(method, folder / "a", checkpoint_every=2)
    interrupted = folder / "b"
    try:
        run(method, interrupted, checkpoint_every=2, stop_after=3)
    except _StoppedError:
        pass
    else:
        raise AssertionError("the run was meant to stop")
    resumed = run(method, interrupted, checkpoint_every=2)
    assert [step["step"] for step in resumed] == [1, 2, 3, 4]
    for left, right in zip(straight, resumed, strict=True):
        for key in ("loss", "ce", "grad_norm"):
            assert np.array_equal(left[key], right[key], equal_nan=True), (key, left["step"])


class _StoppedError(Exception):
    pass


def run(method: Method, folder: Path, *, stop_after: int = 99, **settings: Any) -> list[dict[str, float]]:
    """Four optimiser steps on the tiny pair; the loss of each."""
    made = bench(method, dtype=torch.float32)

    def on_step(step: dict[str, float]) -> None:
        if step["step"] >= stop_after:
            raise _StoppedError

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
