"""Two runs beside each other, for a terminal."""

from __future__ import annotations

from rich.console import RenderableType

from reports import RunComparison, comparison_terminal


def comparison_view(comparison: RunComparison) -> RenderableType:
    """What differs between two runs, then each number of both and the difference."""
    return comparison_terminal(comparison)
