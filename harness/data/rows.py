"""Rows of data files, and what becomes of them: an example to train on, a prompt to answer."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import parse_json


@dataclass(frozen=True)
class Request:
    """A prompt to generate from.

    Attributes:
        id: of the test item.
        prompt: text in the task's layout; the model's own template goes around it where ``rendered`` is False.
        stop: strings that end the answer; they are cut off.
        rendered: whether the prompt is text to continue as it stands, without a chat template.
        prompt_tokens: longer prompts are cut at their end after so many tokens; None leaves them whole.
        seed: of an answer sampled at T=1 from the whole distribution; None for the greedy one.
        bos: whether a plain prompt begins with BOS, where the model's tokenizer puts one.
        continues: whether the answer goes on with the prompt's text (the body of a function), so that a space it begins
            with is its own; else the answer is a text of its own, as responses are in training.
    """

    id: str
    prompt: str
    stop: tuple[str, ...] = ()
    rendered: bool = False
    prompt_tokens: int | None = None
    seed: int | None = None
    bos: bool = True
    continues: bool = False

    @property
    def key(self) -> str:
        """Names the answer: an item that is sampled with several seeds has several."""
        return answer_key(self.id, self.seed)


def answer_key(item: str, seed: int | None) -> str:
    """The name of an item's answer among the outputs of a student, e.g. ``dolly/7`` or ``dolly/7, seed 10``."""
    return item if seed is None else f"{item}, seed {seed}"


def read_rows(path: Path, fields: Sequence[str] = (), limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file (``.gz`` too), each with its place in the field ``source``.

    Args:
        fields: what every row must have, each a text.
        limit: read the first ``limit`` rows only.

    Raises:
        HarnessError: names file, line and field.
    """
    rows: list[dict[str, Any]] = []
    for where, row in islice(json_lines(path), limit):
        rows.append(row | {"source": where})
        for name in fields:
            text_of(rows[-1], name)
    if not rows:
        raise HarnessError(str(path), "no rows", "at least one")
    return rows


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSON-lines file (``.gz`` too), each behind its place: file and line.

    Raises:
        HarnessError: names file and line.
    """
    for number, line in _lines(path):
        where = f"{path} line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise HarnessError(where, f"{line[:40].strip()!r} ({reason})", "a JSON object") from error
        yield where, checked_object(row, where)


def checked_object(row: Any, where: str) -> dict[str, Any]:
    """A value of JSON that has to be an object.

    Raises:
        HarnessError: it is none.
    """
    if not isinstance(row, dict):
        raise HarnessError(where, f"a JSON {type(row).__name__}", "a JSON object")
    return row


def text_of(row: Mapping[str, Any], field: str, hint: str = "") -> str:
    """The text in a field of a row.

    Args:
        row: of :func:`read_rows`.
        hint: what to do about one that is wrong, as a sentence.

    Raises:
        HarnessError: the field is not there, holds something else, or a text that can't be written as UTF-8.
    """
    where = f"{row['source']}, field {field!r}"
    if field not in row:
        there = ", ".join(name for name in row if name != "source")
        raise HarnessError(where, f"no such field (there are {there or 'none'})", "one in every row", hint)
    return checked_text(row[field], where, hint)


def checked_text(value: Any, where: str, hint: str = "") -> str:
    """A value that has to be a text.

    Raises:
        HarnessError: it is none, or holds half a character: a lone surrogate, which no tokenizer reads.
    """
    if not isinstance(value, str):
        raise HarnessError(where, f"{value!r:.40}", "a text", hint)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"half a character, {value[error.start]!r}, at place {error.start} of {value[:40]!r}"
        raise HarnessError(where, found, "text that can be written as UTF-8", hint) from error
    return value


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise HarnessError(str(path), f"a file that can't be read ({error})", "JSON lines in UTF-8") from error


@dataclass(frozen=True)
class Example:
    """A row of a task: the same prompt and response text for every model.

    Attributes:
        id: unique within the task, stable between runs.
        prompt: text before the response, in the task's layout (a model's own template may go around it).
        response: the reference that is trained on or measured; never empty.
        source: where it comes from (file and line), for messages.
        bos: whether a plain prompt begins with BOS, where the model's tokenizer puts one.
    """

    id: str
    prompt: str
    response: str
    source: str = ""
    bos: bool = True


def prompts_of(examples: Sequence[Example]) -> list[Request]:
    """Rows' prompts to answer, laid out as they are trained on."""
    return [Request(one.id, one.prompt, bos=one.bos) for one in examples]


def held_out(
    examples: Sequence[Example], rows: int, question: Callable[[Example], str]
) -> tuple[list[Example], list[Example]]:
    """Rows to train on, and ``rows`` others, evenly spaced, to choose settings and checkpoints on.

    A row that asks what a held-out one asks is in neither part: trained on, it would give the answer away.

    Args:
        question: what a row asks, as :meth:`harness.tasks.base.Task.question` says.

    Raises:
        HarnessError: more than half of the rows would be held out.
    """
    if not rows:
        return list(examples), []
    if 2 * rows > len(examples):
        raise HarnessError(
            "dev.rows", f"{rows} of {len(examples)} training rows", "at most half of them", "Hold fewer out."
        )
    places = {(place + 1) * len(examples) // rows - 1 for place in range(rows)}
    dev = [example for place, example in enumerate(examples) if place in places]
    asked = set(map(question, dev))
    return [example for example in examples if question(example) not in asked], dev
