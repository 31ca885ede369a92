"""CDM: the map and the loss against plain loops over positions and tokens, in float64; entropies too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from methods.base import AlignedChunk, Side
from methods.cdm import CDM
from methods.library import warping
from methods.library.alignment import AlignedResponse, Groups
from methods.library.cdm_released import nested_means
from methods.library.contextual import _may_be_near
from methods.library.maps import MAPS, UNMAPPED
from methods.library.vocabulary import TokenizerPair, Vocabulary
from methods.library.warping import token_texts
from tests import tiny
from tests.methods import contract
from tests.methods.library.test_warping import by_hand

STUDENT, TEACHER = (Vocabulary.of(tiny.tokenizer(f).backend_tokenizer, f, (2,)) for f in ("byte_level", "unigram"))
PAIR = TokenizerPair(STUDENT, TEACHER)
WHERE = pytest.mark.parametrize("where", ["host", "device"])
"""Whether pairs are measured as on the CPU, or as where logits are on a GPU."""


def stay(where: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "methods.library.contextual.stays_on_device", lambda found: where == "device" and isinstance(found, Tensor)
    )


def toy(seed: int) -> TokenizerPair:
    """Forty short strings a side that are much alike, tokens of spaces and id 0 among them."""
    random = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        texts = {"".join(random.choice(list("aab  "), random.integers(1, 5))): None for _ in range(60)}
        spelled = [text.encode() for text in list(texts)[:39]]
        sides.append(by_hand([*spelled, b"</s>"], {len(spelled)}, eos=len(spelled)))
    return TokenizerPair(*sides)


def chunk(positions: int, seed: int = 0, padding: int = 3, pair: TokenizerPair = PAIR) -> AlignedChunk:
    """Random rows, one a side and group; the heads have columns that no token uses."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for vocabulary in (pair.student, pair.teacher):
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


def static_maps(kind: str, pair: TokenizerPair = PAIR) -> tuple[list[int], list[int]]:
    """Teacher -> student and student -> teacher."""
    return MAPS[kind](pair.teacher, pair.student).tolist(), MAPS[kind](pair.student, pair.teacher).tolist()


def text_maps(kind: str, pair: TokenizerPair) -> tuple[list[int], list[int]]:
    """The static maps without tokens that are a space alone."""
    blank = [[spelling == b" " for spelling in side.token_bytes] for side in (pair.teacher, pair.student)]
    there, back_again = static_maps(kind, pair)
    return (
        [UNMAPPED if blank[0][t] or (s != UNMAPPED and blank[1][s]) else s for t, s in enumerate(there)],
        [UNMAPPED if blank[1][s] or (t != UNMAPPED and blank[0][t]) else t for s, t in enumerate(back_again)],
    )


def partners(
    source: list[int],
    target: list[int],
    static: list[int],
    exact: list[int],
    texts: list[tuple[str, ...]],
    theta: float,
) -> list[int]:
    """Partners of one position's source tokens, one-to-one.

    Static ones first, exact before others, else the likeliest; then greedily the nearest free pair below θ.
    """
    mapped: dict[int, int] = {}
    for s in sorted(source, key=lambda s: static[s] != exact[s]):
        if static[s] != UNMAPPED and static[s] not in mapped.values():
            mapped[s] = static[s]
    taken = set(mapped.values())
    pairs = [(distance(texts[0][s], texts[1][t]), i, j) for i, s in enumerate(source) for j, t in enumerate(target)]
    for d, i, j in sorted(pairs):
        if d < theta and source[i] not in mapped and target[j] not in taken:
            mapped[source[i]] = target[j]
            taken.add(target[j])
    return [mapped.get(s, UNMAPPED) for s in source]


def described(
    made: AlignedChunk, k: int, kind: str = "exact", theta: float = 0.3, pair: TokenizerPair = PAIR, tau: float = 2.0
) -> Tensor:
    there, back_again = zip(text_maps(kind, pair), text_maps("exact", pair), strict=True)
    texts = [token_texts(pair.teacher), token_texts(pair.student)]
    total = torch.zeros((), dtype=torch.float64)
    for zs, zt in zip(made.student.logits, made.teacher.logits, strict=True):
        ours, theirs = top(zs, len(pair.student), k), top(zt, len(pair.teacher), k)
        to_student = partners(theirs, ours, *there, texts, theta)
        to_teacher = partners(ours, theirs, *back_again, texts[::-1], theta)
        ahead = [(t, s) for t, s in zip(theirs, to_student, strict=True) if s >= 0]
        back = [(t, s) for s, t in zip(ours, to_teacher, strict=True) if t >= 0]
        if ahead:
            p, q = ((z[list(ids)] / tau).softmax(-1) for z, ids in zip((zt, zs), zip(*ahead, strict=True), strict=True))
            total = total + tau**2 * (p * (p / q).log()).sum()
        if back:
            p, q = ((z[list(ids)] / tau).softmax(-1) for z, ids in zip((zt, zs), zip(*back, strict=True), strict=True))
            total = total + tau**2 * (q * (q / p).log()).sum()
    return total


@WHERE
@pytest.mark.parametrize(
    ("k", "kind"), [(1, "exact"), (7, "exact"), (60, "exact"), (100, "exact"), (60, "nearest"), (60, "prefix")]
)
def test_described_equals_loops_over_positions(k: int, kind: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stay(where, monkeypatch)
    method = CDM(temperature=2, k=k, static_map=kind)
    method.prepare(PAIR)
    made = chunk(9, seed=k)
    assert_equal(made, method.loss(made).kd, described(made, k, kind))


def assert_equal(made: AlignedChunk, value: Tensor, expected: Tensor) -> None:
    """Values, and gradients at the student's logits."""
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    (gradient,), (wanted,) = (torch.autograd.grad(x, made.student.logits) for x in (value, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-13)


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
        method = CDM(temperature=2, k=100, theta=theta)
        method.prepare(PAIR)
        part, whole = method.loss(chunk(9)).diagnostics["columns masked"]
        covered.append(float(part / whole))  # type: ignore[operator]
    assert covered[1] < covered[0]


def response_map(
    source: list[list[int]],
    target: list[list[int]],
    static: list[int],
    texts: list[tuple[str, ...]],
    theta: float,
) -> dict[int, int]:
    """The released map: one for the response, written over position by position; id 0 means unmapped."""
    fixed = {i: s for i, s in enumerate(static) if s not in (0, UNMAPPED)}
    unmapped = {i for i in range(len(static)) if i not in fixed}  # source ids, taken out of target ids
    mapped = dict(fixed)
    for ours, theirs in zip(source, target, strict=True):
        left = [j for j in theirs if j not in unmapped]
        for i in ours:
            if i not in fixed and left:
                near = min(left, key=lambda j: blank_distance(texts[0][i], texts[1][j]))
                if near != 0 and blank_distance(texts[0][i], texts[1][near]) < theta:
                    mapped[i] = near
    return mapped


def blank_distance(left: str, right: str) -> float:
    return distance(left, right) if left or right else 0.0


def released_maps(
    theirs: list[list[int]], ours: list[list[int]], kind: str, theta: float, pair: TokenizerPair
) -> tuple[dict[int, int], dict[int, int]]:
    """Teacher -> student, and student -> teacher among the ids that the code has left of the teacher's."""
    static, _ = static_maps(kind, pair)
    turned = [UNMAPPED] * len(pair.student)
    for t, s in enumerate(static):
        if s > 0:
            turned[s] = t
    texts = [token_texts(pair.teacher), token_texts(pair.student)]
    ahead = response_map(theirs, ours, static, texts, theta)
    left = [[t if t in ahead else 0 for t in row] for row in theirs]
    return ahead, response_map(ours, left, turned, texts[::-1], theta)


def released(
    made: AlignedChunk, k: int, kind: str = "exact", theta: float = 0.3, pair: TokenizerPair = PAIR, tau: float = 2.0
) -> Tensor:
    student, teacher = made.student.logits, made.teacher.logits
    ours, theirs = [top(z, len(pair.student), k) for z in student], [top(z, len(pair.teacher), k) for z in teacher]
    ahead, back = released_maps(theirs, ours, kind, theta, pair)
    total, masked = torch.zeros((), dtype=torch.float64), torch.tensor(-1e4, dtype=torch.float64)
    for row, (zs, zt) in enumerate(zip(student, teacher, strict=True)):
        t1 = [zt[t] if t in ahead and t != 0 else masked for t in theirs[row]]
        s1 = [zs[ahead[t]] if t in ahead else masked for t in theirs[row]]
        s2 = [zs[s] if s in back and s != 0 else masked for s in ours[row]]
        t2 = [zt[back[s]] if s in back else masked for s in ours[row]]
        p = torch.stack(t1 + s2).log_softmax(-1)
        q = (torch.stack(s1 + t2) / tau).log_softmax(-1)
        total = total + (p.exp() * (tau**2 * p - q)).sum()
    return total / (len(student) * 2 * k)


@pytest.mark.parametrize(("k", "kind"), [(5, "exact"), (60, "exact"), (60, "nearest"), (60, "prefix")])
def test_released_equals_loops_over_positions(k: int, kind: str) -> None:
    method = CDM(temperature=2, k=k, fidelity="released", static_map=kind)
    method.prepare(PAIR)
    made = chunk(8, seed=k)
    assert_equal(made, method.loss(made).kd, released(made, k, kind))


@WHERE
@pytest.mark.parametrize("fidelity", ["described", "released"])
@pytest.mark.parametrize("kind", ["exact", "nearest", "prefix"])
def test_both_equal_loops_where_tokens_are_much_alike(
    fidelity: str, kind: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many near tokens, ties, blanks and id 0: what the vocabularies above have little of."""
    stay(where, monkeypatch)
    formula = {"described": described, "released": released}[fidelity]
    for seed in range(25):
        pair = toy(seed)
        method = CDM(temperature=2, k=12, fidelity=fidelity, static_map=kind, theta=0.45)
        method.prepare(pair)
        made = chunk(6, seed, pair=pair)
        assert_equal(made, method.loss(made).kd, formula(made, 12, kind, 0.45, pair))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("theta", [0.1, 0.29, 0.3, 0.5, 1.0])
def test_no_near_pair_is_ruled_out(theta: float, autocast: bool) -> None:
    """Of texts of few and of many characters, repeated ones and those of one class, blanks among them."""
    random = np.random.default_rng(0)
    texts = ["", "a", "aaaaaaaa", "aaaaaaaab", "北京", "京北", "!aA\x01"]
    texts += ["".join(random.choice(list("abA!c京"), random.integers(1, 9))) for _ in range(150)]
    letters = "".join(map(chr, range(0x40, 0x60)))  # one of each class
    texts += [letters[:27], letters + letters[:17]]  # 22 edits of 76 characters, just below 0.29: bf16 rounds 34.83 off
    vocabulary = by_hand([text.encode() for text in texts], set(), eos=0)
    method = CDM()
    method.prepare(TokenizerPair(vocabulary, vocabulary))
    ids = torch.arange(len(texts))[None]
    every = torch.ones_like(ids, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = _may_be_near(ids, ids, every, every, method.to_student, theta)[0]
    near = torch.tensor([[blank_distance(left, right) < theta for right in texts] for left in texts])
    assert (found | ~near).all()
    some = torch.arange(len(texts))[None] % 3 == 0
    assert torch.equal(_may_be_near(ids, ids, some, ~some, method.to_student, theta)[0], found & some.T & ~some)


@pytest.mark.parametrize("fidelity", ["described", "released"])
def test_a_second_training_with_a_pair_starts_with_the_distances_of_the_first(
    fidelity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It measures none of them again, whatever its row, and computes what it would with none, digit by digit."""
    measured: list[int] = []
    plain = warping.cpdist

    def spy(left: list[str], right: list[str], **settings: Any) -> Any:
        measured.append(len(left))
        return plain(left, right, **settings)

    monkeypatch.setattr(warping, "cpdist", spy)

    def trained(pair: TokenizerPair, **options: Any) -> tuple[float, Tensor, int]:
        method = CDM(temperature=2, fidelity=fidelity, k=10, **options)
        method.prepare(pair)
        made = chunk(12, pair=pair)
        before = sum(measured)
        kd = method.loss(made).kd
        (gradient,) = torch.autograd.grad(kd, made.student.logits)
        return float(kd.detach()), gradient, sum(measured) - before

    pair = toy(0)
    first, second, alone = trained(pair), trained(pair), trained(toy(0))
    narrower = trained(pair, theta=0.2)
    assert first[2] > 0
    assert (second[2], narrower[2], alone[2]) == (0, 0, first[2])
    assert first[0] == second[0] == alone[0]
    assert torch.equal(first[1], second[1])
    assert narrower[0] == trained(toy(0), theta=0.2)[0] != first[0]


def test_most_pairs_of_real_tokens_are_ruled_out() -> None:
    method = CDM()
    method.prepare(PAIR)
    ids = [torch.arange(len(v))[None] for v in (TEACHER, STUDENT)]
    flags = [torch.ones_like(i, dtype=torch.bool) for i in ids]
    found = _may_be_near(*ids, *flags, method.to_student, 0.3)
    assert 0 < found.sum() < 0.2 * found.numel()  # bytes that are no character look alike


@pytest.mark.parametrize("kind", ["exact", "nearest"])
def test_members_may_be_any_rows_in_any_order(kind: str) -> None:
    """Some rows in no group, some in two: the same as rows that were gathered before."""
    made = chunk(9, seed=3)
    index = torch.tensor([4, 0, 8, 4, 2]), torch.tensor([1, 1, 7, 0, 3])
    number, nothing = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    sides = [
        Side(s.logits, s.targets, i, number, nothing, False)
        for s, i in zip((made.student, made.teacher), index, strict=True)
    ]
    plain = [
        Side(s.logits[i], nothing, number, number, nothing, True)
        for s, i in zip((made.student, made.teacher), index, strict=True)
    ]
    method = CDM(temperature=2, k=60, static_map=kind)
    method.prepare(PAIR)
    sums = [method.loss(AlignedChunk(*two, 5)) for two in (sides, plain)]
    assert_equal(made, sums[0].kd, sums[1].kd)
    for name, (part, _) in sums[0].diagnostics.items():
        assert float(part) == pytest.approx(float(sums[1].diagnostics[name][0]), rel=1e-12)


def test_mass_is_that_of_the_mapped_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows the softmax takes at once."""
    method = CDM(temperature=2, k=7, theta=0.0)
    method.prepare(PAIR)
    made = chunk(9)
    there, _ = static_maps("exact")
    expected = sum(
        float(row.softmax(-1)[t])
        for row in made.teacher.logits
        for t in top(row, len(TEACHER), 7)
        if there[t] != UNMAPPED
    )
    for entries in (1, 2000, 1 << 22):
        monkeypatch.setattr("methods.library.contextual._ENTRIES_AT_ONCE", entries)
        part, _ = method.loss(made).diagnostics["teacher mass covered"]
        assert 0 < float(part) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("form", ["one_to_one", "first", "mean", "released"])
@pytest.mark.parametrize("alignment", ["bytes", "dtw"])
@pytest.mark.parametrize("sizes", [(1, 1), (20, 1), (1, 20), (20, 20)])
def test_pieces_of_any_size_equal_loops(form: str, alignment: str, sizes: tuple[int, int]) -> None:
    """A response of one token, or of many that are one on the other side, between heads with columns of no token."""
    options = {"fidelity": "released"} if form == "released" else {"pieces": form}
    spelled = [b"a" * 20, b"aa", b"ab", b"b", b"a"]
    vocabulary = by_hand([b"</s>", *spelled, b" ", b"abb"], {0}, eos=0)
    pair = TokenizerPair(vocabulary, replace(vocabulary))
    method = CDM(temperature=2, alignment=alignment, k=5, **options)
    method.prepare(pair)
    ids = [np.asarray([1] if size == 1 else [5] * size) for size in sizes]
    ends = [np.asarray([20]) if size == 1 else np.arange(1, 21) for size in sizes]
    flat = [np.ones(size) for size in sizes]
    groups = method.align(AlignedResponse(*ids, *ends, student_entropy=flat[0], teacher_entropy=flat[1]))
    lists = groups.to_lists()
    generator = torch.Generator().manual_seed(1)
    logits = [
        3 * torch.randn(size + 1, len(vocabulary) + 3, generator=generator, dtype=torch.float64) for size in sizes
    ]
    logits[0].requires_grad_()
    sides = [
        Side(z, torch.zeros(len(z)), *map(torch.from_numpy, where), torch.zeros(where[0].size), False)
        for z, where in zip(
            logits,
            ((groups.student_index, groups.student_group), (groups.teacher_index, groups.teacher_group)),
            strict=True,
        )
    ]
    whole = ([list(range(sizes[0]))], [list(range(sizes[1]))])
    if form == "one_to_one" and sizes[0] != sizes[1]:
        assert groups.count == 0  # the engine calls no loss
        return
    if form == "first":  # by time warping and by bytes it starts both sides
        assert lists[0][0] == lists[1][0] == [0]
    elif sizes != (20, 20) and (alignment == "bytes" or form != "released"):
        assert lists == whole
    plain = [torch.stack([z[i].mean(0) for i in side]) for z, side in zip(logits, lists, strict=True)]
    number = torch.arange(groups.count)
    alone = [Side(z, number, number, number, number, True) for z in plain]
    formula = released if form == "released" else described
    made = AlignedChunk(sides[0], sides[1], groups.count)
    assert_equal(made, method.loss(made).kd, formula(AlignedChunk(*alone, groups.count), 5, pair=pair))


def test_released_groups_are_means_of_means() -> None:
    """Path (teacher, student): (0,0) (0,1) (1,2) (2,2) (3,2) (3,3): lists [0,1], [2], [2], [2,3]."""
    teacher, student = np.array([0, 0, 1, 2, 3, 3]), np.array([0, 1, 2, 2, 2, 3])
    groups = nested_means(teacher, student, {})
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
    method = CDM(pieces="first")
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
        align = made.method.align_all

        def spy(responses: Sequence[AlignedResponse], align=align, seen=seen) -> list[Groups]:  # type: ignore[no-untyped-def]
            seen.extend(responses)
            return align(responses)

        monkeypatch.setattr(made.method, "align_all", spy)
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


def test_a_space_alone_teaches_nobody_to_write_one() -> None:
    """ "▁", "=" against " =": the teacher's "▁" is the likeliest by far, and the student's " " has no part in the loss.

    Where the first rows of a piece were compared, it was pulled up: the gradient at the student's " " was -3.12.
    """
    student, teacher = by_hand([b"</s>", b" ", b" =", b" a"], {0}, 0), by_hand([b"</s>", b" ", b"=", b" a"], {0}, 0)
    response = AlignedResponse(
        np.array([2]),
        np.array([1, 2]),
        np.array([2]),
        np.array([1, 2]),
        student_entropy=np.ones(1),
        teacher_entropy=np.ones(2),
    )
    rows = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]]).double()
    found = {}
    for pieces in ("one_to_one", "first", "mean"):
        method = CDM(temperature=2, pieces=pieces, k=4)
        method.prepare(TokenizerPair(student, teacher))
        assert method.to_student.tables.on(rows[0].device)["static"].tolist() == [0, UNMAPPED, UNMAPPED, 3]
        groups = method.align(response)
        if groups.count:
            logits = rows[0].clone().requires_grad_()
            kd = method.loss(AlignedChunk.of(groups, logits, rows[1], response.student_ids, response.teacher_ids)).kd
            (gradient,) = torch.autograd.grad(kd, logits)
            assert gradient[0, 1] == 0
            found[pieces] = groups.to_lists()
    assert found == {"first": ([[0]], [[0]]), "mean": ([[0]], [[0, 1]])}


def test_the_report_names_what_is_compared() -> None:
    assert CDM().options.pieces == "one_to_one"
    assert "where both sides have one" in CDM().caveat
    assert CDM(pieces="mean").caveat == ""
    assert "1/200 of a KL per token" in CDM(fidelity="released").caveat
