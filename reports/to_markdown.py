"""The report as GitHub Markdown: a table for each student, its footnotes, and how the numbers were made."""

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from reports.appendix import appendices
from reports.context import PAPER_HEADER, ReportContext, counted_tables, paper_grid, protocols
from reports.learnt import learnt_tables
from reports.legends import explanations
from reports.published import PaperComparison, beside_published
from reports.table import DASH, Group, Row, Table, TableCell
from reports.verdict import verdict

SIGNIFICANT_DIGITS = 4  # of the appendix's numbers, whose units we do not know


def markdown(table: Table, context: ReportContext, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The whole report.

    Args:
        pictures: caption and path of each figure that stands below the verdict.

    Raises:
        ValueError: a task has no protocol lines.
    """
    blocks = [f"# {escape(context.title)}", f"Recipe: {escape(context.recipe)}"]
    if context.command:
        blocks.append(f"Made by: `{context.command}`")
    if said := verdict(table):
        blocks += ["## Verdict", _list(said), *(f"![{escape(caption)}]({path})" for caption, path in pictures)]
    for student, groups in table.students():
        blocks += [f"## {escape(student)}", _student_table(table, groups)]
    blocks += [escape(line) for line in explanations(table)]
    if table.footnotes:
        blocks.append("\n".join(f"{number}. {escape(text)}" for number, text in enumerate(table.footnotes, start=1)))
    for place, (heading, explanation, frame) in enumerate(learnt_tables(table, context.learnt)):
        blocks += [f"## {escape(heading)}", *([] if place else [escape(explanation)]), _frame(frame)]
    if context.notes:
        blocks += ["## Notes", _list(context.notes)]
    blocks.append("## How the numbers were made")
    for task, lines in protocols(table, context):
        blocks += [f"**{escape(task)}**", _list(lines)]
    if context.paper:
        comparison = beside_published(table, context.paper, context.recipe_values)
        blocks += ["## Beside the published numbers", *_paper(comparison)]
    if context.settings:
        blocks += ["## Settings", _grid(["setting", "value"], [[escape(k), escape(v)] for k, v in context.settings], 2)]
    for heading, explanation, frame in (*appendices(table), *counted_tables(context)):
        left = 1 if frame.columns[0] == "row" else 2  # columns of text
        blocks += [f"## Appendix: {escape(_begun(heading))}", escape(explanation), _frame(frame, left)]
    if context.appendix is not None and not context.appendix.empty:
        blocks += ["## Appendix: diagnostics", _frame(context.appendix)]
    if context.references:
        entries = "\n\n".join(context.references)
        blocks += ["## Appendix: BibTeX of the methods", f"```bibtex\n{entries}\n```"]
    return "\n\n".join(blocks) + "\n"


def _begun(heading: str) -> str:
    return heading[0].lower() + heading[1:]


def escape(text: str) -> str:
    r"""Plain text as one line of Markdown that reads the same, in a table's cell too: `a|b` becomes `a\|b`."""
    line = re.sub(r"([\\|`*<\[~&$])", r"\\\1", " ".join(text.split()))
    # Underscores inside a word mean nothing to GitHub; all others might start emphasis.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)


def _student_table(table: Table, groups: Sequence[Group]) -> str:
    header = ["method", "seeds", *("<br>".join(escape(line) for line in column.header) for column in table.columns)]
    lines = []
    for group in groups:
        lines.append([_group_heading(group), *[""] * (len(header) - 1)])
        lines += [_row(row) for row in group.rows]
    return _grid(header, lines, left=1)


def _group_heading(group: Group) -> str:
    teachers = f": {', '.join(group.teachers)}" if group.teachers else ""
    return f"*{escape(group.heading + teachers)}*"


def _row(row: Row) -> list[str]:
    return [escape(row.label), str(row.n_seeds), *(_cell(cell) for cell in row.cells)]


def _cell(cell: TableCell) -> str:
    text = f"**{escape(cell.text)}**" if cell.best else escape(cell.text)
    return text if cell.note is None else f"{text} <sup>{cell.note}</sup>"


def _paper(comparison: PaperComparison) -> list[str]:
    """The comparison with a paper: its table, and what has to be said with it."""
    rows = [[escape(text) for text in row] for row in paper_grid(comparison)]
    return [*([_grid(PAPER_HEADER, rows, left=2)] if rows else []), _list(comparison.lines())]


def _frame(frame: pd.DataFrame, left: int = 1) -> str:
    rows = [[_value(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return _grid([escape(str(name)) for name in frame.columns], rows, left)


def _value(value: object) -> str:
    if value is None or value is pd.NA or value != value:  # NaN alone differs from itself
        return DASH
    return f"{value:.{SIGNIFICANT_DIGITS}g}" if isinstance(value, float) else escape(str(value))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table of escaped cells whose first `left` columns are aligned to the left, the others to the right."""
    rule = [":--" if index < left else "--:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))
