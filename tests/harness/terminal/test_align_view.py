"""``harness align``: groups of a text that can be worked out by hand, on two tokenizers of a few pieces."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rapidfuzz.distance import Levenshtein
from rich.cells import cell_len
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.data.rows import Example
from harness.models.load import load_model
from harness.recipe.load import load_recipe
from harness.terminal.align_block import PairView, ShownSide, rendered, visible
from harness.terminal.align_view import BUILT_IN, shown_pairs
from methods.library.warping import entropy_weights
from tests import tiny
from tests.conftest import Command, Done
from tests.methods.library.test_warping import double_loop


def student_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: every byte, ``201``, ``␣+`` and ``è`` beside them."""
    pieces = ["<pad>", "<s>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "20", "201", "Ġ+"]
    merges = [("2", "0"), ("20", "1"), ("Ġ", "+")]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in pieces[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<|end|>", pad_token="<pad>")


def teacher_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like with a dummy prefix: digits, ``▁+`` and ``é``; bytes of what it does not know."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<pad>", "<bos>", "</s>", *fallback, "▁", "+", "▁+", "é", *"0123456789"]
    made = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [("▁", "+")], byte_fallback=True, unk_token="<pad>")
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with models of the two tokenizers above, and a teacher with the student's."""
    folder = tmp_path_factory.mktemp("viewer")
    for role, tokenizer in (("student", student_tokenizer()), ("cross", teacher_tokenizer())):
        tiny.model("llama", len(tokenizer), seed=len(role)).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    changed = tiny_recipe | {
        "student": {"model": f"path:{folder / 'student'}", "name": "digits together"},
        "teachers": {
            "same": {"model": f"path:{folder / 'student'}", "name": "twin"},
            "cross": {"model": f"path:{folder / 'cross'}", "name": "digits apart"},
        },
        "tasks": ["gsm8k"],
    }
    (folder / "hand.yaml").write_text(yaml.safe_dump(changed))
    return folder / "hand.yaml"


@pytest.fixture
def align(harness: Command, recipe: Path) -> Any:
    def call(*arguments: str) -> Done:
        return harness("align", f"recipe={recipe}", *arguments)

    return call


def block(text: str) -> list[str]:
    """The lines of groups, tokens and links."""
    return [line for line in text.splitlines() if line.split(" ")[0] in {"group", "student", "teacher", "CDM"}][:4]


def test_groups_and_links_by_hand(align: Any) -> None:
    """The dummy prefix joins the first group. A digit costs 1 with "+" and 2 with "201": three links are wrong."""
    done = align("--text", "201 + 1")
    assert done.code == 0
    assert block(done.out) == [
        "group    1 (1:4) │ 2  │ 3 │ 4 │ 5",
        "student  201°    │ ␣+ │ ␣ │ 1 │ <|end|>",
        "teacher  ␣ 2 0 1 │ ␣+ │ ␣ │ 1 │ </s>",
        "CDM      ✗       │ ✗  │ ✓ │ ✓ │ ✓",
    ]
    table = [line.split() for line in done.out.splitlines() if line.startswith(("student ", "teacher "))][2:]
    assert table == [
        ["student", "5", "4", "(80", "%)", "1", "(20", "%)", "0", "(0", "%)", "1", "(20", "%)"],
        ["teacher", "8", "4", "(50", "%)", "4", "(50", "%)", "0", "(0", "%)", "0", "(0", "%)"],
    ]
    words = " ".join(done.out.split())
    assert "digits apart → digits together (text, 7 bytes)" in words
    assert "CDM links 8 pairs of tokens by edit distance (entropy weights: flat, since no model is loaded)" in words
    assert "5 (62 %) stay within a group of bytes; teacher–student pairs that do not: " in words
    assert "2 ↔ ␣+ (1, 2); 0 ↔ ␣+ (1, 2); 1 ↔ ␣+ (1, 2)." in words
    # 256 bytes, " +", the ends and the padding
    assert "The exact map pairs 259 tokens: 99 % of the student's 262, 95 % of the teacher's 273." in words
    assert "twin" not in words  # a teacher with the student's tokenizer cuts as the student does


def test_bytes_of_a_character_that_is_cut(align: Any) -> None:
    """The student knows the bytes of é, the teacher é; of ü both know bytes only."""
    done = align("--text", "éü\n")
    assert block(done.out) == [
        "group    1 (2:2)   │ 2    │ 3    │ 4 │ 5",
        "student  ‹C3› ‹A9› │ ‹C3› │ ‹BC› │ ↵ │ <|end|>",
        "teacher  ␣ é°      │ ‹C3› │ ‹BC› │ ↵ │ </s>",
        "CDM      ✓         │ ✓    │ ✓    │ ✓ │ ✓",
    ]


def test_a_limit_cuts_the_text_as_in_training(align: Any) -> None:
    done = align("--text", "1 + 1 + 1 + 1 + 1", "limits.length=12")
    assert "cut at limits.length=12, so that no EOS follows" in " ".join(done.out.split())
    assert "</s>" not in done.out
    assert block(done.out)[1].endswith(("1", "+"))


def test_a_training_row(align: Any, recipe: Path) -> None:
    examples = load_recipe(str(recipe)).task("gsm8k").training_examples()
    for row in (0, 3):
        done = align("task=gsm8k", "--row", str(row))
        assert f"({examples[row].id}, {len(examples[row].response.encode())} bytes)" in " ".join(done.out.split())
    assert align("task=gsm8k").out == align("task=gsm8k", "--row", "0").out


def test_a_text_of_its_own(align: Any) -> None:
    done = align()
    assert f"(built-in text, {len(BUILT_IN.response.encode())} bytes)" in " ".join(done.out.split())


def test_entropies_weight_the_links(align: Any, recipe: Path) -> None:
    """Against whole models, and the path of weighted edit costs found cell by cell."""
    (pair,) = shown_pairs(load_recipe(str(recipe)), Example("x", "11", "201 + 10 + 2"), True, print)
    weights = []
    for role, made in (("student", student_tokenizer()), ("cross", teacher_tokenizer())):
        encode = made.backend_tokenizer.encode
        prompt = encode("11", add_special_tokens=False).ids
        response = encode("201 + 10 + 2", add_special_tokens=False).ids
        model = load_model(recipe.parent / role)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *response, made.eos_token_id]])).logits[0]
        p = logits[len(prompt) - 1 : -1].double().softmax(-1)
        weights.append(entropy_weights(-(p * p.log()).sum(-1).numpy()))
    texts = [[t.replace("␣", "").removesuffix("°") for t in side.tokens] for side in (pair.student, pair.teacher)]
    costs = [[0 if t == "</s>" and s == "<|end|>" else Levenshtein.distance(t, s) for s in texts[0]] for t in texts[1]]
    assert len(set(weights[0])) > 1  # or they would change nothing
    weighted = np.asarray(costs) * np.outer(weights[1], weights[0])
    assert list(pair.links) == double_loop(weighted.tolist())
    assert "entropies of the models as published" in pair.weights


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", ""], ["--text: found an empty text"]),
        (["task=gsmk"], ["task: found 'gsmk'", 'Did you mean "gsm8k"?']),
        (["task=gsm8k", "--text", "a"], ["--text: found a text beside task=gsm8k; expected either"]),
        (["--row", "1"], ["--row: found 1; expected task=NAME beside it"]),
        (["task=gsm8k", "--row", "100000"], ["--row: found 100000; expected 0 to "]),
        (["task=gsm8k", "--row", "-1"], ["--row: found -1; expected 0 to "]),
        (["teachers.cross=null"], ["teachers: found twin beside the student digits together", "another tokenizer"]),
        (["--text", "a ▁ b"], ["text: found digits apart changes text before it cuts it"]),
        (["--text", "a", "--prompt", ""], ["text: found a prompt without a token for digits together"]),
        (["--text", "1", "--prompt", "1 " * 500], ["text: found a prompt of ", "limits.length"]),
        (["teachers.cros=null"], ["teachers.cros: unknown key"]),
    ],
)
def test_what_a_user_gets_wrong_is_one_error(align: Any, arguments: list[str], words: list[str]) -> None:
    done = align(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert [word for word in words if word not in done.err] == []


# --- signs and layout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (b" the", "␣the"),
        (b"    ", "␣␣␣␣"),
        (b" " * 16 + b"\n\n", "␣×16↵↵"),
        (b"aaaaaaa", "aaaaaaa"),
        (b"\t1", "⇥1"),
        ("北京".encode(), "北京"),
        (b" \xf0\x9f", "␣‹F09F›"),
        (b"\x8c\x88a\xff", "‹8C88›a‹FF›"),
        ("a\u200d".encode(), "a‹U+200D›"),
        ("\u0308o".encode(), "◌\u0308o"),
        (b"", ""),
    ],
)
def test_nothing_of_a_token_is_invisible(spelling: bytes, expected: str) -> None:
    assert visible(spelling) == expected


def test_special_tokens_stand_as_they_are_called() -> None:
    assert visible(b"<|end of turn|>", special=True) == "<|end␣of␣turn|>"


def side(tokens: str, group: list[int], name: str) -> ShownSide:
    named = tuple(tokens.split(" "))
    return ShownSide(name, named, np.asarray(group), np.zeros(len(named), dtype=bool), 100)


def printed(pair: PairView, width: int, **settings: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, **settings)
    console.print(rendered(pair, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_tokens_in_no_group_and_their_links() -> None:
    """A tail on both sides; the link of its tokens is confirmed by nothing."""
    pair = PairView(
        side("a b", [0, -1], "s"),
        side("a cd", [0, -1], "t"),
        1,
        50,
        ((0, 0), (1, 1)),
        np.array([True, False]),
        "flat",
        "",
    )
    assert block(printed(pair, 80)) == [
        "group    1 │ none",
        "student  a │ b",
        "teacher  a │ cd",
        "CDM      ✓ │ ✗",
    ]
    assert "cd ↔ b (none, none)." in " ".join(printed(pair, 80).split())


@pytest.mark.parametrize("width", [30, 60, 100])
def test_groups_wider_than_a_line_go_on_in_the_next(width: int) -> None:
    """Every token once and in order on its side, and no line longer than the console."""
    student = [f"s{i}" for i in range(40)] + ["x" * 70, "🌈" * 30]
    teacher = ["all", "of", "it"]
    groups = [[*[0] * 2, *[1] * 38, 2, 3], [0, 1, 1]]
    sides = side(" ".join(student), groups[0], "s"), side(" ".join(teacher), groups[1], "t")
    pair = PairView(*sides, 4, 50, (), np.zeros(0, dtype=bool), "flat", "")
    lines = printed(pair, width).partition("tokens")[0].splitlines()
    assert all(cell_len(line) <= width for line in lines)
    for label, tokens in (("student", student), ("teacher", teacher)):
        cells = [line[9:] for line in lines if line.startswith(label)]
        assert "".join("".join(cells).replace("│", "").split()) == "".join(tokens)


def test_a_group_has_one_colour_on_both_sides() -> None:
    links = ((0, 0), (1, 1), (1, 2))
    pair = PairView(
        side("a b c", [0, 1, 1], "s"), side("ab d", [0, 1], "t"), 2, 50, links, np.ones(3, dtype=bool), "flat", ""
    )
    text = printed(pair, 80, force_terminal=True, color_system="standard")
    colours = {token: code for code, token in re.findall(r"\x1b\[(\d+)m(ab?|b|c|d)\x1b", text.partition("CDM")[0])}
    assert colours["a"] == colours["ab"] == "36"
    assert colours["b"] == colours["c"] == colours["d"] == "33"
