"""The table of a report as a model that knows no format: columns, groups of rows, cells, footnotes.

Rows are grouped by student, then by the kind of teacher; columns are tasks and metrics, and their average.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from reports.analysis import Comparison, Noise
from reports.gap import Gap
from reports.item_tests import Interval

DASH = "–"
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
class TableCell:
    """What stands at a row and a column. `mean` is None exactly where `number` is a dash; `std` where seeds < 2."""

    number: str  # the mean as printed, or a dash
    spread: str  # as printed: "± 0.12" over several seeds, "(9.1–10.4)" over the items of one; "" where there is none
    values: tuple[tuple[int, float], ...]  # (seed, value in the column's unit), seeds ascending
    mean: float | None
    std: float | None  # sample standard deviation over seeds
    status: CellStatus
    note: int | None = None  # a footnote, counted from 1
    best: bool = False  # not to be told from the best of its column, where some row can be
    interval: Interval | None = None  # 95 % bootstrap interval over items of the mean over seeds
    comparison: Comparison | None = None  # with the table's baseline
    gap: Gap | None = None  # between that and its own teacher

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
    cells: tuple[TableCell, ...]


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
class Pairwise:
    """All rows of a student against each other in one column, and what their scores vary by."""

    student: str
    column: Column
    rows: tuple[str, ...]  # labels, in the table's order
    comparisons: Mapping[tuple[str, str], Comparison]  # both ways: the first row minus the second
    base: str  # the baseline's row; "" where it is not there
    against: Mapping[str, Comparison]  # each row with the baseline, as marked: corrected over these alone
    best: tuple[str, ...]  # the best row, then those that can't be told from it
    noise: Noise | None
    gaps: Mapping[str, Gap]  # each row whose teacher was scored, between the baseline and that


@dataclass(frozen=True)
class Table:
    """A whole table. Groups of a student are adjacent."""

    columns: tuple[Column, ...]
    hidden: tuple[Column, ...]  # metrics that are in the results and not in `columns`
    groups: tuple[Group, ...]
    footnotes: tuple[str, ...]  # footnote n is footnotes[n - 1]
    baseline: str = ""  # the method that marks of significance compare with; "" for none
    named: tuple[str, ...] = ()  # keys of the columns that are tested, and corrected for together
    pairwise: tuple[Pairwise, ...] = ()

    def cells(self) -> Iterator[tuple[Group, Row, Column, TableCell]]:
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
