"""A report as a folder of files: report.html and report.md to read, report.tex for a paper, table.csv to plot, and
results.csv to report from again.
"""

import csv
import os
from pathlib import Path

import pandas as pd

from reports.context import ReportContext
from reports.evidence import NO_EVIDENCE, Evidence
from reports.frame import checked
from reports.table import build_table
from reports.to_csv import csv_wide
from reports.to_html import html
from reports.to_latex import latex
from reports.to_markdown import markdown


def write(results: pd.DataFrame, context: ReportContext, folder: Path, evidence: Evidence = NO_EVIDENCE) -> list[Path]:
    """Write report.html, report.md, report.tex, table.csv (all metrics, not just those printed) and results.csv.

    Returns their paths, the page first.

    Each file is complete or not there. Raises ValueError, before anything is written, for results that can not be
    laid out or a task without protocol lines; OSError where writing fails.
    """
    table = build_table(results)
    texts = {
        "report.html": html(table, context, evidence),
        "report.md": markdown(table, context),
        "report.tex": latex(table, context),
        "table.csv": csv_wide(build_table(results, all_metrics=True)),
        # All text is quoted: an unquoted carriage return (a progress bar's, in a reason) would end the row for pandas.
        "results.csv": checked(results).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _write_atomically(folder / name, text)
    return [folder / name for name in texts]


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
