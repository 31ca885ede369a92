"""methods.library.alignment: groups worked out by hand, and a two-pointer walk that is obvious but slow."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.library.alignment import (
    AlignedResponse,
    Groups,
    cut_at_common_boundary,
    group_bytes,
    pair_identical,
    pair_positions,
)

Lists = tuple[list[list[int]], list[list[int]]]

# Token widths in bytes; zero is a token that covers no text (EOS, or the dummy prefix space of SentencePiece).
WIDTHS = st.lists(st.integers(0, 4), max_size=24)


def ends_of(widths: list[int]) -> np.ndarray:
    return np.cumsum(np.asarray(widths, dtype=np.int64))


def two_pointers(student: list[int], teacher: list[int]) -> Lists:
    """The walk as the specification words it: advance the side that ends first, close where both end together."""
    groups: Lists = ([], [])
    start_s = start_t = s = t = 0
    while s < len(student) and t < len(teacher):
        if student[s] == teacher[t]:
            groups[0].append(list(range(start_s, s + 1)))
            groups[1].append(list(range(start_t, t + 1)))
            start_s = s = s + 1
            start_t = t = t + 1
        elif student[s] < teacher[t]:
            s += 1
        else:
            t += 1
    return groups


# --- group_bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        pytest.param([1, 3, 2], [1, 1, 1, 1, 2], ([[0], [1], [2]], [[0], [1, 2, 3], [4]]), id="201 against 2-0-1"),
        pytest.param([2, 2], [1, 3], ([[0, 1]], [[0, 1]]), id="emoji 2+2 against 1+3"),
        pytest.param([2, 2], [2, 1, 1], ([[0], [1]], [[0], [1, 2]]), id="emoji 2+2 against 2+1+1"),
        pytest.param([3, 0], [1, 2, 0], ([[0], [1]], [[0, 1], [2]]), id="EOS on both sides is a pair"),
        pytest.param([3, 0], [1, 2], ([[0]], [[0, 1]]), id="EOS of the student only is dropped"),
        pytest.param([3], [1, 2, 0], ([[0]], [[0, 1]]), id="EOS of the teacher only is dropped"),
        pytest.param([2, 3], [2, 4], ([[0]], [[0]]), id="tails that cover other bytes are dropped"),
        pytest.param([2, 3, 0], [2, 4, 0], ([[0]], [[0]]), id="and the EOS after such tails"),
        pytest.param([2, 3], [2], ([[0]], [[0]]), id="a tail on one side is dropped"),
        pytest.param([0, 3], [3], ([[0, 1]], [[0]]), id="a dummy prefix joins the first group"),
        pytest.param([0, 3], [0, 1, 2], ([[0], [1]], [[0], [1, 2]]), id="a dummy prefix on both sides is a pair"),
        pytest.param([2], [3], ([], []), id="nothing in common"),
        pytest.param([], [1, 0], ([], []), id="an empty side"),
        pytest.param([], [], ([], []), id="two empty sides"),
    ],
)
def test_groups_by_hand(student: list[int], teacher: list[int], expected: Lists) -> None:
    assert group_bytes(ends_of(student), ends_of(teacher)).to_lists() == expected


@given(WIDTHS, WIDTHS)
def test_groups_are_those_of_the_two_pointer_walk(student: list[int], teacher: list[int]) -> None:
    left, right = ends_of(student), ends_of(teacher)
    assert group_bytes(left, right).to_lists() == two_pointers(left.tolist(), right.tolist())


def test_groups_are_those_of_the_walk_for_every_short_pair() -> None:
    """All pairs of up to three tokens of width 0, 1 or 2: every way in which zero widths can meet."""
    sides = [list(widths) for length in range(4) for widths in product((0, 1, 2), repeat=length)]
    for student, teacher in product(sides, sides):
        left, right = ends_of(student), ends_of(teacher)
        assert group_bytes(left, right).to_lists() == two_pointers(left.tolist(), right.tolist()), (student, teacher)


@given(WIDTHS, WIDTHS)
def test_each_pair_spans_the_same_bytes_and_only_a_tail_is_dropped(student: list[int], teacher: list[int]) -> None:
    left, right = ends_of(student), ends_of(teacher)
    groups = group_bytes(left, right)
    for index, ends in ((groups.student_index, left), (groups.teacher_index, right)):
        assert index.tolist() == list(range(index.size))  # every token once and in order; the rest is the tail
        assert index.size <= ends.size
    for members, others in zip(*groups.to_lists(), strict=True):
        assert left[members[-1]] == right[others[-1]]
        assert _start(left, members) == _start(right, others)
    if left.size and right.size and left[-1] == right[-1] and 0 not in student + teacher:
        assert (groups.student_index.size, groups.teacher_index.size) == (left.size, right.size)


def _start(ends: np.ndarray, members: list[int]) -> int:
    return int(ends[members[0] - 1]) if members[0] else 0


@given(WIDTHS, WIDTHS)
def test_swapping_the_sides_swaps_the_groups(student: list[int], teacher: list[int]) -> None:
    left, right = ends_of(student), ends_of(teacher)
    assert group_bytes(left, right).to_lists() == group_bytes(right, left).to_lists()[::-1]


@given(WIDTHS)
def test_identical_sides_pair_one_to_one(widths: list[int]) -> None:
    ends = ends_of(widths)
    singles = [[i] for i in range(len(widths))]
    assert group_bytes(ends, ends).to_lists() == (singles, singles)


def test_memory_and_time_stay_linear() -> None:
    """A million tokens against three million: anything quadratic would need a terabyte."""
    student = np.arange(3, 3_000_001, 3)
    groups = group_bytes(student, np.arange(1, 3_000_001))
    assert groups.count == student.size
    assert groups.teacher_index.size == 3 * student.size
    assert np.array_equal(groups.teacher_group, np.arange(groups.teacher_index.size) // 3)


# --- cut_at_common_boundary -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "limits", "expected"),
    [
        pytest.param([[1, 3, 2], [1, 1, 1, 1, 2]], [3, 5], None, id="both fit"),
        pytest.param([[1, 3, 2], [1, 1, 1, 1, 2]], [3, 4], [2, 4], id="the teacher is over"),
        pytest.param([[1, 3, 2], [1, 1, 1, 1, 2]], [3, 3], [1, 1], id="back to a common boundary"),
        pytest.param([[1, 3, 2], [1, 1, 1, 1, 2]], [2, 5], [2, 4], id="the student is over"),
        pytest.param([[2, 2], [1, 3]], [1, 2], [0, 0], id="no common boundary"),
        pytest.param([[0, 2, 2], [0, 1, 3]], [2, 2], [0, 0], id="a dummy prefix is no response"),
        pytest.param([[0, 2, 2], [2, 1, 1]], [2, 2], [2, 1], id="a dummy prefix is kept with what follows"),
        pytest.param([[2, 2], [1, 1, 2], [2, 1, 1]], [2, 3, 2], [1, 2, 1], id="three sides"),
        pytest.param([[2, 2, 2]], [2], [2], id="one side"),
        pytest.param([[2, 2], [2, 2]], [1, 0], [0, 0], id="no room at all"),
    ],
)
def test_cut_by_hand(widths: list[list[int]], limits: list[int], expected: list[int] | None) -> None:
    assert cut_at_common_boundary([ends_of(side) for side in widths], limits) == expected


@given(st.lists(st.tuples(WIDTHS, st.integers(0, 12)), min_size=1, max_size=3))
def test_cut_is_within_limits_on_one_byte_and_maximal(sides: list[tuple[list[int], int]]) -> None:
    ends, limits = [ends_of(widths) for widths, _ in sides], [limit for _, limit in sides]
    kept = cut_at_common_boundary(ends, limits)
    if kept is None:
        assert all(len(side) <= limit for side, limit in zip(ends, limits, strict=True))
        return
    assert all(count <= limit for count, limit in zip(kept, limits, strict=True))
    within = [set(side[:limit].tolist()) - {0} for side, limit in zip(ends, limits, strict=True)]
    last = max(set.intersection(*within), default=0)
    assert [int(side[count - 1]) if count else 0 for side, count in zip(ends, kept, strict=True)] == [last] * len(sides)
    if last:  # and the tokens of width zero that end there too, as far as the limit lets them
        assert kept == [int((side[:limit] <= last).sum()) for side, limit in zip(ends, limits, strict=True)]
    else:
        assert kept == [0] * len(sides)


# --- the other pairings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("students", "teachers"), [(3, 3), (2, 5), (5, 2), (0, 4)])
def test_pair_positions_cuts_to_the_shorter(students: int, teachers: int) -> None:
    singles = [[i] for i in range(min(students, teachers))]
    assert pair_positions(students, teachers).to_lists() == (singles, singles)


def _response(student: list[int], teacher: list[int], prompts: tuple[int, int] = (2, 2)) -> AlignedResponse:
    """Only ids and prompts matter to :func:`pair_identical`."""
    arrays = [np.asarray(ids, dtype=np.int64) for ids in (student, teacher)]
    return AlignedResponse(*arrays, *arrays, *prompts)


def test_pair_identical_counts_the_prompt_where_asked() -> None:
    response = _response([5, 6, 7], [5, 6, 7])
    assert pair_identical(response).count == 3
    assert pair_identical(response, prompt=True).to_lists()[1] == [[0], [1], [2], [3], [4]]


def test_pair_identical_ignores_prompts_that_no_row_scores() -> None:
    assert pair_identical(_response([5], [5], prompts=(2, 9))).count == 1


@pytest.mark.parametrize(
    ("response", "prompt", "message"),
    [
        (_response([5, 6], [5, 7]), False, "different tokens"),
        (_response([5, 6], [5]), False, "different tokens"),
        (_response([5], [5], prompts=(2, 3)), True, "different numbers of tokens"),
    ],
)
def test_pair_identical_refuses_what_is_not(response: AlignedResponse, prompt: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_identical(response, prompt=prompt)


# --- Groups -----------------------------------------------------------------------------------------------------------

MEMBERS = st.lists(st.integers(0, 30), min_size=1, max_size=4)


@given(st.lists(st.tuples(MEMBERS, MEMBERS), max_size=8))
def test_lists_survive_the_round_trip(pairs: list[tuple[list[int], list[int]]]) -> None:
    """Overlapping and crossing groups too, as time warping makes them; and none at all."""
    student, teacher = [s for s, _ in pairs], [t for _, t in pairs]
    groups = Groups.from_lists(student, teacher)
    assert groups.count == len(pairs)
    assert groups.to_lists() == (student, teacher)
    members = (groups.student_index, groups.student_group, groups.teacher_index, groups.teacher_group)
    assert all(array.dtype == np.int64 for array in members)


def test_groups_need_members_on_both_sides() -> None:
    for student, teacher in ([[0], [1]], [[0]]), ([[0], []], [[0], [1]]):
        with pytest.raises(ValueError, match="members on both sides"):
            Groups.from_lists(student, teacher)


def test_one_to_one_needs_equal_lengths() -> None:
    with pytest.raises(ValueError, match="2 student tokens can't be paired with 3"):
        Groups.one_to_one([0, 1], [0, 1, 2])
