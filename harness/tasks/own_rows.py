"""Rows of data that a recipe describes: which columns hold what, how a prompt is made of them, what may be wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.base.errors import HarnessError
from harness.base.schema import Strict
from harness.data.rows import checked_text
from harness.data.tables import no_column, read_table

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_TURNS = {"user": "User", "assistant": "Assistant"}


class OwnColumns(Strict):
    """Which columns of a row hold what; a column that nothing asks for may be missing."""

    prompt: str = Field("prompt", description="what {prompt} stands for in the template")
    response: str = Field(
        "response", description="what is learnt; in test rows a list where there are several references"
    )
    entry_point: str = Field("entry_point", description="with metric code, of test rows: the function's name")
    inputs: str = Field("inputs", description="with metric code, of test rows: a list of lists of arguments")


@dataclass(frozen=True)
class OwnRow:
    """A row as a task reads it.

    Attributes:
        prompt: by the template.
        responses: one, or several where they are references; none is empty.
        source: file and line, or number.
        entry_point, inputs: of a function that is asked for; else empty.
    """

    prompt: str
    responses: tuple[str, ...]
    source: str
    entry_point: str = ""
    inputs: Sequence[Sequence[Any]] = ()


@dataclass(frozen=True)
class OwnLayout:
    """How rows of a recipe's data read.

    Attributes:
        columns: which hold what.
        messages: the column that holds a chat, in place of prompt and response; None where there is none.
        template: a prompt, with columns in braces.
        several: whether a row may have a list of responses.
        functions: whether each row asks for a function, and has inputs to try it on.
    """

    columns: OwnColumns
    messages: str | None
    template: str
    several: bool = False
    functions: bool = False

    def read(self, place: Path) -> list[OwnRow]:
        """All rows of a table.

        Raises:
            HarnessError: names file, line and column of the first that is wrong.
        """
        return [self._row(where, values) for where, values in read_table(place, self.wanted)]

    @property
    def wanted(self) -> list[str]:
        names = [self.columns.prompt if name == "prompt" else name for name in placeholders(self.template)]
        if self.messages is not None:
            names = [self.messages, *(name for name in placeholders(self.template) if name != "prompt")]
        else:
            names.append(self.columns.response)
        functions = [self.columns.entry_point, self.columns.inputs] if self.functions else []
        return list(dict.fromkeys([*names, *functions]))

    def _row(self, where: str, values: Mapping[str, Any]) -> OwnRow:
        for name in self.wanted:
            if name not in values:
                raise no_column(where, name, list(values))
        if self.messages is not None:
            asked, answer = _conversation(values[self.messages], _at(where, self.messages))
            row = OwnRow(self._prompt(where, values, asked), (answer,), where)
        else:
            row = OwnRow(self._prompt(where, values, None), self._responses(where, values), where)
        return self._with_function(row, values) if self.functions else row

    def _prompt(self, where: str, values: Mapping[str, Any], asked: str | None) -> str:
        """The template with the row's texts in it: a text with braces of its own stays as it is."""

        def filled(part: re.Match[str]) -> str:
            if part[1] is None:
                return part[0][0]
            if part[1] == "prompt" and asked is not None:
                return asked
            name = self.columns.prompt if part[1] == "prompt" else part[1]
            return _text(values[name], _at(where, name))

        prompt = _PART.sub(filled, self.template)
        if not prompt.strip():
            raise HarnessError(where, "an empty prompt", "a text to answer", "Leave the row out.")
        return prompt

    def _responses(self, where: str, values: Mapping[str, Any]) -> tuple[str, ...]:
        name = self.columns.response
        value, at = values[name], _at(where, name)
        if isinstance(value, list) and not self.several:
            raise HarnessError(
                at, f"{value!r:.40}", "one text", "Test rows may have several, with rouge_l or exact_match."
            )
        texts = tuple(_text(one, at) for one in (value if isinstance(value, list) else [value]))
        if not texts or not all(text.strip() for text in texts):
            raise HarnessError(at, f"{value!r:.40}", "a response, not an empty one", "Leave the row out.")
        return texts

    def _with_function(self, row: OwnRow, values: Mapping[str, Any]) -> OwnRow:
        """The row with the function that it asks for. EvalPlus has a rule of its own for one name."""
        name, inputs = self.columns.entry_point, values[self.columns.inputs]
        entry_point = _text(values[name], _at(row.source, name))
        if not entry_point.isidentifier() or entry_point == "find_zero":
            raise HarnessError(_at(row.source, name), repr(entry_point), "a function's name, and not find_zero")
        if not isinstance(inputs, list) or not inputs or not all(isinstance(one, list) for one in inputs):
            found = f"{inputs!r:.40}"
            expected = "a list with a list of arguments for each call, such as [[1, 2], [3, 4]]"
            raise HarnessError(_at(row.source, self.columns.inputs), found, expected)
        try:
            json.dumps(inputs, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise HarnessError(_at(row.source, self.columns.inputs), str(error), "arguments that JSON holds") from error
        return replace(row, entry_point=entry_point, inputs=inputs)


def placeholders(template: str) -> list[str]:
    """The columns that a template names, in braces; ``{{`` and ``}}`` are braces themselves."""
    return [part[1] for part in _PART.finditer(template) if part[1] is not None]


def _conversation(value: Any, where: str) -> tuple[str, str]:
    """What a chat asks, as one text, and its last answer.

    A message alone is the prompt as it stands, behind what the system says; of several turns each has its speaker.
    """
    expected = (
        "messages {role, content}: perhaps one of the system, then of user and assistant in turn, the last an answer"
    )
    turns = value if isinstance(value, list) else []
    if len(turns) < 2 or not all(isinstance(turn, Mapping) for turn in turns):
        raise HarnessError(where, f"{value!r:.40}", expected)
    said = [
        (turn.get("role"), checked_text(turn.get("content"), f"{where}, message {n}"))
        for n, turn in enumerate(turns, 1)
    ]
    system = [text for role, text in said[:1] if role == "system"]
    turned = said[len(system) :]
    roles = [role for role, _ in turned]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise HarnessError(where, f"roles {', '.join(str(role) for role, _ in said)[:60]}", expected)
    if not (answer := turned[-1][1]).strip():
        raise HarnessError(where, "an empty last answer", "a response, not an empty one", "Leave the row out.")
    asked = [text for _, text in turned[:-1]]
    if len(asked) > 1:
        asked = [f"{_TURNS[str(role)]}: {text}" for role, text in turned[:-1]]
    return "\n\n".join([*system, *asked]), answer


def _text(value: Any, where: str) -> str:
    """A text, or a number as it is written."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return checked_text(value, where, "Leave the row out, or write it as text.")


def _at(where: str, column: str) -> str:
    return f"{where}, column {column!r}"
