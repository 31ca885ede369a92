"""A run as whoever calls the harness from Python gets it: numbers as data frames, and what is stored of each cell."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from harness.base.errors import HarnessError
from harness.results.evidence import labelled
from harness.results.kept import kept_frame
from harness.results.layout import RowCell
from harness.results.record import RunRecord, read_record
from harness.results.report import Gathered, files_line, gather, write_report
from harness.results.spent import collect_costs
from harness.store.artefacts import ANSWERS, MODEL, SCORES, STEPS, TRACES, Answer, Failure, JsonFile, Trace
from harness.store.store import Store
from reports import ReportContext, Table, build_table, csv_wide, power_frame, terminal, unguarded_frame

T = TypeVar("T")


class Run:
    """What a run has made: read from its folder and the store beside it, without a model.

    Args:
        folder: holds run.json; the folder above it holds the store.
        failed: why stages have no result; None where the record says it. A run of ``stages`` alone has no record.
    """

    def __init__(self, folder: Path, failed: Iterable[Failure] | None = None) -> None:
        self.folder = folder
        self._failed = None if failed is None else list(dict.fromkeys(failed))

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def recorded(self) -> RunRecord:
        """The run's record, as run.json has it.

        Raises:
            HarnessError: there is no run in the folder, or another version of the harness wrote it.
        """
        return read_record(self.folder)

    @property
    def store(self) -> Store:
        """The finished stages that the run's numbers come from."""
        return Store(self.folder.absolute().parent)

    @property
    def failures(self) -> list[Failure]:
        """Why numbers are missing, each reason once; a method that does not apply to the pair is ``skipped``."""
        if self._failed is not None:
            return self._failed
        cells = self.recorded.record["cells"]
        return list(dict.fromkeys(Failure(**failure) for cell in cells for failure in cell["failures"].values()))

    def results(self) -> pd.DataFrame:
        """One row for each cell and metric, failures included.

        Columns as in results.csv: ``method``, ``task``, ``metric``, ``seed``, ``value`` in ``unit`` (percentages run
        from 0 to 100), ``n_items``, ``status`` with its ``reason``, and the cell's name under ``cell``.
        """
        return self._gathered.results.copy()

    def items(self) -> pd.DataFrame:
        """One row for each cell, metric and test item: ``cell``, ``metric``, ``item``, ``value``, ``weight``."""
        return self._gathered.items.copy()

    def table(self) -> pd.DataFrame:
        """The table, a row for each of its rows, with all metrics at full precision.

        Columns as in table.csv: ``method``, ``teacher`` and others name the row; for each task and metric follow
        ``dolly.rouge_l.mean`` in the metric's unit, its ``std`` over seeds, the interval over items (``low``,
        ``high``), and the comparison with the baseline (``difference``, ``p``, ...); for each task what its trainings
        cost (``dolly.seconds``, ...).
        """
        gathered = self._gathered
        costs = kept_frame(self.folder, "costs.csv", collect_costs(self.recorded.record, self.store))
        whole = build_table(gathered.results, gathered.analysed(self.recorded.record), all_metrics=True)
        text = csv_wide(whole, costs)
        read = unguarded_frame(pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""]))
        return read.fillna({"teacher": "", "fidelity": ""})

    def power(self, difference: float | None = None, column: str | None = None) -> pd.DataFrame:
        """Which differences from the baseline the run's rows would show with some numbers of seeds.

        One row for each tested column: the deviation over seeds and the error over items that the run shows, the
        difference that 2, 3, 5 and 10 seeds find in four of five repetitions, in the column's unit.

        Args:
            difference: also say how many seeds it needs.
            column: such as ``gsm8k.bits_per_byte``, in place of those that the run tests.

        Raises:
            HarnessError: there is no such column, or none whose rows have two training seeds.
        """
        try:
            analysis = self._gathered.analysed(self.recorded.record, None if column is None else [column])
        except ValueError as error:
            raise HarnessError("column", str(column), "a column of the run", f"{error}.") from error
        found = power_frame(build_table(self._gathered.results, analysis), difference)
        if found.empty:
            raise HarnessError(
                str(self.folder),
                "no column whose rows have two training seeds",
                "at least two, since one shows no noise",
                "Run the recipe with 'seeds=[0,1]' or more.",
            )
        return found

    def cell(self, method: str, task: str | None = None, seed: int | None = None) -> CellResult:
        """What is stored of one cell.

        Args:
            method: the row as tables name it: ``uld``, ``gold (released)``, ``dual(fkd, cdm)``, ``warm start``.
            task: may be left out where the run has one.
            seed: of the training; may be left out where the row has one.

        Raises:
            HarnessError: there is no such cell, or more than one; names those that there are.
        """
        cells = labelled(self.recorded.record["cells"])
        found = [
            cell
            for cell in cells
            if cell["row"].replace(" ", "") == method.replace(" ", "")
            and task in (None, cell["task"])
            and seed in (None, cell["seed"])
        ]
        if len(found) == 1:
            return CellResult(found[0], self.store)
        there = [f"{cell['row']} · {cell['task']} · seed {cell['seed']}" for cell in found]
        if not found:
            there = [", ".join(dict.fromkeys(str(cell[part]) for cell in cells)) for part in ("row", "task", "seed")]
        raise HarnessError(
            f"cell method={method!r}, task={task!r}, seed={seed!r}",
            f"{len(found)} of them" if found else "none",
            "the task and seed of one" if found else "a cell of the run",
            f"There are {'; '.join(there)}.",
        )

    def report(self, folder: Path | str | None = None) -> WrittenReport:
        """Write the report's files: the page, the table in Markdown, LaTeX and CSV, the figures.

        Args:
            folder: where to; None for the run's own folder.
        """
        table, context, files = write_report(self.recorded, self.store, None if folder is None else Path(folder))
        return WrittenReport(files, table, context, files_line(self.recorded, files))

    @cached_property
    def _gathered(self) -> Gathered:
        return gather(self.recorded, self.store)


@dataclass(frozen=True)
class WrittenReport:
    """A report that has been written; ``rich.print`` shows its table, notes and files.

    Attributes:
        files: their paths, the page first.
        table: as it is laid out, headline metrics only.
        context: protocol, notes and settings.
        written: where the files are, in words.
    """

    files: list[Path]
    table: Table
    context: ReportContext
    written: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield terminal(self.table, self.context, options.max_width)
        yield Text(self.written)


@dataclass(frozen=True)
class CellResult:
    """What is stored of one cell: a row of the table, on one task, with one seed.

    Attributes:
        record: what run.json says of it: names, metrics, identities of its stages, failures.
        store: where they are.
    """

    record: RowCell
    store: Store

    @property
    def name(self) -> str:
        """The cell's name in :meth:`Run.results` and :meth:`Run.items`."""
        return str(self.record["name"])

    def answers(self) -> pd.DataFrame:
        """A row for each answer to a test item, in the order in which they were given.

        Columns: ``id`` of the item, ``seed`` of the sampling (empty for greedy answers), ``prompt``, ``output``, number
        of ``tokens``, ``stop`` ("eos", "stop string" or "length") and ``prompt_cut``.

        Raises:
            HarnessError: none are stored.
        """
        answers: list[Answer] = self._stored(ANSWERS, "answers")
        return pd.DataFrame(map(vars, answers))

    def scores(self) -> pd.DataFrame:
        """A row for each test item, a column for each metric of the task, in the metric's unit.

        Raises:
            HarnessError: none are stored.
        """
        return pd.DataFrame(self._stored(SCORES, "scores")).rename_axis("id")

    def steps(self) -> pd.DataFrame:
        """A row for each optimizer step of the training: ``step``, ``loss``, ``ce``, ``kd_0`` and other diagnostics.

        Raises:
            HarnessError: nothing was trained for this row, or nothing is stored.
        """
        return pd.DataFrame(self._there(STEPS.kept(self.store, "student", self._student), "steps"))

    def traces(self) -> list[Trace]:
        """What the method compared in a few responses, token by token; empty but for the first seed.

        Each has ``method``, ``item``, the tokens of ``student`` and ``teacher`` with the bytes at which they end, the
        ``groups`` of token numbers that are compared, and ``kd``, each student token's share of the distillation loss.

        Raises:
            HarnessError: nothing was trained for this row.
        """
        return TRACES.kept(self.store, "student", self._student) or []

    def student(self) -> Path:
        """Folder of the trained student: weights and tokenizer, as ``from_pretrained`` reads them.

        Raises:
            HarnessError: nothing was trained for this row, or its weights were removed after the evaluation.
        """
        artefact = self.store.find("student", self._student)
        if artefact is not None:
            return artefact.folder / MODEL
        removed = self.store.read_manifest("student", self._student) is not None
        raise HarnessError(
            f"student of {self.name}",
            "weights that were removed once they were evaluated" if removed else "none that is stored",
            "a stored student",
            "Run the recipe again with keep_students=true." if removed else "Run the recipe again.",
        )

    @property
    def _student(self) -> str:
        identity = self.record["stages"].get("student")
        if identity is None:
            raise HarnessError(f"student of {self.name}", "a row that trains none", "the row of a method")
        return str(identity)

    def _stored(self, file: JsonFile[T], kind: str) -> T:
        return self._there(file.find(self.store, kind, self.record["stages"][kind]), kind)

    def _there(self, stored: T | None, what: str) -> T:
        if stored is None:
            reasons = [failure["reason"] for failure in self.record["failures"].values()]
            raise HarnessError(f"{what} of {self.name}", reasons[0] if reasons else "none", "stored ones")
        return stored
