"""Time warping against a double loop over cells and by hand; edit distances measured pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from methods.library import warping
from methods.library.alignment import AlignedResponse
from methods.library.vocabulary import TokenKind, Vocabulary
from methods.library.warping import (
    EditCosts,
    EditDistances,
    confirmed_links,
    entropy_weights,
    link_groups,
    path_notes,
    token_texts,
    warp,
    warp_all,
)
from tests import tiny

Links = list[tuple[int, int]]


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def path_of(links: Links) -> tuple[np.ndarray, np.ndarray]:
    """Teacher tokens and student tokens of (teacher, student) links."""
    return ints(*(teacher for teacher, _ in links)), ints(*(student for _, student in links))


def links_of(costs: np.ndarray) -> Links:
    return list(zip(*(side.tolist() for side in warp(costs)), strict=True))


def double_loop(costs: list[list[int]]) -> Links:
    """The dynamic programme cell by cell; among equals back diagonally, else by a teacher, else by a student step."""
    total: dict[tuple[int, int], int] = {}
    for i, row in enumerate(costs):
        for j, cost in enumerate(row):
            total[i, j] = cost + min((total[cell] for cell in _before(i, j) if cell in total), default=0)
    links = [max(total)]
    while links[-1] != (0, 0):
        links.append(min((cell for cell in _before(*links[-1]) if cell in total), key=lambda cell: total[cell]))
    return links[::-1]


def _before(i: int, j: int) -> list[tuple[int, int]]:
    return [(i - 1, j - 1), (i - 1, j), (i, j - 1)]


# --- warp -------------------------------------------------------------------------------------------------------------


@st.composite
def cost_matrices(draw: st.DrawFn) -> list[list[int]]:
    """Few values, so that most steps are ties; or large ones, as edit distances times weights may be."""
    m, n, most = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([0, 1, 2, 5, 10**6]))
    return draw(st.lists(st.lists(st.integers(0, most), min_size=n, max_size=n), min_size=m, max_size=m))


@given(cost_matrices())
@settings(max_examples=400, deadline=None)
def test_the_path_is_that_of_a_double_loop(costs: list[list[int]]) -> None:
    assert links_of(np.asarray(costs)) == double_loop(costs)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 50), (50, 2), (40, 60), (60, 40)])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_so_it_is_for_every_shape(shape: tuple[int, int], most: int) -> None:
    costs = np.random.default_rng(most).integers(0, most + 1, shape)
    assert links_of(costs) == double_loop(costs.tolist())


@given(st.lists(cost_matrices(), max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_batch_has_the_paths_of_its_responses(tables: list[list[list[int]]]) -> None:
    """Ragged ones, of one token too."""
    paths = warp_all([np.asarray(table) for table in tables])
    assert [list(zip(*(side.tolist() for side in path), strict=True)) for path in paths] == list(
        map(double_loop, tables)
    )


def test_so_it_is_where_a_batch_is_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that don't fit together, one larger than the limit, and empty ones among them."""
    random = np.random.default_rng(0)
    shapes = [(5, 9), (1, 1), (0, 4), (30, 31), (9, 5), (1, 40), (40, 1), (12, 12), (3, 0), (12, 11)]
    tables = [random.integers(0, 4, shape) for shape in shapes]
    for limit in (1, 200, 1 << 24):
        monkeypatch.setattr(warping, "_CELLS_AT_ONCE", limit)
        for table, (teacher, student) in zip(tables, warp_all(tables), strict=True):
            expected = double_loop(table.tolist()) if table.size else []
            assert list(zip(teacher.tolist(), student.tolist(), strict=True)) == expected


@pytest.mark.parametrize("largest", [2**31 // 24, 2**31 // 24 + 1, 2**40])
def test_sums_beyond_int32_are_exact(largest: int) -> None:
    costs = largest - np.random.default_rng(0).integers(0, 2, (12, 12))
    assert links_of(costs) == double_loop(costs.tolist())


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_an_empty_side_has_no_path(shape: tuple[int, int]) -> None:
    teacher, student = warp(np.zeros(shape, dtype=np.int64))
    assert (teacher.dtype, teacher.size, student.dtype, student.size) == (np.int64, 0, np.int64, 0)
    assert link_groups(teacher, student).to_lists() == ([], [])


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        pytest.param([[0, 0, 0], [0, 0, 0]], [(0, 0), (0, 1), (1, 2)], id="diagonally before a student step"),
        pytest.param([[0, 0], [0, 0], [0, 0]], [(0, 0), (1, 0), (2, 1)], id="diagonally before a teacher step"),
        pytest.param(
            [[0, 0, 0], [0, 9, 0], [0, 0, 0]], [(0, 0), (0, 1), (1, 2), (2, 2)], id="teacher step before student step"
        ),
        pytest.param([[0, 9, 9], [9, 9, 0]], [(0, 0), (0, 1), (1, 2)], id="no way around"),
    ],
)
def test_ties_by_hand(costs: list[list[int]], expected: Links) -> None:
    assert links_of(np.asarray(costs)) == expected


def test_costs_are_not_changed() -> None:
    costs = np.arange(12).reshape(3, 4)
    warp(costs)
    assert np.array_equal(costs, np.arange(12).reshape(3, 4))


# --- entropy_weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropy", "expected"),
    [
        # x = 0, 1/2, 1: g = 0.119, 0.5, 0.881; 3g + 3 = 3.36, 4.5, 5.64
        pytest.param([0.0, 1.0, 2.0], [3, 4, 5], id="ends and middle"),
        # 4 from g = 1/3, x = (2 - ln 2) / 4 = 0.3267 on; 5 from g = 2/3, x = (2 + ln 2) / 4 = 0.6733 on
        pytest.param([5.0, 5.3266, 5.3268, 5.6732, 5.6734, 6.0], [3, 3, 4, 4, 5, 5], id="where steps are"),
        pytest.param([0.7, 0.7, 0.7], [3, 3, 3], id="all equal"),
        pytest.param([2.5], [3], id="one token"),
        pytest.param([], [], id="no token"),
    ],
)
def test_entropy_weights_by_hand(entropy: list[float], expected: list[int]) -> None:
    weights = entropy_weights(np.asarray(entropy))
    assert weights.tolist() == expected
    assert weights.dtype == np.int64


# --- token texts and edit costs ---------------------------------------------------------------------------------------


def by_hand(texts: list[bytes], special: set[int], eos: int) -> Vocabulary:
    kinds = np.asarray([TokenKind.SPECIAL if i in special else TokenKind.ORDINARY for i in range(len(texts))], np.int8)
    return Vocabulary("by hand", tuple(texts), kinds, (eos,), str(texts), ())


def test_texts_lose_spaces_and_keep_the_rest() -> None:
    made = by_hand([b" the", b"a b ", b" ", b"\n", "北".encode(), "北".encode()[:2], b"\xff", b"<end>"], {7}, 7)
    assert token_texts(made) == ("the", "ab", "", "\n", "北", "�", "�", "<end>")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_texts_are_what_the_tokenizer_decodes_without_spaces(family: str) -> None:
    tokenizer = tiny.tokenizer(family)
    texts = token_texts(Vocabulary.of(tokenizer.backend_tokenizer, family))
    for index, text in enumerate(texts):
        decoded = tokenizer.backend_tokenizer.decode([index], skip_special_tokens=False)
        assert text == decoded.replace(" ", ""), index


def test_costs_are_edit_distances_pair_by_pair() -> None:
    """Over all tokens of two tokenizers, repeated ones too, but for special tokens that mean the same."""
    student, teacher = (Vocabulary.of(tiny.tokenizer(f).backend_tokenizer, f, (2,)) for f in ("byte_level", "unigram"))
    random = np.random.default_rng(0)
    ours, theirs = (random.integers(0, len(v), 150) for v in (student, teacher))
    ours[:4], theirs[:5] = [0, 1, 2, 2], [0, 1, 2, 3, 2]
    costs = EditCosts(student, teacher).costs(ours, theirs)
    assert costs.shape == (150, 150)
    mine, other = token_texts(student), token_texts(teacher)
    for i, t in enumerate(theirs):
        for j, s in enumerate(ours):
            assert costs[i, j] == Levenshtein.distance(other[t], mine[s])


@pytest.mark.parametrize("slots", [1, 7, 1 << 12])
def test_kept_distances_are_those_of_each_pair(slots: int) -> None:
    """However few slots there are: pairs that push each other out are measured again; left and right are alike."""
    random = np.random.default_rng(slots)
    texts = ["", "é", "北京", *("".join(random.choice(list("abc"), random.integers(1, 7))) for _ in range(40))]
    kept = EditDistances(slots)
    numbers = kept.numbers(texts)
    assert [texts.index(text) for text in texts] == [list(numbers).index(n) for n in numbers]
    assert np.array_equal(kept.numbers(texts[::-1]), numbers[::-1])
    for _ in range(3):
        left, right = random.integers(0, len(texts), (2, 500))
        expected = [Levenshtein.distance(texts[i], texts[j]) for i, j in zip(left, right, strict=True)]
        assert kept.between(numbers[left], numbers[right]).tolist() == expected
        assert kept.between(numbers[right], numbers[left]).tolist() == expected
    assert kept.between(ints(), ints()).size == 0


def test_a_kept_distance_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = EditDistances(1 << 12)
    a, b, c = kept.numbers(["abc", "abd", "x"])
    measured: list[tuple[str, str]] = []
    plain = warping.cpdist

    def spy(left: list[str], right: list[str], **settings: object) -> np.ndarray:
        measured.extend(zip(left, right, strict=True))
        return plain(left, right, **settings)

    monkeypatch.setattr(warping, "cpdist", spy)
    assert kept.between(ints(a, b, a), ints(b, a, b)).tolist() == [1, 1, 1]
    assert kept.between(ints(a, a), ints(b, c)).tolist() == [1, 3]
    assert sorted(measured) == [("abc", "abd"), ("abc", "x")]


def test_special_tokens_of_one_meaning_cost_nothing() -> None:
    """Ends of a response whatever their names, others by name; every other pair its edit distance."""
    student = by_hand([b"<|im_end|>", b"<pad>", b"a", b"<s>"], {0, 1, 3}, eos=0)
    teacher = by_hand([b"<eos>", b"<bos>", b"a", b"<pad>"], {0, 1, 3}, eos=0)
    expected = [
        [0, 3, 5, 2],  # <eos> is what <|im_end|> is, and no other special token
        [8, 3, 5, 2],
        [10, 4, 0, 3],
        [7, 0, 4, 3],
    ]
    assert EditCosts(student, teacher).costs(np.arange(4), np.arange(4)).tolist() == expected


def test_a_response_that_ends_links_its_ends() -> None:
    """The cost of EOS with EOS is what keeps it from a detour."""
    student = by_hand([b"<|im_end|>", b"a", b"b"], {0}, eos=0)
    teacher = by_hand([b"</s>", b"a", b"b"], {0}, eos=0)
    costs = EditCosts(student, teacher).costs(ints(1, 2, 0), ints(1, 2, 0))
    assert costs.trace() == 0
    assert links_of(costs) == [(0, 0), (1, 1), (2, 2)]


def test_empty_sides_cost_nothing() -> None:
    vocabulary = by_hand([b"</s>", b"a"], {0}, eos=0)
    costs = EditCosts(vocabulary, vocabulary)
    assert costs.costs(ints(), ints(1, 0)).shape == (2, 0)
    assert costs.costs(ints(1), ints()).shape == (0, 1)


# --- what a path means ------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["both", "teacher", "student"]), max_size=20))
def test_every_token_of_a_path_is_in_one_group(steps: list[str]) -> None:
    links = [(0, 0)]
    for step in steps:
        i, j = links[-1]
        links.append((i + (step != "student"), j + (step != "teacher")))
    groups = link_groups(*path_of(links))
    assert groups.teacher_index.tolist() == list(range(links[-1][0] + 1))
    assert groups.student_index.tolist() == list(range(links[-1][1] + 1))
    for i, j in links:  # linked tokens share a group
        assert groups.teacher_group[i] == groups.student_group[j]
    assert groups.count == 1 + steps.count("both")


def test_groups_by_hand() -> None:
    """1-1, then one teacher token for two, then a chain: 2 and 3 share student 3, 3 and 4 don't."""
    links = [(0, 0), (1, 1), (1, 2), (2, 3), (3, 3), (3, 4), (4, 5)]
    student, teacher = link_groups(*path_of(links)).to_lists()
    assert student == [[0], [1, 2], [3, 4], [5]]
    assert teacher == [[0], [1], [2, 3], [4]]


def number_of_apples() -> tuple[AlignedResponse, EditCosts]:
    """``201 +`` with its end; the student cuts the number into digits."""
    student = by_hand([b"</s>", b"2", b"0", b"1", b" +"], {0}, eos=0)
    teacher = by_hand([b"<eos>", b"201", b" +"], {0}, eos=0)
    response = AlignedResponse(ints(1, 2, 3, 4, 0), ints(1, 2, 0), ints(1, 2, 3, 5, 5), ints(3, 5, 5))
    return response, EditCosts(student, teacher)


def test_edit_distances_mistake_digits_by_hand() -> None:
    """A digit is one edit from "+" and two from "201", so all but the first digit go to the wrong token."""
    response, costs = number_of_apples()
    found = costs.costs(response.student_ids, response.teacher_ids)
    assert found.tolist() == [[2, 2, 2, 3, 4], [1, 1, 1, 0, 4], [5, 5, 5, 5, 0]]
    teacher, student = warp(found)
    assert list(zip(teacher.tolist(), student.tolist(), strict=True)) == [(0, 0), (1, 1), (1, 2), (1, 3), (2, 4)]
    confirmed = confirmed_links(teacher, student, response.student_ends, response.teacher_ends)
    assert confirmed.tolist() == [True, False, False, True, True]
    assert path_notes(teacher, student, response) == {
        "links that bytes confirm": (3.0, 5.0),
        "aligned 1-1": (2.0, 5.0),  # 201 with its first digit, and the ends
    }


def test_tokens_that_no_group_of_bytes_holds_are_confirmed_by_nothing() -> None:
    """Tails of other bytes, as where a limit cuts: token 1 of both sides is in no group."""
    response = AlignedResponse(ints(1, 2), ints(1, 2), ints(2, 5), ints(2, 6))
    teacher = student = ints(0, 1)
    assert confirmed_links(teacher, student, response.student_ends, response.teacher_ends).tolist() == [True, False]


def test_a_path_without_links_adds_nothing() -> None:
    response = AlignedResponse(ints(), ints(1), ints(), ints(2))
    assert set(path_notes(ints(), ints(), response).values()) == {(0.0, 0.0)}
