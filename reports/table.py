"""The table of a report as a model that knows no format: columns, groups of rows, cells, footnotes.

Rows are grouped by student, then by the kind of teacher; columns are tasks and metrics, and their average.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import pandas as pd

from reports.analysis import NO_ANALYSIS, Analysis, CellKey, Comparison, Interval
from reports.frame import ROLES, TEACHER_KINDS, Score, scores

T = TypeVar("T")

DASH = "–"
ALWAYS_PRINTED = frozenset({"bits_per_byte"})  # headline or not: it moves before any task score does
DIGITS = {"%": 2, "bits/byte": 3}
OTHER_DIGITS = 3

METRIC_LABELS = {
    "rouge_l": "ROUGE-L",
    "rouge_l_hub": "ROUGE-L (hub split)",
    "rouge_l_selfinst": "SelfInst R-L",
    "rouge_l_vicuna": "Vicuna R-L",
    "rouge_l_sinst": "S-NI R-L",
    "rouge_l_unni": "UnNI R-L",
    "humaneval": "HumanEval",
    "humaneval_plus": "HumanEval+",
    "mbpp": "MBPP",
    "mbpp_plus": "MBPP+",
    "exact_match_strict": "EM strict",
    "exact_match_flexible": "EM flexible",
    "bits_per_byte": "bits/byte",
}
KIND_HEADINGS = {
    "none": "no teacher",
    "same-tokenizer": "same-tokenizer teacher",
    "cross-tokenizer": "cross-tokenizer teacher",
    "both": "both teachers",
}

CellStatus = Literal["done", "partial", "failed", "skipped", "missing"]  # partial: not every seed; missing: never run


@dataclass(frozen=True)
class Column:
    """One metric of one task, or (`is_average`) the average over the columns that have `in_average`."""

    task: str
    metric: str
    unit: str
    higher_is_better: bool
    printed: bool = True
    in_average: bool = False
    is_average: bool = False
    items: tuple[int, ...] = ()  # the distinct numbers of items its scores were made on, ascending
    seeds: tuple[int, ...] = ()  # the training seeds that students were to have on its task, ascending

    @property
    def key(self) -> str:
        """Its name in files, e.g. "dolly.rouge_l"."""
        return self.task if self.is_average else f"{self.task}.{self.metric}"

    @property
    def label(self) -> str:
        """The metric as a reader calls it, e.g. "ROUGE-L"."""
        return METRIC_LABELS.get(self.metric, self.metric.replace("_", " "))

    @property
    def full_label(self) -> str:
        """Task and metric in one line."""
        return f"{self.task} {self.label}".strip()

    @property
    def header(self) -> tuple[str, ...]:
        """The lines of its heading: task, metric, unit and direction. Short, for narrow terminals."""
        unit = "" if self.unit == self.label else f"{self.unit} "
        return tuple(line for line in (self.task, self.label, f"{unit}{'↑' if self.higher_is_better else '↓'}") if line)

    @property
    def digits(self) -> int:
        """Decimals printed."""
        return DIGITS.get(self.unit, OTHER_DIGITS)


AVERAGE = Column("average", "", "%", higher_is_better=True, is_average=True)


@dataclass(frozen=True)
class Cell:
    """What stands at a row and a column. `mean` is None exactly where `number` is a dash; `std` where seeds < 2."""

    number: str  # the mean as printed, or a dash
    spread: str  # as printed: "± 0.12" over several seeds, "(9.1–10.4)" over the items of one; "" where there is none
    values: tuple[tuple[int, float], ...]  # (seed, value in the column's unit), seeds ascending
    mean: float | None
    std: float | None  # sample standard deviation over seeds
    status: CellStatus
    note: int | None = None  # a footnote, counted from 1
    best: bool = False
    interval: Interval | None = None  # 95 % bootstrap interval over items of the mean over seeds
    comparison: Comparison | None = None  # with the table's baseline

    @property
    def mark(self) -> str:
        """Of significance; see `reports.analysis.Comparison.mark`."""
        return "" if self.comparison is None else self.comparison.mark

    @property
    def text(self) -> str:
        """All that is printed, but the footnote's mark."""
        return f"{self.number}{self.mark} {self.spread}".rstrip()

    @property
    def n_seeds(self) -> int:
        """Seeds the mean is over."""
        return len(self.values)


@dataclass(frozen=True)
class Row:
    """One method, teacher or reference; `cells` are parallel to the table's columns."""

    label: str
    method: str
    fidelity: str
    teacher: str
    role: str
    n_seeds: int  # seeds that gave at least one number
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """The rows of one student with one kind of teacher."""

    student: str
    teacher_kind: str
    teachers: tuple[str, ...]  # in order of first appearance; where several, the rows' labels tell them apart
    rows: tuple[Row, ...]

    @property
    def heading(self) -> str:
        """The kind of teacher in words."""
        return KIND_HEADINGS[self.teacher_kind]


@dataclass(frozen=True)
class Table:
    """A whole table. Groups of a student are adjacent."""

    columns: tuple[Column, ...]
    hidden: tuple[Column, ...]  # metrics that are in the results and not in `columns`
    groups: tuple[Group, ...]
    footnotes: tuple[str, ...]  # footnote n is footnotes[n - 1]
    baseline: str = ""  # the method that marks of significance compare with; "" for none

    def cells(self) -> Iterator[tuple[Group, Row, Column, Cell]]:
        """Every cell with where it stands, row by row."""
        for group in self.groups:
            for row in group.rows:
                yield from ((group, row, column, cell) for column, cell in zip(self.columns, row.cells, strict=True))

    def students(self) -> list[tuple[str, list[Group]]]:
        """Each student with its groups, in order."""
        return [
            (student, [group for group in self.groups if group.student == student])
            for student in dict.fromkeys(group.student for group in self.groups)
        ]


def build_table(results: pd.DataFrame, analysis: Analysis = NO_ANALYSIS, *, all_metrics: bool = False) -> Table:
    """Lay out the tidy frame `results` (see `reports.frame.Score`), with intervals and tests of `analysis`.

    `all_metrics` also shows metrics that are not in the headline.

    Students, methods, tasks and metrics keep the order of their first appearance in the frame.
    Raises ValueError for a frame that is empty, has a wrong value, a score twice, or a metric that contradicts itself.
    """
    records = scores(results)
    known = _columns(records)
    shown = [column for column in known if column.printed or all_metrics]
    if sum(column.in_average for column in shown) > 1:
        shown.append(AVERAGE)
    builder = _Builder(records, tuple(shown), analysis)
    groups = [group for student in _distinct(s.student for s in records) for group in builder.student(student)]
    hidden = tuple(column for column in known if column not in shown)
    return Table(tuple(shown), hidden, tuple(groups), tuple(builder.footnotes), analysis.baseline)


def _columns(records: Sequence[Score]) -> list[Column]:
    """All columns, a task's metrics side by side."""
    keys = _distinct((s.task, s.metric) for s in records)
    tasks = _distinct(task for task, _ in keys)
    ordered = sorted(keys, key=lambda key: tasks.index(key[0]))  # stable: metrics keep their order
    seeds = {task: tuple(sorted({s.seed for s in records if (s.role, s.task) == ("student", task)})) for task in tasks}
    return [_column([s for s in records if (s.task, s.metric) == key], seeds[key[0]]) for key in ordered]


def _column(records: Sequence[Score], seeds: tuple[int, ...]) -> Column:
    first = records[0]
    for name in ("unit", "higher_is_better", "headline"):
        if len({getattr(s, name) for s in records}) > 1:
            raise ValueError(f"task {first.task!r}, metric {first.metric!r}: rows differ in {name!r}")
    return Column(
        first.task,
        first.metric,
        first.unit,
        first.higher_is_better,
        printed=first.headline or first.metric in ALWAYS_PRINTED,
        # A percentage of errors must not be added to percentages of successes.
        in_average=first.headline and first.unit == "%" and first.higher_is_better,
        items=tuple(sorted({s.n_items for s in records if s.status == "done"})),
        seeds=seeds,
    )


class _Builder:
    """Builds groups in printing order, so that footnotes are numbered as they are read."""

    def __init__(self, records: Sequence[Score], columns: tuple[Column, ...], analysis: Analysis) -> None:
        self.records = records
        self.columns = columns
        self.analysis = analysis
        self.footnotes: list[str] = []
        self.methods = _distinct(s.method for s in records)
        self.described = {s.method for s in records if s.fidelity == "described"}

    def student(self, student: str) -> list[Group]:
        groups = []
        for kind in TEACHER_KINDS:
            records = [s for s in self.records if (s.student, s.teacher_kind) == (student, kind)]
            if records:
                groups.append(self._group(records))
        return _mark_best(groups, self.columns)

    def _group(self, records: Sequence[Score]) -> Group:
        teachers = tuple(_distinct(s.teacher for s in records if s.teacher))
        by_row: dict[tuple[str, str, str, str], list[Score]] = {}
        for s in records:
            by_row.setdefault((s.role, s.method, s.teacher, s.fidelity), []).append(s)
        # Stable: rows that differ only in teacher or fidelity stay together, in their order of appearance.
        ordered = sorted(by_row.values(), key=lambda row: (ROLES.index(row[0].role), self.methods.index(row[0].method)))
        rows = tuple(self._row(row, several_teachers=len(teachers) > 1) for row in ordered)
        return Group(records[0].student, records[0].teacher_kind, teachers, rows)

    def _row(self, records: Sequence[Score], several_teachers: bool) -> Row:
        first = records[0]
        cells: list[Cell] = []
        for column in self.columns:
            if column.is_average:
                cells.append(self._average(cells, records))
            else:
                cells.append(self._cell(column, records))
        label = self._label(first) + (f", {first.teacher}" if several_teachers and first.teacher else "")
        n_seeds = len({s.seed for s in records if _has_value(s)})
        return Row(label, first.method, first.fidelity, first.teacher, first.role, n_seeds, tuple(cells))

    def _label(self, s: Score) -> str:
        released = s.fidelity == "released" and s.method in self.described
        method = f"{s.method} (released)" if released else s.method
        if s.role == "teacher":
            return "teacher" if method in ("", "teacher") else f"teacher ({method})"
        if s.role == "reference" and method not in ("untrained", "reference"):
            return f"{method} (reference)" if method else "untrained"
        return method

    def _cell(self, column: Column, records: Sequence[Score]) -> Cell:
        mine = {s.seed: s for s in records if (s.task, s.metric) == (column.task, column.metric)}
        values = {seed: s.value for seed, s in mine.items() if _has_value(s)}
        problems = {seed: _problem(mine.get(seed)) for seed in _planned(column, records) if seed not in values}
        return self._filled(
            column, values, problems, _status_without_values(mine), (records[0].row, column.task, column.metric)
        )

    def _average(self, cells: Sequence[Cell], records: Sequence[Score]) -> Cell:
        """Seed by seed, over the seeds that have every score: means over different seeds are not comparable.

        A seed that was not planned for all of its tasks is no seed of the average.
        """
        averaged = [(cell, c) for cell, c in zip(cells, self.columns, strict=False) if c.in_average]
        parts = [dict(cell.values) for cell, _ in averaged]
        planned = set.intersection(*(_planned(column, records) for _, column in averaged))
        if not planned:
            return Cell(
                DASH, "", (), None, None, "missing", self._note("no average, as its tasks have no seed in common")
            )
        complete = [seed for seed in planned if all(seed in part for part in parts)]
        values = {seed: statistics.fmean(part[seed] for part in parts) for seed in complete}
        problems = {seed: "no average, as a score is missing" for seed in planned if seed not in values}
        return self._filled(AVERAGE, values, problems, "missing")

    def _filled(
        self,
        column: Column,
        values: Mapping[int, float],
        problems: Mapping[int, str],
        empty: CellStatus,
        key: CellKey | None = None,
    ) -> Cell:
        """The cell for `values`, and a footnote for the seeds with `problems`.

        `empty`: its status without values; `key`: where the analysis has its interval and comparison.
        """
        pairs = tuple(sorted(values.items()))
        if not pairs:
            named = f"{empty}: " if empty in ("failed", "skipped") else ""
            return Cell(DASH, "", (), None, None, empty, self._note(named + _by_seed(problems, alone=True)))
        mean, std = _mean_and_std([value for _, value in pairs])
        interval = None if key is None else self.analysis.intervals.get(key)
        cell = Cell(
            f"{mean:.{column.digits}f}",
            _spread(std, interval, column.digits),
            pairs,
            mean,
            std,
            "done",
            interval=interval,
            comparison=None if key is None else self.analysis.comparisons.get(key),
        )
        if not problems:
            return cell
        asked = len(pairs) + len(problems)
        note = self._note(f"{len(pairs)} of {asked} seeds; {_by_seed(problems, alone=False)}")
        return replace(cell, status="partial", note=note)

    def _note(self, text: str) -> int:
        """The footnote's number; the same text keeps its number."""
        if text not in self.footnotes:
            self.footnotes.append(text)
        return self.footnotes.index(text) + 1


def _has_value(s: Score) -> bool:
    return s.status == "done" and math.isfinite(s.value)


def _planned(column: Column, records: Sequence[Score]) -> set[int]:
    """The seeds that a row was to have in a column: those of its task, as tasks may have seeds of their own.

    Without any score of the task, failed ones included, it lacks what its other tasks have.
    """
    return {s.seed for s in records if s.task == column.task} or {s.seed for s in records}


def _problem(s: Score | None) -> str:
    """Why a seed has no number."""
    if s is None:
        return "no result"
    if s.status == "done":
        return f"the score is {s.value}"  # NaN or infinite: a diverged model, say
    return " ".join(s.reason.split()) or "no reason given"


def _status_without_values(mine: Mapping[int, Score]) -> CellStatus:
    if not mine:
        return "missing"
    return "skipped" if all(s.status == "skipped" for s in mine.values()) else "failed"


def _by_seed(problems: Mapping[int, str], alone: bool) -> str:
    """ "seed 1: reason; seeds 2, 3: other reason"; only the reason where `alone` and all seeds have the same one."""
    seeds: dict[str, list[str]] = {}
    for seed, problem in sorted(problems.items()):
        seeds.setdefault(problem, []).append(str(seed))
    if alone and len(seeds) == 1:
        return next(iter(seeds))
    return "; ".join(f"seed{'s' * (len(s) > 1)} {', '.join(s)}: {problem}" for problem, s in seeds.items())


def _mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Both are exact sums inside, so the order of the values can not change them."""
    return statistics.fmean(values), (statistics.stdev(values) if len(values) > 1 else None)


def _spread(std: float | None, interval: Interval | None, digits: int) -> str:
    """The deviation over seeds where there are several, else the interval over items, to one digit less."""
    if std is not None:
        return f"± {std:.{digits}f}"
    return "" if interval is None else f"({interval[0]:.{digits - 1}f}–{interval[1]:.{digits - 1}f})"


def _mark_best(groups: Sequence[Group], columns: Sequence[Column]) -> list[Group]:
    """Flag the best cells of each column over all groups of one student, ties included; only methods compete."""
    competing = [row for group in groups for row in group.rows if row.role == "student"]
    best = [_best([row.cells[index] for row in competing], column) for index, column in enumerate(columns)]
    if undecided(competing, columns):
        best = [None if column.is_average else value for value, column in zip(best, columns, strict=True)]

    def flagged(row: Row) -> Row:
        if row.role != "student":
            return row
        triples = zip(row.cells, columns, best, strict=True)
        return replace(
            row,
            cells=tuple(
                replace(c, best=c.mean is not None and _as_printed(c, column) == b) for c, column, b in triples
            ),
        )

    return [replace(group, rows=tuple(flagged(row) for row in group.rows)) for group in groups]


def undecided(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """Columns of the average in which all rows score the same: with one of them it ranks rows by the others alone."""
    return [
        column
        for index, column in enumerate(columns)
        if column.in_average and _are_alike([row.cells[index] for row in rows], column)
    ]


def _are_alike(cells: Sequence[Cell], column: Column) -> bool:
    printed = [value for cell in cells if (value := _as_printed(cell, column)) is not None]
    return len(printed) > 1 and len(set(printed)) == 1


def _best(cells: Sequence[Cell], column: Column) -> float | None:
    if _are_alike(cells, column):
        return None  # where all are the same, none is the best
    printed = [value for cell in cells if (value := _as_printed(cell, column)) is not None]
    choose = max if column.higher_is_better else min
    return choose(printed, default=None)


def _as_printed(cell: Cell, column: Column) -> float | None:
    """The mean with the digits a reader sees: rows that read the same are a tie, whatever the hidden digits say."""
    return None if cell.mean is None else round(cell.mean, column.digits)


def _distinct(values: Iterable[T]) -> list[T]:
    """In order of first appearance."""
    return list(dict.fromkeys(values))
