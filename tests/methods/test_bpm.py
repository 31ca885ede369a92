"""BPM against hand values, and against its formula written out token by token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.tokens import STUDENT
from methods.base import AlignedChunk
from methods.bpm import BPM
from methods.library.alignment import AlignedResponse, Groups
from methods.library.beginnings import Beginnings
from methods.library.vocabulary import TokenizerPair, TokenKind, Vocabulary
from tests.methods import contract


def vocabulary(*texts: str) -> Vocabulary:
    """A vocabulary of the texts, and a token that ends a response."""
    kinds = np.asarray([TokenKind.ORDINARY] * len(texts) + [TokenKind.SPECIAL], dtype=np.int8)
    spelled = (*(text.encode() for text in texts), b"</s>")
    return Vocabulary(" ".join(texts), spelled, kinds, (len(texts),), " ".join(texts), (), (*texts, "</s>"))


def rows(*masses: list[float]) -> torch.Tensor:
    return torch.tensor(masses, dtype=torch.float64).clamp_min(1e-300).log()


def loss(
    method: BPM, groups: Groups, student: torch.Tensor, teacher: torch.Tensor, ours: list[int], theirs: list[int]
) -> tuple[float, torch.Tensor]:
    """KD and the student's target: its gradient is p times the mass, less the target."""
    logits = student.clone().requires_grad_()
    chunk = AlignedChunk.of(groups, logits, teacher, np.asarray(ours), np.asarray(theirs))
    sums = method.loss(chunk)
    sums.kd.backward()
    assert logits.grad is not None
    return float(sums.kd.detach()), logits.grad


def test_masses_go_to_the_longest_token_that_begins_theirs() -> None:
    """abc .5, a .2, c .1, b .2 become a .2, ab .5, b .2, and .1 is left over."""
    method = BPM()
    method.prepare(TokenizerPair(vocabulary("a", "ab", "b"), vocabulary("abc", "a", "c", "b")))
    student, teacher = rows([0.3, 0.4, 0.3, 0]), rows([0.5, 0.2, 0.1, 0.2, 0])
    value, gradient = loss(method, Groups.one_to_one([0], [0]), student, teacher, [0], [1])
    assert value == pytest.approx(-0.050614, abs=1e-6)
    assert gradient[0].tolist() == pytest.approx([0.27 - 0.2, 0.36 - 0.5, 0.27 - 0.2, 0], abs=1e-12)
    renormalised = sum(t / 0.9 * math.log(t / 0.9 / p) for t, p in ((0.2, 0.3), (0.5, 0.4), (0.2, 0.3)))
    assert renormalised == pytest.approx(0.049122, abs=1e-6)  # what is left over is not shared out


def test_a_token_that_spans_several_has_their_product() -> None:
    """xyz over x .6, y .9 and what begins with z, .8 together: .432."""
    method = BPM()
    pair = TokenizerPair(vocabulary("xyz", "x", "y", "z"), vocabulary("x", "y", "zu", "zuv", "u"))
    method.prepare(pair)
    response = AlignedResponse(np.asarray([0, 3]), np.asarray([0, 1, 2]), np.asarray([3, 4]), np.asarray([1, 2, 4]))
    groups = method.align(response)
    assert groups.to_lists() == ([[0]], [[0, 1, 2]])
    student = rows([0.4, 0.3, 0.2, 0.1, 0], [0.2] * 5)
    teacher = rows([0.6, 0.4, 0, 0, 0, 0], [0.1, 0.9, 0, 0, 0, 0], [0.1, 0, 0.5, 0.3, 0.1, 0])
    _, gradient = loss(method, groups, student, teacher, [0, 3], [0, 1, 2])
    target = [0.432, 0.6, 0.4, 0.0]
    assert gradient[0, :4].tolist() == pytest.approx(
        [p * sum(target) - t for p, t in zip((0.4, 0.3, 0.2, 0.1), target, strict=True)], abs=1e-12
    )
    plain = BPM(spanning=False)
    plain.prepare(pair)
    _, gradient = loss(plain, groups, student, teacher, [0, 3], [0, 1, 2])
    assert gradient[0, 0].item() == pytest.approx(0.4 * 1.0, abs=1e-12)


def test_tokens_by_their_beginning() -> None:
    texts = [b"a", b"ab", b"abc", b"b", b"a\xff", b"a\xff\xff", b"\xff", b"\xff\xffz", b"x"]
    kinds = np.zeros(len(texts), dtype=np.int8)
    kinds[-1] = TokenKind.SPECIAL
    found = Beginnings(Vocabulary("bytes", tuple(texts), kinds, (), "", ()))
    for prefix in (b"a", b"ab", b"a\xff", b"\xff", b"\xff\xff", b"b", b"c", b"x"):
        expected = {i for i, text in enumerate(texts[:-1]) if text.startswith(prefix)}
        assert set(found.of(prefix).tolist()) == expected


@pytest.mark.parametrize("options", [{}, {"whitespace": True}], ids=str)
def test_loss_equals_the_formula(options: dict[str, Any]) -> None:
    """Places found by comparing starts, and the longest beginning by trying every token of the student."""
    method = BPM(**options)
    made = contract.bench(method)
    ours, theirs = (made.sides[role].vocabulary for role in (STUDENT, made.role))
    longest = [longest_beginning(ours, theirs, v) for v in range(len(theirs))]
    total, spanning, blanks = 0.0, 0, 0
    for student, teacher in contract.seen(made):
        starts = [[0, *side.ends[:-1]] for side in (student, teacher)]
        for members, others in contract.chunks_by_walking(student.ends, teacher.ends):
            i, first = members[0], others[0]
            spelled = ours.token_bytes[student.ids[i]]
            if ours.widths[student.ids[i]] and not spelled.strip(b" \t") and not options.get("whitespace"):
                blanks += 1
                continue
            q = teacher.rows[first].softmax(-1)
            target = [0.0] * len(ours)
            for v, u in enumerate(longest):
                if u >= 0:
                    target[u] += float(q[v])
            covering = [j for j in others if starts[1][j] < student.ends[i]]
            before = b"".join(theirs.token_bytes[teacher.ids[j]] for j in covering[:-1])
            if len(covering) > 1 and spelled.startswith(before):
                rest, last = spelled[len(before) :], covering[-1]
                if rest == theirs.token_bytes[teacher.ids[last]]:
                    chance = math.exp(teacher.realised[last])
                else:
                    begin = [
                        v for v in range(len(theirs)) if theirs.widths[v] and theirs.token_bytes[v].startswith(rest)
                    ]
                    chance = float(teacher.rows[last].softmax(-1)[begin].sum())
                target[student.ids[i]] = chance * math.exp(sum(teacher.realised[j] for j in covering[:-1]))
                spanning += 1
            p = student.rows[i].log_softmax(-1).tolist()
            total += sum(t * (math.log(t) - log_p) for t, log_p in zip(target, p, strict=True) if t > 0)
    parts = made.loss(made.batch())
    assert float(parts.kd[0]) == pytest.approx(total, rel=1e-9)
    assert float(parts.diagnostics["spanning tokens"][0]) == spanning
    assert (blanks > 0) == (not options.get("whitespace"))


def longest_beginning(ours: Vocabulary, theirs: Vocabulary, v: int) -> int:
    """φ(v): a special token's own kind, else the longest ordinary token; -1."""
    if theirs.kinds[v] == TokenKind.SPECIAL:
        same = [u for u in range(len(ours)) if ours.kinds[u] == TokenKind.SPECIAL]
        return next((u for u in same if ours.token_bytes[u] == theirs.token_bytes[v]), -1)
    spelled = theirs.token_bytes[v]
    twice = any(theirs.token_bytes[o] == spelled and theirs.kinds[o] < theirs.kinds[v] for o in range(len(theirs)))
    found = [u for u in range(len(ours)) if ours.widths[u] and spelled.startswith(ours.token_bytes[u])]
    if not found or (theirs.kinds[v] == TokenKind.FALLBACK and twice):
        return -1
    return max(found, key=lambda u: len(ours.token_bytes[u]))
