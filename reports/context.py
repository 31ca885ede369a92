"""What a report says besides its numbers: title, protocols, settings, notes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from reports.analysis import BOOTSTRAP, INTERVAL, LEVEL, MCNEMAR, Comparison
from reports.outcomes import empty_outcomes, verdict_lines
from reports.published import PaperComparison
from reports.statistics import RESAMPLES
from reports.table import DASH, Column, Table, undecided

FEW_ITEMS = 30  # below them a bootstrap interval over items holds less than it says


@dataclass(frozen=True)
class ReportContext:
    """Everything a report prints that is not in the frame of results. All of it is plain text, not Markdown."""

    title: str
    recipe: str
    protocol: Mapping[str, Sequence[str]]  # task -> how its numbers were made; required for every task
    settings: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    appendix: pd.DataFrame | None = field(default=None, compare=False)  # diagnostics per method; any columns
    paper: str = ""  # the pair of `reports.published` whose numbers stand beside ours; "" for none
    recipe_values: Mapping[str, Any] = field(default_factory=dict)  # the recipe's fields, to hold to the paper's
    outcomes: pd.DataFrame = field(default_factory=empty_outcomes, compare=False)  # `reports.outcomes.OUTCOME_COLUMNS`


def protocols(table: Table, context: ReportContext) -> list[tuple[str, list[str]]]:
    """Each task of the table with its protocol lines, items of each metric, and what became of programs.

    Raises ValueError naming a task without protocol lines: a number is not shown without its protocol.
    """
    columns = [column for column in (*table.columns, *table.hidden) if not column.is_average]
    listed = []
    for task in dict.fromkeys(column.task for column in columns):
        lines = list(context.protocol.get(task, ()))
        if not lines:
            raise ValueError(f"task {task!r} has no protocol lines, and a number is not shown without its protocol")
        lines += [*(_items_line(items) for items in _items_of(task, table)), *verdict_lines(context.outcomes, task)]
        listed.append((task, lines))
    return listed


def _items_of(task: str, table: Table) -> list[tuple[str, tuple[int, ...]]]:
    """(metrics, distinct item counts) of a task's shown columns; metrics with the same counts share one entry."""
    by_counts: dict[tuple[int, ...], list[str]] = {}
    for column in table.columns:
        if column.task == task and not column.is_average:
            by_counts.setdefault(column.items, []).append(column.label)
    return [(", ".join(labels), counts) for counts, labels in by_counts.items() if counts]


def _items_line(items: tuple[str, tuple[int, ...]]) -> str:
    labels, counts = items
    if len(counts) == 1:
        return f"{labels}: {counts[0]} items"
    return f"{labels}: {counts[0]} to {counts[-1]} items, not the same number for every score"


LEGEND = (
    "Bold: the best of its column within a student, at the printed precision; teachers and references do not "
    "compete. ↑ higher is better, ↓ lower is better."
)


def explanations(table: Table) -> list[str]:
    """The lines that say how to read the table; the same in every format."""
    lines = [LEGEND, *_spreads(table), *_significance(table)]
    averaged = [column.full_label for column in table.columns if column.in_average]
    if any(column.is_average for column in table.columns):
        lines.append(
            f"Average: of {', '.join(averaged)}, seed by seed{_averaged_seeds(table)}, only where a row has them all; "
            "no interval, no test."
        )
        if alike := _alike(table):
            lines.append(
                f"No average is bold: students score the same in {', '.join(alike)}, so that it ranks by less."
            )
    if table.hidden:
        lines.append(f"Not printed, but in table.csv: {', '.join(column.full_label for column in table.hidden)}.")
    return lines


def _averaged_seeds(table: Table) -> str:
    """Which seeds the average is over, where its tasks differ in theirs."""
    seeds = [set(column.seeds) for column in table.columns if column.in_average]
    if all(of_one == seeds[0] for of_one in seeds):
        return ""
    return f" over the seeds that all of them have ({', '.join(map(str, sorted(set.intersection(*seeds)))) or 'none'})"


def _alike(table: Table) -> list[str]:
    """Columns of the average that do not tell a student's methods apart."""
    found: dict[str, None] = {}
    for _, groups in table.students():
        rows = [row for group in groups for row in group.rows if row.role == "student"]
        found |= dict.fromkeys(column.full_label for column in undecided(rows, table.columns))
    return list(found)


def _spreads(table: Table) -> Iterator[str]:
    """Which kinds of spread the table shows, and where one is missing."""
    filled = [cell for _, _, column, cell in table.cells() if cell.mean is not None and not column.is_average]
    single = [cell for cell in filled if cell.n_seeds == 1]
    if len(single) < len(filled):
        yield "±: sample standard deviation over training seeds."
    if any(cell.interval is not None for cell in single):
        yield (
            f"(low–high): one training seed, {INTERVAL} by bootstrap over test items ({RESAMPLES:,} resamples), "
            "which says nothing of other seeds."
        )
        if few := [c for c in table.columns if c.items and c.items[0] < FEW_ITEMS and not c.is_average]:
            named = ", ".join(f"{column.full_label} {column.items[0]}" for column in few)
            yield (
                f"Fewer than {FEW_ITEMS} items bound little ({named}): an interval over so few is too narrow more "
                "often than it says."
            )
        if any(cell.interval is None for cell in single):
            yield "One seed and no interval: all items scored the same, or their scores are missing."
    elif single:
        yield "A number without ±: one training seed, and no item-level scores to tell how sure it is."


def _significance(table: Table) -> Iterator[str]:
    if not table.baseline:
        return
    compared = [(column, cell.comparison) for _, _, column, cell in table.cells() if cell.comparison is not None]
    if not compared:
        yield (
            f"No marks of significance: no row here has item-level scores to compare with those of {table.baseline!r}."
        )
        return
    tests = {
        "exact McNemar test": [column for column, comparison in compared if comparison.test == MCNEMAR],
        "paired bootstrap test": [column for column, comparison in compared if comparison.test == BOOTSTRAP],
    }
    named = [
        f"{test} ({', '.join(dict.fromkeys(column.full_label for column in columns))})"
        for test, columns in tests.items()
        if columns
    ]
    if any(len(comparison.seeds) > 1 for _, comparison in compared):
        seeds = "Each item's seeds are kept together. *: a paired t-test over seeds finds the same, corrected alike."
    else:
        seeds = "What training again would change, one seed can't tell."
    yield (
        f"† better, ‡ worse than {table.baseline} on the same items and seeds, {100 * LEVEL:g} % level after Holm's "
        f"correction over the rows of a column: {', '.join(named)}. They tell what other test items would show of the "
        f"same trained students. {seeds}"
    )


def tests_against_baseline(table: Table) -> pd.DataFrame:
    """All comparisons of the printed cells as text, column by column; empty where there are none."""
    students = len(table.students()) > 1
    rows = []
    for index, column in enumerate(table.columns):
        for group in table.groups:
            for row in group.rows:
                if (comparison := row.cells[index].comparison) is not None:
                    student = {"student": group.student} if students else {}
                    rows.append({"column": column.full_label, **student, "row": row.label, **_said(comparison, column)})
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.loc[:, (frame != "").any()]


def _said(comparison: Comparison, column: Column) -> dict[str, str]:
    interval, digits, several = comparison.interval, column.digits, len(comparison.seeds) > 1
    return {
        "difference": f"{comparison.difference:+.{digits}f}",
        INTERVAL: DASH if interval is None else f"{interval[0]:+.{digits}f} to {interval[1]:+.{digits}f}",
        "test": comparison.test,
        "p": _p_text(comparison.p),
        "p, Holm": _p_text(comparison.p_corrected),
        "p over seeds, Holm": (DASH if comparison.p_seeds is None else _p_text(comparison.p_seeds)) if several else "",
        "items": str(comparison.n_items),
        "seeds": str(len(comparison.seeds)),
    }


PAPER_HEADER = ("column", "row", "ours", INTERVAL, "theirs", "difference", "inside")


def paper_grid(comparison: PaperComparison) -> list[tuple[str, ...]]:
    """The rows under `PAPER_HEADER`, as text; rows of several students are told apart."""
    several = len({beside.group.student for beside in comparison.rows}) > 1
    lines: list[tuple[str, ...]] = []
    for b in comparison.rows:
        digits = b.column.digits
        std = "" if b.ours.std is None else f" {b.ours.spread}"
        lines.append(
            (
                b.column.full_label,
                b.row.label + (f", {b.group.student}" if several else ""),
                b.ours.number + std,
                DASH if b.ours.interval is None else "{:.{d}f}–{:.{d}f}".format(*b.ours.interval, d=digits),
                f"{b.theirs:.{digits}f}",
                f"{b.difference:+.{digits}f}",
                {None: DASH, True: "yes", False: "no"}[b.inside],
            )
        )
    return lines


def _p_text(p: float) -> str:
    """Four decimals, as far as the resamples reach."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"
