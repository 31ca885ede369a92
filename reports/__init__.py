"""From a tidy table of results to Markdown and CSV in the paper's layout."""

from reports.comparison import Comparison, compare, comparison_terminal
from reports.context import ReportContext
from reports.folder import write
from reports.frame import Score, checked, read_results
from reports.table import Cell, Column, Group, Row, Table, build_table
from reports.to_csv import csv_wide
from reports.to_markdown import markdown
from reports.to_terminal import terminal

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Group",
    "ReportContext",
    "Row",
    "Score",
    "Table",
    "build_table",
    "checked",
    "compare",
    "comparison_terminal",
    "csv_wide",
    "markdown",
    "read_results",
    "terminal",
    "write",
]
