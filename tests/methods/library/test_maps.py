"""Vocabulary maps against brute force, by hand, and on real text."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer

from methods.library import maps
from methods.library.alignment import group_bytes
from methods.library.maps import UNMAPPED, exact_map, nearest_map, nearest_strings, prefix_map, stored_map
from methods.library.vocabulary import TokenKind, Vocabulary
from tests import tiny

PAIRS = list(permutations(tiny.FAMILIES, 2))
SHORT = st.text(alphabet="ab1é北", max_size=5)


def vocabulary(family: str) -> Vocabulary:
    made = tiny.tokenizer(family)
    return Vocabulary.of(made.backend_tokenizer, family, (int(made.eos_token_id),))


def by_hand(texts: list[bytes], kinds: list[TokenKind] | None = None, eos: tuple[int, ...] = ()) -> Vocabulary:
    """A vocabulary of the given tokens."""
    chosen = np.asarray(kinds or [TokenKind.ORDINARY] * len(texts), dtype=np.int8)
    pieces = tuple(text.decode("latin-1") for text in texts)
    return Vocabulary("by hand", tuple(texts), chosen, eos, str(hash(pieces)), (), pieces)


@given(st.lists(SHORT, min_size=1, max_size=12), st.lists(SHORT, min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_nearest_strings_are_the_first_at_the_true_minimum(queries: list[str], candidates: list[str]) -> None:
    place, distance = nearest_strings(queries, candidates)
    for query, found, far in zip(queries, place, distance, strict=True):
        distances = [Levenshtein.distance(query, candidate) for candidate in candidates]
        assert far == min(distances)
        assert found == distances.index(far)


def test_very_long_texts_do_not_overflow() -> None:
    """Distances beyond 255, and candidates of one length only."""
    place, distance = nearest_strings(["a" * 700, "b"], ["b" * 300, "c" * 300])
    assert place.tolist() == [0, 0]
    assert distance.tolist() == [700, 299]


def test_ordinary_pieces_win_over_byte_fallback() -> None:
    """Keyed by bytes alone, a map once sent a third of a teacher's tokens to ids that are never emitted."""
    source = by_hand([b"1", b"1", b"2"], [TokenKind.FALLBACK, TokenKind.ORDINARY, TokenKind.ORDINARY])
    target = by_hand([b"2", b"1"])
    assert exact_map(source, target).tolist() == [UNMAPPED, 1, 0]
    assert exact_map(target, source).tolist() == [2, 1]


def test_a_byte_piece_pairs_with_a_byte_fallback_piece() -> None:
    """A byte-level vocabulary spells a lone byte as an ordinary piece."""
    source = by_hand([b"\xe4", b"a"])
    target = by_hand([b"\xe4"], [TokenKind.FALLBACK])
    assert exact_map(source, target).tolist() == [0, UNMAPPED]


def test_special_tokens_pair_only_with_special_tokens() -> None:
    """Ends pair by their role, others by name; text that reads like a special token is text."""
    special, text = TokenKind.SPECIAL, TokenKind.ORDINARY
    source = by_hand([b"<end>", b"<pad>", b"<bos>", b"</s>"], [special, special, special, text], eos=(0,))
    target = by_hand([b"</s>", b"<bos>", b"<pad>"], [special, text, special], eos=(0,))
    assert exact_map(source, target).tolist() == [0, 2, UNMAPPED, UNMAPPED]
    assert nearest_map(source, target).tolist() == [0, 2, UNMAPPED, 1]


def test_strings_of_different_families_never_match() -> None:
    """Parity with TRL, which compares strings: Ġ and ▁ differ, so only tokens within words pair."""
    source, target = vocabulary("byte_level"), vocabulary("byte_fallback")
    by_bytes, by_string = exact_map(source, target), exact_map(source, target, match="string")
    spaced = [i for i, text in enumerate(source.token_bytes) if text.startswith(b" ") and by_bytes[i] != UNMAPPED]
    assert len(spaced) > 5
    assert all(by_string[i] == UNMAPPED for i in spaced)


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_exact_maps_are_one_to_one_and_inverse(left: str, right: str) -> None:
    source, target = vocabulary(left), vocabulary(right)
    there, back = exact_map(source, target), exact_map(target, source)
    mapped = np.flatnonzero(there != UNMAPPED)
    assert mapped.size > 50
    assert np.unique(there[mapped]).size == mapped.size
    assert (back[there[mapped]] == mapped).all()


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_realised_tokens_of_equal_bytes_are_pairs_of_the_map(left: str, right: str) -> None:
    """On real text, the tokens that meet in 1-1 groups are those that the map pairs."""
    source, target = vocabulary(left), vocabulary(right)
    mapping = exact_map(source, target)
    seen = 0
    for text in [*tiny.TEXT, *(response for _, response in tiny.SAMPLES)]:
        ours, theirs = (
            np.asarray(tiny.tokenizer(f).backend_tokenizer.encode(text, add_special_tokens=False).ids)
            for f in (left, right)
        )
        groups = group_bytes(source.ends(ours, text.encode()), target.ends(theirs, text.encode()))
        for mine, yours in zip(*groups.to_lists(), strict=True):
            if len(mine) == len(yours) == 1:
                a, b = int(ours[mine[0]]), int(theirs[yours[0]])
                if source.token_bytes[a] == target.token_bytes[b]:
                    assert mapping[a] == b, (text, source.token_bytes[a])
                    seen += 1
    assert seen > 50


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_nearest_map_is_the_true_minimum(left: str, right: str) -> None:
    """Against all pairs, for every ordinary token without an exact match."""
    source, target = vocabulary(left), vocabulary(right)
    mapping, exact = nearest_map(source, target), exact_map(source, target)
    texts = [token.decode("utf-8", "surrogateescape") for token in target.token_bytes]
    allowed = np.flatnonzero(target.kinds <= TokenKind.FALLBACK)
    for index in np.flatnonzero((source.kinds == TokenKind.ORDINARY) & (exact == UNMAPPED)):
        text = source.token_bytes[index].decode("utf-8", "surrogateescape")
        distances = [Levenshtein.distance(text, texts[i]) for i in allowed]
        assert mapping[index] == allowed[int(np.argmin(distances))]


def test_prefix_map_takes_the_longest_beginning() -> None:
    source = by_hand([b"abc", b"ab", b"x", b"abd"])
    target = by_hand([b"a", b"ab", b"abd"])
    assert prefix_map(source, target).tolist() == [1, 1, UNMAPPED, 2]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the maps that are made, one after the other."""
    made: list[str] = []

    def count(kind: str) -> Callable[..., np.ndarray]:
        own = maps.MAPS[kind]
        return lambda *pair: (made.append(kind), own(*pair))[1]

    monkeypatch.setattr(maps, "MAPS", {kind: count(kind) for kind in maps.MAPS})
    return made


def test_a_stored_map_is_made_once(tmp_path: Path, counted: list[str]) -> None:
    source, target = vocabulary("byte_level"), vocabulary("unigram")
    first = stored_map("nearest", source, target, tmp_path / "maps")
    again = stored_map("nearest", source, target, tmp_path / "maps")
    assert counted == ["nearest"]
    assert (first == again).all()
    assert (first == nearest_map(source, target)).all()
    assert again.dtype == np.int64


def test_a_map_of_other_tokens_code_or_kind_is_another_file(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = vocabulary("byte_level"), vocabulary("unigram")
    stored_map("prefix", source, target, tmp_path)
    for pair in ((target, source), (source, vocabulary("byte_fallback"))):
        stored_map("prefix", *pair, tmp_path)
    stored_map("prefix", replace(source, eos=(1,)), target, tmp_path)  # a base and an instruct model of one tokenizer
    stored_map("nearest", source, target, tmp_path)
    monkeypatch.setattr(maps, "_code", lambda: "changed")
    stored_map("prefix", source, target, tmp_path)
    assert counted == ["prefix"] * 4 + ["nearest", "prefix"]
    assert len(list(tmp_path.iterdir())) == 6


def test_a_damaged_map_is_made_again(tmp_path: Path, counted: list[str]) -> None:
    """One other bit is another token: nothing but a digest tells."""
    source, target = vocabulary("byte_level"), vocabulary("unigram")
    good = stored_map("prefix", source, target, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    flipped = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for content in (b"", b"no map", whole[:-8], flipped):
        file.write_bytes(content)
        for _ in range(2):
            assert (stored_map("prefix", source, target, tmp_path) == good).all()
    maps._keep(good[:-1], file)  # of another vocabulary
    assert (stored_map("prefix", source, target, tmp_path) == good).all()
    assert len(counted) == 6
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_can_not_be_written_costs_no_result(tmp_path: Path) -> None:
    source, target = vocabulary("byte_level"), vocabulary("unigram")
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file"):
        assert (stored_map("prefix", source, target, folder) == prefix_map(source, target)).all()


def test_an_exact_map_is_not_stored(tmp_path: Path) -> None:
    source, target = vocabulary("byte_level"), vocabulary("unigram")
    assert (stored_map("exact", source, target, tmp_path) == exact_map(source, target)).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", list(maps.MAPS))
def test_tokens_without_a_column_are_in_no_map(kind: str, tmp_path: Path) -> None:
    """Gemma-3's tokenizer names one token more than its models have columns."""
    source, target = vocabulary("byte_level"), vocabulary("unigram")
    narrow = source.within(len(source) - 40), target.within(len(target) - 60)
    assert narrow[0].within(10**6) is narrow[0]
    mapping = stored_map(kind, *narrow, tmp_path)
    assert mapping[-40:].tolist() == [UNMAPPED] * 40
    assert mapping.max() < len(target) - 60
    assert (stored_map(kind, source, target, tmp_path)[-40:] != UNMAPPED).any()  # another file


@pytest.mark.slow
def test_nearest_map_of_two_large_vocabularies() -> None:
    """Qwen3's and Llama-2's real tokenizers, both directions; 300 random entries against all pairs."""
    folder = os.environ.get("HARNESS_TEST_TOKENIZERS")
    if not folder:
        pytest.skip("set HARNESS_TEST_TOKENIZERS to a folder with qwen3.json and llama2.json (tokenizer files)")
    left, right = (Vocabulary.of(Tokenizer.from_file(f"{folder}/{name}.json"), name) for name in ("qwen3", "llama2"))
    random = np.random.default_rng(0)
    for source, target in ((left, right), (right, left)):
        mapping, exact = nearest_map(source, target), exact_map(source, target)
        texts = [token.decode("utf-8", "surrogateescape") for token in target.token_bytes]
        allowed = np.flatnonzero(target.kinds <= TokenKind.FALLBACK)
        open_tokens = np.flatnonzero((source.kinds == TokenKind.ORDINARY) & (exact == UNMAPPED))
        for index in random.choice(open_tokens, 300, replace=False):
            text = source.token_bytes[index].decode("utf-8", "surrogateescape")
            distances = [Levenshtein.distance(text, texts[i]) for i in allowed]
            assert mapping[index] == allowed[int(np.argmin(distances))], text
