"""Checks of the text samples that ship with the harness.

The quickstart recipe trains on these files, so a wrong sum or a leaked test row would make every quickstart
number meaningless without any error. Nothing here needs a model or the network.
"""

import ast
import json
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import harness

SAMPLES = Path(harness.__file__).parent / "tasks" / "samples"
FILES = [("dolly", "train"), ("dolly", "test"), ("gsm8k", "train"), ("gsm8k", "test")]
MIN_ROWS = {"train": 192, "test": 32}
PROMPT_KEY = {"dolly": "instruction", "gsm8k": "question"}
TOPICS = {
    "brainstorming",
    "classification",
    "closed_qa",
    "creative_writing",
    "general_qa",
    "information_extraction",
    "open_qa",
    "summarization",
}
NEEDS_CONTEXT = {"closed_qa", "information_extraction", "summarization"}
STEP = re.compile(r"<<([^=<>]+)=(-?[\d.]+)>>(-?\d+(?:\.\d+)?)")
FINAL = re.compile(r"\n#### (-?\d+|-?\d{1,3}(?:,\d{3})+)\Z")
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def rows(task: str, split: str) -> list[dict[str, Any]]:
    """Read as bytes and split on newlines only, as `str.splitlines` would also break on U+2028."""
    text = (SAMPLES / task / f"{split}.jsonl").read_bytes().decode("utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def exact(node: ast.expr) -> Fraction:
    """Evaluate plain arithmetic exactly; `eval` would run whatever a sample file holds, and floats would round."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](exact(node.left), exact(node.right))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(repr(node.value))
    raise ValueError(f"not plain arithmetic: {ast.dump(node)}")


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(("task", "split"), FILES)
def test_file_is_small_utf8_and_complete(task: str, split: str) -> None:
    """The files travel in the wheel, so they stay small; a missing last newline means a truncated write."""
    raw = (SAMPLES / task / f"{split}.jsonl").read_bytes()
    assert len(raw) < 300_000
    assert raw.endswith(b"\n")
    assert not raw.endswith(b"\n\n")
    assert b"\r" not in raw
    assert b"\\u" not in raw, "non-ASCII text should be stored as UTF-8, not as escapes"
    assert len(rows(task, split)) >= MIN_ROWS[split]


@pytest.mark.parametrize("task", PROMPT_KEY)
def test_no_prompt_appears_twice(task: str) -> None:
    """A prompt in both train and test would let a model score by memory; spaces and case must not hide one."""
    prompts = [" ".join(row[PROMPT_KEY[task]].lower().split()) for split in MIN_ROWS for row in rows(task, split)]
    assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize(("task", "split"), FILES)
def test_some_text_is_not_ascii(task: str, split: str) -> None:
    """Alignment between tokenizers works on bytes, and only multi-byte characters tell bytes from characters."""
    assert sum(not "".join(map(str, row.values())).isascii() for row in rows(task, split)) >= 2


@pytest.mark.parametrize("split", MIN_ROWS)
def test_dolly_rows(split: str) -> None:
    """Train has one response; test has a list of references, the form that evaluation must also accept."""
    topics = set()
    for row in rows("dolly", split):
        assert set(row) == {"instruction", "input", "output", "topic"}
        outputs = [row["output"]] if split == "train" else row["output"]
        assert isinstance(outputs, list)
        assert 1 <= len(outputs) <= 2
        for text in (row["instruction"], row["input"], *outputs):
            assert isinstance(text, str)
            assert text == text.strip()
        assert row["instruction"]
        assert row["input"] or row["topic"] not in NEEDS_CONTEXT, row
        assert all(8 <= words(text) <= 50 for text in outputs), row
        topics.add(row["topic"])
    assert topics == TOPICS


def test_dolly_mixes_prompts_with_and_without_context() -> None:
    """The prompt template has two branches; training must see both."""
    share = sum(bool(row["input"]) for row in rows("dolly", "train")) / len(rows("dolly", "train"))
    assert 0.25 <= share <= 0.45


@pytest.mark.parametrize("split", MIN_ROWS)
def test_gsm8k_rows(split: str) -> None:
    """Every calculator mark is exact and the last one is the answer, so the answers need no other key."""
    for row in rows("gsm8k", split):
        assert set(row) == {"question", "answer"}
        question, answer = row["question"], row["answer"]
        assert isinstance(question, str)
        assert question == question.strip() != ""
        assert isinstance(answer, str)
        assert words(answer) <= 60, row
        steps = STEP.findall(answer)
        assert len(steps) == 1, row  # small models are to get some right
        assert answer.count("<<") == answer.count(">>") == len(steps), row
        for expression, marked, shown in steps:
            value = exact(ast.parse(expression, mode="eval").body)
            assert value == Fraction(marked) == Fraction(shown), (expression, row)
        final = FINAL.search(answer)
        assert final, row
        assert Fraction(final[1].replace(",", "")) == Fraction(steps[-1][2]), row
