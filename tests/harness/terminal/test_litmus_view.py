"""What methods learnt where the truth is known, in a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from harness.terminal.litmus_view import litmus_view
from reports.known_truth import Litmus
from tests.reports.test_known_truth import CLAIMS, FOUND


def shown(found: Litmus) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(litmus_view(found))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_every_cell_is_shown() -> None:
    text = shown(FOUND)
    for line in FOUND.lines():
        assert line in text
    for title, cells in FOUND.tables():
        assert title in text
        assert all(cell in text for line in cells for cell in line)
    assert "All is as it must be." in text


def test_what_is_wrong_is_said_at_the_end() -> None:
    text = shown(replace(FOUND, claims=[replace(CLAIMS[0], kept=False)]))
    assert text.rstrip().endswith("see what stands in capitals.")
