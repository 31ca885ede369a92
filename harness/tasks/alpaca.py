"""The prompt of Stanford Alpaca, which instruction tuning and its evaluation share (tatsu-lab/stanford_alpaca)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.data.rows import Example, read_rows

_PREAMBLE = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n"


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The Alpaca prompt, with or without an input."""
    if context:
        opening = f"{_PREAMBLE}, paired with an input that provides further context. {_REQUEST}"
        return f"{opening}### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    return f"{_PREAMBLE}. {_REQUEST}### Instruction:\n{instruction}\n\n### Response:\n"


FIELDS = "instruction, output, optionally input; or prompt, output; or prefix, text"
"""Fields of a training row in each of its forms, in words."""
_FORMS = (("instruction", "output"), ("prompt", "output"), ("prefix", "text"))


def alpaca_examples(path: Path, prefix: str, limit: int | None) -> list[Example]:
    """Training rows in any of three forms; their ids are ``prefix/number``.

    ``instruction``, ``output`` and mostly ``input`` (Alpaca, DSKD): the prompt is Alpaca's. ``prompt``, ``output``: the
    prompt as it stands. ``prefix``, ``text`` (the CDM paper's release): the same; the text may repeat the prefix.

    Raises:
        HarnessError: a row of another form; names file, line and field.
    """
    return [
        Example(f"{prefix}/{number}", *_prompt_and_response(row), row["source"])
        for number, row in enumerate(read_rows(path, {}, limit))
    ]


def _prompt_and_response(row: Mapping[str, Any]) -> tuple[str, str]:
    asked, answered = next((form for form in _FORMS if form[0] in row), _FORMS[0])
    for field in (asked, answered):
        if not isinstance(row.get(field), str):
            there = ", ".join(name for name in row if name != "source")
            found = f"{row[field]!r:.40}" if field in row else f"no such field (there are {there or 'none'})"
            forms = ", or ".join(f"{one} and {other}" for one, other in _FORMS)
            raise HarnessError(f"{row['source']}, field {field!r}", found, "str", f"Rows hold {forms}.")
    if asked == "instruction":
        return alpaca_prompt(row[asked], row.get("input") or ""), row[answered]
    if asked == "prefix":
        return row[asked], row[answered].removeprefix(row[asked])
    return row[asked], row[answered]
