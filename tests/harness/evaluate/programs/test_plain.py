"""Values as JSON and back: what Python compares, types and all; and that reading runs nothing."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter, OrderedDict, UserString, defaultdict, deque, namedtuple
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluate.programs import plain
from harness.evaluate.programs.solve import answer_line


def there_and_back(value: Any) -> Any:
    return plain.from_plain(json.loads(json.dumps(plain.to_plain(value))))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(SCALARS)
        | st.frozensets(SCALARS)
        | st.dictionaries(SCALARS, inner)
        | st.dictionaries(SCALARS, st.integers()).map(Counter)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        -(2**40_000),
        True,
        -0.0,
        math.inf,
        "\ud800\x00\n",
        {(1, "a"): [None, {2.5}], "b": {}},
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        np.complex128(1 + 2j),
        {1: 2}.keys(),
        {1: [2]}.items(),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_rarer_values_come_back(value: Any) -> None:
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back == value
    assert not isinstance(value, float) or repr(back) == repr(value)


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3), np.array(1.5), np.array(["a", "bc"]), np.array("a"), np.array(10**30)]
)
def test_arrays_come_back(array: Any) -> None:
    back = there_and_back(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


def test_not_a_number_comes_back() -> None:
    assert math.isnan(there_and_back(math.nan))


class Yes:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Seven(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Level(IntEnum):
    LOW = 1


def test_subclasses_count_as_what_they_extend() -> None:
    pair = namedtuple("pair", "a b")
    numbers: defaultdict[str, int] = defaultdict(int, a=1)
    for value, known in [
        (pair(1, 2), (1, 2)),
        (Level.LOW, 1),
        (OrderedDict(a=1), {"a": 1}),
        (numbers, {"a": 1}),
        (Seven(7), 7),
    ]:
        back = there_and_back(value)
        assert (type(back), back) == (type(known), known)
    assert there_and_back(Seven(7)) != 8


@pytest.mark.parametrize("value", [Yes(), object(), print, re.match("a", "a"), len, Yes, UserString])
def test_what_is_not_known_equals_nothing(value: object) -> None:
    back = there_and_back([value])[0]
    assert type(back) is plain.Unknown
    assert back is not None
    assert back not in (0, 1, "", None, True)


@pytest.mark.parametrize(
    ("value", "items"),
    [
        (iter([1, 2]), [1, 2]),
        (map(str, [1]), ["1"]),
        (range(3), [0, 1, 2]),
        (deque([1]), [1]),
        ({1: 2}.values(), [2]),
        (reversed([1, 2]), [2, 1]),
    ],
)
def test_iterators_can_still_be_walked_through_and_equal_no_list(value: Any, items: list[Any]) -> None:
    """Some of MBPP's oracles compare ``set(answer)``."""
    back = there_and_back(value)
    assert back != items
    assert list(back) == items


def test_an_endless_iterator_has_an_end() -> None:
    assert len(list(there_and_back(itertools.count()))) == 1_000_000


@pytest.mark.parametrize(
    "forged",
    [
        {"eval": "1"},
        {"tuple": 1},
        {"tuple": [], "list": []},
        {},
        {"numpy": ["O", 1]},
        {"numpy": ["<U1000000000", "x"]},
        {"array": ["object", [1]]},
        {"dict": [[[], 1]]},
        {"set": [[]]},
        {"int": [1]},
        {"Fraction": [1, 0]},
        {"Decimal": "x"},
    ],
)
def test_what_was_not_written_here_is_an_error(forged: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, ArithmeticError)):
        plain.from_plain(forged)


def test_answers_that_contain_themselves_or_are_nested_too_deeply_equal_nothing() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep):
        assert json.loads(answer_line(value)) == ["answer", {"unknown": ""}]


def test_large_answers_are_digests_of_value_and_types() -> None:
    numbers = list(range(4_000_000))
    line = answer_line(numbers)
    assert json.loads(line)[0] == "large"
    assert answer_line([*numbers]) == line
    assert answer_line([*numbers[:-1], 4_000_000.0 - 1]) != line
    assert answer_line(tuple(numbers)) != line
