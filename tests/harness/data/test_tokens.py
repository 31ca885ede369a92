"""Spans and groups over pairs of tokenizers: of real text, of sampled ids, and of bytes that are no text at all."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from functools import cache
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from harness.data.templates import ByteTokens, TextSide
from harness.models.cache import cache_folder
from harness.models.load import load_tokenizer
from harness.models.resolve import is_downloaded, resolve
from harness.models.uri import KNOWN_MODELS, parse_uri
from methods.library.alignment import group_bytes
from methods.library.maps import exact_map
from methods.library.vocabulary import TokenKind, Vocabulary
from tests import tiny
from tests.methods.library.test_vocabulary import TEXTS

FAMILY = pytest.mark.parametrize("family", tiny.MORE_FAMILIES)
ORDERED = pytest.mark.parametrize(("left", "right"), list(permutations(tiny.MORE_FAMILIES, 2)))
PREFIX_UNLESS_SPACE = ("unigram", "byte_level_prefix")  # " a" and "a" are the same tokens to them

PARAGRAPHS = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May; together 48+24 = 72.\n#### 72",
    "def area(r: float) -> float:\n\tif r < 0:\n        raise ValueError(f'{r!r}')\n    return 3.14159 * r**2  # ok\n",
    "  Two spaces first, a tab\tthen\r\n\r\n\n\nempty lines, and 1234567890 digits…   three at the end   ",
    "naïve café, Straße, Ωμέγα, жизнь, 北京是中国的首都。日本語のかな、한국어; ไม่มีช่องว่าง, שלום",
    "😀 👩‍🚀 🇨🇭🏳️‍🌈 €≈∑ \u00a0non-breaking\u200bzero-width ½ ﬁ",
    "<html><b>tags</b></html> [INST] {\"json\": [1, 2.50, null]} it's, they'll: we'd've 'quoted' \"text\"",
]


@cache
def side(family: str) -> TextSide:
    return TextSide(tiny.tokenizer(family), template="plain", name=family)


def tokens(made: TextSide, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a text and their ends."""
    (ids,) = made.responses([text])
    return ids, made.vocabulary.ends(ids, text.encode())


def steps(ends: np.ndarray) -> list[tuple[int, int]]:
    """Half-open spans."""
    return list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)) if ends.size else []


def check_groups(left: np.ndarray, right: np.ndarray) -> None:
    """Groups are runs of neighbours from the first token on, and both sides of each span the same bytes."""
    groups = group_bytes(left, right)
    ours, theirs = groups.to_lists()
    for lists, ends in ((ours, left), (theirs, right)):
        members = [token for group in lists for token in group]
        assert members == list(range(len(members)))
        assert len(members) <= ends.size
    for mine, yours in zip(ours, theirs, strict=True):
        assert steps(left)[mine[0]][0] == steps(right)[yours[0]][0]
        assert left[mine[-1]] == right[yours[-1]]
    dropped = [ends[sum(map(len, lists)) :].tolist() for lists, ends in ((ours, left), (theirs, right))]
    assert not set(dropped[0]) & set(dropped[1])  # the tails have no boundary in common
    assert group_bytes(right, left).to_lists() == (theirs, ours)


# --- groups of two tokenisations of one text --------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "right"), list(combinations(tiny.MORE_FAMILIES, 2)))
@settings(deadline=None, max_examples=60)
@given(text=TEXTS, cut=st.integers(0, 12))
@example(text="Zürich 🌈 201", cut=0)
def test_groups_partition_both_sides_and_span_the_same_bytes(left: str, right: str, text: str, cut: int) -> None:
    """With EOS on both sides every token is in a group; of what is cut elsewhere on one side, only the tail is not."""
    ours, theirs = (tokens(side(family), text)[1] for family in (left, right))
    whole = [np.append(ends, ends[-1]) for ends in (ours, theirs)]
    groups = group_bytes(*whole)
    assert (groups.student_index.size, groups.teacher_index.size) == (ours.size + 1, theirs.size + 1)
    assert [lists[-1] for lists in groups.to_lists()] == [[ours.size], [theirs.size]]  # EOS with EOS
    check_groups(*whole)
    check_groups(ours[: max(ours.size - cut, 0)], theirs)


@FAMILY
@settings(deadline=None, max_examples=30)
@given(text=TEXTS)
def test_a_tokenizer_and_its_copy_pair_one_to_one(family: str, text: str) -> None:
    twin = TextSide(copy.deepcopy(tiny.tokenizer(family)), template="plain", name="twin")
    ours, theirs = (tokens(made, text)[1] for made in (side(family), twin))
    singles = [[i] for i in range(ours.size)]
    assert group_bytes(ours, theirs).to_lists() == (singles, singles)


# --- sampled ids ------------------------------------------------------------------------------------------------------


@FAMILY
@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
@example(text=" ")
@example(text="  a")
@example(text="\na")
@example(text=" \na")
@example(text=" \x1ca")
@example(text="🌈")
def test_spelling_undoes_tokenising(family: str, text: str) -> None:
    made = side(family)
    ids, ends = tokens(made, text)
    spelled, own_ends = made.vocabulary.spell(ids)
    if family in PREFIX_UNLESS_SPACE and text.startswith(" "):  # the same tokens as without the space, or not
        assert spelled in (text.encode(), text.encode()[1:])
        assert tokens(made, spelled.decode())[0].tolist() == ids.tolist()
        assert own_ends.tolist() == made.vocabulary.ends(ids, spelled).tolist()
    else:
        assert spelled == text.encode()
        assert own_ends.tolist() == ends.tolist()


@FAMILY
def test_control_tokens_and_ids_without_a_token_cover_nothing(family: str) -> None:
    """Before, between and after text; 100,000 is a column of padded logits."""
    made = side(family)
    ids, ends = tokens(made, "one two")
    spelled, own = made.vocabulary.spell(np.concatenate([[1, 100_000], ids[:2], [0], ids[2:], [2]]))
    assert spelled == b"one two"
    assert own.tolist() == [0, 0, *ends[:2], ends[1], *ends[2:], 7]
    assert made.vocabulary.spell(np.asarray([2]))[0] == b""
    assert made.vocabulary.spell(ids[:0])[0] == b""


@pytest.mark.parametrize(
    ("family", "pieces", "spelled", "ends"),
    [
        ("byte_level", ["Ø", "Ġa", "ä"], b"\xd8 a\xe4", [1, 3, 4]),
        ("byte_level_prefix", ["Ġa", "Ġ", "Ġ"], b"a  ", [1, 2, 3]),
        ("byte_fallback", ["<0xE4>", "▁a", "<0x31>"], b"\xe4 a1", [1, 3, 4]),
        ("byte_fallback", ["▁a", "<0xE4>", "▁a"], b"a\xe4 a", [1, 2, 4]),  # the first space is the dummy
        ("byte_fallback", ["▁", "▁a"], b" a", [0, 2]),
        ("byte_fallback", ["</s>", "▁a"], b"a", [0, 1]),
        ("byte_fallback_bare", ["▁a", "<0xE4>"], b" a\xe4", [2, 3]),
        ("unigram", ["▁a", "<0xF0>", "<0x9F>", "▁a"], b"a\xf0\x9f a", [1, 2, 3, 5]),
        ("unigram", ["▁", "▁a"], b"  a", [1, 3]),  # before a space Metaspace puts no dummy
    ],
)  # fmt: skip
def test_spelling_by_hand(family: str, pieces: list[str], spelled: bytes, ends: list[int]) -> None:
    made = side(family)
    ids = np.asarray(made.tokenizer.convert_tokens_to_ids(pieces))
    found, own = made.vocabulary.spell(ids)
    assert (found, own.tolist()) == (spelled, ends)


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback"])
def test_nothing_drifts_after_bytes_that_are_no_utf8(family: str) -> None:
    """Decoded, each stray byte reads U+FFFD, three bytes: every later span would be wrong by two."""
    made = side(family)
    ids, ends = tokens(made, "so be it")
    stray = made.vocabulary.byte_tokens[0xE4]
    for place in range(1, ids.size):
        found, own = made.vocabulary.spell(np.insert(ids, place, stray))
        assert len(made.tokenizer.decode(np.insert(ids, place, stray)).encode()) == len(b"so be it") + 3
        assert found == b"so be it"[: ends[place - 1]] + b"\xe4" + b"so be it"[ends[place - 1] :]
        assert own.tolist() == [*ends[:place], ends[place - 1] + 1, *(ends[place:] + 1)]


@FAMILY
def test_a_sampled_control_token_with_a_name_of_27_bytes_moves_nothing(family: str) -> None:
    """DeepSeek's end of sentence has 19 characters and 27 bytes; as a token it has no width at all."""
    tokenizer = copy.deepcopy(tiny.tokenizer(family))
    tokenizer.add_special_tokens({"eos_token": "<｜end▁of▁sentence｜>"})
    made = TextSide(tokenizer, template="plain", name=family)
    ids, ends = tokens(made, "ab cd")
    assert len(made.vocabulary.token_bytes[made.eos]) == 27
    for vocab in (made.vocabulary, Vocabulary.of(tokenizer.backend_tokenizer)):
        found, own = vocab.spell(np.concatenate([ids, [made.eos, made.eos], ids[-1:]]))
        assert found.startswith(b"ab cd")
        assert own[: ids.size + 2].tolist() == [*ends, 5, 5]


# --- bytes in another model's tokens ----------------------------------------------------------------------------------


def bytes_of(made: TextSide, found: ByteTokens) -> bytes:
    """What tokens stand for, put together from spans: the last bytes of each token."""
    widths = [stop - start for start, stop in steps(found.ends)]
    spellings = [made.vocabulary.token_bytes[i] for i in found.ids]
    assert all(len(spelling) - width in (0, 1) for spelling, width in zip(spellings, widths, strict=True))
    return b"".join(spelling[len(spelling) - width :] for spelling, width in zip(spellings, widths, strict=True))


def check_retokenised(data: bytes, ends: np.ndarray, made: TextSide) -> ByteTokens:
    (found,) = made.responses_of_bytes([data])
    covered = int(found.ends[-1]) if found.ends.size else 0
    assert bytes_of(made, found) == data[:covered]
    assert found.cut == (covered < len(data))
    assert found.ids.size == found.ends.size
    assert (made.vocabulary.kinds[found.ids] < TokenKind.SPECIAL).all()
    check_groups(ends, found.ends)
    if not found.cut:
        tail = np.append(found.ends, covered)
        groups = group_bytes(np.append(ends, covered), tail)
        assert groups.teacher_index.size == tail.size  # EOS meets EOS, and all before it is in a group
    return found


@ORDERED
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_sampled_bytes_are_spelled_exactly_by_every_other_family(left: str, right: str, data: st.DataObject) -> None:
    """Any ids, stray bytes, halves of characters and control tokens among them."""
    vocab = side(left).vocabulary
    single = st.sampled_from(vocab.byte_tokens.tolist())
    ids = data.draw(st.lists(st.one_of(st.integers(0, len(vocab) - 1), single), max_size=12))
    spelled, ends = vocab.spell(np.asarray(ids, dtype=np.int64))
    found = check_retokenised(spelled, ends, side(right))
    changed = any(mark in spelled for mark in (b"\xe2\x96\x81", b"<0x", b"<s>", b"</s>", b"<pad>", b"<unk>"))
    assert not found.cut or changed
    if not found.cut and left != right:
        decoded = side(right).tokenizer.backend_tokenizer.decode(found.ids.tolist(), skip_special_tokens=False)
        try:
            assert spelled.decode() in (decoded, decoded.removeprefix(" "))
        except UnicodeDecodeError:
            assert "\ufffd" in decoded


@FAMILY
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(TEXTS, max_size=4))
def test_text_has_the_tokens_that_it_has_as_a_response(family: str, texts: list[str]) -> None:
    """Names of control tokens too: what a student writes out is text."""
    made = side(family)
    for text, found in zip(texts, made.responses_of_bytes([text.encode() for text in texts]), strict=True):
        ids, ends = tokens(made, text)
        assert (found.ids.tolist(), found.ends.tolist(), found.cut) == (ids.tolist(), ends.tolist(), False)


@pytest.mark.parametrize("family", [family for family in tiny.MORE_FAMILIES if family != "unigram"])
def test_a_name_of_a_control_token_is_text(family: str) -> None:
    found = check_retokenised(b"a</s>b\xff<s>", np.asarray([10]), side(family))
    assert not found.cut


def test_a_name_that_the_tokenizer_can_only_read_as_its_control_token_is_cut() -> None:
    """The Unigram model of the tokenizers library finds "</s>" among its pieces."""
    found = check_retokenised(b"a</s>b", np.asarray([6]), side("unigram"))
    assert found.ends.tolist() == [1]


@pytest.mark.parametrize("family", ["byte_fallback", "unigram", "byte_level_prefix"])
def test_text_behind_a_stray_byte_gets_no_dummy_space(family: str) -> None:
    made = side(family)
    found = check_retokenised(b"the\xff the\xffthe", np.asarray([12]), made)
    own = b"".join(made.vocabulary.token_bytes[i] for i in found.ids)
    assert own == b" the\xff the\xffthe"  # the first one aside


@pytest.mark.parametrize("data", [b"ab\xffcd", b"ab\xff", b"\xff", b"", b"ab"])
def test_a_byte_without_a_token_cuts_the_response_and_says_so(data: bytes) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer("byte_fallback"))
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["model"]["vocab"]["gone"] = description["model"]["vocab"].pop("<0xFF>")
    made = TextSide(
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)), eos_token="</s>"),
        template="plain",
        name="gapped",
    )
    assert made.vocabulary.byte_tokens[0xFF] == -1
    found = check_retokenised(data, np.arange(1, len(data) + 1), made)
    assert found.cut == (b"\xff" in data)
    assert bytes_of(made, found) == data.partition(b"\xff")[0]


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback_bare"])
def test_text_that_the_tokenizer_would_change_is_cut_and_told(family: str) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer(family))
    own = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *([own] if own else [])])
    made = TextSide(tokenizer, template="plain", name="composing")
    found = check_retokenised("one e\u0301 two".encode(), np.asarray([11]), made)
    assert (bytes_of(made, found), found.cut) == (b"one ", True)


# --- real tokenizers --------------------------------------------------------------------------------------------------

FILES = ("qwen3", "llama2", "llama3", "gemma3")
REAL = [*(pytest.param(name, marks=pytest.mark.models) for name in KNOWN_MODELS), *FILES]


@cache
def real(name: str) -> TextSide:
    """A downloaded model's tokenizer, or one of HARNESS_TEST_TOKENIZERS; skips where it is not there."""
    if name in KNOWN_MODELS:
        uri = parse_uri(KNOWN_MODELS[name].uri)
        if not is_downloaded(uri):
            pytest.skip(f"{name} is not in {cache_folder()}: run `harness models --download`")
        return TextSide(load_tokenizer(resolve(uri, download=False).folder), template="plain", name=name)
    path = Path(os.environ.get("HARNESS_TEST_TOKENIZERS", ""), f"{name}.json")
    if not path.is_file():
        pytest.skip(f"set HARNESS_TEST_TOKENIZERS to a folder with {name}.json (a tokenizer file)")
    backend = Tokenizer.from_file(str(path))
    end = next(token.content for token in backend.get_added_tokens_decoder().values() if token.special)
    return TextSide(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end), template="plain", name=name)


def others(name: str) -> Sequence[str]:
    names = [*KNOWN_MODELS, *FILES]
    return [other for other in names[names.index(name) + 1 :] if _there(other)]


def _there(name: str) -> bool:
    try:
        real(name)
    except pytest.skip.Exception:
        return False
    return True


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_agree_on_real_text(name: str) -> None:
    """Against every other one there is: groups, and that tokens which meet one to one are pairs of the exact map."""
    made = real(name)
    for other in others(name):
        mapping = exact_map(made.vocabulary, real(other).vocabulary)
        pairs = 0
        for text in [*PARAGRAPHS, *tiny.TEXT]:
            (ours, left), (theirs, right) = tokens(made, text), tokens(real(other), text)
            check_groups(np.append(left, left[-1]), np.append(right, right[-1]))
            for mine, yours in zip(*group_bytes(left, right).to_lists(), strict=True):
                a, b = int(ours[mine[0]]), int(theirs[yours[0]])
                equal = made.vocabulary.token_bytes[a] == real(other).vocabulary.token_bytes[b]
                if len(mine) == len(yours) == 1 and equal:
                    assert mapping[a] == b, (other, made.vocabulary.token_bytes[a])
                    pairs += 1
        assert pairs > 200


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_spell_text_and_what_they_sample(name: str) -> None:
    made = real(name)
    vocab = made.vocabulary
    for text in PARAGRAPHS:
        ids, ends = tokens(made, text)
        spelled, own = vocab.spell(ids)
        assert (tokens(made, spelled.decode())[0].tolist(), own[-1]) == (ids.tolist(), len(spelled))
        assert text.encode().endswith(spelled)
        if not text.startswith(" "):
            assert own.tolist() == ends.tolist()
    random = np.random.default_rng(0)
    samples = [vocab.spell(random.integers(0, len(vocab), 40)) for _ in range(50)]
    bytewise = [random.choice(vocab.byte_tokens, 40) for _ in range(20)]
    samples += [vocab.spell(ids) for ids in bytewise]
    for other in others(name):
        cuts = [check_retokenised(spelled, ends, real(other)).cut for spelled, ends in samples]
        assert np.mean(cuts) < 0.2, other  # what NFC composes, in a heap of tokens of all scripts
