"""Two runs beside each other, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from harness.terminal.columns import Listing
from reports import RunComparison, comparison_terminal
from reports.two_runs import Difference


def comparison_view(comparison: RunComparison) -> RenderableType:
    """What differs between two runs, then each number of both and the difference."""
    return comparison_terminal(comparison)


def changes_view(earlier: str, changes: Sequence[Difference]) -> RenderableType:
    """What has changed since an earlier run, and whether that makes it another one."""
    if not changes:
        return Text(f"Again {earlier}: the same recipe, data, models and versions.")
    listing = Listing("what", "then", "now", title=f"Changed since {earlier}")
    for change in changes:
        listing.add_row(change.name, *change.values)
    another = any(change.name == "identity" for change in changes)
    told = (
        "Some of this decides results: stages that mean something else are made anew."
        if another
        else "None of this decides a result: what is stored of the run counts."
    )
    return Group(listing, Text(told, "yellow" if another else ""))
