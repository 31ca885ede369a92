"""The prompt of Stanford Alpaca, which instruction tuning and its evaluation share (tatsu-lab/stanford_alpaca)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.data.rows import Example, checked_text, read_rows, text_of

_PREAMBLE = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n"


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The Alpaca prompt, with or without an input."""
    if context:
        opening = f"{_PREAMBLE}, paired with an input that provides further context. {_REQUEST}"
        return f"{opening}### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    return f"{_PREAMBLE}. {_REQUEST}### Instruction:\n{instruction}\n\n### Response:\n"


_FORMS = (("instruction", "output"), ("prompt", "output"), ("prefix", "text"))
FIELDS = "instruction, output, optionally input; or prompt, output; or prefix, text"
"""Fields of a row in each of its forms, in words."""
_HINT = f"Rows hold {', or '.join(f'{asked} and {answered}' for asked, answered in _FORMS)}."


@dataclass(frozen=True)
class AlpacaRow:
    """A row in any of three forms.

    ``instruction``, ``output`` and mostly ``input`` (Alpaca, DSKD): the prompt is Alpaca's. ``prompt``, ``output``: the
    prompt as it stands. ``prefix``, ``text`` (the CDM paper's release): the same; the text may repeat the prefix.

    Attributes:
        prompt: as it is asked.
        responses: one, or several where they are references.
        source: file and line.
    """

    prompt: str
    responses: tuple[str, ...]
    source: str


def read_training(path: Path, limit: int | None = None) -> list[AlpacaRow]:
    """Rows to train on, with one response each.

    Raises:
        HarnessError: a row of another form; names file, line and field.
    """
    return [_row(row, _response) for row in read_rows(path, limit=limit)]


def read_tests(path: Path, limit: int | None = None) -> list[AlpacaRow]:
    """Rows to test on: the response is a text, or a list of references, none of them empty.

    Raises:
        HarnessError: a row of another form; names file, line and field.
    """
    return [_row(row, _references) for row in read_rows(path, limit=limit)]


def alpaca_examples(path: Path, prefix: str, limit: int | None) -> list[Example]:
    """Training rows; their ids are ``prefix/number``.

    Raises:
        HarnessError: a row of another form; names file, line and field.
    """
    rows = read_training(path, limit)
    return [Example(f"{prefix}/{place}", row.prompt, row.responses[0], row.source) for place, row in enumerate(rows)]


def _form(row: Mapping[str, Any]) -> tuple[str, str]:
    """The fields of what is asked and what is answered."""
    return next((form for form in _FORMS if form[0] in row), _FORMS[0])


def _response(row: Mapping[str, Any]) -> list[str]:
    return [text_of(row, _form(row)[1], _HINT)]


def _references(row: Mapping[str, Any]) -> list[str]:
    field = _form(row)[1]
    where = f"{row['source']}, field {field!r}"
    if not isinstance(row.get(field), list):
        texts = _response(row)
    else:
        texts = [checked_text(text, where, _HINT) for text in row[field]]
    if not texts or not all(texts):
        raise HarnessError(where, f"{row[field]!r:.40}", "one or more texts, none of them empty")
    return texts


def _row(row: Mapping[str, Any], answers: Callable[[Mapping[str, Any]], list[str]]) -> AlpacaRow:
    asked, _ = _form(row)
    prompt = text_of(row, asked, _HINT)
    if asked == "instruction":
        context = "" if row.get("input") is None else text_of(row, "input", "Leave the field out where there is none.")
        return AlpacaRow(alpaca_prompt(prompt, context), tuple(answers(row)), row["source"])
    repeated = prompt if asked == "prefix" else ""
    return AlpacaRow(prompt, tuple(text.removeprefix(repeated) for text in answers(row)), row["source"])
