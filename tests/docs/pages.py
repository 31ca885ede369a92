"""The pages of the documentation as a test reads them: code blocks, code within the text, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PLUG_IN = "pyproject.toml"
"""A page with a block of this title makes a package: it is installed, and the page's commands run."""
WHOLE = ("own_data.md", "own_pair.md", "choose_a_method.md")
"""Pages that bring all that their commands need: these run, too."""


class Block(NamedTuple):
    """A fenced block of code; with a title it is a file of that name."""

    line: int
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    return [Block(text.count("\n", 0, one.start()) + 1, one[1], one[2] or "", one[3]) for one in found]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def code_spans(page: Path) -> list[str]:
    """Code within the text; one that is wrapped is on one line again."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands_of(block: Block) -> Iterator[list[str]]:
    """Calls of the command line in a block, as arguments behind ``harness``."""
    for line in block.text.splitlines() if block.language == "bash" else ():
        yield from calls(line)


def calls(line: str) -> Iterator[list[str]]:
    words = shlex.split(line, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    if words[:1] == ["harness"]:
        yield words[1:]
    elif words[:1] == ["torchrun"]:
        yield words[words.index("harness") + 1 :]


def write_files(page: Path, folder: Path) -> None:
    """The files that a page shows, below a folder."""
    for block in blocks(page):
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
