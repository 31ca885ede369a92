"""From tidy tables of results and items to a page and the paper's layout, with intervals, tests, published numbers."""

from reports.analysis import Analysis, Comparison, analyse
from reports.context import ReportContext
from reports.exhibits import Evidence, Item, ShownAlignment, ShownAnswer, TokenSide
from reports.folder import write
from reports.frame import ITEM_COLUMNS, Score, checked, checked_items, read_items, read_results
from reports.layout import build_table
from reports.power import power_frame, power_lines
from reports.published import PaperComparison, beside_published, published_pairs
from reports.spreadsheets import unguarded_frame
from reports.table import Column, Group, Row, Table, TableCell
from reports.to_csv import csv_wide
from reports.to_html import html
from reports.to_latex import latex, latex_table
from reports.to_markdown import markdown
from reports.to_terminal import terminal
from reports.two_runs import RunComparison, compare, comparison_terminal
from reports.verdict import verdict

__all__ = [
    "ITEM_COLUMNS",
    "Analysis",
    "Column",
    "Comparison",
    "Evidence",
    "Group",
    "Item",
    "PaperComparison",
    "ReportContext",
    "Row",
    "RunComparison",
    "Score",
    "ShownAlignment",
    "ShownAnswer",
    "Table",
    "TableCell",
    "TokenSide",
    "analyse",
    "beside_published",
    "build_table",
    "checked",
    "checked_items",
    "compare",
    "comparison_terminal",
    "csv_wide",
    "html",
    "latex",
    "latex_table",
    "markdown",
    "power_frame",
    "power_lines",
    "published_pairs",
    "read_items",
    "read_results",
    "terminal",
    "unguarded_frame",
    "verdict",
    "write",
]
