"""MinED: loops over tokens and vocabulary entries, through the whole engine in float64; collisions by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from harness.data.tokens import STUDENT, SideTokens
from methods.base import AlignedChunk, Rows, Side
from methods.library.alignment import AlignedResponse
from methods.library.maps import UNMAPPED, exact_map, nearest_map, pieces_map
from methods.library.vocabulary import TokenizerPair, TokenKind, Vocabulary
from methods.library.warping import token_texts
from methods.mined import MinED
from tests import tiny
from tests.methods import contract, test_cdm
from tests.methods.library.test_warping import by_hand, double_loop

FAMILIES = {STUDENT: "byte_level", "cross": "byte_fallback"}
VOCABULARIES = {role: Vocabulary.of(tiny.tokenizer(f).backend_tokenizer, f, (2,)) for role, f in FAMILIES.items()}
TEXTS = {role: token_texts(vocabulary) for role, vocabulary in VOCABULARIES.items()}
MAP = nearest_map(VOCABULARIES["cross"], VOCABULARIES[STUDENT]).tolist()
MAPS_OF = {"max": MAP, "dskd": pieces_map(VOCABULARIES["cross"], VOCABULARIES[STUDENT]).tolist()}
EXACT = exact_map(VOCABULARIES["cross"], VOCABULARIES[STUDENT]).tolist()


# --- the whole loss, through the engine -------------------------------------------------------------------------------


def same_tokens(ours: list[int], theirs: list[int], mapped: list[int]) -> dict[int, int]:
    """Student token -> teacher token, where it is the only one that it is linked to and one token by the map."""
    costs = [[edit_cost(t, s) for s in ours] for t in theirs]
    links = double_loop(costs)
    students = Counter(i for _, i in links)
    return {i: j for j, i in links if students[i] == 1 and mapped[theirs[j]] == ours[i]}


def edit_cost(teacher: int, student: int) -> int:
    return 0 if teacher == student == 2 else Levenshtein.distance(TEXTS["cross"][teacher], TEXTS[STUDENT][student])


def target(logits: Tensor, size: int, tau: float, collisions: str) -> Tensor:
    """The teacher's softened distribution over the student's vocabulary, one entry after the other."""
    reached: dict[int, Tensor] = {}
    spelled: set[int] = set()
    for t, s in enumerate(MAPS_OF[collisions]):
        if s == UNMAPPED or s in spelled:
            continue
        if collisions == "max" and EXACT[t] == s:
            spelled.add(s)
            reached[s] = logits[t]
        elif s not in reached or (collisions == "max" and logits[t] > reached[s]):
            reached[s] = logits[t]
    total = sum((z / tau).exp() for z in reached.values())
    p = torch.zeros(size, dtype=logits.dtype)
    for s, z in reached.items():
        p[s] = (z / tau).exp() / total
    return p


def response_rows(model: torch.nn.Module, side: SideTokens) -> Tensor:
    """[n, vocabulary]: the logits that predict each response token."""
    logits: Tensor = model(input_ids=torch.from_numpy(side.sequence)[None]).logits[0, side.prompt.size - 1 : -1]
    return logits


@pytest.mark.parametrize("options", [{}, {"collisions": "dskd"}, {"temperature": 2.0}, {"normalize": "samples"}])
def test_loss_and_gradient_equal_loops(options: dict[str, object]) -> None:
    tau, collisions = float(options.get("temperature", 1.0)), str(options.get("collisions", "max"))  # type: ignore[arg-type]
    made = contract.bench(MinED(**options))
    kd, ce, kept, tokens = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0, 0
    for aligned in made.examples:
        mine, other = aligned.example.sides[STUDENT], aligned.example.sides["cross"]
        zs, zt = response_rows(made.student, mine), response_rows(made.teacher, other).detach()  # type: ignore[arg-type]
        pairs = same_tokens(mine.response.tolist(), other.response.tolist(), MAPS_OF[collisions])
        for i, y in enumerate(mine.response.tolist()):
            q = (zs[i] / tau).log_softmax(-1)
            ce = ce - zs[i].log_softmax(-1)[y]
            if i in pairs:
                p = target(zt[pairs[i]], len(q), tau, collisions)
                some = p > 0
                kd = kd + (p[some] * (p[some].log() - q[some])).sum()
            else:
                kd = kd - q[y]
        kept, tokens = kept + len(pairs), tokens + mine.response.size
    assert 20 < kept < tokens - 20
    divisor = len(made.examples) if "normalize" in options else tokens
    expected = 0.3 * ce / tokens + 0.7 * kd / divisor
    parameters = list(made.student.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    parts = made.loss(made.batch(chunk_rows=9))
    assert float(parts.kd[0]) == pytest.approx(float(kd.detach()), rel=1e-9)
    assert float(parts.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    for found, gradient in zip(torch.autograd.grad(parts.loss, parameters), wanted, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-11)
    assert parts.diagnostics["targets from the teacher"][0] == kept
    confirmed, links = parts.diagnostics["links that bytes confirm"].tolist()
    assert 0 < confirmed <= links


@pytest.mark.parametrize("collisions", ["max", "dskd"])
@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([(1, 1)], id="one token"),
        pytest.param([(20, 1)], id="twenty tokens for one"),
        pytest.param([(1, 1), (1, 20), (20, 20), (1, 1), (20, 1), (1, 1), (2, 1), (1, 1)], id="all kinds"),
    ],
)
@pytest.mark.parametrize("in_order", [True, False])
def test_groups_of_any_size_over_padded_vocabularies_equal_loops(
    groups: list[tuple[int, int]], collisions: str, in_order: bool
) -> None:
    """Heads have columns that no token uses; of the 1-1 groups every other one holds tokens that the map joins."""
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    method = MinED(collisions=collisions, temperature=2.0)
    method.prepare(TokenizerPair(VOCABULARIES[STUDENT], VOCABULARIES["cross"]))
    tokens = [torch.from_numpy(random.integers(3, 90, sum(sizes))) for sizes in zip(*groups, strict=True)]
    number = [torch.arange(len(groups)).repeat_interleave(torch.tensor(sizes)) for sizes in zip(*groups, strict=True)]
    pairs: dict[int, int] = {}
    for group, sizes in enumerate(groups):
        i, j = (int((side == group).nonzero()[0]) for side in number)
        if sizes == (1, 1):
            tokens[0][i] = MAPS_OF[collisions][int(tokens[1][j])] if group % 2 == 0 else 5
            if MAPS_OF[collisions][int(tokens[1][j])] == int(tokens[0][i]):
                pairs[i] = j
    assert pairs or len(groups) == 1
    sides, rows = [], []
    for role, own, group in zip((STUDENT, "cross"), tokens, number, strict=True):
        index = torch.arange(len(own)) if in_order else torch.randperm(len(own) + 2, generator=generator)[: len(own)]
        size = len(own) + (0 if in_order else 2), len(VOCABULARIES[role]) + 4
        logits = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_(role == STUDENT)
        sides.append(Side(logits, own, index, group, own, in_order))
        rows.append(logits[index])
    expected = torch.zeros((), dtype=torch.float64)
    for i, y in enumerate(tokens[0].tolist()):
        q = (rows[0][i] / 2).log_softmax(-1)
        if i in pairs:
            p = target(rows[1][pairs[i]], len(q), 2.0, collisions)
            expected = expected + (p[p > 0] * (p[p > 0].log() - q[p > 0])).sum()
        else:
            expected = expected - q[y]
    sums = method.loss(AlignedChunk(*sides, len(groups)))
    assert float(sums.kd.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    found, wanted = (torch.autograd.grad(value, sides[0].logits)[0] for value in (3 * sums.kd, 3 * expected))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    assert float(sums.diagnostics["targets from the teacher"][0]) == len(pairs)


def test_float32_and_bfloat16_rows_of_the_teacher() -> None:
    """Float32 within 1e-5 of float64; a teacher in bfloat16 is rounded once, where its logits are."""
    method = MinED()
    method.prepare(TokenizerPair(VOCABULARIES[STUDENT], VOCABULARIES["cross"]))
    generator = torch.Generator().manual_seed(0)
    number, own = torch.arange(30), torch.arange(30) + 5
    named = torch.tensor(MAP)[own]
    logits = [
        5 * torch.randn(30, len(VOCABULARIES[role]), generator=generator, dtype=torch.float64) for role in FAMILIES
    ]
    values = []
    for dtypes in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float32, torch.bfloat16)):
        sides = [
            Side(z.to(d), t, number, number, t, True) for z, d, t in zip(logits, dtypes, (named, own), strict=True)
        ]
        values.append(float(method.loss(AlignedChunk(*sides, 30)).kd))
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert values[2] == pytest.approx(values[0], rel=2e-2)


# --- collisions -------------------------------------------------------------------------------------------------------

OURS = by_hand([b"</s>", b"ab", b"xyz", b"q"], {0}, eos=0)
THEIRS = by_hand([b"<eos>", b"abb", b"ab", b"xy", b"ac", b"xz"], {0}, eos=0)  # abb, ab, ac reach ab; xy, xz reach xyz
OURS, THEIRS = (replace(v, pieces=tuple(map(bytes.decode, v.token_bytes))) for v in (OURS, THEIRS))
LOGITS = torch.tensor([[1.0, 0.5, 2.0, -1.0, 3.0, 0.7, 9.0]], dtype=torch.float64)  # the last column is no token


@pytest.mark.parametrize(("collisions", "counts"), [("max", [1.0, 2.0, 0.7]), ("dskd", [1.0, 0.5, -1.0])])
def test_collisions_by_hand(collisions: str, counts: list[float]) -> None:
    """What spells "ab" counts, though "ac" is likelier; of "xy" and "xz", which spell nothing, the likelier. In DSKD
    the first of the file.
    """
    method = MinED(collisions=collisions, temperature=2.0)
    method.prepare(TokenizerPair(OURS, THEIRS))
    assert method.student_of_teacher.tolist() == [0, 1, 1, 2, 1, 2]
    zs = torch.tensor([[0.3, -0.2, 0.1, 0.7, 0.0]], dtype=torch.float64, requires_grad=True)
    one, zero = torch.tensor([1]), torch.zeros(1, dtype=torch.int64)
    sums = method.loss(
        AlignedChunk(Side(zs, one, zero, zero, one, True), Side(LOGITS, zero, zero, zero, torch.tensor([2]), True), 1)
    )
    p = (torch.tensor(counts, dtype=torch.float64) / 2).softmax(-1)
    q = (zs[0] / 2).softmax(-1)
    expected = (p * (p / q[:3]).log()).sum()
    assert float(sums.kd.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    mass, kept = sums.diagnostics["teacher mass covered"]
    whole = LOGITS[0].exp().sum()
    assert float(mass) == pytest.approx(float(torch.tensor(counts, dtype=torch.float64).exp().sum() / whole), rel=1e-12)
    assert float(kept) == 1  # type: ignore[arg-type]


def target_logits(pair: TokenizerPair, collisions: str = "max") -> tuple[dict[int, float], Tensor]:
    """Logit of each student token that is reached, of a teacher's row whose logits are all different."""
    method = MinED(collisions=collisions)
    method.prepare(pair)
    row = torch.randn(1, len(pair.teacher), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mapped = method._mapped(row, torch.zeros(1, dtype=torch.int64))[0]
    return dict(zip(method.tables.on(row.device)["columns"].tolist(), mapped.tolist(), strict=True)), row[0]


@pytest.mark.parametrize("family", ["byte_fallback", "unigram"])
def test_a_token_that_both_spell_keeps_the_teachers_logit(family: str) -> None:
    """Where the lowest id counted, 64 of 387 columns had another token's: "0" that of ``<0x30>``, " the" of " th"."""
    teacher = Vocabulary.of(tiny.tokenizer(family).backend_tokenizer, family, (2,))
    found, row = target_logits(TokenizerPair(VOCABULARIES[STUDENT], teacher))
    ours = {spelling: i for i, spelling in enumerate(VOCABULARIES[STUDENT].token_bytes) if i > 2}
    fallback = teacher.kinds == TokenKind.FALLBACK
    spelled = {s: t for t, s in enumerate(teacher.token_bytes) if t > 2 and fallback[t]}
    spelled |= {s: t for t, s in enumerate(teacher.token_bytes) if t > 2 and not fallback[t]}
    alike = ours.keys() & spelled.keys()
    assert len(alike) > 300
    assert {s for s in alike if found[ours[s]] != float(row[spelled[s]])} == set()
    lowest = {
        s: next(t for t, named in enumerate(nearest_map(teacher, VOCABULARIES[STUDENT])) if named == ours[s])
        for s in alike
    }
    assert sum(lowest[s] != spelled[s] for s in alike) >= 60  # what this test would have found before


def test_at_every_position_with_equal_bytes_the_target_gives_the_realised_token_the_teachers_logit() -> None:
    """Of whole responses: 1-1 positions by bytes, the target's logit against the teacher's own."""
    made = contract.bench(MinED())
    seen = 0
    for aligned in made.examples:
        mine, other = (aligned.example.sides[role] for role in FAMILIES)
        rows = response_rows(made.teacher, other).detach()
        mapped = made.method._mapped(rows, torch.arange(len(rows)))
        columns = made.method.tables.on(rows.device)["columns"].tolist()
        starts = [
            dict(zip(zip([0, *side.ends], side.ends, strict=False), range(99999), strict=False))
            for side in (mine, other)
        ]
        for span in starts[0].keys() & starts[1].keys():
            i, j = (start[span] for start in starts)
            token = int(mine.response[i])
            spelled = (
                VOCABULARIES[STUDENT].token_bytes[token],
                VOCABULARIES["cross"].token_bytes[int(other.response[j])],
            )
            if spelled[0] == spelled[1]:
                assert float(mapped[j, columns.index(token)]) == float(rows[j, int(other.response[j])])
                seen += 1
    assert seen > 30


def test_dskd_maps_pieces_as_they_are_written() -> None:
    """``<0x30>`` is a string of six characters there; a sentencepiece space reads as the student's."""
    there = dict(zip(VOCABULARIES["cross"].pieces, MAPS_OF["dskd"], strict=True))
    ours = dict(zip(VOCABULARIES[STUDENT].pieces, range(len(VOCABULARIES[STUDENT])), strict=True))
    assert there["▁the"] == ours["Ġthe"]
    assert there["0"] == ours["0"]
    for piece in ("▁th", "def", "<0x30>", "▁+"):
        wanted = piece.replace("▁", "Ġ")
        distances = [
            Levenshtein.distance(wanted, other or "") if i > 2 else 99
            for i, other in enumerate(VOCABULARIES[STUDENT].pieces)
        ]
        assert there[piece] == distances.index(min(distances)), piece


@pytest.mark.parametrize(
    ("student", "teacher", "kept"),
    [
        pytest.param([1], [2], 1, id="the same token"),
        pytest.param([1], [4], 1, id="another token that the map sends there"),
        pytest.param([2], [2], 0, id="linked, but another token by the map"),
        pytest.param([1, 3], [2], 1, id="two student tokens for one: each has one link"),
        pytest.param([1], [2, 4], 0, id="two teacher tokens for one"),
        pytest.param([1, 2, 0], [2, 3, 0], 3, id="ends of a response, whatever their names"),
    ],
)
def test_which_positions_have_the_teachers_distribution(student: list[int], teacher: list[int], kept: int) -> None:
    method = MinED()
    method.prepare(TokenizerPair(OURS, THEIRS))
    ids = [np.asarray(side, dtype=np.int64) for side in (student, teacher)]
    groups = method.align(AlignedResponse(*ids, *ids))  # bytes only decide what the notes say
    sides = []
    for tokens, index, group in zip(
        ids, (groups.student_index, groups.teacher_index), (groups.student_group, groups.teacher_group), strict=True
    ):
        rows = torch.zeros(tokens.size, 6, dtype=torch.float64, requires_grad=tokens is ids[0])
        own = torch.from_numpy(tokens)
        in_order = index.tolist() == list(range(tokens.size))
        sides.append(Side(rows, own, torch.from_numpy(index), torch.from_numpy(group), own[index], in_order))
    sums = method.loss(AlignedChunk(sides[0], sides[1], groups.count))
    assert float(sums.diagnostics["targets from the teacher"][0]) == kept
    assert torch.isfinite(sums.kd)


# --- released ---------------------------------------------------------------------------------------------------------


def test_released_moves_nothing() -> None:
    """Loss and gradient are the cross-entropy's, though the term has a value."""
    made = contract.bench(MinED(fidelity="released"))
    parts = made.loss(made.batch())
    parameters = list(made.student.parameters())
    found = torch.autograd.grad(parts.loss, parameters)
    assert float(parts.kd[0]) != 0
    assert float(parts.kd_gradient[0]) == 0
    tokens = sum(e.example.sides[STUDENT].response.size for e in made.examples)
    ce = sum(
        -response_rows(made.student, side).log_softmax(-1)[torch.arange(side.response.size), side.response].sum()
        for side in (e.example.sides[STUDENT] for e in made.examples)
    )
    wanted = torch.autograd.grad(0.3 * ce / tokens, parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_released_value_is_the_teacher_against_itself() -> None:
    """Student ids are taken for columns of the teacher's; 0 and what the teacher has no column for are masked."""
    method = MinED(fidelity="released", temperature=2)
    method.prepare(test_cdm.PAIR)
    made = test_cdm.chunk(8, seed=1)
    there, _ = test_cdm.static_maps("nearest")
    size = len(test_cdm.TEACHER)
    total = 0.0
    for row in made.teacher.logits[:, :size]:
        a = torch.stack([row[s] if 0 < s < size else torch.tensor(-1e4, dtype=torch.float64) for s in there])
        log_p, log_q = row.log_softmax(-1), (a / 2).log_softmax(-1)
        total += float((log_p.exp() * (4 * log_p - log_q)).sum())
    sums = method.loss(made)
    assert not sums.kd.requires_grad
    assert float(sums.kd) == pytest.approx(total / (8 * size), rel=1e-10)
    masked = sum(not 0 < s < size for s in there)
    part, whole = sums.diagnostics["columns masked"]
    assert masked > 0
    assert float(part / whole) == pytest.approx(masked / size)  # type: ignore[operator]


def test_only_the_released_form_warns_its_reader() -> None:
    released = MinED(fidelity="released", ce_weight=0.5)
    assert "moves nothing" in released.caveat
    assert "0.5 times the cross-entropy" in released.caveat
    assert (released.rows, released.normalize) == (Rows.AFTER, "samples")
    assert MinED().caveat == ""
