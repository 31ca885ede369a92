"""Rows of data files, and what becomes of them: an example to train on, a prompt to answer."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError


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


def read_rows(
    path: Path, fields: Mapping[str, type | tuple[type, ...]], limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file (``.gz`` too), with their fields checked.

    Args:
        fields: the fields that every row must have, with their types.
        limit: read the first ``limit`` rows only.

    Raises:
        HarnessError: names file, line and field.
    """
    rows: list[dict[str, Any]] = []
    for number, line in _lines(path):
        if limit is not None and len(rows) == limit:
            break
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise HarnessError(where, f"{line[:40].strip()!r} ({error.msg})", "a JSON object") from error
        if not isinstance(row, dict):
            raise HarnessError(where, f"a JSON {type(row).__name__}", "a JSON object")
        for name, kind in fields.items():
            if name not in row:
                found = f"no such field (there are {', '.join(row) or 'none'})"
                raise HarnessError(f"{where}, field {name!r}", found, "one in every row")
            if not isinstance(row[name], kind):
                kinds = kind if isinstance(kind, tuple) else (kind,)
                expected = " or ".join(k.__name__ for k in kinds)
                raise HarnessError(f"{where}, field {name!r}", f"{row[name]!r:.40}", expected)
        rows.append(row | {"source": where})
    if not rows:
        raise HarnessError(str(path), "no rows", "at least one")
    return rows


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
