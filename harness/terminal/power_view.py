"""How many seeds a run's comparison needs, as a terminal shows it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from harness.base.errors import HarnessError
from harness.results.record import read_record
from harness.results.report import gather
from harness.store.store import Store
from reports import build_table, power_frame, power_lines


def power_view(folder: Path, difference: float | None, column: str | None) -> Group:
    """What some numbers of seeds would find in the columns that a run tests, and the seeds that a difference needs.

    Args:
        folder: of a run.
        difference: in the columns' unit; None for none.
        column: such as "gsm8k.bits_per_byte", in place of those that the run tests.

    Raises:
        HarnessError: there is no such run or column, or no column with two seeds.
    """
    run = read_record(folder)
    gathered = gather(run, Store(folder.absolute().parent))
    try:
        analysis = gathered.analysed(run.record, None if column is None else [column])
    except ValueError as error:
        raise HarnessError("--column", str(column), "a column of the run", f"{error}.") from error
    table = build_table(gathered.results, analysis)
    frame = power_frame(table, difference)
    if frame.empty:
        raise HarnessError(
            str(folder),
            "no column whose rows have two training seeds",
            "at least two, since one shows no noise",
            "Run the recipe with 'seeds=[0,1]' or more.",
        )
    return Group(_grid(frame), *(Text(line, "dim") for line in power_lines()))


def _grid(frame: pd.DataFrame) -> RenderableType:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(frame.columns):
        grid.add_column(Text(str(name)), justify="left" if place == 0 else "right", overflow="fold")
    for line in frame.itertuples(index=False, name=None):
        grid.add_row(*(Text(str(value)) for value in line))
    return grid
