"""`harness init`: what it finds of a pair, the recipe that it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import typer

from harness.data.pair import pair_facts
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.plan.builder import make_plan
from harness.recipe.load import load_recipe
from tests import tiny
from tests.conftest import Command

ROWS = [{"question": f"What is {n} and 1?", "answer": f"She sold {n + 1} clips, in Malmö 🌈."} for n in range(8)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with rows of one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.json").write_text(json.dumps(ROWS))
    return tmp_path


def flags(models: Path, teacher: str = "cross", **more: str) -> list[str]:
    given = {"teacher": str(models / teacher), "student": f"path:{models / 'student'}"}
    given |= {"train": "clips.json", "test": "clips.json", "gpu": "none"} | more
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value]


def test_a_token_aligns_where_the_other_side_has_one_of_the_same_bytes() -> None:
    sides = [TextSide(tiny.tokenizer(f), template="plain", name=f) for f in ("byte_level", "byte_fallback")]
    examples = [Example(str(n), row["question"], row["answer"]) for n, row in enumerate(ROWS)]
    facts = pair_facts(examples, *sides)

    def spans(side: TextSide, text: str) -> set[tuple[int, int]]:
        """By spelling each token."""
        spelled = [side.vocabulary.token_bytes[token] for token in side.responses([text])[0]]
        if b"".join(spelled) == b" " + text.encode():  # a space that a tokenizer puts before a text is none of it
            spelled[0] = spelled[0][1:]
        assert b"".join(spelled) == text.encode()
        ends = [len(b"".join(spelled[: n + 1])) for n in range(len(spelled))]
        return set(zip([0, *ends], ends, strict=False))

    ours, theirs = ([spans(side, row["answer"]) for row in ROWS] for side in sides)
    ends = len(ROWS)  # both sides' ends stand for one another
    assert facts.student_tokens == sum(map(len, ours)) + ends
    assert facts.one_to_one == sum(len(own & other) for own, other in zip(ours, theirs, strict=True)) + ends
    bytes_of = [
        {spelled for spelled, kind in zip(side.vocabulary.token_bytes, side.vocabulary.kinds, strict=True) if spelled}
        for side in sides
    ]
    assert facts.shared >= 0.9 * len(bytes_of[0] & bytes_of[1])
    assert not facts.same_tokenizer


def test_the_recipe_plans_and_says_what_was_found(folder: Path, tiny_models: Path, harness: Command) -> None:
    done = harness("init", "clips_pair.yaml", *flags(tiny_models, origin="me"))
    assert done.code == 0, done.err
    assert "tokens spell the same bytes in both" in done.out
    assert "align 1-1 with a token of the teacher's" in done.out
    text = (folder / "clips_pair.yaml").read_text()
    assert "#   harness run recipe=clips_pair.yaml" in text
    recipe = load_recipe("clips_pair.yaml")
    assert recipe.tasks == ("clips",)
    assert recipe.teachers.cross is not None
    assert recipe.teachers.cross.attention == "eager"  # gemma2's scores are capped
    assert recipe.task("clips").training_examples()[0].response == ROWS[0]["answer"]
    assert "origin: me; licence: not given" in " ".join(recipe.task("clips").protocol())
    assert {cell.objective.name for cell in make_plan(recipe).cells} == {"control", "uld", "gold", "cdm", "one_to_one"}


def test_one_tokenizer_asks_for_methods_of_one(folder: Path, tiny_models: Path, harness: Command) -> None:
    done = harness("init", *flags(tiny_models, "same", gpu="24"))
    assert "one tokenizer" in done.out
    recipe = load_recipe("mine.yaml")
    assert (recipe.methods, recipe.teachers.cross) == (("control", "fkd", "rkd"), None)
    assert recipe.train.epochs == 1
    assert recipe.train.gradient_checkpointing


@pytest.mark.slow
def test_the_recipe_runs(folder: Path, tiny_models: Path, harness: Command) -> None:
    assert harness("init", *flags(tiny_models)).code == 0
    few = [f"{stage}.steps=1" for stage in ("teacher", "warm_start", "train")]
    done = harness("run", "recipe=mine.yaml", "methods=[control,uld]", "seeds=[0]", *few)
    assert done.code == 0, done.err
    assert "clips" in done.out


def test_a_file_is_never_overwritten(folder: Path, tiny_models: Path, harness: Command) -> None:
    (folder / "mine.yaml").write_text("mine")
    done = harness("init", *flags(tiny_models))
    assert (done.code, (folder / "mine.yaml").read_text()) == (2, "mine")
    assert "mine.yaml: found a file that is there" in done.err


def test_what_is_missing_is_one_error_where_nobody_can_be_asked(folder: Path, harness: Command) -> None:
    done = harness("init", "--train=clips.json")
    assert done.code == 2
    assert "init: found no --teacher, --student, --test, --gpu" in done.err
    assert not (folder / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpu": "big"}, "--gpu: found 'big'"),
        ({"teacher": "gpt-2"}, "model: found 'gpt-2'"),
        ({"test": "none.csv"}, "none.csv: found no such file"),
        ({"prompt_column": "q"}, "column 'q': found no such column"),
        ({"metric": "bleu"}, "clips.metric: found 'bleu'"),
        ({"metric": "code"}, "column 'entry_point': found no such column"),
        (
            {"train": "odd.jsonl"},
            "columns of odd.jsonl: found none for the response .question, wert.*--response-column",
        ),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    wrong: dict[str, str], said: str, folder: Path, tiny_models: Path, harness: Command
) -> None:
    (folder / "odd.jsonl").write_text('{"question": "x", "wert": "y"}\n')
    done = harness(
        "init", *flags(tiny_models), *(f"--{name.replace('_', '-')}={value}" for name, value in wrong.items())
    )
    assert done.code == 2
    assert re.search(said, done.err), done.err
    assert not (folder / "mine.yaml").exists()


def test_at_a_terminal_it_asks_until_the_answer_is_right(
    folder: Path, tiny_models: Path, harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(["nothing.csv", "clips.json", "none"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "prompt", lambda words: next(said))
    done = harness("init", *[flag for flag in flags(tiny_models) if not flag.startswith(("--test", "--gpu"))])
    assert done.code == 0, done.err
    assert "nothing.csv: found no such file" in done.out
    assert load_recipe("mine.yaml").tasks == ("clips",)
