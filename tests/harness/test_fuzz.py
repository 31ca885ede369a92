"""What strangers bring, at random: each ends in a value or in one sentence of ours, and nothing else.

Records, manifests and bundles: ``tests/harness/results/test_fuzz.py``.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import pytest
import yaml

from harness.base.errors import HarnessError
from harness.evaluate import rouge
from harness.evaluate.programs.extraction import solution_code
from harness.evaluate.programs.problems import PromptStyle
from harness.models.uri import KNOWN_MODELS, parse_uri
from harness.recipe.load import find_recipe, recipe_from, recipe_names, validate
from harness.recipe.yaml_text import YamlError, parse_yaml
from harness.tasks import tasks
from harness.tasks.countdown import judge
from harness.tasks.custom import Custom, CustomSettings
from harness.tasks.own_metrics import MetricKind, check_reference, score_texts
from harness.tasks.own_rows import OwnRow
from harness.tasks.sets import Reader
from methods.library.maps import MAPS, UNMAPPED, stored_map
from methods.library.vocabulary import TokenKind, Vocabulary
from tests.harness.recipe.test_recipe import MINIMAL
from tests.harness.results.test_fuzz import NIGHTLY, ODD, damaged, held

MANY = [100, pytest.param(100_000, marks=NIGHTLY)]

PIECES = (
    "0", "1", "-1", "1.5", "1e999", ".inf", "nan", "$1,000.", "٣", "null", "true", "[]", "{}", '"', "'", "\\", ",", ";",
    ":", "=", "#", "%", "@", "${", "${x}", "&a", "*a", "<<:", "-", "|", ">", "\t", "\n", "\r", "\0", " ", "(", ")", "+",
    "\ud800", "\u202e", "\x1b[2J", "\uffff", "💥", "北京", "ก", "é", "ß", "ﬀ", "```", "```python", "<answer>",
    "</answer>", "*", "/", "#### ", "<n>", "<|endoftext|>", "def double(x): return 2 * x", "    return x", "import os",
    "if __name__", "lambda: (", "a = [", "x", "../..", "/dev/zero", "~", "~nobody/x", "hf:", "path:", "pypi:", "tiny:",
    "==", "?seed=1", "&tokens=9", "{1..9}", "{9..1}", ".gguf", "a" * 300, "9" * 400, "(" * 40, "[" * 40,
)  # fmt: skip


def odd_text(draw: random.Random, base: str = "") -> str:
    """Pieces of anything, or a text with a few places changed."""
    if not base or draw.random() < 0.2:
        return draw.choice(("", " ", "\n")).join(draw.choices(PIECES, k=draw.randint(0, 6)))
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(base) + 1)
        piece = draw.choice((draw.choice(PIECES), "", chr(draw.randrange(0x3000)), base[start : start + 9]))
        base = base[:start] + piece + base[start + draw.choice((0, 0, 1, 2, 9)) :]
    return base


@pytest.fixture
def plug_ins_once() -> Iterator[None]:
    """Every recipe looks for plug-ins among installed packages: hundreds of files, each time."""
    with (
        mock.patch("methods.library.registry.entry_points", return_value=()),
        mock.patch("harness.tasks.entry_points", return_value=()),
    ):
        yield


# --- Recipes ----------------------------------------------------------------------------------------------------------


def recipes() -> list[dict[str, Any]]:
    own = {"mine": {"task": "custom", "train": "a.csv", "test": "b.csv"}, "tasks": ["mine"], "notes": ["${name}"]}
    small = MINIMAL | {"name": "mine", "title": "${train.steps} steps", "seeds": [0, 1], "launch": {"workers": 2}}
    shipped = [parse_yaml(find_recipe(name).read_text(encoding="utf-8")) for name in recipe_names()]
    return [small, small | own, small, small | own, *shipped]  # type: ignore[list-item]


@pytest.mark.usefixtures("plug_ins_once")
@pytest.mark.parametrize("count", MANY)
def test_recipes(count: int) -> None:
    draw, whole = random.Random(0), recipes()
    texts = [yaml.safe_dump(one) for one in whole[:4]] * 4 + [
        find_recipe(name).read_text(encoding="utf-8") for name in recipe_names()
    ]
    for number in range(count):
        with contextlib.suppress(HarnessError, YamlError):
            odd = parse_yaml(odd_text(draw, draw.choice(texts))) if number % 2 else damaged(draw.choice(whole), draw)
            validate("mine", odd)


@pytest.mark.usefixtures("plug_ins_once")
@pytest.mark.parametrize("count", MANY)
def test_overrides(count: int) -> None:
    draw, whole = random.Random(1), recipes()[:4]
    keys = ["train.steps", "seeds", "title", "teachers.same", "method_options.uld.kd_weight", "mine.columns.prompt"]
    keys += ["student.model", "methods", "tasks", "variants.x", "launch", "data.root", "train", "a.b.c.d", "name"]
    for _ in range(count):
        given = []
        for _ in range(draw.randint(1, 3)):
            key = draw.choice(keys) if draw.random() < 0.8 else odd_text(draw, draw.choice(keys))
            value = odd_text(draw) if draw.random() < 0.5 else json.dumps(draw.choice(ODD))
            given.append(f"{key}={value}" if draw.random() < 0.95 else odd_text(draw, f"{key}={value}"))
        held(partial(recipe_from, "mine", draw.choice(whole), given))


@pytest.mark.parametrize("count", MANY)
def test_uris(count: int) -> None:
    draw = random.Random(2)
    whole = [*(model.uri for model in KNOWN_MODELS.values()), *KNOWN_MODELS, "hf:a/b@main", "path:~/x", "path:a/b"]
    whole += ["tiny:llama?seed=0", "tiny:gemma2?tokenizer=byte_fallback&tokens=600&seed=2"]
    for _ in range(count):
        held(lambda: parse_uri(odd_text(draw, draw.choice(whole))))


# --- Rows -------------------------------------------------------------------------------------------------------------

ROW: Mapping[str, Any] = {
    "prompt": "Double 2.", "response": "It is 4.\n#### 4", "question": "2 + 2?", "answer": "4\n#### 4", "id": 1,
    "instruction": "Double 2.", "context": "", "category": "closed_qa", "input": "", "output": "4",
    "messages": [{"role": "user", "content": "Double 2."}, {"role": "assistant", "content": "4"}],
    "entry_point": "double", "inputs": [[1], [2]], "task_id": "HumanEval/0", "contract": "", "atol": 0,
    "canonical_solution": "    return 2 * x\n", "base_input": [[1]], "plus_input": [[2]],
}  # fmt: skip


def readers() -> list[Reader]:
    """Of every task, and of a recipe's own rows in several layouts."""
    own = {"task": "custom", "train": "a", "test": "b"}
    layouts: list[dict[str, Any]] = [{"metric": metric} for metric in get_args(MetricKind)]
    layouts += [{"messages": "messages"}, {"template": "{id}: {prompt}{{{context}}}"}]
    needs = [need for layout in layouts for need in Custom.data_needs(CustomSettings.model_validate(own | layout))]
    needs += [need for kind in tasks().values() for need in kind.data_needs()]
    return [need.read for need in needs]


def table(rows: Sequence[Any], name: str) -> bytes:
    """Rows as a file of that name holds them."""
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    if name.endswith(".json"):
        lines = json.dumps(rows)
    elif name.endswith((".csv", ".tsv")):
        cells = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
        names = list(dict.fromkeys(str(key) for row in cells for key in row))
        out = io.StringIO()
        csv.writer(out, delimiter="\t" if name.endswith(".tsv") else ",").writerows(
            [names, *([row.get(key, "") for key in names] for row in cells)]
        )
        lines = out.getvalue()
    content = lines.encode(errors="surrogatepass")
    return gzip.compress(content, 1) if name.endswith(".gz") else content


@pytest.mark.parametrize("count", MANY)
def test_rows(tmp_path: Path, count: int) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    draw, read = random.Random(3), readers()
    parquet.write_table(arrow.Table.from_pylist([dict(ROW)] * 2), tmp_path / "whole.parquet")
    packed = (tmp_path / "whole.parquet").read_bytes()
    names = ["a.jsonl", "a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tsv"]
    for number in range(count):
        name = draw.choice(names) if number % 20 else "a.parquet"
        rows = damaged([dict(ROW)] * draw.randint(1, 2), draw)
        content = packed if name == "a.parquet" else table(rows, name)
        if draw.random() < 0.4 or name == "a.parquet":
            content = damaged_bytes(content, draw)
        (path := tmp_path / name).write_bytes(content)
        held(lambda: draw.choice(read)(path))


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if made:
            made[draw.randrange(len(made))] = draw.randrange(256)
    if draw.random() < 0.3:
        start, end = sorted(draw.randrange(len(made) + 1) for _ in range(2))
        made[start:end] = draw.choice((b"", b"\0", b"\xff\xfe", made[:start]))
    return bytes(made)


# --- Answers ----------------------------------------------------------------------------------------------------------

ANSWERS = (
    "It is 4.\n#### 4",
    "19 - 4 = 15\n<answer>(19 - 4) * 2</answer>",
    "```python\ndef double(x):\n    return 2\n```",
    "",
)


@pytest.fixture
def templates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval compiles its templates again for each row: most of its time."""
    from lm_eval import utils

    monkeypatch.setattr(utils.env, "from_string", cache(utils.env.from_string))


@pytest.mark.usefixtures("templates_once")
@pytest.mark.parametrize("count", MANY)
@pytest.mark.parametrize("kind", ["rouge_l", "exact_match", "numeric_match"])
def test_answers_of_own_rows(kind: MetricKind, count: int) -> None:
    """References are those that reading lets through: anything."""
    draw, at_once = random.Random(4), 1000
    for _ in range(-(-count // at_once)):
        rows: dict[str, OwnRow] = {}
        while len(rows) < min(at_once, count):
            row = OwnRow("?", tuple(readable(draw) for _ in range(draw.randint(1, 2))), "file line 1")
            with contextlib.suppress(HarnessError):
                check_reference(kind, row)
                rows[str(len(rows))] = row
        said = {"student": {item: odd_text(draw, draw.choice(ANSWERS)) for item in rows}}
        tokens = draw.choice(get_args(rouge.Tokens))
        scores = score_texts(kind, said, rows, tokens)["student"]
        assert scores.keys() == rows.keys()
        assert all(0 <= score <= 100 for score in scores.values())


def readable(draw: random.Random) -> str:
    """A reference that is no empty text and can be written."""
    return odd_text(draw, draw.choice(ANSWERS)).encode(errors="replace").decode() + draw.choice(" ?4")


@pytest.mark.parametrize("count", MANY)
def test_answers_of_countdown(count: int) -> None:
    draw = random.Random(5)
    signs = [*"0123456789+-*/()  ", "19", "4", "2", "<answer>", "</answer>", "٣", "**", "(" * 40]
    for number in range(count):
        sums = "".join(draw.choices(signs, k=draw.randint(0, 30)))
        text = f"<answer>{sums}</answer>" if number % 2 else odd_text(draw, ANSWERS[1])
        assert judge(text, (19, 4, 2), 30) in ("right", "wrong value", "wrong numbers", "no expression", "no answer")


@pytest.mark.parametrize("count", MANY)
def test_programs_in_answers(count: int) -> None:
    draw, problem = random.Random(6), {"prompt": "def double(x):\n", "entry_point": "double"}
    for number in range(count):
        style: PromptStyle = draw.choice(get_args(PromptStyle))
        dataset = ("humaneval", "mbpp")[number % 2]
        assert isinstance(solution_code(problem, odd_text(draw, ANSWERS[2]), dataset=dataset, style=style), str)  # type: ignore[arg-type]


# --- Maps -------------------------------------------------------------------------------------------------------------


def odd_vocabulary(draw: random.Random) -> Vocabulary:
    """Tokens of any bytes, twice too, of any kind."""
    alphabet = [*(letter.encode() for letter in string.ascii_lowercase[:3]), b" ", b"\xc3", b"\xa9", b"\0", b"<0x41>"]
    size = draw.randint(1, 8)
    texts = tuple(b"".join(draw.choices(alphabet, k=draw.randint(0, 4))) for _ in range(size))
    kinds = np.asarray(draw.choices(list(TokenKind), k=size), dtype=np.int8)
    ends = tuple(draw.sample(range(size), k=draw.randint(0, min(2, size))))
    kinds[list(ends)] = TokenKind.SPECIAL
    named = draw.choices(("Ġa", "▁a", "a", "", None, "\ud800"), k=size)
    pieces = tuple(None if kind == TokenKind.UNUSED else name or "" for kind, name in zip(kinds, named, strict=True))
    return Vocabulary("odd", texts, kinds, ends, str(draw.random()), (), pieces)


@pytest.mark.parametrize("count", MANY)
def test_maps(count: int) -> None:
    draw = random.Random(7)
    for _ in range(count):
        source, target = odd_vocabulary(draw), odd_vocabulary(draw)
        check_map(draw.choice(list(MAPS.values()))(source, target), source, target)


@pytest.mark.parametrize("count", MANY)
def test_stored_maps(tmp_path: Path, count: int) -> None:
    """What is kept of a map is made again where it is damaged."""
    draw = random.Random(8)
    source, target = odd_vocabulary(draw), odd_vocabulary(draw)
    made = stored_map("prefix", source, target, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for _ in range(count):
        path.write_bytes(damaged_bytes(whole, draw))
        found = stored_map("prefix", source, target, tmp_path)
        assert found.tolist() == made.tolist()


def check_map(made: Any, source: Vocabulary, target: Vocabulary) -> None:
    assert made.shape == (len(source),)
    assert made.dtype == np.int64
    assert ((made == UNMAPPED) | ((made >= 0) & (made < len(target)))).all()
