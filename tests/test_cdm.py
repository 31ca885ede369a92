"""CDM: the map and the loss against plain loops over positions and tokens, in float64; entropies too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from methods.alignment import AlignedResponse, Groups
from methods.base import AlignedChunk, Side
from methods.cdm import CDM, _nested_means
from methods.maps import MAPS, UNMAPPED
from methods.vocabulary import TokenizerPair, Vocabulary
from methods.warping import token_texts
from tests import method_contract as contract
from tests import tiny

STUDENT, TEACHER = (Vocabulary.of(tiny.tokenizer(f).backend_tokenizer, f, (2,)) for f in ("byte_level", "unigram"))
PAIR = TokenizerPair(STUDENT, TEACHER)


def chunk(positions: int, seed: int = 0, padding: int = 3) -> AlignedChunk:
    """Random rows, one a side and group; the heads have columns that no token uses."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for vocabulary in (STUDENT, TEACHER):
        logits = 3 * torch.randn(positions, len(vocabulary) + padding, generator=generator, dtype=torch.float64)
        number = torch.arange(positions)
        nothing = torch.zeros(positions, dtype=torch.int64)
        sides.append(Side(logits, nothing, number, number, nothing, True))
    sides[0].logits.requires_grad_()
    return AlignedChunk(sides[0], sides[1], positions)


def top(row: Tensor, size: int, k: int) -> list[int]:
    """Ids of the k largest among the tokens that there are."""
    return sorted(range(size), key=lambda i: -float(row[i].detach()))[:k]


def distance(left: str, right: str) -> float:
    return Levenshtein.distance(left, right) / (len(left) + len(right)) if left or right else 1.0


def static_maps(kind: str) -> tuple[list[int], list[int]]:
    """Teacher -> student and student -> teacher."""
    return MAPS[kind](TEACHER, STUDENT).tolist(), MAPS[kind](STUDENT, TEACHER).tolist()


def partners(
    source: list[int], target: list[int], static: list[int], exact: list[int], texts: list[tuple[str, ...]]
) -> list[int]:
    """Partners of one position's source tokens, one-to-one.

    Static ones first, exact before others, else the likeliest; then greedily the nearest free pair below θ = 0.3.
    """
    mapped: dict[int, int] = {}
    for s in sorted(source, key=lambda s: static[s] != exact[s]):
        if static[s] != UNMAPPED and static[s] not in mapped.values():
            mapped[s] = static[s]
    taken = set(mapped.values())
    pairs = [(distance(texts[0][s], texts[1][t]), i, j) for i, s in enumerate(source) for j, t in enumerate(target)]
    for d, i, j in sorted(pairs):
        if d < 0.3 and source[i] not in mapped and target[j] not in taken:
            mapped[source[i]] = target[j]
            taken.add(target[j])
    return [mapped.get(s, UNMAPPED) for s in source]


def described(made: AlignedChunk, k: int, kind: str = "exact", tau: float = 2.0) -> Tensor:
    there, back_again = zip(static_maps(kind), static_maps("exact"), strict=True)
    texts = [token_texts(TEACHER), token_texts(STUDENT)]
    total = torch.zeros((), dtype=torch.float64)
    for zs, zt in zip(made.student.logits, made.teacher.logits, strict=True):
        ours, theirs = top(zs, len(STUDENT), k), top(zt, len(TEACHER), k)
        ahead = [(t, s) for t, s in zip(theirs, partners(theirs, ours, *there, texts), strict=True) if s >= 0]
        back = [(t, s) for s, t in zip(ours, partners(ours, theirs, *back_again, texts[::-1]), strict=True) if t >= 0]
        if ahead:
            p, q = ((z[list(ids)] / tau).softmax(-1) for z, ids in zip((zt, zs), zip(*ahead, strict=True), strict=True))
            total = total + tau**2 * (p * (p / q).log()).sum()
        if back:
            p, q = ((z[list(ids)] / tau).softmax(-1) for z, ids in zip((zt, zs), zip(*back, strict=True), strict=True))
            total = total + tau**2 * (q * (q / p).log()).sum()
    return total


@pytest.mark.parametrize(
    ("k", "kind"), [(1, "exact"), (7, "exact"), (60, "exact"), (100, "exact"), (60, "nearest"), (60, "prefix")]
)
def test_described_equals_loops_over_positions(k: int, kind: str) -> None:
    method = CDM(k=k, static_map=kind)
    method.prepare(PAIR)
    made = chunk(9, seed=k)
    value, expected = method.loss(made).kd, described(made, k, kind)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    (gradient,), (wanted,) = (torch.autograd.grad(x, made.student.logits) for x in (value, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["nearest", "prefix"])
def test_static_maps_send_several_tokens_to_one(kind: str) -> None:
    """Or the comparison above would not show that a described column stands once in a softmax."""
    there, _ = static_maps(kind)
    rows = [[there[t] for t in top(z, len(TEACHER), 60) if there[t] != UNMAPPED] for z in chunk(9, 60).teacher.logits]
    assert any(len(set(row)) < len(row) for row in rows)


def test_the_contextual_map_finds_more_than_the_static_one() -> None:
    """Otherwise the comparison above would hold for a method that never looks at the edit distance."""
    covered = []
    for theta in (0.0, 0.3):
        method = CDM(k=100, theta=theta)
        method.prepare(PAIR)
        part, whole = method.loss(chunk(9)).diagnostics["columns masked"]
        covered.append(float(part / whole))  # type: ignore[operator]
    assert covered[1] < covered[0]


def response_map(
    source: list[list[int]], target: list[list[int]], static: list[int], texts: list[tuple[str, ...]]
) -> dict[int, int]:
    """The released map: one for the response, written over position by position; id 0 means unmapped."""
    mapped = {i: s for i, s in enumerate(static) if s not in (0, UNMAPPED)}
    fixed = set(mapped)
    for ours, theirs in zip(source, target, strict=True):
        matched = {i for i in ours if i in fixed}  # source ids, taken out of target ids
        candidates = [j for j in theirs if j not in matched]
        for i in ours:
            if i not in fixed and candidates:
                near = min(candidates, key=lambda j: distance(texts[0][i], texts[1][j]))
                if distance(texts[0][i], texts[1][near]) < 0.3:
                    mapped[i] = near
    return {i: j for i, j in mapped.items() if j != 0}


def released(made: AlignedChunk, k: int, kind: str = "exact", tau: float = 2.0) -> Tensor:
    to_student, to_teacher = static_maps(kind)
    texts = [token_texts(TEACHER), token_texts(STUDENT)]
    student, teacher = made.student.logits, made.teacher.logits
    ours, theirs = [top(z, len(STUDENT), k) for z in student], [top(z, len(TEACHER), k) for z in teacher]
    ahead = response_map(theirs, ours, to_student, texts)
    left = [[t if t in ahead else 0 for t in row] for row in theirs]
    back = response_map(ours, left, to_teacher, texts[::-1])
    total, masked = torch.zeros((), dtype=torch.float64), torch.tensor(-1e4, dtype=torch.float64)
    for row, (zs, zt) in enumerate(zip(student, teacher, strict=True)):
        t1 = [zt[t] if t in ahead else masked for t in theirs[row]]
        s1 = [zs[ahead[t]] if t in ahead else masked for t in theirs[row]]
        s2 = [zs[s] if s in back else masked for s in ours[row]]
        t2 = [zt[back[s]] if s in back else masked for s in ours[row]]
        p = torch.stack(t1 + s2).log_softmax(-1)
        q = (torch.stack(s1 + t2) / tau).log_softmax(-1)
        total = total + (p.exp() * (tau**2 * p - q)).sum()
    return total / (len(student) * 2 * k)


@pytest.mark.parametrize(("k", "kind"), [(5, "exact"), (60, "exact"), (60, "nearest"), (60, "prefix")])
def test_released_equals_loops_over_positions(k: int, kind: str) -> None:
    method = CDM(k=k, fidelity="released", static_map=kind)
    method.prepare(PAIR)
    made = chunk(8, seed=k)
    value, expected = method.loss(made).kd, released(made, k, kind)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    (gradient,), (wanted,) = (torch.autograd.grad(x, made.student.logits) for x in (value, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-14)


def test_released_groups_are_means_of_means() -> None:
    """Path (teacher, student): (0,0) (0,1) (1,2) (2,2) (3,2) (3,3): lists [0,1], [2], [2], [2,3]."""
    teacher, student = np.array([0, 0, 1, 2, 3, 3]), np.array([0, 1, 2, 2, 2, 3])
    groups = _nested_means(teacher, student, {})
    assert groups.to_lists()[0] == [[0, 1], [2], [2, 3]]
    t = torch.randn(4, 5, dtype=torch.float64)
    of_step = {0: t[0], 1: t[0], 2: (t[1] + t[2] + t[3]) / 3, 3: t[3]}
    expected = torch.stack([(of_step[0] + of_step[1]) / 2, of_step[2], (of_step[2] + of_step[3]) / 2])
    weight = torch.from_numpy(groups.teacher_weight)
    index, group = torch.from_numpy(groups.teacher_index), torch.from_numpy(groups.teacher_group)
    side = Side(t, torch.zeros(4), index, group, torch.zeros_like(index), False, weight)
    torch.testing.assert_close(side.mean_logits(3), expected)


def test_warping_costs_carry_the_entropies() -> None:
    """A cheap detour where both models are sure, another where they are not: weights decide the path."""
    method = CDM()
    method.prepare(PAIR)
    ids = [
        np.asarray(v.backend_tokenizer.encode("201 + 19", add_special_tokens=False).ids)
        for v in map(tiny.tokenizer, ("byte_level", "unigram"))
    ]
    ends = [v.ends(i, b"201 + 19") for v, i in zip((STUDENT, TEACHER), ids, strict=True)]
    response = AlignedResponse(ids[0], ids[1], ends[0], ends[1])
    flat = [np.ones(i.size) for i in ids]
    groups = method.align(replace(response, student_entropy=flat[0], teacher_entropy=flat[1]))
    assert groups.student_index[0] == groups.teacher_index[0] == 0
    part, whole = groups.notes["links that bytes confirm"]
    assert 0 < part <= whole


def test_a_batch_hands_over_the_entropies_of_the_rows_that_the_loss_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for fidelity, shift in (("described", 0), ("released", 1)):
        made = contract.bench(CDM(fidelity=fidelity))
        seen: list[AlignedResponse] = []
        align = made.method.align

        def spy(response: AlignedResponse, align=align, seen=seen) -> Groups:  # type: ignore[no-untyped-def]
            seen.append(response)
            return align(response)

        monkeypatch.setattr(made.method, "align", spy)
        made.loss(made.batch(chunk_rows=5))
        assert len(seen) == len(made.examples)
        for response, aligned in zip(seen, made.examples, strict=True):
            for role, model, found in (
                ("student", made.student, response.student_entropy),
                ("cross", made.teacher, response.teacher_entropy),
            ):
                side = aligned.example.sides[role]
                with torch.no_grad():
                    logits = model(input_ids=torch.from_numpy(side.sequence)[None]).logits[0]  # type: ignore[union-attr]
                first = side.prompt.size - 1 + shift
                p = logits[first : first + side.response.size].softmax(-1)
                torch.testing.assert_close(torch.from_numpy(found), -(p * p.log()).sum(-1))
