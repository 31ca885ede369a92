r"""The table as LaTeX with booktabs: a document that compiles, whose table environment can be copied into a paper."""

import unicodedata
from collections.abc import Iterable, Sequence

from reports.context import ReportContext, explanations, protocols
from reports.table import Cell, Group, Row, Table

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
    "*": r"$^{*}$",
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
    """A document with one table for each student. Raises ValueError naming a task that has no protocol lines."""
    notes = [f"{task}: {'; '.join(line.rstrip('.') for line in lines)}." for task, lines in protocols(table, context)]
    made = [_table(table, student, groups, context, notes) for student, groups in table.students()]
    return PREAMBLE + "\n".join(made) + "\\end{document}\n"


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


def _table(table: Table, student: str, groups: Sequence[Group], context: ReportContext, protocol: Sequence[str]) -> str:
    columns = table.columns
    depth = max(len(column.header) for column in columns)
    heads = [["", *[""] * (depth - len(column.header)), *column.header][-depth:] for column in columns]
    first = [["", ""]] * (depth - 1) + [["method", "seeds"]]
    header = [[*names, *(head[line] for head in heads)] for line, names in enumerate(first)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(f'{context.title}. Student: {student}.')} {escape(' '.join(explanations(table)))} "
        rf"{escape(' '.join(protocol))}}}",
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


def _row(row: Row) -> str:
    return _line([escape(row.label), str(row.n_seeds), *(_cell(cell) for cell in row.cells)])


def _cell(cell: Cell) -> str:
    number = rf"\textbf{{{escape(cell.number)}}}" if cell.best else escape(cell.number)
    text = f"{number}{escape(cell.mark)} {escape(cell.spread)}".rstrip()
    return text if cell.note is None else rf"{text}$^{{{cell.note}}}$"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
