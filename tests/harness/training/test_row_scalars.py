"""Losses that see a few numbers of each row: in chunks of any size what plain autograd finds on whole responses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.data.terms import AlignedExample, Term, align
from harness.data.tokens import STUDENT, SideTokens, TokenizedExample
from harness.training.objective import LossParts, Objective
from methods.alm import ALM
from methods.base import AlignedChunk, LossSums, Method, Need, Rows, TeacherKind
from methods.gold import GOLD
from methods.library.alignment import AlignedResponse, Groups, pair_positions
from methods.multilevelot import MultiLevelOT
from tests.methods.contract import Bench, bench, chunks_by_walking

SIZES = (1, 3, 7, 1000)
SMALLER = 400  # vocabulary of the bench's two


class Blended(Method):
    """Nothing that sums over rows: (Σ_i s_i)² + Σ_ij |s_i - t_j|, s the mass of the teacher's favourite column.

    And of each row the log of its own token's mass, at another temperature, times its place.
    """

    name, paper, teacher, summary = "blended", "a test", TeacherKind.CROSS_TOKENIZER, "a test"
    rows = Rows.AFTER

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.ROW_SCALARS})

    def align(self, response: AlignedResponse) -> Groups:
        return pair_positions(response.student_ids.size, response.teacher_ids.size)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        favourite = chunk.teacher.total(lambda logits, rows: logits.softmax(-1).sum(0)).argmax() % SMALLER
        s, t = (
            side.read(lambda logits, rows: logits.softmax(-1)[:, favourite, None])[side.index]
            for side in (chunk.student, chunk.teacher)
        )
        places = torch.arange(1.0, 1 + len(chunk.student.targets), dtype=torch.float64)
        targets = chunk.student.targets.clamp_min(0)

        def own(logits: Tensor, rows: slice) -> Tensor:
            return (logits / 2).log_softmax(-1).gather(1, targets[rows, None]) * places[rows, None]

        own_rows = chunk.student.read(own)[chunk.student.index - 1]
        kd = s.sum().square() + (s - t.T).abs().sum() - own_rows.sum()
        return LossSums(kd, {"favoured": (s.sum(), t.sum())})


def naive_blended(ours: Tensor, theirs: Tensor, ids: list[int]) -> Tensor:
    """Of one response whose logits are there: a row before its first token, and one behind each."""
    pairs = min(len(ours), len(theirs)) - 1
    favourite = int(theirs.softmax(-1).sum(0).argmax()) % SMALLER
    s, t = (rows.softmax(-1)[1 : 1 + pairs, favourite] for rows in (ours, theirs))
    own = (ours / 2).log_softmax(-1)
    weighted = torch.stack([(i + 1) * own[i, token] for i, token in enumerate(ids[:pairs])]).sum()
    return s.sum() ** 2 + sum((a - b).abs() for a in s for b in t) - weighted


def cut(example: TokenizedExample, tokens: int) -> TokenizedExample:
    """The first tokens of a response, on both sides; without its end."""
    sides = {
        role: SideTokens(side.prompt, side.response[:tokens], side.ends[:tokens])
        for role, side in example.sides.items()
    }
    return replace(example, id=f"{example.id} {tokens}", sides=sides)


def made_of(method: Method) -> Bench:
    """Four responses, and some that are cut: to none, one and six tokens."""
    made = bench(method)
    first = made.examples[0].example
    plain = [one.example for one in made.examples]
    plain[1:1] = [cut(first, tokens) for tokens in (0, 1, 6)]
    made.examples = [align(example, made.objective.terms) for example in plain]
    return made


def whole_logits(made: Bench, one: AlignedExample) -> tuple[Tensor, Tensor]:
    """[tokens + 1, vocabulary] of both models, the student's with a graph."""
    found = []
    for role, model in ((STUDENT, made.student), (made.role, made.teacher)):
        side = one.example.sides[role]
        assert model is not None
        logits = model(input_ids=torch.from_numpy(side.sequence)[None]).logits[0]
        found.append(logits[side.prompt.size - 1 :])
    return found[0], found[1].detach()


def gradients_of(made: Bench, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(made.student.parameters()), materialize_grads=True))


def compare(made: Bench, expected: Tensor, divisor: float) -> LossParts:
    """Value and gradients of the engine's term, in chunks of several sizes, with those of a plain sum."""
    wanted = gradients_of(made, 0.7 / divisor * expected)
    made.objective = replace(made.objective, ce_weight=0.0)
    for rows in SIZES:
        parts = made.loss(made.batch(chunk_rows=rows), [1.0, divisor])
        torch.testing.assert_close(parts.kd[0], expected.detach(), rtol=1e-12, atol=1e-12)
        for gradient, other in zip(gradients_of(made, parts.loss), wanted, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)
    return parts


def test_any_loss_of_rows_is_that_of_whole_responses() -> None:
    made = made_of(Blended())
    values, squares, shares = [], torch.zeros((), dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for one in made.examples:
        ours, theirs = whole_logits(made, one)
        if not one.groups[0].count:
            continue
        value = naive_blended(ours, theirs, one.example.sides[STUDENT].response.tolist())
        squares += torch.autograd.grad(value, ours, retain_graph=True)[0].square().sum()
        values.append(value)
        favourite = int(theirs.softmax(-1).sum(0).argmax()) % SMALLER
        shares += torch.stack(
            [side.softmax(-1)[1 : 1 + one.groups[0].count, favourite].sum().detach() for side in (ours, theirs)]
        )
    parts = compare(made, torch.stack(values).sum(), 9.0)
    torch.testing.assert_close(parts.kd_gradient[0], squares / 81, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.diagnostics["favoured"], shares, rtol=1e-12, atol=0)


def test_alm_is_that_of_whole_responses() -> None:
    """Described, with the masses behind chunks, by its formula on whole matrices of log-probabilities."""
    made = made_of(ALM(temperature=5.0, threshold=0.02))
    boundaries = [
        [i for i, spelling in enumerate(side.vocabulary.token_bytes) if spelling[:1] in (b" ", b"\n", b"\t")]
        for side in (made.sides[STUDENT], made.sides[made.role])
    ]
    total = torch.zeros((), dtype=torch.float64)
    for one in made.examples:
        sides = [one.example.sides[role] for role in (STUDENT, made.role)]
        logs = [logits.log_softmax(-1) for logits in whole_logits(made, one)]
        for members in chunks_by_walking(*(side.ends.tolist() for side in sides)):
            both = []
            for side, log_p, tokens, columns in zip(sides, logs, members, boundaries, strict=True):
                text = sum(log_p[i, int(side.response[i])] for i in tokens)
                behind = log_p[tokens[-1] + 1, columns].logsumexp(-1)
                is_end = int(side.response[tokens[-1]]) == 2
                both.append((text, torch.zeros_like(behind) if is_end else behind))
            (p, of_p), (q, of_q) = both
            if float(of_q.exp()) > 0.02:
                a, b = (((each + behind) / 5).exp() for each, behind in ((q, of_q), (p, of_p)))
                total = total + 5 * (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log())
    compare(made, total, 4.0)


@pytest.mark.parametrize(
    "method",
    [MultiLevelOT(k=4), MultiLevelOT(k=4, fidelity="released")],
    ids=lambda method: method.options.fidelity,
)
def test_multilevelot_is_that_of_whole_responses(method: Method) -> None:
    """The method's own loss where all logits are there; by its formula it is held in tests/methods."""
    made = made_of(method)
    values = []
    for one in made.examples:
        ours, theirs = whole_logits(made, one)
        tokens = [one.example.sides[role].response for role in (STUDENT, made.role)]
        (groups,) = one.groups
        if groups.count:
            chunk = AlignedChunk.of(groups, ours[:-1], theirs[:-1], *tokens)
            values.append(method.loss(chunk).kd)
    compare(made, torch.stack(values).sum(), 4.0)


def test_a_chunked_term_stands_beside_one_of_responses() -> None:
    """Two terms at once: groups of the one alone bound chunks, and sums and gradients are those of each by itself."""
    made = bench(GOLD())
    terms = {"gold": made.objective.terms[0], "blended": Term(Blended(), made.role, 0.4)}
    found = {}
    for name, chosen in {"gold": ["gold"], "blended": ["blended"], "both": ["gold", "blended"]}.items():
        made.objective = Objective(name, 0.0, tuple(terms[each] for each in chosen))
        made.examples = [align(one.example, made.objective.terms) for one in made.examples]
        batch = made.batch(chunk_rows=5)
        parts = made.loss(batch, [1.0] * (1 + len(chosen)))
        found[name] = parts.kd, gradients_of(made, parts.loss), batch
    torch.testing.assert_close(found["both"][0], torch.cat([found["gold"][0], found["blended"][0]]), rtol=1e-12, atol=0)
    for both, *parts in zip(*(found[name][1] for name in ("both", "gold", "blended")), strict=True):
        torch.testing.assert_close(both, sum(parts), rtol=1e-10, atol=1e-12)
    sizes = [np.diff(chunk) for chunk in found["blended"][2].chunks]
    assert max(sizes) == 5
