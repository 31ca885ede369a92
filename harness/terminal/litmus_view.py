"""What methods learnt where the truth is known, as a terminal shows it."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from reports.known_truth import Litmus


def litmus_view(found: Litmus) -> Group:
    """The tables, and whether all is as it must be."""
    parts: list[Text | Grid] = [Text(line) for line in found.lines()]
    for title, cells in found.tables():
        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        numeric = found.numeric(cells)
        for name, number in zip(cells[0], numeric, strict=True):
            grid.add_column(Text(name), justify="right" if number else "left", overflow="fold")
        for line in cells[1:]:
            grid.add_row(*map(Text, line))
        parts.append(grid)
    outcome = "All is as it must be." if found.as_expected else "Not all is as it must be: see what stands in capitals."
    parts.append(Text(outcome, "green" if found.as_expected else "red"))
    return Group(*parts)
