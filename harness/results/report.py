"""From a run's record and store to its report: numbers, what tests make of them, protocol and notes, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from harness.base.files import disk_errors
from harness.results.diagnostics import diagnostics, hardly_heard
from harness.results.evidence import collect_evidence
from harness.results.kept import REBUILT, REBUILT_NOTE, kept_frame, with_kept
from harness.results.layout import Record
from harness.results.learnt import collect_learnt, cut_answers, hardly_covered
from harness.results.outcomes import collect_outcomes, scoring_lines, set_aside_lines
from harness.results.readings import reading_line
from harness.results.record import RECORD, RunRecord, collect
from harness.results.spent import collect_costs
from harness.results.tuning import tuning_frame, tuning_line
from harness.store.store import Store
from reports import Analysis, ReportContext, Table, analyse, build_table, write
from reports.folder import FIGURES
from reports.teachers import teacher_lines


@dataclass(frozen=True)
class Gathered:
    """A run's numbers.

    Attributes:
        results: one row per cell and metric, failures included.
        items: one row per cell, metric and item.
        rebuilt: whether some come from the files of the run's folder, as the store lacks them.
    """

    results: pd.DataFrame
    items: pd.DataFrame
    rebuilt: bool

    def analysed(self, record: Record, columns: Sequence[str] | None = None) -> Analysis:
        """Intervals and tests, of the columns that the recipe names or of those given.

        Raises:
            ValueError: none of the run's columns has a name that is given.
        """
        named = self.named(record)[0] if columns is None else columns
        return analyse(self.results, self.items, record["baseline"], named)

    def named(self, record: Record) -> tuple[list[str], list[str]]:
        """The columns that the recipe names for its tests, and those of them that the run does not have."""
        known = set(self.results["task"] + "." + self.results["metric"])
        primary = record.get("primary", ())
        return [name for name in primary if name in known], [name for name in primary if name not in known]


def gather(run: RunRecord, store: Store) -> Gathered:
    """The numbers of the store, and of the run's folder where the store lacks them.

    Raises:
        HarnessError: there is no number anywhere, or a file of the folder is damaged.
    """
    failed = any(cell["failures"] for cell in run.record["cells"])
    return Gathered(*with_kept(run.folder, *collect(run, store), failed=failed))


def write_report(run: RunRecord, store: Store, folder: Path | None = None) -> tuple[Table, ReportContext, list[Path]]:
    """Gather a run's numbers and write the report's files; the table is what a terminal shows.

    Args:
        folder: where to write; None for the run's own, or, where the store lacks numbers that the run's results.csv
            has, for a folder within it, so that no report is replaced by one that says less.
    """
    gathered = gather(run, store)
    analysis = gathered.analysed(run.record)
    context = report_context(run, store)
    if unknown := gathered.named(run.record)[1]:
        context = replace(context, notes=[*context.notes, f"No column of this run is called {', '.join(unknown)}."])
    context = replace(  # a stage may lack files that no number is made of
        context,
        outcomes=kept_frame(run.folder, "outcomes.csv", context.outcomes),
        costs=kept_frame(run.folder, "costs.csv", context.costs),
    )
    teachers = {task: {int(s): t for s, t in its.items()} for task, its in run.record.get("teachers", {}).items()}
    lines = teacher_lines(gathered.results, run.record["baseline"], teachers)
    context = replace(context, tuning=tuning_frame(run.record, gathered.results), notes=[*context.notes, *lines])
    if gathered.rebuilt:
        context = replace(context, notes=[*context.notes, REBUILT_NOTE])
    folder = folder or (run.folder / REBUILT if gathered.rebuilt else run.folder)
    with disk_errors(folder):
        evidence = collect_evidence(run.record, store)
        files = write(gathered.results, context, folder, analysis, gathered.items, evidence)
    return build_table(gathered.results, analysis), context, files


def files_line(run: RunRecord, files: Sequence[Path]) -> str:
    """What has been written: the report's `files`, the figures' folder with their number; and the run's record."""
    figures = files[0].parent / FIGURES
    count = len(list(figures.glob("*.svg")))
    return "Files: " + ", ".join([*map(str, files), f"{figures}/ ({count} SVG)", str(run.folder / RECORD)])


def report_context(run: RunRecord, store: Store) -> ReportContext:
    """Protocol, notes, settings and diagnostics of a run."""
    record = run.record
    outcomes, training = collect_outcomes(record, store), diagnostics(record, store)
    return ReportContext(
        title=record["title"],
        recipe=str(record["recipe"]["name"]),
        protocol=_protocol_and_caveats(run, store),
        settings=[(name, value) for name, value in record["settings"]],
        notes=[
            *record["notes"],
            *cut_answers(outcomes),
            *hardly_heard(record, store),
            *hardly_covered(training),
            *filter(None, (tuning_line(record), reading_line(record))),
        ],
        appendix=training,
        paper=record["paper"],
        recipe_values=record["recipe"],
        outcomes=outcomes,
        costs=collect_costs(record, store),
        learnt=collect_learnt(record, store, outcomes, training),
        command=record.get("command", ""),
        references=record.get("bibtex", ()),
    )


def _protocol_and_caveats(run: RunRecord, store: Store) -> dict[str, list[str]]:
    """How numbers were made, by task; with what must be said of the scores that are there."""
    protocol = {task: list(lines) for task, lines in run.record["protocol"].items()}
    for cell in run.record["cells"]:
        scores = store.find("scores", cell["stages"].get("scores", ""))
        caveat = scores.manifest.get("caveat") if scores is not None else None
        if caveat and caveat not in protocol[cell["task"]]:
            protocol[cell["task"]].append(caveat)
    for task, lines in protocol.items():
        cells = [cell for cell in run.record["cells"] if cell["task"] == task]
        lines += set_aside_lines(cells, store) + scoring_lines(cells, store)
    return protocol
