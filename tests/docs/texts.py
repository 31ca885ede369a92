"""The texts that code can print, as its syntax has them: what pages quote is looked for among them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.docs.pages import ROOT

GAP = "..."
"""Stands for a name or a number, in code that is quoted and in what is read off its syntax."""


@cache
def syntax(file: str) -> ast.Module:
    """Of a file, by its path in the repository."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def text_of(node: ast.AST) -> str | None:
    """A string of the source, values in it as gaps; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(GAP if isinstance(part, ast.FormattedValue) else str(part.value) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [text_of(side) for side in (node.left, node.right)]
        return None if parts == [None, None] else "".join(GAP if part is None else part for part in parts)
    return None


def texts(node: ast.AST) -> Iterator[str]:
    """All strings below a node, none of which is part of another; docstrings are none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.FormattedValue):
            yield from texts(child)
        elif (text := text_of(child)) is not None:
            yield text
        else:
            yield from texts(child)


def texts_of(file: str, *definitions: str) -> list[str]:
    """The strings of definitions in a file; of the whole file where none is named.

    Raises:
        LookupError: a definition is not there.
    """
    if not definitions:
        return list(texts(syntax(file)))
    known = {node.name: node for node in ast.walk(syntax(file)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if missing := set(definitions) - set(known):
        raise LookupError(f"{file}: {', '.join(sorted(missing))}")
    return [text for name in definitions for text in texts(known[name])]


@cache
def all_texts(*folders: str) -> tuple[str, ...]:
    """The strings of all files below folders of the repository."""
    files = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return tuple(text for path in files for text in texts_of(str(path.relative_to(ROOT))))


def pieces(quoted: str, least: int = 1) -> list[str]:
    """What a quotation says for certain: its text between gaps."""
    return [piece for part in quoted.split(GAP) if len(piece := part.strip(" .;:,")) >= least]


def says(quoted: str, text: str) -> bool:
    """Whether a text of the code can read as it is quoted: all pieces, in their order."""
    place = 0
    for piece in pieces(quoted):
        place = text.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


def table_of(page: Path, heading: str) -> list[list[str]]:
    """The rows of the tables under a heading of a page, as cells."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if not re.match(r"^\|[-|: ]+$", line)
    ][1:]


def quoted_in(cell: str) -> list[str]:
    """The code of a cell."""
    return re.findall(r"`([^`]+)`", cell)
