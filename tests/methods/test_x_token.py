"""X-Token against hand values in float64, and against its formula written out a group at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from harness.data.tokens import STUDENT
from harness.recipe.training import Training
from harness.training.trainer import train
from methods.base import AlignedChunk
from methods.library import projection as library
from methods.library.alignment import Groups
from methods.library.maps import Tables, exact_map
from methods.library.projection import LearntWeights, Projection, projection
from methods.library.vocabulary import TokenizerPair
from methods.x_token import XToken
from tests.methods import contract

# (a, 201, b) of the student, (a, 2, 0, 1, b) of the teacher
STUDENT_LOGITS = torch.tensor([[0, 1, -1], [1, 0, 0]], dtype=torch.float64)
TEACHER_LOGITS = torch.tensor(
    [[0, 2, -1, 0, -1], [-1, 0, 2, 1, 0], [0, 0, 0, 2, -1], [1, 0, 0, 0, 0]], dtype=torch.float64
)
GROUPS = Groups.from_lists([[0], [1]], [[0, 1, 2], [3]])
LAST = Groups.from_lists([[1]], [[3]])


PIECES = Projection(
    torch.tensor([0, 1, 1, 1, 2]),
    torch.tensor([0, 1, 2, 3, 4]),
    torch.tensor([1, 0.9 / 0.999, 0.09 / 0.999, 0.009 / 0.999, 1], dtype=torch.float64),
)


def by_hand(groups: Groups, added: tuple[float, ...] = (), **options: Any) -> float:
    method = XToken(**options)
    method.tables = Tables(student=PIECES.student, teacher=PIECES.teacher, weight=PIECES.weight)
    if added:
        method.learnt = LearntWeights(PIECES).double()
        method.learnt.added = nn.Parameter(torch.tensor(added, dtype=torch.float64))
    tokens = np.array([1, 0]), np.array([1, 2, 3, 0])
    return float(method.loss(AlignedChunk.of(groups, STUDENT_LOGITS, TEACHER_LOGITS, *tokens)).kd.detach())


@pytest.mark.parametrize(
    ("groups", "options", "value"),
    [
        (GROUPS, {"fidelity": "released"}, (0.672283 + 0.721416) / 2),
        (GROUPS, {"fidelity": "released", "columns": 4}, (0.712995 + 0.832356) / 2),
        (LAST, {"fidelity": "released"}, 0.721416),
        (LAST, {}, 0.721416),
    ],
    ids=["all columns", "four columns", "one token", "one token described"],
)
def test_two_groups_by_hand(groups: Groups, options: dict[str, Any], value: float) -> None:
    assert by_hand(groups, **options) == pytest.approx(value, abs=1e-6)


def test_a_learnt_projection_by_hand() -> None:
    """As it begins; with the second piece ten times as likely, 201 is (.5, .5, .005) / 1.005 by its logs."""
    assert by_hand(LAST, (0.0,) * 5) == pytest.approx(0.721416, abs=1e-6)
    e = math.e
    p_a, p_201, p_b = (each / (e + 2) for each in (e, 1, 1))
    weights = [0.9 / 1.809, 0.9 / 1.809, 0.009 / 1.809]
    student = [p_a, *(p_201 * weight for weight in weights), p_b]
    teacher = [each / (e + 4) for each in (e, 1, 1, 1, 1)]
    expected = sum(q * math.log(q / p) for q, p in zip(teacher, student, strict=True))
    found = by_hand(LAST, (5.0, 0.0, math.log(10), 0.0, -3.0))  # what is added to a single piece changes nothing
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_projection_is_written_in_the_teachers_tokens() -> None:
    """Against a text cut by transformers' own call, token by token."""
    made = contract.bench(XToken())
    ours, theirs = made.sides[STUDENT], made.sides[made.role]
    pair = TokenizerPair(ours.vocabulary, theirs.vocabulary)
    found = projection(pair)
    exact = exact_map(pair.student, pair.teacher)
    several = 0
    for index in range(len(pair.student)):
        here = found.student == index
        pieces, weights = found.teacher[here].tolist(), found.weight[here].tolist()
        if exact[index] >= 0:
            assert (pieces, weights) == ([exact[index]], [1.0])
        elif pieces:
            assert sum(weights) == pytest.approx(1)
            spelled = b"".join(pair.teacher.token_bytes[piece] for piece in pieces)
            assert pair.student.token_bytes[index].startswith(spelled)
            expected = theirs.tokenizer.encode("a" + ours.tokenizer.decode([index]), add_special_tokens=False)
            if spelled == pair.student.token_bytes[index] and spelled.startswith(b" "):
                assert pieces == expected[-len(pieces) :]
                several += 1
            assert weights == pytest.approx(
                [0.1**i / sum(0.1**j for j in range(len(pieces))) for i in range(len(pieces))]
            )
    assert several > 0


def test_the_weighted_map_takes_the_largest_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that a token of the teacher begins alike, the first by its bytes; one's second piece is none of it."""
    made = contract.bench(XToken())
    pair = TokenizerPair(made.sides[STUDENT].vocabulary, made.sides[made.role].vocabulary)
    a, b, c, d = (pair.student.byte_tokens[ord(letter)] for letter in "abcd")
    entries = [(a, 7, 1.0), (b, 8, 0.9), (b, 9, 0.1), (d, 8, 0.9), (c, 8, 0.9)]
    parts = (torch.tensor(part) for part in zip(*sorted(entries, key=lambda e: (e[0], -e[2])), strict=True))
    monkeypatch.setattr(library, "projection", lambda pair: library.Projection(*parts))
    mapped = library.weighted_map(pair)
    assert {int(t): int(mapped[t]) for t in np.flatnonzero(mapped >= 0)} == {7: a, 8: b}


def test_the_weighted_map_is_one_to_one_and_begins_with_what_is_equal() -> None:
    made = contract.bench(XToken())
    pair = TokenizerPair(made.sides[STUDENT].vocabulary, made.sides[made.role].vocabulary)
    mapped, exact = library.weighted_map(pair), exact_map(pair.teacher, pair.student)
    assert (mapped[exact >= 0] == exact[exact >= 0]).all()
    assert len(set(mapped[mapped >= 0].tolist())) == (mapped >= 0).sum()


@pytest.mark.parametrize(
    "options", [{}, {"columns": 20, "temperature": 2.0}, {"fidelity": "released", "columns": 50}], ids=str
)
def test_loss_equals_the_formula(options: dict[str, Any]) -> None:
    method = XToken(**options)
    made = contract.bench(method)
    pair = TokenizerPair(made.sides[STUDENT].vocabulary, made.sides[made.role].vocabulary)
    entries, size = projection(pair), len(pair.teacher)
    matrix = torch.zeros(len(pair.student), size, dtype=torch.float64)
    matrix.index_put_((entries.student, entries.teacher), entries.weight, accumulate=True)  # 11 is 1 and 1
    tau, most, total = options.get("temperature", 1.0), options.get("columns", 8192), 0.0
    for student, teacher in contract.seen(made):
        chunks = contract.chunks_by_walking(student.ends, teacher.ends)
        rows = [j for _, right in chunks for j in right]
        kept = teacher.rows[rows].max(0).values.topk(min(most, size)).indices
        value = 0.0
        for left, right in chunks:
            if options.get("fidelity") == "released":
                p = (torch.stack([student.rows[i].softmax(-1) for i in left]).mean(0) @ matrix)[kept]
                log_p = (p / (p.sum() + 1e-10) + 1e-10).log()
                log_q = torch.stack([teacher.rows[j][kept].log_softmax(-1) for j in right]).mean(0)
                value += float((log_q.exp() * (log_q - log_p)).sum()) / len(chunks)
                continue
            p, q = ((side.rows / tau).softmax(-1) for side in (student, teacher))
            path = [
                math.prod(max(float(side[i, seen.ids[i]]), 1e-8) for i in members[:-1])
                for side, seen, members in ((p, student, left), (q, teacher, right))
            ]
            ours, theirs = path[0] * p[left[-1]] @ matrix, path[1] * q[right[-1]]
            for t in theirs.topk(min(most, size)).indices:
                b, a = max(float(theirs[t]), 1e-10), max(float(ours[t]), 1e-10)
                value += tau**2 * b * math.log(b / a)
        total += value
    assert float(made.loss(made.batch()).kd[0]) == pytest.approx(total, rel=1e-8)


def test_a_learnt_projection_gets_its_gradient() -> None:
    """Against a dense matrix of softmaxes, token by token, differentiated by autograd."""
    method = XToken(projection="learnt", columns=20)
    made = contract.bench(method)
    pair = TokenizerPair(made.sides[STUDENT].vocabulary, made.sides[made.role].vocabulary)
    entries = projection(pair)
    distiller, batch = made.distiller(), made.batch(chunk_rows=20)
    (own,) = distiller.own.parameters()
    added = torch.randn(len(entries.weight), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        own.copy_(added)
    added.requires_grad_()
    rows = [torch.zeros(len(pair.teacher), dtype=torch.float64) for _ in range(len(pair.student))]
    for token in set(entries.student.tolist()):
        here = entries.student == token
        weights = (entries.weight[here].log() + added[here]).softmax(0)
        rows[token] = rows[token].index_add(0, entries.teacher[here], weights)
    matrix = torch.stack(rows)
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher in contract.seen(made):
        p, q = (side.rows.softmax(-1) for side in (student, teacher))
        for left, right in contract.chunks_by_walking(student.ends, teacher.ends):
            ours, theirs = p[left[-1]] @ matrix, q[right[-1]]
            for i in left[:-1]:
                ours = ours * p[i, student.ids[i]].clamp_min(1e-8)
            for j in right[:-1]:
                theirs = theirs * q[j, teacher.ids[j]].clamp_min(1e-8)
            b, a = (side[theirs.topk(20).indices].clamp_min(1e-10) for side in (theirs, ours))
            total = total + (b * (b / a).log()).sum()
    divisors = made.objective.divisors(batch.counts)
    parts = distiller(batch, divisors)
    assert float(parts.kd[0]) == pytest.approx(float(total.detach()), rel=1e-8)
    found = torch.autograd.grad(parts.loss, own)[0]
    wanted = torch.autograd.grad(0.7 * total / divisors[1], added)[0]
    assert float(wanted.abs().max()) > 1e-8
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)


def test_a_learnt_projection_is_trained_at_its_own_rate_and_not_stored_with_the_student(tmp_path: Path) -> None:
    """Adam's first step moves by its rate every weight that has a gradient; a student at hardly any rate stays."""
    method = XToken(projection="learnt")
    made = contract.bench(method, dtype=torch.float32)
    names = list(made.student.state_dict())
    settings = Training(steps=2, batch_size=2, learning_rate=1e-12, warmup=0, checkpoint_every=2)
    train(made.distiller(), made.examples, made.collator(), settings, steps=2, seed=3, work=tmp_path)
    assert method.learnt is not None
    added = method.learnt.added.detach()
    tokens = projection(TokenizerPair(made.sides[STUDENT].vocabulary, made.sides[made.role].vocabulary)).student
    several = tokens.bincount()[tokens] > 1
    assert 0.005 < float(added[several].abs().median()) < 0.021  # of two steps, the second at a rate that falls
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert torch.equal(kept["own.0.added"], added)
    assert [name for name in kept if name.startswith("own")] == ["own.0.added"]
    assert list(made.student.state_dict()) == names
