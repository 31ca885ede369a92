"""methods.library.edit_distance: every distance is rapidfuzz's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from methods.library import edit_distance
from methods.library.edit_distance import TextTable, edit_distances

TEXTS = st.lists(st.text(alphabet="abcä中\U0001f600\x00", max_size=12), min_size=1, max_size=8)


def all_pairs(ours: list[str], theirs: list[str], longest: tuple[int, int] | None = None) -> list[int]:
    ids = torch.cartesian_prod(torch.arange(len(ours)), torch.arange(len(theirs))).reshape(-1, 2)
    return edit_distances(TextTable(ours), TextTable(theirs), ids[:, 0], ids[:, 1], longest).tolist()


def by_rapidfuzz(ours: list[str], theirs: list[str]) -> list[int]:
    return [Levenshtein.distance(a, b) for a in ours for b in theirs]


@given(TEXTS, TEXTS)
@settings(max_examples=200, deadline=None)
def test_any_texts(ours: list[str], theirs: list[str]) -> None:
    assert all_pairs(ours, theirs) == by_rapidfuzz(ours, theirs)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 62, 63, 64, 65, 66, 130])
def test_lengths_around_a_word(size: int) -> None:
    """One character more than a word holds is measured another way."""
    base = "".join(chr(97 + (7 * i * i) % 26) for i in range(size))
    ours = [base, base[::-1], base[1:] + "z", "", base[: size // 2], "q" * size]
    theirs = [base, "x" + base, base[: size // 3] + "ü" + base[size // 2 :], "", "a" * size]
    assert all_pairs(ours, theirs) == by_rapidfuzz(ours, theirs)


@given(TEXTS, TEXTS)
@settings(max_examples=100, deadline=None)
def test_by_columns_equals_bit_parallel(ours: list[str], theirs: list[str]) -> None:
    sides = [TextTable(side) for side in (ours, theirs)]
    ids = torch.cartesian_prod(torch.arange(len(ours)), torch.arange(len(theirs))).reshape(-1, 2)
    given_texts = [part for k, side in enumerate(sides) for part in side.of(ids[:, k], side.longest)]
    found = edit_distance._by_columns(*given_texts)
    assert found.tolist() == by_rapidfuzz(ours, theirs)


def test_parts_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit_distance, "_CELLS_AT_ONCE", 10)
    ours, theirs = ["token", "tokens", "", "k"], ["taken", "oken", "tokenise"]
    assert all_pairs(ours, theirs) == by_rapidfuzz(ours, theirs)


def test_known_lengths_ask_nothing_of_the_device() -> None:
    assert all_pairs(["ab", "abc"], ["b"], longest=(3, 1)) == [1, 2]


def test_no_pairs() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert edit_distances(TextTable(["a"]), TextTable(["b"]), none, none).shape == (0,)
    assert TextTable([]).longest == 0
