"""From a tidy table of results to a page, Markdown, LaTeX and CSV in the paper's layout."""

from reports.context import ReportContext
from reports.evidence import Alignment, Answer, Evidence, Item, TokenSide
from reports.folder import write
from reports.frame import Score, checked, read_results
from reports.table import Cell, Column, Group, Row, Table, build_table
from reports.to_csv import csv_wide
from reports.to_html import html
from reports.to_latex import latex
from reports.to_markdown import markdown
from reports.to_terminal import terminal

__all__ = [
    "Alignment",
    "Answer",
    "Cell",
    "Column",
    "Evidence",
    "Group",
    "Item",
    "ReportContext",
    "Row",
    "Score",
    "Table",
    "TokenSide",
    "build_table",
    "checked",
    "csv_wide",
    "html",
    "latex",
    "markdown",
    "read_results",
    "terminal",
    "write",
]
