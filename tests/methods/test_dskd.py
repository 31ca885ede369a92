"""DSKD against its toy values to six digits, and against its formula in plain loops, gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.data.tokens import STUDENT
from harness.models.heads import Head
from harness.training.loss import Distiller
from methods.base import AlignedChunk, Hidden
from methods.dskd import DSKD
from methods.library.alignment import AlignedResponse
from tests.methods import contract


def table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def chunk_of(
    method: DSKD, rows: Sequence[Tensor], heads: Sequence[Head], read: Sequence[list[int]], tokens: Sequence[list[int]]
) -> AlignedChunk:
    """One response: student, then teacher; the student's logits ask for a gradient, and so do its rows."""
    ids = [np.asarray(side) for side in tokens]
    groups = method.align(AlignedResponse(ids[0], ids[1], ids[0], ids[1]))
    logits = [head.logits(side).detach() for head, side in zip(heads, rows, strict=True)]
    made = AlignedChunk.of(groups, logits[0].requires_grad_(), logits[1], *ids)
    sides = [
        side.with_hidden(Hidden(its, head, torch.tensor(ids)))
        for side, its, head, ids in zip((made.student, made.teacher), rows, heads, read, strict=True)
    ]
    return AlignedChunk(*sides, made.groups)


def head_of(weight: Tensor, embeddings: Tensor, **more: Any) -> Head:
    layer = nn.Embedding.from_pretrained(embeddings)
    return Head(weight, **more, embeddings=lambda: layer)


class Toy(NamedTuple):
    method: DSKD
    chunk: AlignedChunk
    projected: Tensor


def toy(fidelity: str) -> Toy:
    """Two tokens of a student of width 2, three of a teacher of width 3; what is projected has six digits."""
    heads = (
        head_of(table([[1, 0], [0, 1], [1, 1], [-1, 0]]), table([[1, 0], [1, 1], [0, 1], [0, 0]])),
        head_of(
            table([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, -1]]),
            table([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]]),
        ),
    )
    rows = table([[1, -1], [0.5, 2]]).requires_grad_(), table([[2, 0, 1], [0, 1, 1], [1, 1, 0]])
    method = DSKD(fidelity=fidelity)
    method.build(*heads)
    assert method.maps is not None
    weights = {"query": torch.eye(6, 4), "to_student": torch.eye(2, 3), "to_teacher": torch.eye(3, 2)}
    with torch.no_grad():
        for name, weight in weights.items():
            method.maps[name].weight.copy_(weight)
            nn.init.zeros_(method.maps[name].bias)
    chunk = chunk_of(method, rows, heads, ([0, 2], [0, 1, 2]), ([2, 1], [1, 2, 3]))
    projected = table([[2.611136, 2.436613, 5.047749, -2.611136], [2.423483, 2.696836, 5.120319, -2.423483]])
    return Toy(method, chunk, projected)


@pytest.mark.parametrize("fidelity", ["described", "released"])
def test_toy_values(fidelity: str) -> None:
    """The three parts add up, and the second is the first row's alone, where the projection finds the token."""
    method, chunk, projected = toy(fidelity)
    sums = method.loss(chunk)
    assert float(sums.kd.detach()) == pytest.approx(2.718541 + 0.385483 + 0.173170, abs=2e-6)
    assert [float(part) for part in sums.diagnostics["projection agrees"] if part is not None] == [1, 2]
    at_logits, at_rows = torch.autograd.grad(sums.kd, [chunk.student.logits, chunk.student.hidden.rows])
    expected = ((chunk.student.logits[0] / 2).softmax(-1) - (projected[0] / 2).softmax(-1)) / 2
    torch.testing.assert_close(at_logits[0], expected.detach(), rtol=0, atol=1e-6)
    assert not at_logits[1].any()
    assert at_rows.abs().min() > 0  # by the last part


def test_one_response_of_no_tokens_is_in_no_group() -> None:
    empty, one = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    assert DSKD().align(AlignedResponse(empty, one, empty, one)).count == 0


class Given(NamedTuple):
    """One side of a response: rows, embeddings of what they have read and predict, tokens, and logits."""

    hidden: Tensor
    read: Tensor
    predicted: Tensor
    tokens: list[int]
    logits: Tensor


def mixed(parts: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Of a softmax of the weights."""
    shares = torch.stack(list(weights)).softmax(0)
    return torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum(0)


def deviation(rows: Sequence[Tensor]) -> float:
    """Of all their numbers, by n - 1."""
    numbers = [float(number) for row in rows for number in row]
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))


def divergence(target: Tensor, other: Tensor, tau: float) -> Tensor:
    p = (target / tau).softmax(-1)
    return (p * (p.log() - (other / tau).log_softmax(-1))).sum()


Reader = Callable[[Tensor], Tensor]


def reader(head: Head, weight_alone: bool) -> Reader:
    """From one row to its logits."""

    def logits(row: Tensor) -> Tensor:
        dots = head.weight @ row
        if weight_alone:
            return dots
        dots = head.scale * (dots if head.bias is None else dots + head.bias)
        return dots if head.soft_cap is None else head.soft_cap * (dots / head.soft_cap).tanh()

    return logits


def by_the_formula(
    ours: Given, theirs: Given, maps: dict[str, tuple[Tensor, Tensor]], heads: Sequence[Reader], tau: float
) -> tuple[Tensor, int]:
    """The term of one response, a pair of tokens at a time; and at how many the projection finds the token.

    Args:
        maps: weight and bias, by name.
        heads: of student and teacher.
    """

    def through(name: str, row: Tensor) -> Tensor:
        weight, bias = maps[name]
        return weight @ row + bias

    width = theirs.hidden.shape[1]
    keys = [torch.cat(pair) for pair in zip(theirs.read, theirs.predicted, strict=True)]
    sigma, sigma_h, sigma_e = (deviation(rows) for rows in (keys, [*theirs.hidden], [*theirs.predicted]))
    queries = [through("query", torch.cat(pair)) for pair in zip(ours.read, ours.predicted, strict=True)]
    scores = [[(q * k / sigma).sum() / math.sqrt(2 * width) for k in keys] for q in queries]
    values = [
        through("to_student", h / sigma_h + e / sigma_e) for h, e in zip(theirs.hidden, theirs.predicted, strict=True)
    ]
    back = [through("to_teacher", h) for h in ours.hidden]
    parts, found = [], 0
    for i, token in enumerate(ours.tokens):
        z = heads[0](mixed(values, scores[i]))
        parts.append(-z.log_softmax(-1)[token])
        if int(z.argmax()) == token:
            parts.append(divergence(z.detach(), ours.logits[i], tau))
            found += 1
    for j, logits in enumerate(theirs.logits):
        r = heads[1](mixed(back, [row[j] for row in scores]))
        parts.append(divergence(logits, r, tau))
    return torch.stack(parts).sum(), found


def own_of(method: DSKD) -> dict[str, tuple[Tensor, Tensor]]:
    assert method.maps is not None
    return {name: (layer.weight, layer.bias) for name, layer in method.maps.items()}


@pytest.mark.parametrize("fidelity", ["described", "released"])
def test_heads_count_as_described_and_their_weights_alone_as_released(fidelity: str) -> None:
    """With a bias and a factor on one side, a bound on the other."""
    random = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    heads = (
        head_of(drawn(7, 3), drawn(7, 3), bias=drawn(7), scale=0.5),
        head_of(drawn(9, 5), drawn(9, 5), soft_cap=2.0),
    )
    method = DSKD(fidelity=fidelity, temperature=1.5)
    method.build(*heads)
    tokens, read = ([3, 1, 6, 2], [8, 0, 5]), ([4, 3, 1, 6], [7, 8, 0])
    rows = drawn(4, 3).requires_grad_(), drawn(3, 5)
    chunk = chunk_of(method, rows, heads, read, tokens)
    given = [
        Given(its, head.embedded(torch.tensor(before)), head.embedded(torch.tensor(after)), after, side.logits)
        for its, head, before, after, side in zip(
            rows, heads, read, tokens, (chunk.student, chunk.teacher), strict=True
        )
    ]
    readers = [reader(head, fidelity == "released") for head in heads]
    expected, _ = by_the_formula(*given, own_of(method), readers, 1.5)
    sums = method.loss(chunk)
    torch.testing.assert_close(sums.kd, expected, rtol=1e-12, atol=0)
    asked = [rows[0], *(each for pair in own_of(method).values() for each in pair)]
    for left, right in zip(torch.autograd.grad(sums.kd, asked), torch.autograd.grad(expected, asked), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_the_gradient_added_to_another_is_the_losss_own() -> None:
    """:meth:`DSKD.loss_into` against :meth:`DSKD.loss`: value, norm, and every gradient."""
    method, chunk, _ = toy("described")
    rows, logits = chunk.student.hidden.rows, chunk.student.logits
    own = [each for pair in own_of(method).values() for each in pair]
    sums = method.loss(chunk)
    at_logits, *at_others = torch.autograd.grad(sums.kd, [logits, rows, *own])
    before = torch.randn(logits.shape, dtype=torch.float64)
    upstream = before.clone()
    found = method.loss_into(chunk, logits.logsumexp(-1), upstream, 0.7)
    torch.testing.assert_close(found.kd, sums.kd)
    torch.testing.assert_close(upstream - before, 0.7 * at_logits)
    torch.testing.assert_close(found.squared_norm, at_logits.square().sum())
    torch.testing.assert_close(torch.autograd.grad(found.kd, [rows, *own]), tuple(at_others))


def side_of(made: contract.Bench, sides: Any, role: str, model: Any) -> Given:
    """What a model says of the response, its embeddings looked up in its table by the ids of prompt and response."""
    ids = torch.from_numpy(sides[role].sequence)
    out = model(input_ids=ids[None], output_hidden_states=True)
    first = sides[role].prompt.size - 1
    embeddings = model.get_input_embeddings().weight.detach()
    return Given(
        out.hidden_states[-1][0, first:-1],
        embeddings[ids[first:-1]],
        embeddings[ids[first + 1 :]],
        sides[role].response.tolist(),
        out.logits[0, first:-1],
    )


def test_the_engine_hands_over_rows_and_embeddings_and_takes_every_gradient() -> None:
    """Of all responses in one batch, at the student's parameters and at the maps; heads and embeddings are fixed."""
    made = contract.bench(DSKD())
    distiller, batch = made.distiller(), made.batch()
    method: Any = made.method
    with torch.no_grad():  # so that it finds a token of each response: the end
        end = made.student.get_output_embeddings().weight[made.sides[STUDENT].eos]
        method.maps["to_student"].bias.copy_(10 * end)
    parts = distiller(batch, [1e30, 1.0])
    assert made.teacher is not None
    heads = [
        reader(Head(model.get_output_embeddings().weight.detach()), True) for model in (made.student, made.teacher)
    ]
    terms, agreeing = [], 0
    for aligned in made.examples:
        sides = aligned.example.sides
        ours = side_of(made, sides, STUDENT, made.student)
        theirs = side_of(made, sides, made.role, made.teacher)
        fixed = theirs._replace(hidden=theirs.hidden.detach(), logits=theirs.logits.detach())
        term, found = by_the_formula(ours, fixed, own_of(method), heads, 2.0)
        terms.append(term)
        agreeing += found
    expected = torch.stack(terms).sum()
    assert float(parts.kd[0]) == pytest.approx(float(expected.detach()), rel=1e-10)
    assert float(parts.diagnostics["projection agrees"][0]) == agreeing == len(made.examples)
    parameters = [*made.student.parameters(), *distiller.own.parameters()]
    found_at = torch.autograd.grad(parts.loss, parameters)
    for left, right in zip(found_at, torch.autograd.grad(0.7 * expected, parameters), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-10)


def test_maps_begin_as_the_seed_says_and_leave_other_draws_alone() -> None:
    made = contract.bench(DSKD(), dtype=torch.float32)
    assert made.teacher is not None

    def begun(seed: int) -> Tensor:
        distiller = Distiller(made.student, made.objective, {made.role: made.teacher}, seed=seed)
        return nn.utils.parameters_to_vector(distiller.own.parameters()).detach()

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = begun(1), begun(1), begun(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.numel() == 4 * 64 * 64 + 2 * 64 * 64 + 4 * 64
    assert 0 < float(first.abs().max()) <= 64**-0.5  # torch's own: uniform within 1 / √(width read)
