"""How many seeds a run's comparison needs, as a terminal shows it."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from reports import power_lines


def power_view(found: pd.DataFrame) -> Group:
    """What :meth:`harness.results.run.Run.power` found, and how to read it."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(found.columns):
        grid.add_column(Text(str(name)), justify="left" if place == 0 else "right", overflow="fold")
    for line in found.itertuples(index=False, name=None):
        grid.add_row(*(Text(str(value)) for value in line))
    return Group(grid, *(Text(line, "dim") for line in power_lines()))
