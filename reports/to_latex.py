r"""LaTeX with booktabs: the table by itself, to \input into a paper, and a document round it that compiles."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from reports.analysis import INTERVAL, LEVEL
from reports.context import ReportContext, protocols
from reports.legends import explanations
from reports.table import Group, Row, Table, TableCell
from reports.verdict import verdict

TABLE = "table.tex"

PREAMBLE = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[margin=2cm]{geometry}
\begin{document}
"""

_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "÷": r"$\div$",
    "§": r"\S{}",
    "°": r"$^{\circ}$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "*": "{*}",  # after a line's end it would ask for a star of the command
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\to$",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "…": r"\dots{}",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "\N{NO-BREAK SPACE}": "~",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "σ": r"$\sigma$",
    "δ": r"$\delta$",
    "θ": r"$\theta$",
    "γ": r"$\gamma$",
    "Σ": r"$\Sigma$",
    "Π": r"$\Pi$",
    "∞": r"$\infty$",
    "‖": r"$\Vert$",
}


def latex(table: Table, context: ReportContext) -> str:
    r"""A document that \inputs `TABLE`, with all that a reader of the table needs.

    Raises ValueError naming a task that has no protocol lines.
    """
    made_by = [rf"\noindent Made by: \texttt{{{escape(context.command)}}}\par"] if context.command else []
    lines = [
        rf"\section*{{{escape(context.title)}}}",
        *made_by,
        *_list("Verdict", verdict(table)),
        rf"\input{{{TABLE}}}",
        *_list("How to read the table", explanations(table)),
        r"\section*{How the numbers were made}",
    ]
    for task, said in protocols(table, context):
        lines += [rf"\paragraph{{{escape(task)}}} {escape(' '.join(_ended(line) for line in said))}"]
    return PREAMBLE + "\n".join(lines) + "\n\\end{document}\n"


def latex_table(table: Table, context: ReportContext) -> str:
    """A table environment for each student, with a short caption and a label: `tab:recipe`, `tab:recipe-student`."""
    needed = "% needs \\usepackage{booktabs,graphicx,textcomp} and [utf8]{inputenc}\n"
    return needed + "\n".join(_table(table, student, groups, context) for student, groups in table.students())


def _list(heading: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    items = [rf"\item {escape(line)}" for line in lines]
    return [rf"\section*{{{escape(heading)}}}", r"\begin{itemize}", *items, r"\end{itemize}"]


def _ended(line: str) -> str:
    return line if line.endswith(".") else f"{line}."


def escape(text: str) -> str:
    """Plain text as one line of LaTeX that prints the same; what pdflatex's own fonts lack becomes a plainer letter."""
    return "".join(_character(c) for c in " ".join(text.split()))


def _character(c: str) -> str:
    if c in _CHARACTERS:
        return _CHARACTERS[c]
    if " " <= c <= "~" or (c in _LATIN and unicodedata.decomposition(c)):  # a letter with an accent
        return c
    plainer = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
    return "".join(_CHARACTERS.get(p, p) for p in plainer) or "?"


_LATIN = frozenset(map(chr, range(0xC0, 0x100)))


def _table(table: Table, student: str, groups: Sequence[Group], context: ReportContext) -> str:
    columns = table.columns
    depth = max(len(column.header) for column in columns)
    heads = [["", *[""] * (depth - len(column.header)), *column.header][-depth:] for column in columns]
    first = [["", ""]] * (depth - 1) + [["method", "seeds"]]
    header = [[*names, *(head[line] for head in heads)] for line, names in enumerate(first)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(_caption(table, student, groups, context))}}}",
        rf"\label{{{_label(table, student, context)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (1 + len(columns))}}}",
        r"\toprule",
        *(_line(map(escape, line)) for line in header),
    ]
    for group in groups:
        teachers = f": {', '.join(group.teachers)}" if group.teachers else ""
        heading = escape(group.heading + teachers)
        lines += [r"\midrule", rf"\multicolumn{{{2 + len(columns)}}}{{l}}{{\emph{{{heading}}}}} \\"]
        lines += [_row(row) for row in group.rows]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    used = sorted({cell.note for group in groups for row in group.rows for cell in row.cells if cell.note is not None})
    if used:
        lines += [r"\par\smallskip\raggedright\footnotesize"]
        lines += [rf"$^{{{number}}}$~{escape(table.footnotes[number - 1])}\par" for number in used]
    return "\n".join([*lines, r"\end{table}", ""])


def _caption(table: Table, student: str, groups: Sequence[Group], context: ReportContext) -> str:
    """What is shown, and what its print stands for, in a line or two; the rest is the text's."""
    cells = [cell for group in groups for row in group.rows for cell in row.cells]
    told = [f"{context.title}. Student: {student}."]
    if any(cell.best for cell in cells):
        told.append("Bold: the best and what can't be told from it.")
    if any(cell.mark for cell in cells):
        told.append(f"† better, ‡ worse than {table.baseline} ({100 * LEVEL:g} %, Holm, over trainings and items).")
    if any(cell.std is not None for cell in cells):
        told.append("±: deviation over training seeds.")
    if any(cell.std is None and cell.interval is not None for cell in cells):
        told.append(f"In brackets: {INTERVAL} over test items.")
    return " ".join(told)


def _label(table: Table, student: str, context: ReportContext) -> str:
    named = f"{context.recipe}-{student}" if len(table.students()) > 1 else context.recipe
    return f"tab:{re.sub(r'[^a-z0-9]+', '-', named.lower()).strip('-')}"


def _row(row: Row) -> str:
    return _line([escape(row.label), str(row.n_seeds), *(_cell(cell) for cell in row.cells)])


def _cell(cell: TableCell) -> str:
    number = rf"\textbf{{{escape(cell.number)}}}" if cell.best else escape(cell.number)
    text = f"{number}{escape(cell.mark)} {escape(cell.spread)}".rstrip()
    return text if cell.note is None else rf"{text}$^{{{cell.note}}}$"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
