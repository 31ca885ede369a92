"""The tidy frames that reports read, and the one place where they are checked.

Results have one row per cell and metric (`Score`), items one row per cell, metric and item (`ITEM_COLUMNS`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from reports.spreadsheets import unguarded_frame

TEACHER_KINDS = ("none", "same-tokenizer", "cross-tokenizer", "both")
ROLES = ("teacher", "reference", "student")
FIDELITIES = ("described", "released", "")
STATUSES = ("done", "failed", "skipped")
ALWAYS_PRINTED = frozenset({"bits_per_byte"})  # headline or not: it moves before any task score does

ITEM_COLUMNS = ("cell", "metric", "item", "value", "weight")
"""`cell` is the results' column of that name; `value` is in the metric's unit, and the weighted mean of the values is
the score: weights are 1, but an item's bytes for bits per byte."""


class RowKey(NamedTuple):
    """What a row of the table stands for; scores that differ in task, metric and seed alone share it."""

    student: str
    teacher_kind: str
    role: str
    method: str
    teacher: str
    fidelity: str


@dataclass(frozen=True, slots=True)
class Score:
    """One row of the frame: one number of one cell, or why it is not there: a failure has its row too.

    A teacher's own row (role "teacher") carries the student it is printed with, its `teacher_kind` for that student,
    and its name in `teacher`.
    """

    student: str
    teacher: str
    teacher_kind: str  # one of TEACHER_KINDS
    method: str
    fidelity: str  # one of FIDELITIES
    role: str  # one of ROLES
    task: str
    metric: str
    seed: int
    value: float  # in `unit`: percentages run from 0 to 100; NaN where there is none
    n_items: int  # items scored
    higher_is_better: bool
    headline: bool  # printed by default; percentages also enter the average
    status: str  # one of STATUSES
    reason: str  # for failed and skipped
    unit: str  # "%", "bits/byte", ...

    @property
    def row(self) -> RowKey:
        """The table's row that the score belongs to."""
        return RowKey(self.student, self.teacher_kind, self.role, self.method, self.teacher, self.fidelity)

    @property
    def printed(self) -> bool:
        """Whether its column is in the table unless all are asked for."""
        return self.headline or self.metric in ALWAYS_PRINTED


def checked(results: pd.DataFrame) -> pd.DataFrame:
    """A copy of `results` with every known column in its own type; other columns (a cell's name) stay as they are.

    A value may be of its type already or the text that a CSV has for it; missing text becomes "".
    Raises ValueError naming the column, and the row counted from 1.
    """
    missing = [name for name in _PARSERS if name not in results.columns]
    if missing:
        raise ValueError(f"the results lack the columns: {', '.join(missing)}")
    frame = results.reset_index(drop=True)
    for name, parse in _PARSERS.items():
        frame[name] = _parsed(frame[name], parse)
    return frame


def read_results(csv: Path) -> pd.DataFrame:
    """The frame that `write` left in results.csv, with its types back; columns it does not know come back as text.

    Raises ValueError naming file, column and row (rows counted from 1, without the header), OSError if unreadable.
    """
    try:
        # Everything as text first: pandas' guesses would turn a method called "NA" into a missing value.
        return checked(unguarded_frame(pd.read_csv(csv, dtype=str, keep_default_na=False)))
    except ValueError as error:
        raise ValueError(f"{csv}: {error}") from error


def scores(results: pd.DataFrame) -> list[Score]:
    """The rows as typed records, in the frame's order. Raises ValueError for an empty, wrong or contradictory frame."""
    frame = checked(results)
    if frame.empty:
        raise ValueError("the results are empty: there is nothing to report")
    records = [Score(*row) for row in frame[list(_PARSERS)].itertuples(index=False, name=None)]
    _refuse_duplicates(records)
    return records


def checked_items(items: pd.DataFrame) -> pd.DataFrame:
    """A copy of `items` with the columns of `ITEM_COLUMNS` alone: three of text, then two of finite floats.

    Raises ValueError naming a missing column or an item that stands twice, or for a value or weight that is not finite.
    """
    missing = [name for name in ITEM_COLUMNS if name not in items.columns]
    if missing:
        raise ValueError(f"the items lack the columns: {', '.join(missing)}")
    frame = items[list(ITEM_COLUMNS)].reset_index(drop=True)
    frame = frame.astype({"cell": "str", "metric": "str", "item": "str", "value": "float64", "weight": "float64"})
    if not np.isfinite(frame[["value", "weight"]].to_numpy()).all() or not (frame["weight"] > 0).all():
        raise ValueError("the items need finite values and positive weights")
    twice = frame.duplicated(["cell", "metric", "item"])
    if twice.any():
        first = frame[twice].iloc[0]
        raise ValueError(f"item {first['item']!r} stands twice in {first['cell']!r}, metric {first['metric']!r}")
    return frame


def read_items(csv: Path) -> pd.DataFrame:
    """The frame that `write` left in items.csv.gz. Raises ValueError naming the file, OSError if unreadable."""
    try:
        types = {"cell": "str", "metric": "str", "item": "str"}
        return checked_items(unguarded_frame(pd.read_csv(csv, dtype=types, na_filter=False)))
    except ValueError as error:
        raise ValueError(f"{csv}: {error}") from error


def _refuse_duplicates(records: list[Score]) -> None:
    """A score that stands twice would be counted as two seeds."""
    first: dict[tuple[object, ...], int] = {}
    for row, s in enumerate(records, start=1):
        key = (*s.row, s.task, s.metric, s.seed)
        if key in first:
            raise ValueError(
                f"rows {first[key]} and {row} are the same score: {s.method}, {s.task}, {s.metric}, seed {s.seed}"
            )
        first[key] = row


def _parsed(column: pd.Series, parse: Callable[[Any], Any]) -> pd.Series:
    values = []
    for row, value in enumerate(column, start=1):
        try:
            values.append(parse(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"column {column.name!r}, row {row}: {error}") from error
    # The type is given because pandas can not see it in an empty frame.
    parsed: pd.Series = pd.Series(values, dtype=_DTYPES.get(parse, "str"))
    return parsed


def _text(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _integer(value: Any) -> int:
    # Booleans are integers to Python. Whole floats are what pandas makes of integers beside a missing value.
    whole = isinstance(value, int | np.integer) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not (whole or (isinstance(value, str) and _converts(int, value))):
        raise ValueError(f"{value!r} is not an integer")
    if abs(int(value)) >= 2**63:
        raise ValueError(f"{value!r} does not fit 64 bits")
    return int(value)


def _number(value: Any) -> float:
    if value is None or value is pd.NA or value == "":
        return math.nan
    if isinstance(value, bool | np.bool_) or not _converts(float, value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if value in ("True", "False"):
        return bool(value == "True")
    raise ValueError(f"{value!r} is neither True nor False")


def _converts(to: Callable[[Any], Any], value: Any) -> bool:
    try:
        to(value)
    except (TypeError, ValueError):
        return False
    return True


def _one_of(allowed: tuple[str, ...]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        text = _text(value)
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(repr(name) for name in allowed)}")
        return text

    return parse


_PARSERS: dict[str, Callable[[Any], Any]] = {  # in the order of Score's fields
    "student": _text,
    "teacher": _text,
    "teacher_kind": _one_of(TEACHER_KINDS),
    "method": _text,
    "fidelity": _one_of(FIDELITIES),
    "role": _one_of(ROLES),
    "task": _text,
    "metric": _text,
    "seed": _integer,
    "value": _number,
    "n_items": _integer,
    "higher_is_better": _truth,
    "headline": _truth,
    "status": _one_of(STATUSES),
    "reason": _text,
    "unit": _text,
}
_DTYPES: dict[Callable[[Any], Any], Any] = {_integer: "int64", _number: "float64", _truth: "bool"}
