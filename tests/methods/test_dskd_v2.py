"""DSKDv2 against hand values in float64, and against its formula written out a token at a time, gradients included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.data.tokens import STUDENT
from harness.models.heads import Head
from harness.recipe.training import Training
from harness.training.rates import give_rates
from harness.training.trainer import train
from methods.dskd_v2 import DSKDv2
from methods.library.maps import UNMAPPED, Tables, exact_map
from tests.methods import contract

OURS = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.float64)  # W_S, a token a row
THEIRS = torch.tensor([[2, 0, 0], [0, 3, 0], [2, 3, 0]], dtype=torch.float64)


def test_the_projector_begins_where_logits_stay_what_they_were() -> None:
    """With three shared tokens; the teacher's third direction, which no token has, goes nowhere."""
    method = DSKDv2()
    method.tables = Tables(ours=torch.arange(3), theirs=torch.arange(3))
    method.build(Head(OURS), Head(THEIRS))
    assert method.to_student is not None
    expected = torch.tensor([[2, 0], [0, 3], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(method.to_student.weight.T.detach(), expected)
    torch.testing.assert_close(expected @ OURS.T, THEIRS.T)
    to_teacher = OURS.T @ method._back
    torch.testing.assert_close(to_teacher, OURS.T @ torch.linalg.pinv(THEIRS.T))
    torch.testing.assert_close(to_teacher @ THEIRS.T, OURS.T)


def test_the_factors_of_heads_count() -> None:
    method = DSKDv2()
    method.tables = Tables(ours=torch.arange(3), theirs=torch.arange(3))
    ours, theirs = Head(OURS, scale=0.5), Head(THEIRS, scale=2.0)
    method.build(ours, theirs)
    assert method.to_student is not None
    rows = torch.tensor([[1.0, -2, 5]], dtype=torch.float64)
    torch.testing.assert_close(ours.logits(method.to_student(rows)).detach(), theirs.logits(rows))
    back = rows[:, :2] @ OURS.T @ method._back
    torch.testing.assert_close(theirs.logits(back), ours.logits(rows[:, :2]))


def columns_by_tokens(made: contract.Bench, released: bool) -> tuple[list[int], list[int]]:
    """Tokens that both vocabularies have, the student's and the teacher's ids."""
    ours, theirs = (made.sides[role] for role in (STUDENT, made.role))
    if not released:
        mapped = exact_map(theirs.vocabulary, ours.vocabulary)
        shared = [i for i in range(len(mapped)) if mapped[i] != UNMAPPED]
        return [int(mapped[i]) for i in shared], shared
    here = {piece.replace("Ġ", "▁"): i for piece, i in ours.tokenizer.get_vocab().items()}
    there = {piece.replace("Ġ", "▁"): i for piece, i in theirs.tokenizer.get_vocab().items()}
    both = [piece for piece in here if piece in there]
    return [here[piece] for piece in both], [there[piece] for piece in both]


def label_of(made: contract.Bench, choice: int, released: bool) -> int | None:
    ours, theirs = (made.sides[role] for role in (STUDENT, made.role))
    if not released:
        found = int(exact_map(theirs.vocabulary, ours.vocabulary)[choice])
        return None if found == UNMAPPED else found
    if choice == theirs.tokenizer.eos_token_id:
        return int(ours.tokenizer.eos_token_id)
    return ours.tokenizer.get_vocab().get(theirs.tokenizer.convert_ids_to_tokens(choice))


def pairs_of(made: contract.Bench, sides: Any, released: bool) -> list[tuple[int, int]]:
    ours, theirs = sides[STUDENT], sides[made.role]
    if not released:
        chunks = contract.chunks_by_walking(ours.ends.tolist(), theirs.ends.tolist())
        return [(left[0], right[0]) for left, right in chunks if len(left) == len(right) == 1]
    pieces = []
    for role, side in ((STUDENT, ours), (made.role, theirs)):
        tokenizer = made.sides[role].tokenizer
        plain = [piece.replace("▁", "").replace("Ġ", "") for piece in tokenizer.convert_ids_to_tokens(side.response)]
        pieces.append(
            ["<end>" if i == tokenizer.eos_token_id else p for i, p in zip(side.response, plain, strict=True)]
        )
    found, read, i, j = [], ["", ""], 0, 0
    while i < len(pieces[0]) and j < len(pieces[1]):
        if read[0] == read[1] and pieces[0][i] == pieces[1][j]:
            found.append((i, j))
        shorter = len(read[1]) - len(read[0])
        if shorter >= 0:
            read[0] += pieces[0][i]
            i += 1
        if shorter <= 0:
            read[1] += pieces[1][j]
            j += 1
    return found


def by_the_formula(made: contract.Bench, projector: Tensor) -> Tensor:
    """The KD term of all responses; ``projector`` is P, [teacher's width, student's]."""
    released, tau = made.method.options.fidelity == "released", made.method.options.temperature
    assert made.teacher is not None
    heads = [model.get_output_embeddings().weight.detach() for model in (made.student, made.teacher)]
    ours, theirs = columns_by_tokens(made, released)
    back = heads[0][ours].T @ torch.linalg.pinv(heads[1][theirs].T, rtol=len(ours) * 2**-23)
    responses, compared = [], [0, 0, 0]
    for aligned in made.examples:
        sides, out = aligned.example.sides, []
        for role, model in ((STUDENT, made.student), (made.role, made.teacher)):
            ids = torch.from_numpy(sides[role].sequence)[None]
            given = model(input_ids=ids, output_hidden_states=True)
            first = sides[role].prompt.size - 1
            out.append((given.hidden_states[-1][0, first:], given.logits[0, first:]))
        (h_s, logits_s), (h_t, logits_t) = out[0], (out[1][0].detach(), out[1][1].detach())
        parts: list[list[Tensor]] = [[], [], []]
        for i, j in pairs_of(made, sides, released):
            label = label_of(made, int(logits_t[j].argmax()), released)
            if label is None:
                continue
            z = h_t[j] @ projector @ heads[0].T
            parts[0].append(-z.log_softmax(-1)[label])
            if int(z.argmax()) == label:
                target = (z.detach() / tau).softmax(-1)
                parts[1].append((target * (target.log() - (logits_s[i] / tau).log_softmax(-1))).sum())
            target = (logits_t[j] / tau).softmax(-1)
            parts[2].append((target * (target.log() - (h_s[i] @ back @ heads[1].T / tau).log_softmax(-1))).sum())
        compared = [compared[part] + len(parts[part]) for part in range(3)]
        sums = [torch.stack([projector.new_zeros(()), *part]).sum() for part in parts]
        counts = [max(len(part), 1) if released else 1 for part in parts]
        responses.append(sum(total / count for total, count in zip(sums, counts, strict=True)))
    assert min(compared) > 2, compared
    total = torch.stack(responses).sum()
    return (
        total / len(responses)
        if released
        else total / sum(a.example.sides[STUDENT].response.size for a in made.examples)
    )


@torch.no_grad()
def relate_heads(made: contract.Bench) -> None:
    """So that a projection finds the teacher's choice now and then: heads that were drawn apart hardly agree."""
    assert made.teacher is not None
    ours, theirs = columns_by_tokens(made, made.method.options.fidelity == "released")
    head = made.student.get_output_embeddings().weight
    turned = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=head.dtype))[0]
    made.teacher.get_output_embeddings().weight[theirs] = head[ours] @ turned


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"fidelity": "released"}], ids=str)
def test_loss_and_gradients_equal_the_formula(options: dict[str, Any]) -> None:
    """At every parameter of the student, the head that is held fixed on one side too, and at the projector."""
    made = contract.bench(DSKDv2(**options))
    relate_heads(made)
    distiller, batch = made.distiller(), made.batch(chunk_rows=20)
    divisors = made.objective.divisors(batch.counts)
    parts = distiller(batch, divisors)
    (own,) = distiller.own.parameters()
    projector = own.detach().T.clone().requires_grad_()
    expected = by_the_formula(made, projector)
    assert float(parts.kd[0]) / divisors[1] == pytest.approx(float(expected.detach()), rel=1e-8)
    ours, theirs = columns_by_tokens(made, "fidelity" in options)
    heads = [model.get_output_embeddings().weight.detach() for model in (made.student, made.teacher)]
    begins = heads[1][theirs].T @ torch.linalg.pinv(heads[0][ours].T, rtol=len(ours) * 2**-23)
    torch.testing.assert_close(projector.detach(), begins, rtol=1e-6, atol=1e-9)
    parameters = list(made.student.parameters())
    found = torch.autograd.grad(parts.loss, [*parameters, own])
    ce = torch.autograd.grad(distiller(batch, [divisors[0], 1e30]).loss, parameters)
    wanted = torch.autograd.grad(0.7 * expected, [*parameters, projector])
    for left, of_ce, right in zip(found, ce, wanted[:-1], strict=False):
        torch.testing.assert_close(left - of_ce, right, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(found[-1].T, wanted[-1], rtol=1e-7, atol=1e-11)


def test_a_rate_of_their_own_moves_parameters_to_a_group_of_their_own() -> None:
    plain, projector = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.AdamW(
        [{"params": [plain.weight, projector.weight], "weight_decay": 0.1}, {"params": [plain.bias]}], lr=1e-3
    )
    give_rates(optimizer, {projector.weight: 5e-4})
    found = [(g["params"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [([plain.weight], 1e-3, 0.1), ([plain.bias], 1e-3, 0.01), ([projector.weight], 5e-4, 0.1)]


def trained(method: DSKDv2, folder: Path, rate: float = 1e-3) -> contract.Bench:
    made = contract.bench(method, dtype=torch.float32)
    collator = made.collator()
    settings = Training(steps=2, batch_size=2, learning_rate=rate, warmup=0, checkpoint_every=2)
    train(made.distiller(), made.examples, collator, settings, steps=2, seed=3, work=folder)
    return made


def test_the_projector_is_trained_at_its_own_rate_and_kept_in_the_checkpoint(tmp_path: Path) -> None:
    """AdamW's first step moves every weight by its rate; the student, at a rate of nearly nothing, stays."""
    method = DSKDv2(projector_learning_rate=0.01)
    begun = contract.bench(method, dtype=torch.float32)
    (before,) = (parameter.detach().clone() for parameter in begun.distiller().own.parameters())
    made = trained(method, tmp_path, rate=1e-12)
    assert method.to_student is not None
    moved = (method.to_student.weight.detach() - before).abs()
    assert 0.005 < float(moved.median()) < 0.021  # of two steps, the second at a rate that falls
    for ours, theirs in zip(made.student.parameters(), begun.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert torch.equal(kept["own.0.weight"], method.to_student.weight.detach())
    assert not any(name.startswith("own") for name in made.student.state_dict())
