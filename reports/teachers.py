"""What another training of the teacher would change, where repetitions had teachers of their own.

A row's difference from the baseline in one seed varies with the training of the student and with the teacher:

    d[row, s] = effect of the row + t[row, teacher of s] + e[row, s]

One-way analysis of variance by teacher, each row for itself, the sums of squares pooled over rows. The variance between
teachers is (MS between - MS within) / n0 with n0 = (N - Σ n_k² / N) / (K - 1), K teachers of n_k seeds each, N in all
(Searle, Linear Models (1971), chapter 9); below 0 it is 0.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd


class Spread(NamedTuple):
    """Standard deviations of one seed's difference from the baseline, in the column's unit."""

    within: float  # between trainings of a student with the same teacher
    teachers: float  # what the teacher adds
    rows: int


def spread_by_teacher(differences: Sequence[Sequence[float]], teachers: Sequence[int]) -> Spread | None:
    """The two spreads; None where no teacher taught two seeds, or there is one teacher.

    Args:
        differences: [rows, seeds].
        teachers: of each seed.
    """
    d, groups = np.asarray(differences, dtype=np.float64), np.asarray(teachers)
    kinds = np.unique(groups)
    sizes = np.asarray([(groups == one).sum() for one in kinds])
    total, count = int(sizes.sum()), len(kinds)
    if count < 2 or total == count or not len(d):
        return None
    means = np.stack([d[:, groups == one].mean(1) for one in kinds], 1)
    between = (sizes * (means - d.mean(1, keepdims=True)) ** 2).sum() / ((count - 1) * len(d))
    within = ((d - means[:, np.searchsorted(kinds, groups)]) ** 2).sum() / ((total - count) * len(d))
    even = (total - (sizes**2).sum() / total) / (count - 1)
    return Spread(math.sqrt(within), math.sqrt(max(0.0, (between - within) / even)), len(d))


def teacher_lines(results: pd.DataFrame, baseline: str, teachers: Mapping[str, Mapping[int, int]]) -> list[str]:
    """What a report says of teachers that were trained anew: a sentence for each column.

    Args:
        results: tidy, as `reports.frame.Score`.
        teachers: by task, which training of the teachers each seed had.
    """
    lines = []
    done = results[(results["status"] == "done") & (results["role"] == "student")]
    for (task, metric), column in done.groupby(["task", "metric"], sort=False):
        taught_by = teachers.get(str(task), {})
        base = column[(column["method"] == baseline) & (column["teacher_kind"] == "none")].set_index("seed")["value"]
        found = []
        for _, row in column[column["teacher_kind"] != "none"].groupby(["method", "fidelity"], sort=False):
            values = row.set_index("seed")["value"]
            if set(taught_by) & set(base.index) <= set(values.index):
                found.append(values - base)
        seeds = sorted(set(taught_by).intersection(base.index, *(one.dropna().index for one in found)))
        if not found or len({taught_by[seed] for seed in seeds}) < 2:
            continue
        spread = spread_by_teacher([[one[s] for s in seeds] for one in found], [taught_by[s] for s in seeds])
        unit, number = column["unit"].iloc[0], len({taught_by[seed] for seed in seeds})
        if spread is None:
            lines.append(
                f"{task} {metric}: {number} trainings of the teachers, one for each seed: what another teacher would "
                "change is in the spread over seeds, and can't be told from the rest."
            )
            continue
        lines.append(
            f"{task} {metric}: of {number} trainings of the teachers, a difference from {baseline} varies by "
            f"{spread.within:.3g} {unit} between students of one teacher, and by {spread.teachers:.3g} more between "
            f"teachers (standard deviations, pooled over {spread.rows} rows)."
        )
    return lines
