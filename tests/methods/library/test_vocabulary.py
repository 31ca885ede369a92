"""methods.library.vocabulary: the bytes of every token, checked against the text and the tokenizer's own decoder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from harness.models.cache import cache_folder
from harness.models.load import load_tokenizer
from harness.models.resolve import is_downloaded, resolve
from harness.models.tiny import SPECIAL
from harness.models.uri import KNOWN_MODELS, parse_uri
from methods.library.vocabulary import TokenizerPair, TokenKind, UnsupportedTokenizerError, Vocabulary
from tests import tiny

SENTENCEPIECE = ("byte_fallback", "unigram")
PREFIXED = ("byte_fallback", "byte_level_prefix")  # families that begin every stretch of text with a space
FAMILIES = pytest.mark.parametrize("family", tiny.MORE_FAMILIES)

# What tokenizers get wrong, and anything else. The one character that SentencePiece can't tell from a space has tests
# of its own, and so have the texts of fallback pieces and of special tokens (hypothesis reads constants of the code).
NOT_TEXT = ("▁", "<0x", "<unk>", *SPECIAL)
AWKWARD = [" ", "  ", "   a", "\n", "\n\n", "\t", "\r\n", "\x00", "\x1c", "\u00a0", "\u200b", "\ufeff", "\U0010ffff",
           "201", "Ġ", "<0", "é", "e\u0301", "ß", "北京", "日本語", "한", "🌈", "👩\u200d🚀", "🇨🇭", "the"]  # fmt: skip
TEXTS = (
    st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=6)), min_size=1, max_size=8)
    .map("".join)
    .filter(lambda text: text and not any(name in text for name in NOT_TEXT))
)


@cache
def backend(family: str) -> Tokenizer:
    return tiny.tokenizer(family).backend_tokenizer


@cache
def vocabulary(family: str) -> Vocabulary:
    return Vocabulary.of(backend(family), family)


def clone(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.to_str())


def edited(family: str, edit: Callable[[dict[str, Any]], object]) -> Tokenizer:
    """The family's tokenizer with its JSON description changed in place."""
    description = json.loads(backend(family).to_str())
    edit(description)
    return Tokenizer.from_str(json.dumps(description))


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def check_spelling(tokenizer: Tokenizer, vocab: Vocabulary, text: str) -> None:
    """Token bytes spell the text, but for one dummy space before it; ends rise from 0 to its length."""
    ids, data = encode(tokenizer, text), text.encode()
    spelled = b"".join(vocab.token_bytes[i] for i in ids)
    assert spelled in (data, b" " + data)
    ends = vocab.ends(ids, data)
    assert ends[-1] == len(data)
    steps = np.diff(ends, prepend=0)
    assert (steps >= 0).all()
    assert (steps[1:] > 0).all()  # only a dummy space, which comes first, covers nothing
    for index, start, end in zip(ids, ends - steps, ends, strict=True):
        assert vocab.token_bytes[index].endswith(data[start:end])


# --- spelling ---------------------------------------------------------------------------------------------------------


@FAMILIES
@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
@example(text=" ")
@example(text="  two before, two  between, two after  ")
@example(text="\n")
def test_token_bytes_spell_any_text(family: str, text: str) -> None:
    check_spelling(backend(family), vocabulary(family), text)


@FAMILIES
@pytest.mark.parametrize("text", tiny.TEXT, ids=range(len(tiny.TEXT)))
def test_ends_are_where_the_tokenizers_own_decoder_says(family: str, text: str) -> None:
    """Decoding the first k tokens gives the text up to the k-th end, wherever that is between two characters."""
    ids, data = encode(backend(family), text), text.encode()
    compared = 0
    for count, end in enumerate(vocabulary(family).ends(ids, data), start=1):
        try:
            expected = data[:end].decode()
        except UnicodeDecodeError:
            continue
        decoded = backend(family).decode(ids[:count].tolist(), skip_special_tokens=False)
        assert decoded.removeprefix(" ") == expected
        compared += 1
    assert compared > len(ids) / 2


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("byte_level", " a", [2]),
        ("byte_level_prefix", "a", [1]),
        ("byte_level_prefix", " a", [2]),
        ("byte_fallback", "a", [1]),  # ▁a
        ("byte_fallback", " a", [0, 2]),  # ▁ ▁a: the first is the dummy
        ("byte_fallback", "🌈", [0, 1, 2, 3, 4]),  # ▁ <0xF0> <0x9F> <0x8C> <0x88>
        ("unigram", "a", [1]),
        ("unigram", " a", [2]),  # ▁a: Metaspace adds no dummy before a space
        ("unigram", "🌈", [0, 4]),
    ],
)
def test_ends_by_hand(family: str, text: str, expected: list[int]) -> None:
    assert vocabulary(family).ends(encode(backend(family), text), text.encode()).tolist() == expected


@pytest.mark.parametrize("family", SENTENCEPIECE)
@pytest.mark.parametrize("text", ["▁", "▁a", " ▁a", "a▁b", "a ▁"])
def test_a_real_low_line_block_is_refused_where_it_means_a_space(family: str, text: str) -> None:
    """U+2581 of the text and a space become one piece: their widths differ, so silence would shift every span."""
    with pytest.raises(UnsupportedTokenizerError, match="writes a space as '▁', which the response has of its own"):
        vocabulary(family).ends(encode(backend(family), text), text.encode())
    check_spelling(backend("byte_level"), vocabulary("byte_level"), text)


def test_the_text_of_a_fallback_piece_is_never_taken_for_its_byte() -> None:
    """The Unigram model looks <0x41> up like any other piece; BPE can't, since no merge leads there."""
    check_spelling(backend("byte_fallback"), vocabulary("byte_fallback"), "<0x41>")
    with pytest.raises(UnsupportedTokenizerError, match="reads b'<0x41>', its tokens spell b' A'"):
        vocabulary("unigram").ends(encode(backend("unigram"), "<0x41>"), b"<0x41>")


@FAMILIES
@pytest.mark.parametrize("text", ["</s>", "a</s>b", "one <pad>", "<s>", "<s>\n"])
def test_the_text_of_a_special_token_is_refused(family: str, text: str) -> None:
    """It becomes the control token itself, which stands for no text."""
    with pytest.raises(UnsupportedTokenizerError, match="a special token that stands for no text, is among its tokens"):
        vocabulary(family).ends(encode(backend(family), text), text.encode())


@pytest.mark.parametrize(
    ("normalizer", "changed", "kept", "name"),
    [
        (normalizers.NFKC(), "a ﬁne day", "a fine day", "NFKC"),
        (normalizers.Lowercase(), "A day", "a day", "Lowercase"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "é", "e", "NFD, StripAccents"),
    ],
    ids=["NFKC", "Lowercase", "Sequence"],
)
@pytest.mark.parametrize("family", ["byte_level", "unigram"])
def test_a_normaliser_is_named_where_it_changes_the_text(
    family: str, normalizer: Any, changed: str, kept: str, name: str
) -> None:
    made = clone(backend(family))
    made.normalizer = normalizer
    vocab = Vocabulary.of(made, "normalising")
    check_spelling(made, vocab, kept)
    with pytest.raises(UnsupportedTokenizerError, match=rf"^normalising changes text .*\(normaliser: {name}\)"):
        vocab.ends(encode(made, changed), changed.encode())


def test_a_space_marker_is_no_normaliser_to_name() -> None:
    assert vocabulary("byte_fallback").normalizers == ()


def test_word_pieces_are_refused() -> None:
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with pytest.raises(UnsupportedTokenizerError, match=r"^bert is neither byte-level .*BertPreTokenizer"):
        Vocabulary.of(made, "bert")


# --- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_fallback_pieces_are_the_256_bytes(family: str) -> None:
    vocab = vocabulary(family)
    fallback = np.flatnonzero(vocab.kinds == TokenKind.FALLBACK)
    assert sorted(vocab.token_bytes[i] for i in fallback) == [bytes([byte]) for byte in range(256)]
    assert (vocab.widths[fallback] == 1).all()


def test_byte_level_has_every_byte_and_no_fallback() -> None:
    vocab = vocabulary("byte_level")
    single = sorted(token for token, kind in zip(vocab.token_bytes, vocab.kinds, strict=True) if len(token) == 1)
    assert single == [bytes([byte]) for byte in range(256)]
    assert set(vocab.kinds) == {TokenKind.ORDINARY, TokenKind.SPECIAL}


def test_an_ordinary_piece_and_a_fallback_of_the_same_byte_differ_in_kind() -> None:
    made, vocab = backend("unigram"), vocabulary("unigram")
    ordinary, fallback = made.token_to_id("2"), made.token_to_id("<0x32>")
    assert vocab.token_bytes[ordinary] == vocab.token_bytes[fallback] == b"2"
    assert (vocab.kinds[ordinary], vocab.kinds[fallback]) == (TokenKind.ORDINARY, TokenKind.FALLBACK)


@FAMILIES
def test_special_tokens_have_no_width(family: str) -> None:
    vocab = vocabulary(family)
    special = np.flatnonzero(vocab.kinds == TokenKind.SPECIAL)
    assert [vocab.token_bytes[i] for i in special] == [b"<pad>", b"<s>", b"</s>"]
    assert (vocab.widths[special] == 0).all()
    assert (vocab.widths[vocab.kinds < TokenKind.SPECIAL] > 0).all()


@FAMILIES
def test_every_byte_has_a_token_and_an_ordinary_one_where_there_is_one(family: str) -> None:
    vocab = vocabulary(family)
    for byte, index in enumerate(vocab.byte_tokens):
        assert vocab.token_bytes[index] == bytes([byte])
        ordinary = [
            i for i in np.flatnonzero(vocab.kinds == TokenKind.ORDINARY) if vocab.token_bytes[i] == bytes([byte])
        ]
        assert not ordinary or index == ordinary[0]


def test_an_end_is_special_whatever_the_file_says() -> None:
    """An end that is declared as text would have a width, and shift what follows it."""
    index = backend("byte_level").token_to_id("a")
    vocab = Vocabulary.of(backend("byte_level"), eos=(index,))
    assert (vocab.kinds[index], vocab.widths[index]) == (TokenKind.SPECIAL, 0)
    assert vocabulary("byte_level").kinds[index] == TokenKind.ORDINARY


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("byte_level", "never"),
        ("byte_level_prefix", "unless space"),
        ("byte_fallback", "always"),
        ("byte_fallback_bare", "never"),
        ("unigram", "unless space"),
    ],
)
def test_dummy_spaces_are_known(family: str, expected: str) -> None:
    """Against what the tokenizer does with a letter, and with a space and a letter."""
    vocab = vocabulary(family)
    added = ["".join(vocab.token_bytes[i].decode() for i in encode(backend(family), text)) for text in ("a", " a")]
    known = {("a", " a"): "never", (" a", " a"): "unless space", (" a", "  a"): "always"}
    assert vocab.dummy_space == known[added[0], added[1]] == expected


def test_ids_without_a_name_are_unused() -> None:
    made = edited("byte_level", lambda d: d["model"]["vocab"].update({"zebra": 410}))
    vocab = Vocabulary.of(made)
    assert len(vocab) == 411
    assert set(vocab.kinds[400:410]) == {TokenKind.UNUSED}
    assert (vocab.kinds[410], vocab.widths[405], vocab.widths[410]) == (TokenKind.ORDINARY, 0, 5)


# --- added tokens -----------------------------------------------------------------------------------------------------


@FAMILIES
def test_a_special_token_keeps_the_bytes_of_its_name_and_takes_none_of_a_text(family: str) -> None:
    """DeepSeek's end of sentence: 19 characters, 27 bytes."""
    name = "<｜end▁of▁sentence｜>"
    made = clone(backend(family))
    made.add_special_tokens([name])
    vocab, index = Vocabulary.of(made), made.token_to_id(name)
    assert (len(name), len(vocab.token_bytes[index])) == (19, 27)
    assert vocab.token_bytes[index] == name.encode()
    assert vocab.widths[index] == 0
    assert vocab.ends(np.append(encode(made, "ab"), index), b"ab")[-2:].tolist() == [2, 2]


@FAMILIES
@pytest.mark.parametrize("name", ["<｜文é｜>", "naïve", "two words", "Ġx"])
def test_an_added_token_counts_the_bytes_of_its_text(family: str, name: str) -> None:
    """Though ï and Ġ are letters of the byte-level alphabet: an added token is no piece."""
    made = clone(backend(family))
    made.add_tokens([AddedToken(name, special=False, normalized=False)])
    vocab, index = Vocabulary.of(made), made.token_to_id(name)
    assert vocab.token_bytes[index] == name.encode()
    texts = [name, f"so {name}", f"{name}{name}"]
    if family not in PREFIXED:  # see the next test
        texts += [f"{name} it is", f"a{name}b"]
    for text in texts:
        assert index in encode(made, text)
        check_spelling(made, vocab, text)


@pytest.mark.parametrize("family", PREFIXED)
def test_a_space_that_the_tokenizer_puts_into_the_text_is_refused(family: str) -> None:
    """The prefix comes again behind every added token (a fault of the files that can't be undone): a<x>b -> a<x> b"""
    made = clone(backend(family))
    made.add_tokens([AddedToken("<x>", special=False, normalized=False)])
    with pytest.raises(UnsupportedTokenizerError, match="reads b'a<x>b', its tokens spell b'a<x> b'"):
        Vocabulary.of(made).ends(encode(made, "a<x>b"), b"a<x>b")


def test_an_added_token_of_normalised_text_covers_the_space_that_it_swallows() -> None:
    """With Llama's normaliser it matches ▁two▁words, its space included."""
    made = clone(backend("byte_fallback"))
    made.add_tokens([AddedToken("two words", special=False, normalized=True)])
    vocab, index = Vocabulary.of(made), made.token_to_id("two words")
    assert vocab.token_bytes[index] == b" two words"
    for text in ("two words", "in two words", " two words."):
        assert index in encode(made, text)
        check_spelling(made, vocab, text)


# --- digests ----------------------------------------------------------------------------------------------------------


@FAMILIES
def test_a_copy_has_the_same_digest_whatever_is_done_with_its_tokens(family: str) -> None:
    made = clone(backend(family))
    made.enable_padding(length=7, pad_id=1)
    made.enable_truncation(5)
    assert Vocabulary.of(made, "another name", eos=[1]).digest == vocabulary(family).digest
    assert Vocabulary.of(made).digest == Vocabulary.of(copy.deepcopy(made)).digest


def test_what_is_put_around_a_text_does_not_change_how_it_is_cut() -> None:
    """Base and instruct models of one family often differ in this alone; they share a tokenizer."""
    from tokenizers.processors import TemplateProcessing

    made = clone(backend("byte_level"))
    made.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    assert Vocabulary.of(made).digest == vocabulary("byte_level").digest


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda d: d["model"]["merges"].pop(), id="one merge less"),
        pytest.param(
            lambda d: d["model"]["merges"].insert(0, d["model"]["merges"].pop()), id="merges in another order"
        ),
        pytest.param(lambda d: d["model"]["vocab"].update({"zebra": 400}), id="one token more"),
        pytest.param(lambda d: d["model"].update(ignore_merges=True), id="another setting of the model"),
        pytest.param(lambda d: d["pre_tokenizer"].update(add_prefix_space=True), id="another pre-tokeniser"),
        pytest.param(lambda d: d.update(normalizer={"type": "NFC"}), id="a normaliser"),
        pytest.param(lambda d: d["added_tokens"][2].update(content="</t>"), id="another name of a special token"),
    ],
)
def test_whatever_changes_the_cut_changes_the_digest(edit: Callable[[dict[str, Any]], object]) -> None:
    assert Vocabulary.of(edited("byte_level", edit)).digest != vocabulary("byte_level").digest


def test_a_pair_says_what_tells_it_apart() -> None:
    same = TokenizerPair(vocabulary("unigram"), Vocabulary.of(clone(backend("unigram")), "copy"))
    assert (same.same_tokenizer, same.difference()) == (True, "nothing")
    other = TokenizerPair(vocabulary("unigram"), vocabulary("byte_level"))
    assert not other.same_tokenizer
    assert other.difference().startswith(f"unigram has {len(other.student)} tokens and byte_level 400 (digests ")


# --- the real tokenizers ----------------------------------------------------------------------------------------------

SAMPLES = Path(__file__).parents[3] / "harness" / "tasks" / "samples"


@cache
def real(name: str) -> Tokenizer:
    uri = parse_uri(KNOWN_MODELS[name].uri)
    if not is_downloaded(uri):
        pytest.skip(f"{name} is not in {cache_folder()}: run `harness models --download`")
    return load_tokenizer(resolve(uri, download=False).folder).backend_tokenizer


def sample_texts() -> list[str]:
    """Every text of the samples: questions, answers, instructions, programs and their tests."""
    rows = [json.loads(line) for path in SAMPLES.glob("*/*.jsonl") for line in path.read_text().splitlines()]
    values = [
        item for row in rows for value in row.values() for item in (value if isinstance(value, list) else [value])
    ]
    return [value for value in values if isinstance(value, str) and value]


@pytest.mark.models
@pytest.mark.parametrize("name", list(KNOWN_MODELS))
def test_real_tokenizers_spell_the_samples(name: str) -> None:
    tokenizer, texts = real(name), [*sample_texts(), *tiny.TEXT, "   a\n\n\n b", "\x00\x1c", "e\u0301👩‍🚀"]
    vocab = Vocabulary.of(tokenizer, name)
    assert len(texts) > 500
    for text in texts:
        check_spelling(tokenizer, vocab, text)


@pytest.mark.models
def test_gemma_has_two_tokens_of_one_byte_and_two_kinds() -> None:
    tokenizer = real("gemma-3-270m")
    vocab = Vocabulary.of(tokenizer, "gemma")
    ordinary, fallback = tokenizer.token_to_id("1"), tokenizer.token_to_id("<0x31>")
    assert ordinary != fallback
    assert vocab.token_bytes[ordinary] == vocab.token_bytes[fallback] == b"1"
    assert (vocab.kinds[ordinary], vocab.kinds[fallback]) == (TokenKind.ORDINARY, TokenKind.FALLBACK)
    assert encode(tokenizer, "1").tolist() == [ordinary]
