"""Losses without the engine: `harness.align` and `methods.loss` against the engine, in a plain loop."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import harness
import methods
from harness.base.errors import HarnessError
from harness.data.tokens import STUDENT
from methods.base import Method, Need, TeacherKind
from tests import tiny
from tests.methods import contract
from tests.methods.test_contract import METHODS

FAMILIES = {"same": "byte_level", "cross": "byte_fallback"}


def aligned(made: contract.Bench) -> list[methods.Alignment]:
    tokenizers = [tiny.tokenizer(family) for family in ("byte_level", FAMILIES[made.role])]
    return [harness.align(response, *tokenizers, prompt=prompt) for prompt, response in tiny.SAMPLES]


def logits_of(model: Any, alignments: list[methods.Alignment], side: str) -> list[Tensor]:
    return [model(getattr(one, f"{side}_ids")[None]).logits[0] for one in alignments]


@METHODS
def test_loss_gradient_and_diagnostics_are_the_engines(method: Method) -> None:
    """Of four responses of two tiny models in float64, at every parameter of the student."""
    if method.teacher is TeacherKind.NONE:
        pytest.skip(f"{method.name} has no teacher")
    if Need.HIDDEN in method.needs:
        pytest.skip(f"{method.name} reads hidden rows")
    made = contract.bench(method)
    if method.trainable() is not None:
        pytest.skip(f"{method.name} trains parameters of its own")
    batch = made.batch(chunk_rows=20)
    parts = made.loss(batch)
    alignments = aligned(made)
    for one, example in zip(alignments, made.examples, strict=True):
        assert one.student_ids.tolist() == example.example.sides[STUDENT].sequence.tolist()
        assert one.teacher_ids.tolist() == example.example.sides[made.role].sequence.tolist()
    sides = [
        logits_of(model, alignments, side) for model, side in ((made.student, "student"), (made.teacher, "teacher"))
    ]
    options = method.options.model_dump()
    found = methods.loss(method.name, *sides, alignments, **options)
    expected = float(parts.kd[0]) / made.objective.divisors(batch.counts)[1]
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)
    parameters = list(made.student.parameters())
    wanted = torch.autograd.grad(made_kd(made, batch), parameters)
    for gradient, other in zip(torch.autograd.grad(found, parameters), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-11)
    summed = methods.loss_sums(method.name, *sides, alignments, **options)
    assert summed.counts["samples"] == 4
    for name, (part, _) in summed.sums.diagnostics.items():
        assert float(part) == pytest.approx(float(parts.diagnostics[name][0]), rel=1e-9), name


def made_kd(made: contract.Bench, batch: Any) -> Tensor:
    """The engine's loss without cross-entropy, divided, at weight 1."""
    made.objective = replace(
        made.objective, ce_weight=0.0, terms=tuple(replace(term, weight=1.0) for term in made.objective.terms)
    )
    return made.loss(batch).loss


def models() -> tuple[Any, Any, Any, Any]:
    tokenizers = [tiny.tokenizer(family) for family in ("byte_level", "byte_fallback")]
    return (
        tiny.model("qwen2", len(tokenizers[0])),
        tiny.model("gemma2", len(tokenizers[1]) + 7, seed=1).eval(),  # padded, as published models are
        *tokenizers,
    )


@pytest.mark.parametrize("name", ["gold", "uld", "mined", "cdm", "one_to_one"])
def test_a_plain_loop_learns_from_a_teacher_with_another_tokenizer(name: str) -> None:
    """Padded batches, given as one tensor, and a student that ends nearer to its teacher than it began."""
    student, teacher, ours, theirs = models()
    batch = [harness.align(response, ours, theirs, prompt=prompt) for prompt, response in tiny.SAMPLES]

    def logits(model: Any, side: str) -> Tensor:
        ids = [getattr(one, f"{side}_ids") for one in batch]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
        return model(torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), attention_mask=mask).logits

    with torch.no_grad():
        target = logits(teacher, "teacher").bfloat16()  # low precision is computed with in float32
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        kd = methods.loss(name, logits(student, "student"), target, batch)
        assert kd.dtype == torch.float32
        kd.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(kd.detach()))
    assert losses[-1] < 0.9 * losses[0]


# --- what align does --------------------------------------------------------------------------------------------------


def test_without_a_prompt_the_response_comes_behind_bos_or_else_eos() -> None:
    ours, theirs = tiny.tokenizer("byte_level"), copy.deepcopy(tiny.tokenizer("byte_fallback"))
    theirs.bos_token = None
    one = harness.align("201 + 19", ours, theirs)
    assert one.student_ids[0] == ours.bos_token_id
    assert one.teacher_ids[0] == theirs.eos_token_id
    assert (one.response.student_prompt, one.response.teacher_prompt) == (1, 1)
    assert ours.decode(one.student_ids[1:-1]) == "201 + 19"
    # the next text finds its tokenizers read, and shares the maps that methods prepare
    assert harness.align("other", ours, theirs).pair is one.pair
    with_prompt = harness.align("201 + 19", ours, theirs, prompt="Add.")
    assert with_prompt.pair is one.pair
    assert with_prompt.student_ids[0] != ours.bos_token_id  # this tokenizer puts none before a prompt


def test_a_limit_cuts_both_sides_at_one_byte() -> None:
    ours, theirs = (tiny.tokenizer(family) for family in ("byte_level", "byte_fallback"))
    one = harness.align(tiny.SAMPLES[1][1], ours, theirs, prompt="Name one.", max_length=20)
    assert max(len(one.student_ids), len(one.teacher_ids)) <= 20
    assert one.response.student_ends[-1] == one.response.teacher_ends[-1] < len(tiny.SAMPLES[1][1].encode())


def test_what_can_not_be_aligned_is_refused() -> None:
    ours, theirs = (tiny.tokenizer(family) for family in ("byte_level", "byte_fallback"))
    with pytest.raises(HarnessError, match="an empty response"):
        harness.align("", ours, theirs)
    with pytest.raises(HarnessError, match="has no chat template"):
        harness.align("a", ours, theirs, template="chat")
    one = harness.align("201 + 19", ours, theirs, prompt="Add.")
    logits = torch.zeros(len(one.student_ids), len(ours)), torch.zeros(len(one.teacher_ids), len(theirs))
    expected = r"student_logits: found \[2, 400\], expected \[length, vocabulary\] with a row"
    with pytest.raises(ValueError, match=expected):
        methods.loss("uld", logits[0][:2], logits[1], one)
    with pytest.raises(ValueError, match="found 2 student and 2 teacher logits for 1 alignments"):
        methods.loss("uld", logits, logits, [one])
    with pytest.raises(ValueError, match="control has no teacher"):
        methods.loss("control", *logits, one)
    with pytest.raises(ValueError, match="fkd compares distributions over one vocabulary"):
        methods.loss("fkd", *logits, one)
    with pytest.raises(ValueError, match="dskd_v2 reads hidden rows, which only the engine hands over"):
        methods.loss("dskd_v2", *logits, one)
    with pytest.raises(ValueError, match="betta"):
        methods.loss("gold", *logits, one, betta=0.5)
    with pytest.raises(KeyError, match="goldd"):
        methods.loss("goldd", *logits, one)


def test_a_response_without_a_group_has_a_loss_of_nothing() -> None:
    """Strict 1:1 compares no token of a response that both sides cut otherwise, and that a limit left without EOS."""
    ours, theirs = tiny.tokenizer("byte_level_digits"), tiny.tokenizer("byte_level")
    one = harness.align("index", ours, theirs, prompt="Word.", max_length=100)
    response = replace(
        one.response,
        **{  # without EOS
            f"{side}_{part}": getattr(one.response, f"{side}_{part}")[:-1]
            for side in ("student", "teacher")
            for part in ("ids", "ends")
        },
    )
    assert response.student_ids.size != response.teacher_ids.size
    logits = torch.zeros(len(one.student_ids), len(ours), requires_grad=True)
    kd = methods.loss(
        "one_to_one", logits, torch.zeros(len(one.teacher_ids), len(theirs)), replace(one, response=response)
    )
    kd.backward()
    assert float(kd.detach()) == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()
