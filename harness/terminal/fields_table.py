"""The fields of a recipe as tables of the terminal, and as a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from harness.recipe.fields import FieldLine, FieldsPart
from harness.terminal.columns import Listing

_PAGE = """\
# Fields of a recipe

Every field that a recipe may set, as `harness fields` prints them; `harness fields --markdown` writes this page. A
field is set in the recipe's file, or on the command line with dots: `train.steps=20`. `field=null` unsets one, `{}`
empties what is a mapping, and `${path.of.a.field}` is the value of another field of the same recipe.
"""


def fields_tables(parts: Iterable[FieldsPart]) -> Group:
    """A table for each part, under where it stands in a recipe."""
    blocks: list[RenderableType] = []
    for part in parts:
        table = Listing("field", "type", "default", "what it is")
        for line in part.fields:
            table.add_row(line.name, line.type, _default(line), line.description)
        blocks += [Text(_title(part), style="bold"), Text(part.about), table, Text()]
    return Group(*blocks)


def fields_page(parts: Iterable[FieldsPart]) -> str:
    """The same in Markdown."""
    blocks = [_PAGE]
    for part in parts:
        lines = [
            f"## {_title(part)}",
            "",
            part.about,
            "",
            "| field | type | default | what it is |",
            "|---|---|---|---|",
        ]
        for line in part.fields:
            cells = (f"`{line.name}`", line.type, _default(line), line.description)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _title(part: FieldsPart) -> str:
    return ", ".join(path for path in part.paths if path) or "The recipe"


def _default(line: FieldLine) -> str:
    return line.default or "must be set"
