"""No word is broken at any width that holds it, and nothing is lost."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from harness.terminal.columns import Listing

ROWS = [
    ("cdm", "cross-tokenizer", "entropy-weighted time warping, KL over the k likeliest tokens", "1.25"),
    ("sft", "none", "cross-entropy on the reference", "10.5"),
]


def printed(width: int, *, rows: list[tuple[str, ...]] = ROWS) -> str:
    listing = Listing("method", "teacher", "what it does", "seconds", title="Methods", numbers=["seconds"])
    for row in rows:
        listing.add_row(*row)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(listing)
    return console.export_text()


@pytest.mark.parametrize("width", range(36, 121, 6))
def test_every_word_stays_whole_and_no_line_is_too_long(width: int) -> None:
    text = printed(width)
    words = re.sub(r"[┃│┏┓┗┛━┡┩╇┳└┘─┴]", " ", text).split()
    assert set(words) >= {word for row in ROWS for cell in row for word in cell.split()}
    assert max(map(len, text.splitlines())) <= width
    assert "Methods" in text


def test_side_by_side_where_there_is_room_and_row_by_row_where_there_is_none() -> None:
    wide, narrow = printed(100), printed(50)
    assert "│ cdm    │ cross-tokenizer │ entropy-weighted" in wide
    assert [line.rstrip() for line in narrow.splitlines()[1:3]] == ["cdm", "  teacher       cross-tokenizer"]
    assert "│" not in narrow


def test_a_short_text_is_not_wrapped_for_the_sake_of_a_long_one() -> None:
    rows = [("a", "would run", "many words of which each is short " * 4, "1")]
    assert "│ would run │" in printed(60, rows=rows)


def test_numbers_are_set_to_the_right_and_markup_is_text() -> None:
    text = printed(100, rows=[("[red]x[/]", "none", "", "1.5")])
    assert "│     1.5 │" in text
    assert "[red]x[/]" in text


def test_empty_cells_are_no_lines_of_a_block() -> None:
    text = printed(20, rows=[("cdm", "", "x" * 30, "")])
    assert "teacher" not in text
    assert "seconds" not in text


def test_a_cell_too_many_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        Listing("method").add_row("cdm", Text("none"))
