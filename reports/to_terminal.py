"""The report for a terminal; 100 columns hold three tasks."""

from collections.abc import Callable

from rich import box
from rich.console import Group as Renderables
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from reports.context import PAPER_HEADER, ReportContext, paper_grid, protocols
from reports.legends import explanations
from reports.published import beside_published
from reports.table import Table, TableCell
from reports.verdict import verdict

WIDTH = 100
FIRST_COLUMN = 30  # at most; longer labels wrap, numbers never do
INDENT = 2  # of a group under its student, and of a row under its group
GAP = 3  # a column's padding and the box's separator
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def terminal(table: Table, context: ReportContext, width: int = WIDTH) -> Renderables:
    """Verdict, table (several, one below the other, where it is too wide), footnotes, notes and protocols.

    `width` is the terminal's, in characters; the result is for `rich`'s `Console.print`.
    Raises ValueError naming a task that has no protocol lines.
    """
    parts: list[RenderableType] = [_verdict(line) for line in verdict(table)]
    parts += _tables(table, context, width)
    parts += [Text(f"{_mark(number)} {text}") for number, text in enumerate(table.footnotes, start=1)]
    parts += [Text(text, "dim") for text in explanations(table)]
    parts += [Text(text, "yellow") for text in context.notes]
    for task, lines in protocols(table, context):
        parts.append(Text.assemble((task, "bold"), ": ", "; ".join(line.rstrip(".") for line in lines)))
    if context.paper:
        parts += _paper(table, context)
    parts += [Text.assemble((name, "bold"), ": ", value) for name, value in context.settings]
    return Renderables(*parts)


def _verdict(line: str) -> Text:
    columns, colon, said = line.partition(": ")
    return Text.assemble((columns, "bold"), colon, said)


def _paper(table: Table, context: ReportContext) -> list[RenderableType]:
    comparison = beside_published(table, context.paper, context.recipe_values)
    grid = RichTable(box=box.SIMPLE_HEAD, title=Text("Beside the published numbers", "bold"), title_justify="left")
    for name in PAPER_HEADER[1:]:
        first = name == PAPER_HEADER[1]
        grid.add_column(Text(name), justify="left" if first else "right", no_wrap=not first, overflow="fold")
    lines = paper_grid(comparison)
    for column in dict.fromkeys(column for column, *_ in lines):
        grid.add_row(Text(column, "italic"))
        for _, row, *values in (line for line in lines if line[0] == column):
            grid.add_row(Text(" " * INDENT + row), *map(Text, values))
    return [*([grid] if comparison.rows else []), *(Text(line, "dim") for line in comparison.lines())]


def _tables(table: Table, context: ReportContext, width: int) -> list[RichTable]:
    """One table if it fits, with the spread below the mean if need be; else as many as it takes, never cut numbers."""
    room = width - _first_column(table) - len("seeds") - 2 * GAP  # for the columns of numbers
    two_lines = sum(_widths(table, _one_line)) > room
    show = _two_lines if two_lines else _one_line
    blocks: list[list[int]] = [[]]
    widths = _widths(table, show)
    for index, needed in enumerate(widths):
        if blocks[-1] and sum(widths[i] for i in blocks[-1]) + needed > room:
            blocks.append([])
        blocks[-1].append(index)
    return [_table(table, block, show, context.title if block is blocks[0] else None) for block in blocks]


def _first_column(table: Table) -> int:
    """Characters of the longest label, as far as it may reach."""
    groups = [INDENT + len(line) for group in table.groups for line in (group.heading, *group.teachers)]
    rows = [2 * INDENT + len(row.label) for group in table.groups for row in group.rows]
    return min(FIRST_COLUMN, max([*groups, *rows, *(len(student) for student, _ in table.students())]))


def _widths(table: Table, show: Callable[[TableCell], str]) -> list[int]:
    """Characters that each column takes, its gap included."""
    rows = [row for group in table.groups for row in group.rows]
    return [
        GAP
        + max(
            len(line) for text in (*column.header, *(show(row.cells[i]) for row in rows)) for line in text.split("\n")
        )
        for i, column in enumerate(table.columns)
    ]


def _table(table: Table, block: list[int], show: Callable[[TableCell], str], title: str | None) -> RichTable:
    """The table's columns with the indices in `block`."""
    grid = RichTable(box=box.SIMPLE_HEAD, title=title and Text(title, "bold"), title_justify="left", pad_edge=False)
    grid.add_column(Text("method"), max_width=FIRST_COLUMN, overflow="fold")
    grid.add_column(Text("seeds"), justify="right", no_wrap=True)
    for index in block:
        grid.add_column(Text("\n".join(table.columns[index].header)), justify="right", no_wrap=True)
    for student, groups in table.students():
        grid.add_row(Text(student, "bold"))
        for group in groups:
            heading = [" " * INDENT + line for line in (group.heading, *group.teachers)]
            grid.add_row(Text("\n".join(heading), "italic"))
            for row in group.rows:
                cells = [row.cells[index] for index in block]
                numbers = [Text(show(cell), "bold" if cell.best else "") for cell in cells]
                grid.add_row(Text(" " * 2 * INDENT + row.label), Text(str(row.n_seeds)), *numbers)
        grid.add_section()
    return grid


def _one_line(cell: TableCell) -> str:
    return cell.text + _mark(cell.note)


def _two_lines(cell: TableCell) -> str:
    """The spread under the mean, the footnote's mark at the mean."""
    spread = cell.spread.replace("± ", "±").strip("()")
    return "\n".join([cell.number + cell.mark + _mark(cell.note), *([spread] if spread else [])])


def _mark(note: int | None) -> str:
    return "" if note is None else str(note).translate(SUPERSCRIPTS)
