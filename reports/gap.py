"""How much of the way from the control to its own teacher a row went, in one column, and how sure that is.

    share = (row - control) / (teacher - control) = D / G

0: no better than a student without a teacher; 1: as good as the teacher. All three are scored on the same items, row
and control on the same seeds. The interval holds every share r that a test of row - (1 - r) control - r teacher = 0
does not refuse (Fieller, Journal of the Royal Statistical Society B 16, 1954): the gap is measured too, and where it
can't be told from 0 no share is said. What training again would change of that contrast is v (1 + (1 - r)²) / 2, where
v is what it would change of row - control; the teacher is the one that was trained. What other items would change is
the variance of the contrast over items, each item's seeds averaged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.frame import RowKey
from reports.item_tests import Interval, ScoresByItem
from reports.statistics import CONFIDENCE, FloatArray, student_t_quantile, weighted_mean


@dataclass(frozen=True)
class Gap:
    """A row between the control and its teacher.

    Attributes:
        teacher: its name; of two, the better one.
        lead: the teacher's score minus the control's, in the column's unit; positive where the teacher is better.
        leads: whether that is more than chance; with one seed, more than other items would change.
        share: of the gap, 1 for the whole of it; None where the teacher does not lead.
        interval: of the share; None also with one seed.
    """

    teacher: str
    lead: float
    leads: bool
    share: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Certainty:
    """Of row - control, as `reports.analysis` tests it: variance between trainings, None with one seed; and its df."""

    variance: float | None
    df: float


def gap(column: ScoresByItem, row: RowKey, base: RowKey, certainty: Certainty) -> Gap | None:
    """The row between the control and the better of its teachers; None where no teacher of it was scored."""
    found = [
        one
        for teacher in teachers_of(row, column.rows)
        if (one := _between(column, row, base, teacher, certainty)) is not None
    ]
    return max(found, key=lambda one: one.lead, default=None)


def teachers_of(row: RowKey, rows: Mapping[RowKey, pd.DataFrame]) -> list[RowKey]:
    """The rows of the teachers that a row learnt from."""
    teachers = [other for other in rows if other.role == "teacher" and other.student == row.student]
    if row.teacher_kind == "both":
        return [other for other in teachers if other.teacher in row.teacher.split(" + ")]
    return [other for other in teachers if (other.teacher_kind, other.teacher) == (row.teacher_kind, row.teacher)]


def _between(column: ScoresByItem, row: RowKey, base: RowKey, teacher: RowKey, certainty: Certainty) -> Gap | None:
    seeds = [seed for seed in column.rows[row] if seed in column.rows[base]]
    parts = [column.rows[row][seeds], column.rows[base][seeds], column.rows[teacher]]
    scored = pd.concat([part.mean(axis=1, skipna=False) for part in parts], axis=1).dropna().to_numpy(np.float64)
    if not seeds or len(scored) < 2:
        return None
    weights = column.weights.loc[pd.concat(parts, axis=1).dropna().index].to_numpy(np.float64)
    sign = 1.0 if column.higher_is_better else -1.0
    closed, whole = sign * (scored[:, 0] - scored[:, 1]), sign * (scored[:, 2] - scored[:, 1])
    d, g = float(weighted_mean(closed, weights)), float(weighted_mean(whole, weights))
    of_items = _covariance(np.stack([closed, whole]), weights)
    v = certainty.variance or 0.0
    t2 = float(student_t_quantile(1 - CONFIDENCE, certainty.df)) ** 2
    square = g * g - t2 * (v / 2 + of_items[1, 1])
    if g <= 0 or square <= 0:
        return Gap(teacher.teacher, g, False, None, None)
    if certainty.variance is None:
        return Gap(teacher.teacher, g, True, d / g, None)
    middle = d * g - t2 * (v / 2 + of_items[0, 1])
    rest = d * d - t2 * (v + of_items[0, 0])
    half = math.sqrt(max(0.0, middle * middle - square * rest))
    return Gap(teacher.teacher, g, True, d / g, ((middle - half) / square, (middle + half) / square))


def _covariance(values: FloatArray, weights: FloatArray) -> FloatArray:
    """[2, 2]: of the weighted means of values [2, items] over items, linearised as in `method_tests.item_variance`."""
    items = values.shape[1]
    apart = weights * (values - weighted_mean(values.T, weights)[:, None])
    return np.asarray(apart @ apart.T / (weights.sum() ** 2 * (items - 1) / items))
