"""A report as files: report.html and report.md to read, table.tex for a paper, table.csv to plot, the tidy frames."""

import csv
import gzip
import os
from pathlib import Path

import pandas as pd

from reports import drawn
from reports.analysis import NO_ANALYSIS, Analysis
from reports.context import ReportContext
from reports.exhibits import NO_EVIDENCE, Evidence
from reports.frame import checked, checked_items
from reports.layout import build_table
from reports.published import beside_published, csv_published
from reports.spreadsheets import guarded_frame
from reports.to_csv import csv_wide
from reports.to_html import html
from reports.to_latex import TABLE, latex, latex_table
from reports.to_markdown import markdown

FIGURES = "figures"


def write(
    results: pd.DataFrame,
    context: ReportContext,
    folder: Path,
    analysis: Analysis = NO_ANALYSIS,
    items: pd.DataFrame | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> list[Path]:
    """Write report.html, report.md, report.tex, table.tex, table.csv (all metrics, printed or not), results.csv.

    Returns their paths, the page first.

    With `items` items.csv.gz comes too, outcomes.csv and costs.csv where the context has them, and published.csv where
    it names a paper. The page's figures stand in figures/ as SVG files, too.
    Each file is complete or not there. Raises ValueError, before anything is written, for results that can not be
    laid out or a task without protocol lines; OSError where writing fails.
    """
    table, whole = build_table(results, analysis), build_table(results, analysis, all_metrics=True)
    figures = drawn.draw(table, evidence, context.costs)
    pictures = [
        (caption, f"{FIGURES}/{drawn.file_name(part, caption)}")
        for part in figures
        if part.heading == drawn.DIFFERENCES
        for caption, _ in part.figures
    ]
    texts = {
        "report.html": html(table, context, evidence, figures),
        "report.md": markdown(table, context, pictures),
        "report.tex": latex(table, context),
        TABLE: latex_table(table, context),
        "table.csv": csv_wide(whole, context.costs),
        "results.csv": _tidy(checked(results)),
    }
    if not context.outcomes.empty:
        texts["outcomes.csv"] = _tidy(context.outcomes)
    if not context.costs.empty:
        texts["costs.csv"] = _tidy(context.costs)
    if context.paper:
        texts["published.csv"] = csv_published(beside_published(whole, context.paper, context.recipe_values))
    contents = {name: text.encode() for name, text in texts.items()}
    if items is not None:
        # Without a time inside, equal items make equal files.
        contents["items.csv.gz"] = gzip.compress(_tidy(checked_items(items)).encode(), mtime=0)
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        _write_atomically(folder / name, content)
    of_figures = {name: svg.encode() for name, svg in drawn.files(figures).items()}
    for stale in set((folder / FIGURES).glob("*.svg")) - {folder / FIGURES / name for name in of_figures}:
        stale.unlink()
    for name, content in of_figures.items():
        _write_atomically(folder / FIGURES / name, content)
    return [folder / name for name in contents]


def _tidy(frame: pd.DataFrame) -> str:
    # All text is quoted: an unquoted carriage return (a progress bar's, in a reason) would end the row for pandas.
    return str(guarded_frame(frame).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC))


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
