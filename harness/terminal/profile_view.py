"""What a profile found, as a terminal shows it."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from harness.base.profiled import Profiled


def profile_view(found: Profiled) -> Group:
    """The longest operations of :func:`harness.run.profiling.profile`, then gaps and waits a step."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(("operation", "calls a step", "ms a step", "share")):
        grid.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for one in found.longest:
        took = f"{one.seconds / found.steps * 1e3:,.2f}"
        grid.add_row(Text(one.name[:90]), f"{one.calls / found.steps:,.0f}", took, f"{one.share:.0%}")
    return Group(Text(found.title, "bold"), grid, *(Text(line) for line in _lines(found)))


def _lines(found: Profiled) -> list[str]:
    lines = [
        f"{found.seconds / found.steps * 1e3:,.1f} ms a step, traced, on {found.device}; "
        f"at work for {found.busy / found.steps * 1e3:,.1f} ms of them"
    ]
    gaps, idle = found.gaps
    if gaps:
        lines.append(
            f"{gaps / found.steps:,.0f} gaps between kernels a step, {idle / found.steps * 1e3:,.1f} ms together"
        )
    for name, (calls, seconds) in found.waits.items():
        lines.append(
            f"the host waits in {name}: {calls / found.steps:,.1f} a step, {seconds / found.steps * 1e3:,.2f} ms"
        )
    return [*lines, f"trace, for chrome://tracing or ui.perfetto.dev: {found.trace}"]
