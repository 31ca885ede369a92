"""`harness init`: asks what is to be compared, looks at it, and writes a recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.base.errors import HarnessError
from harness.verbs.keeping import console

_MODEL = "hf:ORG/NAME, path:FOLDER, or a name of `harness models`"
_ROWS = ".jsonl, .json, .csv, .parquet, a saved data set, or hf:OWNER/NAME#SPLIT"


def _text(name: str, words: str) -> Any:
    return typer.Option(name, help=words, show_default=False)


def init(
    file: Annotated[Path, typer.Argument(help="The recipe to write; never overwritten.")] = Path("mine.yaml"),
    teacher: Annotated[str, _text("--teacher", f"{_MODEL}.")] = "",
    student: Annotated[str, _text("--student", "The same.")] = "",
    train: Annotated[str, _text("--train", f"Training rows: {_ROWS}.")] = "",
    test: Annotated[str, _text("--test", "Test rows, as well.")] = "",
    gpu: Annotated[str, _text("--gpu", "GiB of its memory, or none.")] = "",
    prompt_column: Annotated[str, _text("--prompt-column", "Else it is guessed.")] = "",
    response_column: Annotated[str, _text("--response-column", "Else it is guessed.")] = "",
    messages: Annotated[str, _text("--messages", "The column of a chat, in place of both.")] = "",
    metric: Annotated[str, typer.Option("--metric", help="As in `harness fields custom.metric`.")] = "rouge_l",
    licence: Annotated[str, _text("--licence", "Of the data, to be printed.")] = "",
    origin: Annotated[str, _text("--origin", "Of the data, to be printed.")] = "",
) -> None:
    """Write a commented recipe for your own pair and data, and say what was found of them; asks what is not given."""
    from harness import api

    _check_file(file)
    asked = {
        "teacher": (teacher, f"Teacher ({_MODEL})", api.model_uri),
        "student": (student, "Student (the same)", api.model_uri),
        "train": (train, f"Training rows ({_ROWS})", api.readable_rows),
        "test": (test, "Test rows", api.readable_rows),
        "gpu": (gpu, "GiB of the GPU's memory, or none", _gibibytes),
    }
    given = _answers(asked)
    own = api.OwnPair(
        given["teacher"],
        given["student"],
        given["train"],
        given["test"],
        int(given["gpu"]),
        prompt_column,
        response_column,
        messages,
        metric,
        licence,
        origin,
    )
    made = api.first_recipe(file.stem, own, lambda line: console.print(line, markup=False))
    _check_file(file)
    with file.open("x", encoding="utf-8") as opened:
        opened.write(made.text)
    lines = [*made.facts.lines(), *made.notes, f"Written: {file}", f"Next: harness plan recipe={file}"]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


Question = tuple[str, str, Callable[[str], str]]


def _answers(asked: dict[str, Question]) -> dict[str, str]:
    """What was given, checked; where somebody sits at a terminal, the rest is asked for, until it is right.

    Raises:
        HarnessError: something is missing and nobody is there to ask, or wrong.
    """
    missing = [f"--{name}" for name, (given, _, _) in asked.items() if not given]
    if missing and not sys.stdin.isatty():
        fix = "Give them, or start it at a terminal, where it asks."
        raise HarnessError("init", f"no {', '.join(missing)}", "teacher, student, rows to train and test on, GPU", fix)
    return {name: check(given) if given else _ask(words, check) for name, (given, words, check) in asked.items()}


def _ask(words: str, check: Callable[[str], str]) -> str:
    while True:
        try:
            return check(str(typer.prompt(words)))
        except HarnessError as error:
            console.print(str(error), style="red", markup=False)


def _check_file(file: Path) -> None:
    if file.suffix not in (".yaml", ".yml"):
        raise HarnessError("init", f"the file {str(file)!r}", "one whose name ends with .yaml")
    if file.exists():
        raise HarnessError(str(file), "a file that is there", "a new one", "It is not overwritten: name another.")


def _gibibytes(text: str) -> str:
    if text.lower() in ("none", "no", "0"):
        return "0"
    if not text.isdecimal() or len(text) > 4:
        raise HarnessError("--gpu", repr(text), "GiB of its memory, such as 24, or none")
    return text
