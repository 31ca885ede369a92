"""A table that never breaks a word: where its columns don't fit side by side, each row becomes a block of lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_BORDERS = 3  # cells of a column's padding and its line
_INDENT = 2

CellText = str | Text


class Listing:
    """Rows under headings, for ``console.print``.

    Args:
        columns: headings; the first column names a row.
        title: above the table.
        numbers: headings of columns that are set to the right.
    """

    def __init__(self, *columns: str, title: str = "", numbers: Sequence[str] = ()) -> None:
        self.columns, self.title, self.numbers = columns, title, frozenset(numbers)
        self.rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: CellText) -> None:
        """A row; cells are text as it stands, without markup."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(tuple(cell if isinstance(cell, Text) else Text(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> list[RenderableType]:
        widths = self._widths(options.max_width)
        return self._blocks() if widths is None else [self._table(widths)]

    def _widths(self, room: int) -> list[int] | None:
        """Of the columns, each at least as wide as its longest word; None where there is no room for them.

        The first is as wide as its longest text, so that a row's name stands in one piece.

        What room is left goes to the columns that lack least first: a short text is not wrapped for a long one's sake.
        """
        columns = [[Text(name), *(row[place] for row in self.rows)] for place, name in enumerate(self.columns)]
        least = [max(_longest_word(cell) for cell in column) for column in columns]
        most = [max(_longest_line(cell) for cell in column) for column in columns]
        least[0] = most[0]
        spare = room - _BORDERS * len(columns) - 1 - sum(least)
        if spare < 0:
            return None
        widths, places = list(least), sorted(range(len(least)), key=lambda place: most[place] - least[place])
        for served, place in enumerate(places):
            more = min(most[place] - least[place], spare // (len(places) - served))
            widths[place] += more
            spare -= more
        return widths

    def _table(self, widths: Sequence[int]) -> Table:
        table = Table(title=self.title or None, title_justify="left")
        for name, width in zip(self.columns, widths, strict=True):
            table.add_column(name, width=width, justify="right" if name in self.numbers else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def _blocks(self) -> list[RenderableType]:
        blocks: list[RenderableType] = [Text(self.title, "italic")] if self.title else []
        for row in self.rows:
            lines = Table.grid(padding=(0, 2, 0, 0))
            lines.add_column(no_wrap=True)
            lines.add_column(overflow="fold")  # a path may be longer than a line; none of it is lost
            for name, cell in zip(self.columns[1:], row[1:], strict=True):
                if cell.plain:
                    lines.add_row(Text(name, "dim"), cell)
            blocks += [Text.assemble((row[0].plain, "bold")), Padding(lines, (0, 0, 0, _INDENT))]
        return blocks


def _longest_word(cell: Text) -> int:
    return max((Text(word).cell_len for word in cell.plain.split()), default=0)


def _longest_line(cell: Text) -> int:
    return max((Text(line).cell_len for line in cell.plain.splitlines()), default=0)
