"""From the tidy frame to the table's model: which rows and columns there are, what stands in a cell, its footnotes."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import pandas as pd

from reports.analysis import NO_ANALYSIS, Analysis, CellKey
from reports.frame import ROLES, TEACHER_KINDS, RowKey, Score, scores
from reports.item_tests import Interval
from reports.table import AVERAGE, DASH, CellStatus, Column, Group, Pairwise, Row, Table, TableCell

T = TypeVar("T")


def build_table(results: pd.DataFrame, analysis: Analysis = NO_ANALYSIS, *, all_metrics: bool = False) -> Table:
    """Lay out the tidy frame `results` (see `reports.frame.Score`), with intervals and tests of `analysis`.

    `all_metrics` also shows metrics that are not in the headline.

    Students, methods, tasks and metrics keep the order of their first appearance in the frame.
    Raises ValueError for a frame that is empty, has a wrong value, a score twice, or a metric that contradicts itself.
    """
    records = scores(results)
    known = _columns(records)
    shown = [column for column in known if column.printed or all_metrics or column.key in analysis.named]
    if sum(column.in_average for column in shown) > 1:
        shown.append(AVERAGE)
    builder = _Builder(records, tuple(shown), analysis)
    groups = [group for student in _distinct(s.student for s in records) for group in builder.student(student)]
    hidden = tuple(column for column in known if column not in shown)
    return Table(
        tuple(shown),
        hidden,
        tuple(groups),
        tuple(builder.footnotes),
        analysis.baseline,
        analysis.named,
        tuple(builder.pairwise),
    )


def _columns(records: Sequence[Score]) -> list[Column]:
    """All columns, a task's metrics side by side."""
    keys = _distinct((s.task, s.metric) for s in records)
    tasks = _distinct(task for task, _ in keys)
    ordered = sorted(keys, key=lambda key: tasks.index(key[0]))  # stable: metrics keep their order
    seeds = {task: _shared_seeds([s for s in records if (s.role, s.task) == ("student", task)]) for task in tasks}
    return [_column([s for s in records if (s.task, s.metric) == key], seeds[key[0]]) for key in ordered]


def _shared_seeds(records: Sequence[Score]) -> tuple[int, ...]:
    """The seeds of a task's students; those that one row alone has, as a baseline may, only where there is no other."""
    rows: dict[int, set[RowKey]] = {}
    for s in records:
        rows.setdefault(s.seed, set()).add(s.row)
    shared = {seed for seed, its in rows.items() if len(its) > 1}
    return tuple(sorted(shared or rows))


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
        printed=first.printed,
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
        self.pairwise: list[Pairwise] = []
        self.methods = _distinct(s.method for s in records)
        self.described = {s.method for s in records if s.fidelity == "described"}

    def student(self, student: str) -> list[Group]:
        made: list[tuple[Group, list[RowKey]]] = []
        for kind in TEACHER_KINDS:
            records = [s for s in self.records if (s.student, s.teacher_kind) == (student, kind)]
            if records:
                made.append(self._group(records))
        rows = {key: (group, row) for group, keys in made for key, row in zip(keys, group.rows, strict=True)}
        best = {column: self._like_best(student, column, place, rows) for place, column in enumerate(self.columns)}
        groups = [_with_best(group, keys, best) for group, keys in made]
        self.pairwise += self._pairwise(student, rows, best)
        return groups

    def _like_best(
        self, student: str, column: Column, place: int, rows: Mapping[RowKey, tuple[Group, Row]]
    ) -> list[RowKey]:
        """The best row of a column, then those that can't be told from it; an average is not tested."""
        means = {
            key: mean
            for key, (_, row) in rows.items()
            if row.role == "student" and (mean := row.cells[place].mean) is not None
        }
        alike = self.analysis.like_best((student, column.task, column.metric), means, column.higher_is_better)
        return sorted(alike, key=lambda key: -means[key] if column.higher_is_better else means[key])

    def _pairwise(
        self, student: str, rows: Mapping[RowKey, tuple[Group, Row]], best: Mapping[Column, Sequence[RowKey]]
    ) -> Iterable[Pairwise]:
        """What the analysis has of a student's printed columns, by the rows' labels."""
        labels = _distinct_labels(rows)
        for column in self.columns:
            where = student, column.task, column.metric
            pairs = self.analysis.pairs.get(where)
            if pairs:
                compared = [key for key in rows if any(key in pair for pair in pairs)]
                both = {
                    (labels[row], labels[other]): self.analysis.between(where, row, other)
                    for pair in pairs
                    for row, other in (pair, pair[::-1])
                }
                cells = {key: rows[key][1].cells[self.columns.index(column)] for key in compared}
                against = {labels[key]: made for key, cell in cells.items() if (made := cell.comparison) is not None}
                named = [labels[key] for key in compared if key.method == self.analysis.baseline]
                yield Pairwise(
                    student,
                    column,
                    tuple(labels[key] for key in compared),
                    both,
                    next((label for label in named if label not in against), ""),
                    against,
                    tuple(labels[key] for key in best[column]),
                    self.analysis.noise.get(where),
                    {labels[key]: gap for key, cell in cells.items() if (gap := cell.gap) is not None},
                )

    def _group(self, records: Sequence[Score]) -> tuple[Group, list[RowKey]]:
        teachers = tuple(_distinct(s.teacher for s in records if s.teacher))
        by_row: dict[tuple[str, str, str, str], list[Score]] = {}
        for s in records:
            by_row.setdefault((s.role, s.method, s.teacher, s.fidelity), []).append(s)
        # Stable: rows that differ only in teacher or fidelity stay together, in their order of appearance.
        ordered = sorted(by_row.values(), key=lambda row: (ROLES.index(row[0].role), self.methods.index(row[0].method)))
        rows = tuple(self._row(row, several_teachers=len(teachers) > 1) for row in ordered)
        keys = [row[0].row for row in ordered]
        return Group(records[0].student, records[0].teacher_kind, teachers, rows), keys

    def _row(self, records: Sequence[Score], several_teachers: bool) -> Row:
        first = records[0]
        cells: list[TableCell] = []
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

    def _cell(self, column: Column, records: Sequence[Score]) -> TableCell:
        mine = {s.seed: s for s in records if (s.task, s.metric) == (column.task, column.metric)}
        values = {seed: s.value for seed, s in mine.items() if _has_value(s)}
        problems = {seed: _problem(mine.get(seed)) for seed in _planned(column, records) if seed not in values}
        return self._filled(
            column, values, problems, _status_without_values(mine), (records[0].row, column.task, column.metric)
        )

    def _average(self, cells: Sequence[TableCell], records: Sequence[Score]) -> TableCell:
        """Seed by seed, over the seeds that have every score: means over different seeds are not comparable.

        A seed that was not planned for all of its tasks is no seed of the average.
        """
        averaged = [(cell, c) for cell, c in zip(cells, self.columns, strict=False) if c.in_average]
        parts = [dict(cell.values) for cell, _ in averaged]
        planned = set.intersection(*(_planned(column, records) for _, column in averaged))
        if not planned:
            return TableCell(
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
    ) -> TableCell:
        """The cell for `values`, and a footnote for the seeds with `problems`.

        `empty`: its status without values; `key`: where the analysis has its interval and comparison.
        """
        pairs = tuple(sorted(values.items()))
        if not pairs:
            named = f"{empty}: " if empty in ("failed", "skipped") else ""
            return TableCell(DASH, "", (), None, None, empty, self._note(named + _by_seed(problems, alone=True)))
        mean, std = _mean_and_std([value for _, value in pairs])
        interval = None if key is None else self.analysis.intervals.get(key)
        cell = TableCell(
            f"{mean:.{column.digits}f}",
            _spread(std, interval, column.digits),
            pairs,
            mean,
            std,
            "done",
            interval=interval,
            comparison=None if key is None else self.analysis.comparisons.get(key),
            gap=None if key is None else self.analysis.gaps.get(key),
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


def _with_best(group: Group, keys: Sequence[RowKey], best: Mapping[Column, Sequence[RowKey]]) -> Group:
    """The group with the cells flagged that can't be told from the best of their column."""
    rows = tuple(
        replace(
            row, cells=tuple(replace(c, best=key in alike) for c, alike in zip(row.cells, best.values(), strict=True))
        )
        for key, row in zip(keys, group.rows, strict=True)
    )
    return replace(group, rows=rows)


def _distinct_labels(rows: Mapping[RowKey, tuple[Group, Row]]) -> dict[RowKey, str]:
    """Labels of a student's rows, with the kind of teacher where two are the same."""
    labels = [row.label for group, row in rows.values()]
    return {
        key: row.label if labels.count(row.label) == 1 else f"{row.label}, {group.heading}"
        for key, (group, row) in rows.items()
    }


def _distinct(values: Iterable[T]) -> list[T]:
    """In order of first appearance."""
    return list(dict.fromkeys(values))
