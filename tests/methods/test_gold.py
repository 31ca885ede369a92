"""GOLD, and ULD over byte groups: the whole engine against plain loops over tokens and groups, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from harness.data.tokens import STUDENT
from methods.base import AlignedChunk, Method, Need, Rows, Side
from methods.gold import GOLD, Columns
from methods.library.alignment import AlignedResponse, Groups
from methods.library.maps import UNMAPPED, exact_map
from methods.library.projection import weighted_map
from methods.library.vocabulary import TokenizerPair, Vocabulary
from methods.uld import ULD
from tests import tiny
from tests.methods import contract

STUDENT_VOCABULARY, TEACHER_VOCABULARY = (
    Vocabulary.of(tiny.tokenizer(family).backend_tokenizer, family, (2,)) for family in ("byte_level", "byte_fallback")
)
PAIR = TokenizerPair(STUDENT_VOCABULARY, TEACHER_VOCABULARY)


H_KL: dict[str, Any] = {"match": "weight", "merge": "mean_log", "beta": 0, "matched_weight": 1, "unmatched_weight": 1}

# --- the formula, by loops --------------------------------------------------------------------------------------------


def walk(ours: list[int], theirs: list[int]) -> list[tuple[list[int], list[int]]]:
    """Advance the side that ends first; a group closes where both end."""
    groups, s, t = [], [], []
    i = j = 0
    while i < len(ours) and j < len(theirs):
        ends = ours[i], theirs[j]
        if ends[0] <= ends[1]:
            s.append(i)
            i += 1
        if ends[1] <= ends[0]:
            t.append(j)
            j += 1
        if ends[0] == ends[1]:
            groups.append((s, t))
            s, t = [], []
    return groups


def merged(rows: Tensor, members: list[int], ids: list[int], how: str) -> Tensor:
    """Masses of one group; ``rows[i]`` belongs to token i."""
    if how in ("product", "mean_log"):
        joint = torch.stack([rows[i] for i in members]).prod(0)
        return joint / joint.sum() if how == "product" else joint ** (1 / len(members))
    kept, others = (members[-1], members[:-1]) if how == "bayesian" else (members[0], members[1:])
    mass = rows[kept]
    for i in others:
        mass = mass * rows[i, ids[i]].clamp(min=1e-8)
    return mass


def gjsd(s: Tensor, t: Tensor, beta: float) -> Tensor:
    s, t = s.clamp(min=1e-8), t.clamp(min=1e-8)
    if beta == 0:
        return (t * (t / s).log()).sum()
    if beta == 1:
        return (s * (s / t).log()).sum()
    m = (1 - beta) * s + beta * t
    return beta * (t * (t / m).log()).sum() + (1 - beta) * (s * (s / m).log()).sum()


def sorted_distance(s: Tensor, t: Tensor) -> Tensor:
    width = max(s.numel(), t.numel())
    s, t = (torch.nn.functional.pad(x, (0, width - x.numel())).sort(descending=True).values for x in (s, t))
    return (s - t).abs().sum()


def hybrid(s: Tensor, t: Tensor, options: Any) -> Tensor:
    """One group's loss; masses of the student and of the teacher."""
    by_weight = options.match == "weight"
    mapped = weighted_map(PAIR) if by_weight else exact_map(PAIR.teacher, PAIR.student, options.match)
    pairs = [(int(i), j) for j, i in enumerate(mapped) if i != UNMAPPED]
    if options.positions == "disagreement" and (int(s.argmax()), int(t.argmax())) in pairs:
        return s.sum() * 0
    ours, theirs = [i for i, _ in pairs], [j for _, j in pairs]
    rest = [sorted(set(range(side.numel())) - set(known)) for side, known in ((s, ours), (t, theirs))]
    if options.unmatched == "rest":
        p, q = (torch.cat([side[known], 1 - side[known].sum()[None]]) for side, known in ((s, ours), (t, theirs)))
        return gjsd(p, q, options.beta)
    share = len(pairs) / t.numel()
    w_m = share if options.matched_weight is None else options.matched_weight
    w_u = 1 - share if options.unmatched_weight is None else options.unmatched_weight
    return w_m * gjsd(s[ours], t[theirs], options.beta) + w_u * sorted_distance(s[rest[0]], t[rest[1]])


def by_loops(made: contract.Bench, method: Method) -> tuple[Tensor, int, int]:
    """KD sum, student response tokens and groups; both models run whole, a response at a time."""
    options = method.options
    released = options.fidelity == "released"
    total, tokens, count = torch.zeros((), dtype=torch.float64), 0, 0
    for aligned in made.examples:
        sides = [aligned.example.sides[role] for role in (STUDENT, "cross")]
        rows = []
        alone = options.student_temperature, options.teacher_temperature
        for side, model, own in zip(sides, (made.student, made.teacher), alone, strict=True):
            tau = options.temperature if own is None else own
            logits = model(input_ids=torch.from_numpy(side.sequence)[None]).logits[0]  # type: ignore[misc]
            first = side.prompt.size - (options.merge != "observed")
            rows.append((logits[first : first + side.response.size] / tau).softmax(-1))
        ids, ends = [side.response.tolist() for side in sides], [side.ends.tolist() for side in sides]
        groups = walk(*[e[:-1] for e in ends]) if released else walk(*ends)
        for s, t in groups:
            p, q = (merged(*part, options.merge) for part in zip(rows, (s, t), ids, strict=True))
            value = sorted_distance(p, q) if isinstance(method, ULD) else hybrid(p, q, options)
            total = total + (value / len(groups) if released else value)
        tokens, count = tokens + len(ids[0]), count + len(groups)
    return total, tokens, count


OPTIONS: list[Any] = [
    pytest.param(GOLD(), id="default"),
    pytest.param(GOLD(beta=0, matched_weight=1, unmatched_weight=1), id="blog"),
    pytest.param(GOLD(beta=1, merge="product", normalize="rows"), id="reverse product per group"),
    pytest.param(GOLD(beta=0.3, merge="observed", unmatched_weight=0.2), id="observed"),
    pytest.param(GOLD(match="string", temperature=2), id="string softened"),
    pytest.param(GOLD(positions="disagreement", beta=0), id="disagreement"),
    pytest.param(GOLD(fidelity="released"), id="released"),
    pytest.param(GOLD(fidelity="released", merge="bayesian", match="bytes", beta=0), id="released but bayesian"),
    pytest.param(GOLD(matched_weight=0.7, unmatched_weight=0), id="matched alone"),
    pytest.param(GOLD(matched_weight=0, positions="disagreement"), id="unmatched alone"),
    pytest.param(GOLD(temperature=0.5, student_temperature=2), id="a temperature for each"),
    pytest.param(GOLD(unmatched="rest"), id="rest"),
    pytest.param(GOLD(unmatched="rest", beta=1, positions="disagreement"), id="rest reverse disagreement"),
    pytest.param(GOLD(**H_KL), id="H-KL"),
    pytest.param(ULD(pairing="bytes"), id="uld"),
    pytest.param(ULD(pairing="bytes", temperature=3, teacher_temperature=0.8), id="uld softened"),
    pytest.param(ULD(pairing="bytes", merge="observed"), id="uld observed"),
    pytest.param(ULD(pairing="bytes", merge="product", normalize="samples"), id="uld product"),
]


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("padding", [(0, 0), (5, 11)], ids=["tight", "padded"])
def test_loss_and_gradient_equal_the_formula(method: Method, padding: tuple[int, int]) -> None:
    """Of every parameter of the student; logits may be wider than the tokenizer."""
    made = contract.bench(method)
    if any(padding):
        made.student = tiny.model("opt", len(PAIR.student) + padding[0], dtype=torch.float64)
        made.teacher = tiny.model("opt", len(PAIR.teacher) + padding[1], seed=1, dtype=torch.float64)
    total, tokens, count = by_loops(made, method)
    divisor = {"tokens": tokens, "rows": count, "samples": len(made.examples)}[method.normalize]
    made.objective = replace(made.objective, ce_weight=0.0)
    parts = made.loss(made.batch(chunk_rows=9))
    assert abs(float(parts.kd[0])) > 0.1
    assert float(parts.kd[0]) == pytest.approx(float(total.detach()), rel=1e-9)
    assert float(parts.loss.detach()) == pytest.approx(0.7 * float(total.detach()) / divisor, rel=1e-9)
    parameters = list(made.student.parameters())
    found = torch.autograd.grad(parts.loss, parameters)
    expected = torch.autograd.grad(0.7 * total / divisor, parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("matched", "value"),
    [
        ([0, -1, -1, -1, 2], -0.116845 + 0.419815 - 0.195585 + 0.063094),  # a and b
        ([0, 1, -1, -1, 2], -0.350819 - 0.248186),  # 201 with 2 too: no column of the student is left
    ],
    ids=["equal", "by weight"],
)
def test_h_kl_by_hand(matched: list[int], value: float) -> None:
    """(a, 201, b) against (a, 2, 0, 1, b), one group of one token over three and one of one over one.

    X-Token ends its sorted part with the shorter side, and GOLD counts all that the longer one has.
    """
    student = torch.tensor([[0, 1, -1], [1, 0, 0]], dtype=torch.float64)
    teacher = torch.tensor(
        [[0, 2, -1, 0, -1], [-1, 0, 2, 1, 0], [0, 0, 0, 2, -1], [1, 0, 0, 0, 0]], dtype=torch.float64
    )
    method = GOLD(**H_KL)
    method.prepare(PAIR)
    method.student_of_teacher = torch.tensor(matched)
    groups = Groups.from_lists([[0], [1]], [[0, 1, 2], [3]])
    chunk = AlignedChunk.of(groups, student, teacher, np.array([1, 0]), np.array([1, 2, 3, 0]))
    means = teacher.log_softmax(-1)[:3].mean(0).exp(), teacher.softmax(-1)[3]
    beyond = sum(float(row[1:4].sort().values[:2].sum()) for row in means) if matched[1] < 0 else 0.0
    assert float(method.loss(chunk).kd) == pytest.approx(value + beyond, abs=2e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_with_what_is_left_as_one_mass_no_group_is_negative(beta: float) -> None:
    """Where both sides have tokens of their own, and joint masses far from 1."""
    method = GOLD(unmatched="rest", beta=beta)
    method.prepare(PAIR)
    for sizes in ([(1, 1)], [(1, 3)], [(2, 1)], [(3, 2)]):
        assert float(method.loss(random_chunk(sizes)).kd) > -1e-6  # the floor under masses adds as much to their sum


# --- invariances ------------------------------------------------------------------------------------------------------


def random_chunk(sizes: list[tuple[int, int]], padding: int = 0, pair: TokenizerPair = PAIR) -> AlignedChunk:
    """Groups of the given sizes with random logits and tokens; each row belongs to a group."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for place, vocabulary in enumerate((pair.student, pair.teacher)):
        lengths = torch.tensor([size[place] for size in sizes])
        rows, width = int(lengths.sum()), len(vocabulary) + padding
        logits = 3 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
        tokens = torch.randint(len(vocabulary), (rows,), generator=generator)
        group = torch.repeat_interleave(torch.arange(len(sizes)), lengths)
        sides.append(Side(logits, tokens, torch.arange(rows), group, tokens, True))
    return AlignedChunk(sides[0], sides[1], len(sizes))


SIZES = [(1, 1), (1, 3), (2, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("method", OPTIONS)
def test_which_token_has_which_id_changes_nothing(method: Method) -> None:
    made = random_chunk(SIZES)
    method.prepare(PAIR)
    expected = method.loss(made)
    generator = torch.Generator().manual_seed(1)
    sides, vocabularies = [], []
    for side, vocabulary in ((made.student, PAIR.student), (made.teacher, PAIR.teacher)):
        order = torch.randperm(len(vocabulary), generator=generator)  # new id -> old id
        place = order.argsort()
        tokens = place[side.tokens]
        sides.append(Side(side.logits[:, order], place[side.targets], side.index, side.group, tokens, True))
        vocabularies.append(
            replace(
                vocabulary,
                token_bytes=tuple(vocabulary.token_bytes[i] for i in order),
                pieces=tuple(vocabulary.pieces[i] for i in order),
                kinds=vocabulary.kinds[order.numpy()],
                eos=tuple(int(place[i]) for i in vocabulary.eos),
            )
        )
    method.prepare(TokenizerPair(*vocabularies))
    found = method.loss(AlignedChunk(sides[0], sides[1], made.groups))
    assert float(found.kd) == pytest.approx(float(expected.kd), rel=1e-12)
    for name, (part, _) in expected.diagnostics.items():
        assert float(found.diagnostics[name][0]) == pytest.approx(float(part)), name


@pytest.mark.parametrize(
    "method", [m for m in OPTIONS if m.values[0].options.temperatures[0] == m.values[0].options.temperatures[1]]
)
def test_a_model_is_at_no_distance_from_itself_with_padded_logits(method: Method) -> None:
    """Padding is unmatched on both sides, and the same on both."""
    method.prepare(TokenizerPair(PAIR.student, PAIR.student))
    side = random_chunk([(1, 1)] * 6, padding=7).student
    for lengths in ([1] * 6, [2, 1, 3]):
        group = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        same = Side(side.logits, side.targets, side.index, group, side.tokens, True)
        assert abs(float(method.loss(AlignedChunk(same, same, len(lengths))).kd)) < 1e-12


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_with_one_tokenizer_there_is_no_floor(beta: float) -> None:
    """GKD's JSD has none. With one, at logits of spread 5 that know nothing of each other, the gradient was 53 %
    away where β is 0, and 35 % where it is 1.
    """
    generator = torch.Generator().manual_seed(0)
    size = len(PAIR.student)
    logits = [5 * torch.randn(200, size, generator=generator, dtype=torch.float64) for _ in range(2)]
    number, tokens = torch.arange(200), torch.full((200,), 7)
    logits[0].requires_grad_()
    chunk = AlignedChunk(*(Side(z, tokens, number, number, tokens, True) for z in logits), 200)
    found = {}
    for fidelity in ("described", "released"):
        method = GOLD(beta=beta, matched_weight=1, unmatched_weight=0, fidelity=fidelity)
        method.prepare(TokenizerPair(PAIR.student, PAIR.student))
        found[fidelity] = torch.autograd.grad(method.loss(chunk).kd, logits[0])[0]
    s, t = (z.log_softmax(-1) for z in logits)
    m = {0.0: s, 1.0: t}.get(beta, ((1 - beta) * s.exp() + beta * t.exp()).log())
    kl = (t.exp() * (t - m)).sum(), (s.exp() * (s - m)).sum()
    jsd = {0.0: kl[0], 1.0: kl[1]}.get(beta, beta * kl[0] + (1 - beta) * kl[1])
    (wanted,) = torch.autograd.grad(jsd, logits[0])
    torch.testing.assert_close(found["described"], wanted, rtol=1e-9, atol=1e-12)
    another = float((200 * found["released"] - wanted).norm() / wanted.norm())
    assert another == pytest.approx({0.0: 0.526, 0.5: 1.5e-5, 1.0: 0.349}[beta], rel=0.05)


@pytest.mark.parametrize("student_size", [300, 400])
def test_there_is_no_unmatched_part_where_one_side_has_no_unmatched_columns(student_size: int) -> None:
    """As in TRL: the tokens of 300 are all among those of 400, whichever is the student."""
    sizes = student_size, 700 - student_size
    pair = TokenizerPair(
        *[Vocabulary.of(tiny.tokenizer("byte_level", n).backend_tokenizer, str(n), (2,)) for n in sizes]
    )
    method = GOLD(matched_weight=0, unmatched_weight=1)
    method.prepare(pair)
    made = random_chunk([(1, 1), (1, 1)], pair=pair)
    assert float(method.loss(made).kd) == 0
    assert float(method.loss(random_chunk([(1, 1), (1, 1)], padding=1, pair=pair)).kd) > 0


def test_columns_by_hand() -> None:
    """Teacher's tokens 0, 1, 2 and a padding column; the student's head is narrower than its tokenizer."""
    columns = Columns.of(torch.tensor([2, UNMAPPED, 5]), student_width=4, teacher_width=4)
    assert columns.student_of_teacher.tolist() == [2, UNMAPPED, UNMAPPED, UNMAPPED]
    assert (columns.student_matched.tolist(), columns.teacher_matched.tolist()) == ([2], [0])
    assert (columns.student_rest.tolist(), columns.teacher_rest.tolist()) == ([0, 1, 3], [1, 2, 3])
    narrow = Columns.of(torch.tensor([2, UNMAPPED, 1]), student_width=3, teacher_width=2)
    assert (narrow.student_matched.tolist(), narrow.student_rest.tolist()) == ([2], [0, 1])


@pytest.mark.parametrize(
    ("weights", "unused"),
    [((1.0, 0.0), "distance_by"), ((0.0, 1.0), "generalized_jsd_parts")],
    ids=["matched alone", "unmatched alone"],
)
def test_a_part_without_weight_is_not_computed(
    weights: tuple[float, float], unused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the parts add up: loss and gradient of both are the sums of each alone."""
    made = random_chunk(SIZES, padding=3)
    made.student.logits.requires_grad_()

    def found(matched: float, unmatched: float) -> tuple[Tensor, Tensor]:
        method = GOLD(matched_weight=matched, unmatched_weight=unmatched)
        method.prepare(PAIR)
        kd = method.loss(made).kd
        return kd.detach(), torch.autograd.grad(kd, made.student.logits)[0]

    both, other = found(1, 1), found(weights[1], weights[0])
    monkeypatch.delattr(f"methods.gold.{unused}")
    for value, rest, total in zip(found(*weights), other, both, strict=True):
        torch.testing.assert_close(value + rest, total, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [GOLD, ULD])
def test_a_short_sort_says_by_how_much_it_is_too_small(kind: Any) -> None:
    """The loss in float64, groups merged: not above the exact one, nor below it by more than the diagnostic."""
    made, values, bounds = random_chunk(SIZES, padding=3), {}, {}
    shared = {"merge": "bayesian"} | ({"pairing": "bytes"} if kind is ULD else {"matched_weight": 0.0})
    for top_k in (2, 20, 100, 10_000):
        method = kind(sort="top_k", top_k=top_k, **shared)
        method.prepare(PAIR)
        sums = method.loss(made)
        bound, groups = sums.diagnostics["sort error at most"]
        assert float(groups) == len(SIZES)
        values[top_k], bounds[top_k] = float(sums.kd), float(bound)
    method = kind(**shared)
    method.prepare(PAIR)
    sums = method.loss(made)
    assert "sort error at most" not in sums.diagnostics
    for top_k, value in values.items():
        assert -1e-12 < float(sums.kd) - value < bounds[top_k] + 1e-12
    assert list(bounds.values()) == sorted(bounds.values(), reverse=True)
    assert (values[10_000], bounds[10_000]) == (float(sums.kd), 0.0)
    if kind is ULD:  # GOLD's few unmatched columns cross nowhere behind their second rank
        assert values[2] < float(sums.kd) - 1e-3


# --- positions, diagnostics, options ----------------------------------------------------------------------------------


def agreeing(chunk: AlignedChunk, groups: list[int]) -> AlignedChunk:
    """The same chunk, where both sides' first choice in some groups of one is one shared token."""
    student_of_teacher = exact_map(PAIR.teacher, PAIR.student)
    teacher_id = int(np.flatnonzero(student_of_teacher != UNMAPPED)[40])
    for side, token in ((chunk.student, int(student_of_teacher[teacher_id])), (chunk.teacher, teacher_id)):
        for number in groups:
            side.logits[side.index[side.group == number], token] = 30.0
    return chunk


def test_only_groups_that_disagree_are_trained_on() -> None:
    made = agreeing(random_chunk(SIZES), [0, 4])
    made.student.logits.requires_grad_()
    every, some = GOLD(), GOLD(positions="disagreement")
    for method in (every, some):
        method.prepare(PAIR)
    sums = some.loss(made)
    part, whole = sums.diagnostics["positions kept"]
    assert (float(part), float(whole)) == (3.0, 5.0)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(sums.kd, made.student.logits)
    assert gradient.ne(0).any(-1).tolist() == [False, True, True, True, True, True, False]
    alone = random_chunk([(1, 1)])
    agreed = every.loss(agreeing(alone, [0])).kd
    assert agreed.item() != 0
    nothing = some.loss(agreeing(alone, [0]))
    assert nothing.kd.item() == 0
    assert "positions kept" not in every.loss(made).diagnostics


@pytest.mark.parametrize(("fidelity", "merged"), [("described", 3.0), ("released", 1.0)])
def test_an_alignment_says_what_is_merged(fidelity: str, merged: float) -> None:
    """Of bytes 0 to 6 both sides end on 1, 3 and 6; the released form leaves the last token of either side out."""
    ends = np.asarray([1, 3, 4, 6]), np.asarray([1, 2, 3, 6])
    ids = np.arange(4), np.arange(4)
    notes = GOLD(fidelity=fidelity).align(AlignedResponse(*ids, *ends)).notes
    assert notes == {"aligned 1-1": (1.0, 4.0), "tokens merged": (merged, 4.0)}


def test_diagnostics_say_what_was_compared() -> None:
    method = GOLD()
    method.prepare(PAIR)
    made = random_chunk(SIZES)
    said = method.loss(made).diagnostics
    covered, groups = said["teacher mass covered"]
    shared = exact_map(PAIR.teacher, PAIR.student) != UNMAPPED
    last = [0, 3, 4, 6, 7]
    expected = made.teacher.logits[last].softmax(-1)[:, torch.from_numpy(shared)].sum()
    assert (float(covered), float(groups)) == pytest.approx((float(expected), 5.0))  # type: ignore[arg-type]


def test_released_means_what_trl_does_and_explicit_options_win() -> None:
    released = GOLD(fidelity="released")
    assert (released.options.merge, released.options.match, released.options.beta) == ("observed", "string", 0.5)
    assert (released.rows, released.normalize) == (Rows.AFTER, "samples")
    assert released.needs == {Need.ONE_RESPONSE}
    described = GOLD()
    assert (described.options.merge, described.options.match) == ("bayesian", "bytes")
    assert (described.rows, described.normalize, described.needs) == (Rows.PREDICTING, "tokens", frozenset())
    own = GOLD(fidelity="released", merge="bayesian", beta=0)
    assert (own.options.merge, own.options.match, own.rows) == ("bayesian", "string", Rows.PREDICTING)
    # what is written down says what was computed
    assert GOLD.Options.model_validate(released.options.model_dump()) == released.options


def test_released_leaves_out_the_last_token_of_each_side() -> None:
    ids = np.arange(3)
    response = AlignedResponse(ids, ids, np.array([1, 4, 4]), np.array([1, 4, 4]))
    assert GOLD().align(response).to_lists() == ([[0], [1], [2]], [[0], [1], [2]])
    assert GOLD(fidelity="released").align(response).to_lists() == ([[0], [1]], [[0], [1]])
    cut = replace(response, teacher_ids=ids[:2], teacher_ends=np.array([1, 4]), student_ends=np.array([1, 2, 4]))
    assert GOLD(fidelity="released").align(cut).to_lists() == ([[0]], [[0]])


@pytest.mark.parametrize(
    "wrong", [{"beta": -0.1}, {"beta": 1.1}, {"merge": "mean"}, {"matched_weight": -1}, {"temperature": 0}]
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        GOLD(**wrong)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, Rows.PREDICTING),
        ({"fidelity": "released"}, Rows.AFTER),
        ({"merge": "observed"}, Rows.PREDICTING),  # nothing is merged where tokens are paired by position
        ({"pairing": "bytes"}, Rows.PREDICTING),
        ({"pairing": "bytes", "merge": "observed"}, Rows.AFTER),
    ],
)
def test_uld_reads_the_rows_of_its_pairing(options: dict[str, Any], rows: Rows) -> None:
    assert ULD(**options).rows is rows
