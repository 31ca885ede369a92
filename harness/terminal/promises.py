"""What became of a method's or a task's promises, a line each."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.base.promises import Checked


def promise_line(checked: Checked) -> RenderableType:
    """The promise after "kept", "broken" or "–"; with what breaks it, or why it was not checked."""
    mark, style = {True: ("kept", "green"), False: ("broken", "red"), None: ("–", "dim")}[checked.ok]
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=len("broken"))
    line.add_row(Text(mark, style), Text(checked.promise + (f": {checked.detail}" if checked.detail else "")))
    return line


def promises_line(name: str, every: list[Checked]) -> Text:
    """How many are kept."""
    kept, broken = (sum(checked.ok is ok for checked in every) for ok in (True, False))
    rest = len(every) - kept - broken
    aside = f", {rest} not checked" if rest else ""
    if broken:
        return Text(f"{name} breaks {broken} of {len(every)} promises{aside}.", "red")
    return Text(f"{name} keeps all {kept} promises that were checked{aside}.", "green")
