"""Vocabulary maps: for each token of one vocabulary, the token of another that stands for it, or -1.

Special tokens pair only with special tokens. Where a vocabulary spells the same bytes twice, as an ordinary piece and
as a piece of byte fallback (``1`` and ``<0x31>``), the ordinary one counts: its tokenizer never emits the other.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from torch import Tensor

from methods.library.vocabulary import TokenKind, Vocabulary

VocabularyMap = npt.NDArray[np.int64]
"""int64 [source tokens]: id in the target vocabulary, or -1 where a token is unmapped."""

BoolArray = npt.NDArray[np.bool_]
UNMAPPED = -1
_QUERIES_AT_ONCE = 1024
_FAR = np.iinfo(np.int64).max


class Tables:
    """Tensors that a method looks into with every chunk: copied once to each device that asks for them."""

    def __init__(self, **tensors: Tensor) -> None:
        self._known = {torch.device("cpu"): tensors}

    def on(self, device: torch.device) -> Mapping[str, Tensor]:
        """The tensors by name, on the device."""
        if device not in self._known:
            made = {name: tensor.to(device) for name, tensor in self._known[torch.device("cpu")].items()}
            self._known[device] = made
        return self._known[device]


def exact_map(source: Vocabulary, target: Vocabulary, match: Literal["bytes", "string"] = "bytes") -> VocabularyMap:
    """Tokens that spell the same bytes; one-to-one.

    Args:
        match: "bytes" compares canonical bytes; "string" the tokenizers' own strings, so that ``Ġthe`` and ``▁the``
            differ, as in TRL.
    """
    if match == "string":
        places = {piece: index for index, piece in enumerate(target.pieces) if piece is not None}
        named = [UNMAPPED if piece is None else places.get(piece, UNMAPPED) for piece in source.pieces]
        return np.asarray(named, dtype=np.int64)
    mapped = np.full(len(source), UNMAPPED, dtype=np.int64)
    ours, theirs = spellings(source), spellings(target)
    for spelling, index in ours.items():
        mapped[index] = theirs.get(spelling, UNMAPPED)
    _pair_special(mapped, source, target)
    return mapped


def mapped_columns(student_of_teacher: VocabularyMap) -> dict[str, Tensor]:
    """int64 [mapped] each: ``theirs``, the teacher's tokens that have a partner, and ``ours``, their partners."""
    mapped = torch.from_numpy(student_of_teacher)
    theirs = (mapped != UNMAPPED).nonzero().squeeze(1)
    return {"ours": mapped[theirs], "theirs": theirs}


def prefix_map(source: Vocabulary, target: Vocabulary) -> VocabularyMap:
    """The longest ordinary target token whose bytes begin the source token's; an exact match where there is one."""
    mapped = exact_map(source, target)
    theirs = spellings(target)
    longest = max(map(len, theirs), default=0)
    for index in np.flatnonzero((mapped == UNMAPPED) & (source.kinds == TokenKind.ORDINARY)):
        spelling = source.token_bytes[index]
        lengths = range(min(len(spelling), longest), 0, -1)
        mapped[index] = next((theirs[spelling[:n]] for n in lengths if spelling[:n] in theirs), UNMAPPED)
    return mapped


def nearest_map(source: Vocabulary, target: Vocabulary) -> VocabularyMap:
    """The target token at the minimum edit distance; ties go to the lowest id (FuseLLM, arXiv 2401.10491).

    Distances are Levenshtein's over the characters of the canonical text, over bytes where they are no UTF-8. Special
    and unused tokens are mapped as by :func:`exact_map`.
    """
    mapped = exact_map(source, target)
    searched = np.flatnonzero(source.kinds <= TokenKind.FALLBACK)
    candidates = np.flatnonzero(target.kinds <= TokenKind.FALLBACK)
    if candidates.size:
        queries = [_text(source, int(i)) for i in searched]
        found, _ = nearest_strings(queries, [_text(target, int(i)) for i in candidates])
        # an exact match stays what it is: of two tokens with one text it takes the ordinary one
        mapped[searched] = np.where(mapped[searched] == UNMAPPED, candidates[found], mapped[searched])
    return mapped


def pieces_map(source: Vocabulary, target: Vocabulary) -> VocabularyMap:
    """As :func:`nearest_map`, over the tokenizers' own strings as they stand in their files, as in DSKD's code.

    Only the sign for a space is made the target's (``▁the`` to ``Ġthe``); ``<0x30>`` is a string of six characters,
    and ``é`` reads ``Ã©`` on a byte-level side. Special and unused tokens are mapped as by :func:`exact_map`.
    """
    mapped = exact_map(source, target)
    searched = np.flatnonzero(source.kinds <= TokenKind.FALLBACK)
    candidates = np.flatnonzero(target.kinds <= TokenKind.FALLBACK)
    if candidates.size:
        ours, theirs = _space_sign(source), _space_sign(target)
        queries = [(source.pieces[i] or "").replace(ours, theirs) for i in searched]
        found, _ = nearest_strings(queries, [target.pieces[i] or "" for i in candidates])
        mapped[searched] = candidates[found]
    return mapped


def _space_sign(vocabulary: Vocabulary) -> str:
    """What the pieces of a vocabulary write for a space: ``Ġ``, ``▁`` or a space itself."""
    for index in np.flatnonzero(vocabulary.kinds == TokenKind.ORDINARY):
        piece = vocabulary.pieces[index]
        if piece and vocabulary.token_bytes[index].startswith(b" "):
            return piece[0]
    return " "


def nearest_strings(
    queries: Sequence[str], candidates: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each query the nearest candidate by Levenshtein distance, the first of equals, and the distance.

    Exact, and far from all pairs: a distance is at least the difference of the lengths, so candidates are searched by
    length, nearest lengths first, until no length left can do better. Distances 0 and 1, most of them, are looked up.

    Returns:
        int64 [queries] each: index into ``candidates``, and distance.
    """
    place = np.full(len(queries), _FAR, dtype=np.int64)
    distance = np.full(len(queries), _FAR, dtype=np.int64)
    _look_up_close(queries, candidates, place, distance)
    lengths = np.fromiter(map(len, candidates), dtype=np.int64, count=len(candidates))
    by_length = {int(n): np.flatnonzero(lengths == n) for n in np.unique(lengths)}
    texts = {n: [candidates[int(i)] for i in members] for n, members in by_length.items()}
    query_lengths = np.fromiter(map(len, queries), dtype=np.int64, count=len(queries))
    for size in np.unique(query_lengths[distance > 1]):
        open_queries = np.flatnonzero((query_lengths == size) & (distance > 1))
        for gap, length in sorted((abs(n - int(size)), n) for n in by_length):
            # "not less": an equal distance may still bring a lower index
            open_queries = open_queries[distance[open_queries] >= gap]
            if not open_queries.size:
                break
            for start in range(0, open_queries.size, _QUERIES_AT_ONCE):
                part = open_queries[start : start + _QUERIES_AT_ONCE]
                _improve(part, queries, by_length[length], texts[length], place, distance)
    return place, distance


MAPS: Mapping[str, Callable[[Vocabulary, Vocabulary], VocabularyMap]] = {
    "exact": exact_map,
    "nearest": nearest_map,
    "pieces": pieces_map,
    "prefix": prefix_map,
}
"""Maps that recipes may name."""


def stored_map(kind: str, source: Vocabulary, target: Vocabulary, folder: Path | None) -> VocabularyMap:
    """A map of :data:`MAPS`, read from ``folder`` or made and kept there; made anew where there is no folder.

    Exact maps, which are made in no time, are not kept. A file's name holds what decides the map: both tokenizers, the
    tokens that end a response, those that a model has no column for, and this code. What can be neither read nor kept
    costs seconds and no result; so does a damaged file: one flipped bit would be another token.
    """
    if folder is None or kind == "exact":
        return MAPS[kind](source, target)
    sides = [f"{side.digest} {side.eos} {np.sum(side.kinds == TokenKind.UNUSED)}" for side in (source, target)]
    path = folder / f"{kind}-{hashlib.sha256(' '.join([*sides, _code()]).encode()).hexdigest()[:32]}.map"
    if (stored := _kept(path)) is not None and len(stored) == len(source):
        return stored
    made = MAPS[kind](source, target)
    with suppress(OSError):
        _keep(made, path)
    return made


def without(mapped: VocabularyMap, source: BoolArray, target: BoolArray) -> VocabularyMap:
    """A copy in which some source tokens, bool [source tokens], and some target tokens have no partner."""
    kept = np.where(source, UNMAPPED, mapped)
    return np.where(target[kept.clip(0)], UNMAPPED, kept)


_STORED = np.dtype("<i8")


def _kept(path: Path) -> VocabularyMap | None:
    """The map in a file of :func:`_keep`; None where there is none, or not as it was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, ids = content[: hashlib.sha256().digest_size], content[hashlib.sha256().digest_size :]
    if hashlib.sha256(ids).digest() != digest:
        return None
    return np.frombuffer(ids, _STORED).astype(np.int64)


def _keep(made: VocabularyMap, path: Path) -> None:
    """Write a map behind its digest, so that nobody ever reads a part of it."""
    ids = made.astype(_STORED).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".map")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(ids).digest() + ids)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@cache
def _code() -> str:
    """Digest of the code that makes maps."""
    files = (Path(__file__), Path(__file__).with_name("vocabulary.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def spellings(vocabulary: Vocabulary) -> dict[bytes, int]:
    """The token of each byte string: ordinary before fallback, then the lowest id."""
    places: dict[bytes, int] = {}
    for kind in (TokenKind.ORDINARY, TokenKind.FALLBACK):
        for index in np.flatnonzero(vocabulary.kinds == kind):
            if vocabulary.token_bytes[index]:
                places.setdefault(vocabulary.token_bytes[index], int(index))
    return places


def _pair_special(mapped: VocabularyMap, source: Vocabulary, target: Vocabulary) -> None:
    """End-of-response tokens in their order, then special tokens of the same name that are still free."""
    for ours, theirs in zip(source.eos, target.eos, strict=False):
        mapped[ours] = theirs
    taken = set(target.eos)
    names = {target.token_bytes[i]: int(i) for i in np.flatnonzero(target.kinds == TokenKind.SPECIAL)[::-1]}
    for index in np.flatnonzero(source.kinds == TokenKind.SPECIAL):
        other = names.get(source.token_bytes[index])
        if mapped[index] == UNMAPPED and other is not None and other not in taken and index not in source.eos:
            mapped[index] = other


def _text(vocabulary: Vocabulary, index: int) -> str:
    """Characters of a token; a byte that is part of no character stands for itself, as a lone surrogate."""
    return vocabulary.token_bytes[index].decode("utf-8", "surrogateescape")


def _look_up_close(
    queries: Sequence[str],
    candidates: Sequence[str],
    place: npt.NDArray[np.int64],
    distance: npt.NDArray[np.int64],
) -> None:
    """Fill in distances 0 and 1 by looking up texts, and texts with one character left out; the first of equals."""
    exact: dict[str, int] = {}
    longer: dict[str, int] = {}  # text -> first candidate that is the text and one character more
    changed: dict[tuple[int, str], int] = {}  # (place, rest) -> first candidate that is the rest without that place
    for index, text in enumerate(candidates):
        if exact.setdefault(text, index) == index:
            for i in range(len(text)):
                rest = text[:i] + text[i + 1 :]
                longer.setdefault(rest, index)
                changed.setdefault((i, rest), index)
    for number, text in enumerate(queries):
        if (same := exact.get(text)) is not None:
            place[number], distance[number] = same, 0
            continue
        near = longer.get(text, _FAR)
        for i in range(len(text)):
            rest = text[:i] + text[i + 1 :]
            near = min(near, exact.get(rest, _FAR), changed.get((i, rest), _FAR))
        if near != _FAR:
            place[number], distance[number] = near, 1


def _improve(
    part: npt.NDArray[np.int64],
    queries: Sequence[str],
    members: npt.NDArray[np.int64],
    texts: Sequence[str],
    place: npt.NDArray[np.int64],
    distance: npt.NDArray[np.int64],
) -> None:
    """Compare a part of the queries with all candidates of one length."""
    longest = max(max(len(queries[i]) for i in part), len(texts[0]))
    dtype = np.uint8 if longest < 255 else np.int32  # distances are at most the longer length
    matrix = cdist([queries[i] for i in part], texts, scorer=Levenshtein.distance, dtype=dtype, workers=-1)
    first = matrix.argmin(axis=1)  # the first of equals, and members ascend
    found = matrix[np.arange(len(part)), first].astype(np.int64)
    index = members[first]
    better = (found < distance[part]) | ((found == distance[part]) & (index < place[part]))
    distance[part[better]], place[part[better]] = found[better], index[better]
