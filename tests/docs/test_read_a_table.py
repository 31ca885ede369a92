"""docs/read_a_table.md explains every mark, line, footnote, column and figure that a report can print, and no other."""

from __future__ import annotations

import ast

import pytest

from harness.results import learnt
from reports import counts, drawn, tuning
from reports.context import PAPER_HEADER
from reports.table import DASH
from tests.docs.pages import ROOT
from tests.docs.texts import all_texts, pieces, quoted_in, says, syntax, table_of, text_of, texts_of

PAGE = ROOT / "docs" / "read_a_table.md"
PRINTED = {  # heading of the page: what prints the lines it explains
    "Footnotes": [
        ("reports/layout.py", "_cell", "_average", "_filled", "_problem"),
        ("harness/results/record.py", "_score"),
    ],
    "The legend's lines": [("reports/legends.py", "explanations", "_more_seeds", "_bold", "_spreads", "_marks")],
    "The verdict's sentences": [("reports/verdict.py", "_sentences", "_against", "_best", "_no_leader", "_from_whom")],
    "Notes": [
        ("harness/results/diagnostics.py", "hardly_heard"),
        ("harness/results/learnt.py", "hardly_covered", "cut_answers"),
        ("harness/results/readings.py", "reading_line"),
        ("harness/results/tuning.py", "tuning_line"),
        ("harness/results/report.py", "write_report"),
        ("reports/teachers.py", "teacher_lines"),
    ],
}
SHORT = 12  # characters of a text that is a part of another, or a name within the code
PARTS = {  # of lines that are explained, and names of files
    " of a student",
    " (differences under ... would mostly go unseen)",
    "; of the rest it learns nothing, or something else.",
    ", told from every other row.",
    "... of the way to ...",
    "higher_is_better",
}

PUT_TOGETHER = {"NAME (released)", "warm start (reference)", "Better", "Worse"}


def explained(heading: str, cell: int = 0) -> list[str]:
    return [one for row in table_of(PAGE, heading) for one in quoted_in(row[cell])]


@pytest.mark.parametrize("heading", PRINTED)
def test_every_line_is_explained(heading: str) -> None:
    quoted = explained(heading)
    lines = {text for file, *names in PRINTED[heading] for text in texts_of(file, *names)} - PARTS
    lines = {line for line in lines if len("".join(pieces(line))) > SHORT and " " in line.strip()}
    assert len(lines) > 4
    missing = [line for line in sorted(lines) if not any(says(one, line) or line.strip(" :") in one for one in quoted)]
    assert not missing


@pytest.mark.parametrize("heading", [*PRINTED, "What was learnt", "Rows"])
def test_what_is_explained_can_be_printed(heading: str) -> None:
    printable = all_texts("reports", "harness/results", "harness/plan", "methods")
    for piece in {piece for quoted in explained(heading) for piece in pieces(quoted)} - PUT_TOGETHER:
        assert any(piece in text for text in printable), piece


def test_marks_are_explained() -> None:
    """Every sign that is no letter, of those that make a table."""
    files = ("analysis.py", "layout.py", "table.py", "legends.py", "to_terminal.py")
    signs = {sign for file in files for text in texts_of(f"reports/{file}") for sign in text if ord(sign) > 127}
    signs -= {"’", *"⁰¹²³⁴⁵⁶⁷⁸⁹"}  # an apostrophe, and the numbers of footnotes
    assert signs >= {"†", "‡", "±", DASH, "↑", "↓"}
    cells = "".join(row[0] for row in table_of(PAGE, "Cells"))
    assert signs - set(cells) == set()


def keys(file: str, function: str) -> set[str]:
    """Of all dictionaries that a function writes down."""
    (found,) = (n for n in ast.walk(syntax(file)) if isinstance(n, ast.FunctionDef) and n.name == function)
    written = [key for n in ast.walk(found) if isinstance(n, ast.Dict) for key in n.keys]
    return {key.value for key in written if isinstance(key, ast.Constant)}


def headings(file: str, function: str) -> list[str]:
    """First parts of a function's triples, as far as they are texts."""
    (found,) = (n for n in ast.walk(syntax(file)) if isinstance(n, ast.FunctionDef) and n.name == function)
    triples = [n.elts[0] for n in ast.walk(found) if isinstance(n, ast.Tuple) and len(n.elts) == 3]
    return [pieces(text)[0] for one in triples if (text := text_of(one))]


def test_tables_and_columns_of_the_appendix_are_explained() -> None:
    rows = table_of(PAGE, "Appendix")
    names = {piece for row in rows for one in quoted_in(row[0]) for piece in pieces(one)}
    made = [
        *headings("reports/appendix.py", "appendices"),
        *headings("reports/counts.py", "outcome_tables"),
        *headings("reports/context.py", "counted_tables"),
        *headings("reports/tuning.py", "tuning_tables"),
    ]
    assert len(made) > 7
    assert set(made) - names == set()
    columns = {one for row in rows for cell in row for one in quoted_in(cell)}
    needed = {*counts.VERDICTS, *counts.ENDS, counts.CUT, counts.LEFT_OUT, counts.UNREADABLE}
    needed |= {*tuning.TUNING_COLUMNS} - {"row"} | {*PAPER_HEADER} - {"column", "row", "95 % interval"}
    needed |= keys("reports/appendix.py", "_said") - {"seeds", "items"}
    assert needed - columns == set()


def test_what_was_learnt_is_explained() -> None:
    said = explained("What was learnt")
    measures = [name.format("...") for name in learnt._MEASURES]
    assert {*measures, "answers that ended, %", "KD/CE gradients", "teacher mass covered"} <= set(said)


def test_what_methods_count_is_explained() -> None:
    """Names of pairs (sum, of what) in methods: they become columns of the diagnostics."""
    found = set()
    for path in sorted((ROOT / "methods").rglob("*.py")):
        for node in ast.walk(syntax(str(path.relative_to(ROOT)))):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                found |= {text_of(key) or "" for key, value in pairs if key is not None and _counts(value)}
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript) and _counts(node.value):
                found.add(text_of(node.targets[0].slice) or "")
    found = {name for name in found if " " in name}
    assert len(found) > 10
    page = {one for row in table_of(PAGE, "Appendix") for one in quoted_in(row[0])} | set(explained("What was learnt"))
    assert found - page == set()


def _counts(value: ast.expr) -> bool:
    return isinstance(value, ast.Tuple) and len(value.elts) == 2 and not isinstance(value.elts[0], ast.Constant)


def test_figures_are_explained() -> None:
    made = {*headings("reports/drawn.py", "draw"), drawn.DIFFERENCES, drawn.GAPS}
    assert {"Scores", "Training", "Speed against score"} <= made
    assert made - set(explained("Figures")) == set()
