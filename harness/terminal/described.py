"""A method or a task on one page: what it is, where it is from, what it needs and costs, what a recipe may set."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.base.errors import unknown
from harness.recipe.fields import parts
from harness.tasks import tasks
from harness.tasks.base import Metric
from harness.terminal.columns import Listing
from harness.terminal.fields_table import fields_tables
from methods.base import Method, registered


def method_page(name: str) -> RenderableType:
    """A method: paper, formula, teacher, needs and costs with its options' defaults, then the options.

    Raises:
        HarnessError: there is no such method.
    """
    if name not in registered():
        raise unknown("method", name, registered())
    kind = registered()[name]
    method = kind()
    facts = [
        ("paper", kind.paper),
        ("teacher", kind.teacher.value),
        ("starts from", f"the student's {kind.start.value}" if kind.start.value == "warm start" else kind.start.value),
        ("fidelities", "described, released" if kind.fidelities_differ else "described"),
        ("needs", ", ".join(sorted(need.value for need in method.needs)) or "nothing beyond stored teacher rows"),
        ("costs", _cost(method)),
        ("caveat", method.caveat),
    ]
    if kind.teacher.value == "none":
        facts = [fact for fact in facts if fact[0] != "needs"]
    return _page(f"{name}: {kind.summary}", facts, inspect.getdoc(sys.modules[kind.__module__]) or "", name)


def tasks_listing() -> Listing:
    """Tasks with what they measure and where their data comes from."""
    listing = Listing("task", "what it is", "metrics", "data")
    for name, kind in tasks().items():
        metrics = kind(kind.Settings(), None).metrics  # as its settings are by default
        listing.add_row(name, kind.summary, ", ".join(metric.name for metric in metrics), kind.source)
    return listing


def task_page(name: str) -> RenderableType:
    """A task: data, metrics, libraries that score, how numbers are made with its defaults, then its settings.

    Raises:
        HarnessError: there is no such task.
    """
    if name not in tasks():
        raise unknown("task", name, tasks())
    kind = tasks()[name]
    facts = [
        ("data", kind.source),
        *((need.what, f"{' or '.join(need.files)}: {need.fields}") for need in kind.data_needs()),
        ("metrics", "; ".join(map(_metric, kind(kind.Settings(), None).metrics))),
        ("scored by", ", ".join(kind.libraries) or "the project itself"),
        ("costs", f"about {kind.judge_seconds:g} s of a CPU to score an answer"),
    ]
    return _page(f"{name}: {kind.summary}", facts, inspect.getdoc(sys.modules[kind.__module__]) or "", name)


def _page(title: str, facts: Sequence[tuple[str, str]], text: str, part: str) -> Group:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts:
        if value:
            table.add_row(Text(name, "dim"), Text(value))
    return Group(Text(title, "bold"), table, Text(), Text(_paragraphs(text)), Text(), fields_tables(parts(part)))


def _cost(method: Method) -> str:
    costs = []
    if method.align_seconds:
        costs.append(f"{1e6 * method.align_seconds:.3g} µs of a CPU for each response token, to align and map")
    if method.sorts:
        costs.append("sorts whole distributions")
    return "; ".join(costs) or "no more than its logits"


def _metric(metric: Metric) -> str:
    better = "higher" if metric.higher_is_better else "lower"
    return f"{metric.name} ({metric.unit}, {better} is better{'' if metric.headline else ', in table.csv only'})"


def _paragraphs(text: str) -> str:
    """A docstring whose lines are as long as the terminal's; formulas and others that are indented stay as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        p if any(line.startswith(" ") for line in p.splitlines()) else " ".join(p.splitlines()) for p in paragraphs
    )
