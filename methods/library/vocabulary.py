"""Vocabularies as bytes: what each token id stands for, whatever the tokenizer's family.

A byte-level BPE writes bytes as printable characters (``Ġ``), SentencePiece writes spaces as ``▁`` and unknown
bytes as ``<0xE4>``. Their canonical bytes can be compared; their strings can't.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer

from methods.library.alignment import IntArray

T = TypeVar("T")

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"

DummySpace = Literal["never", "always", "unless space"]
"""Whether a tokenizer puts a space of its own before a text; "unless space": not before a text that begins with one."""


class TokenKind(enum.IntEnum):
    """Kinds of tokens, which pair only with their like."""

    ORDINARY = 0
    FALLBACK = 1
    """A piece of byte fallback, ``<0x31>``: emitted only for bytes that no ordinary piece covers."""
    SPECIAL = 2
    """A control token; it stands for no text, so its spans have width zero."""
    UNUSED = 3
    """An id that the tokenizer does not name."""


class UnsupportedTokenizerError(ValueError):
    """The tokenizer's tokens can't be mapped to the bytes of a text."""


@dataclass(frozen=True)
class Vocabulary:
    """Canonical bytes of every token of a tokenizer.

    Attributes:
        name: for messages.
        token_bytes: by id. Special tokens hold the bytes of their name; :attr:`widths` gives them width 0.
        kinds: int8 [size], :class:`TokenKind` of each id.
        eos: ids that end a response, the one that training appends first.
        digest: SHA-256 of all that decides how text is cut: vocabulary, merges, normaliser, added tokens.
        normalizers: names of the steps that change text before it is cut, for messages.
        pieces: the tokenizer's own string of each id, ``Ġthe`` or ``▁the``; None for unused ids.
        dummy_space: whether the tokenizer puts a space of its own before a text.
        tokenizer: what it was read from; None where it was made by hand.
    """

    name: str
    token_bytes: tuple[bytes, ...]
    kinds: npt.NDArray[np.int8]
    eos: tuple[int, ...]
    digest: str
    normalizers: tuple[str, ...]
    pieces: tuple[str | None, ...] = ()
    dummy_space: DummySpace = "never"
    tokenizer: Tokenizer | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer, name: str = "tokenizer", eos: Sequence[int] = ()) -> Vocabulary:
        """Read the canonical bytes of a fast tokenizer.

        Args:
            tokenizer: of the tokenizers library (``PreTrainedTokenizerFast.backend_tokenizer``).
            name: used in messages.
            eos: ids that end a response, the one that training appends first; control tokens, whatever the file says.

        Raises:
            UnsupportedTokenizerError: neither byte-level nor SentencePiece-like (WordPiece loses spaces).
        """
        description = json.loads(tokenizer.to_str())
        to_bytes = _piece_reader(description, name)
        size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        token_bytes, kinds = [b""] * size, np.full(size, TokenKind.UNUSED, dtype=np.int8)
        pieces = tokenizer.get_vocab(with_added_tokens=False)
        for piece, index in pieces.items():
            token_bytes[index], kinds[index] = to_bytes(piece)
        for index, added in tokenizer.get_added_tokens_decoder().items():
            if added.special:
                token_bytes[index], kinds[index] = added.content.encode(), TokenKind.SPECIAL
            elif pieces.get(added.content) != index:
                token_bytes[index], kinds[index] = _added_bytes(added, tokenizer), TokenKind.ORDINARY
        kinds[list(eos)] = TokenKind.SPECIAL
        named: list[str | None] = [None] * size
        for piece, index in tokenizer.get_vocab(with_added_tokens=True).items():
            named[index] = piece
        digest, normalizers = _digest(description), tuple(_normalizers(description))
        dummy = _dummy_space(description)
        return cls(name, tuple(token_bytes), kinds, tuple(eos), digest, normalizers, tuple(named), dummy, tokenizer)

    def __len__(self) -> int:
        return len(self.token_bytes)

    def within(self, columns: int) -> Vocabulary:
        """The vocabulary of a model whose logits have so many columns: tokens beyond them count as unused."""
        if columns >= len(self):
            return self
        kinds = self.kinds.copy()
        kinds[columns:] = TokenKind.UNUSED
        return replace(self, kinds=kinds)

    @cached_property
    def widths(self) -> IntArray:
        """int64 [size], bytes of text that each token covers; 0 for special and unused ids."""
        lengths = np.fromiter(map(len, self.token_bytes), dtype=np.int64, count=len(self))
        lengths[self.kinds >= TokenKind.SPECIAL] = 0
        return lengths

    @cached_property
    def byte_tokens(self) -> IntArray:
        """int64 [256], the token that stands for each byte alone, an ordinary one before byte fallback; -1: none."""
        found = np.full(256, -1, dtype=np.int64)
        for kind in (TokenKind.FALLBACK, TokenKind.ORDINARY):
            for index in np.flatnonzero((self.kinds == kind) & (self.widths == 1))[::-1]:
                found[self.token_bytes[index][0]] = index
        return found

    def ends(self, ids: IntArray, text: bytes) -> IntArray:
        """Where each token of ``text`` ends, in bytes; a dummy prefix space is taken out of the first span.

        Args:
            ids: int64 [n], the tokens of ``text``, without EOS.
            text: the UTF-8 bytes that the tokens must spell.

        Raises:
            UnsupportedTokenizerError: they spell something else, because the tokenizer normalises text.
        """
        spelled = self._join(ids)
        ends: IntArray = self.widths[ids].cumsum()
        if spelled == text:
            return ends
        if spelled == b" " + text:
            return np.maximum(ends - 1, 0)
        raise UnsupportedTokenizerError(self._mismatch(ids, spelled, text))

    def spell(self, ids: IntArray) -> tuple[bytes, IntArray]:
        """The bytes that sampled tokens stand for, UTF-8 or not, and where each token ends.

        The inverse of :meth:`ends`: a first space that the tokenizer would have put there by itself is taken out.
        Special and unused ids cover nothing; so do ids beyond the vocabulary, which padded logits can sample.

        Args:
            ids: int64 [n], a whole response from its first token.

        Returns:
            The bytes, and int64 [n], the end of each token.
        """
        known = ids < len(self)
        widths = np.where(known, self.widths[np.where(known, ids, 0)], 0)
        spelled, ends = self._join(ids[known]), widths.cumsum()
        return (spelled[1:], np.maximum(ends - 1, 0)) if self._begins_with_dummy(spelled) else (spelled, ends)

    def spell_on(self, ids: IntArray) -> bytes:
        """The bytes that sampled tokens stand for where they go on with a text: every space is the model's own."""
        return self._join(ids[ids < len(self)])

    def ends_while_equal(self, ids: IntArray, text: bytes) -> IntArray:
        """Ends of the tokens that spell the beginning of ``text``, up to the first that spells something else.

        Args:
            ids: int64 [n], none of them special.
            text: bytes, UTF-8 or not.

        Returns:
            int64 [at most n]; its last entry is how much of ``text`` is spelled.
        """
        spelled = self._join(ids)
        equal, behind_dummy = _same_bytes(spelled, text), _same_bytes(spelled.removeprefix(b" "), text)
        dummy = spelled.startswith(b" ") and (self.dummy_space == "always" or behind_dummy > equal)
        ends = np.maximum(self.widths[ids].cumsum() - dummy, 0)
        kept: IntArray = ends[ends <= (behind_dummy if dummy else equal)]
        return kept if kept.size and kept[-1] else kept[:0]

    def _join(self, ids: IntArray) -> bytes:
        return b"".join(map(self._texts.__getitem__, ids.tolist()))

    @cached_property
    def _texts(self) -> list[bytes]:
        """By id, what a token adds to a text: nothing where it is special or unused."""
        return [spelling if width else b"" for spelling, width in zip(self.token_bytes, self.widths, strict=True)]

    def _begins_with_dummy(self, spelled: bytes) -> bool:
        """Whether the first space is one that the tokenizer puts before the rest, were that the text."""
        rest = spelled.removeprefix(b" ")
        added = self.dummy_space == "always" or (self.dummy_space == "unless space" and not rest.startswith(b" "))
        return added and 0 < len(rest) < len(spelled)

    def _mismatch(self, ids: IntArray, spelled: bytes, text: bytes) -> str:
        spelled = max((spelled, spelled.removeprefix(b" ")), key=lambda found: _same_bytes(found, text))
        at = _same_bytes(spelled, text)
        special = next((self.token_bytes[i].decode() for i in ids if self.kinds[i] == TokenKind.SPECIAL), None)
        if special is not None:
            cause = f"{special!r}, a special token that stands for no text, is among its tokens"
        elif text[at:].startswith(_SPACE.encode()) and spelled[at:].startswith(b" "):
            cause = f"it writes a space as {_SPACE!r}, which the response has of its own"
        else:
            cause = f"normaliser: {', '.join(self.normalizers) or 'none declared'}"
        window = slice(max(at - 12, 0), at + 12)
        return (
            f"{self.name} changes text before it cuts it ({cause}): byte {at} of the response reads "
            f"{text[window]!r}, its tokens spell {spelled[window]!r}"
        )


@dataclass(frozen=True)
class TokenizerPair:
    """The vocabularies of a student and a teacher.

    Attributes:
        maps: folder in which vocabulary maps of this pair are kept between runs; None: nowhere.
    """

    student: Vocabulary
    teacher: Vocabulary
    maps: Path | None = None
    _shared: dict[type, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def shared(self, kind: type[T]) -> T:
        """The one object of a class that all trainings with this pair share; made when first asked for."""
        if kind not in self._shared:
            self._shared[kind] = kind()
        made: T = self._shared[kind]
        return made

    @property
    def same_tokenizer(self) -> bool:
        """Whether both cut every text into the same ids (logits may still be padded to different sizes)."""
        return self.student.digest == self.teacher.digest

    def difference(self) -> str:
        """In words, what tells the two apart."""
        if self.same_tokenizer:
            return "nothing"
        return (
            f"{self.student.name} has {len(self.student):,} tokens and {self.teacher.name} {len(self.teacher):,} "
            f"(digests {self.student.digest[:8]} and {self.teacher.digest[:8]})"
        )


def _piece_reader(description: dict[str, Any], name: str) -> Any:
    """The function from a piece to its bytes and kind that fits the tokenizer's family."""
    steps = {step["type"] for part in ("decoder", "pre_tokenizer") for step in _steps(description[part])}
    if "ByteLevel" in steps:
        return _read_byte_level
    if steps & {"Metaspace", "ByteFallback"}:
        return _read_sentencepiece
    raise UnsupportedTokenizerError(
        f"{name} is neither byte-level nor SentencePiece-like (its steps: {', '.join(sorted(steps)) or 'none'}), so "
        "its tokens can't be traced to the bytes of a text"
    )


def _read_byte_level(piece: str) -> tuple[bytes, TokenKind]:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece), TokenKind.ORDINARY
    except KeyError:  # a piece outside the alphabet: reserved names that stand in the vocabulary itself
        return piece.encode(), TokenKind.ORDINARY


def _read_sentencepiece(piece: str) -> tuple[bytes, TokenKind]:
    if match := _FALLBACK.fullmatch(piece):
        return bytes([int(match[1], 16)]), TokenKind.FALLBACK
    return piece.replace(_SPACE, " ").encode(), TokenKind.ORDINARY


def _added_bytes(added: AddedToken, tokenizer: Tokenizer) -> bytes:
    """What an added token that no piece stands for matches: its content, in normalised text if it says so."""
    if added.normalized and tokenizer.normalizer is not None:
        return str(tokenizer.normalizer.normalize_str(added.content)).replace(_SPACE, " ").encode()
    return str(added.content).encode()


def _dummy_space(description: dict[str, Any]) -> DummySpace:
    if any(step["type"] == "Prepend" for step in _steps(description["normalizer"])):
        return "always"
    steps = list(_steps(description["pre_tokenizer"]))
    added = any(step.get("prepend_scheme", "never") != "never" or step.get("add_prefix_space") for step in steps)
    return "unless space" if added else "never"


def without_dummy_space(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that puts no dummy space before a text: it cuts a text as the tokenizer does in the middle of another."""
    description = json.loads(tokenizer.to_str())
    for step in (*_steps(description["normalizer"]), *_steps(description["pre_tokenizer"])):
        for key, off in (("prepend", ""), ("prepend_scheme", "never"), ("add_prefix_space", False)):
            if key in step:
                step[key] = off
    return Tokenizer.from_str(json.dumps(description))


def _same_bytes(left: bytes, right: bytes) -> int:
    """Length of the longest common prefix."""
    if left == right[: len(left)]:
        return len(left)
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: visible Latin-1 characters for themselves, the others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser, pre-tokeniser or decoder, sequences opened."""
    if part is None:
        return
    inner = next((part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part), None)
    if part["type"] == "Sequence" and inner is not None:
        for step in inner:
            yield from _steps(step)
    else:
        yield part


def _normalizers(description: dict[str, Any]) -> Iterator[str]:
    for step in _steps(description["normalizer"]):
        if step["type"] not in {"Replace", "Prepend"} or _SPACE not in json.dumps(step, ensure_ascii=False):
            yield step["type"]


def _digest(description: dict[str, Any]) -> str:
    """Digest of what decides how text is cut; what happens to the tokens afterwards is the caller's business."""
    later = {"padding", "truncation", "post_processor", "decoder", "version"}
    parts = {key: value for key, value in description.items() if key not in later}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
