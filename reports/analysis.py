"""From item-level scores to what the table says of its cells: intervals, and paired tests against a baseline.

Intervals and tests are over test items: what other items would show of the students that were trained. That alone does
not make one method better than another, for a score that is exact enough, such as bits per byte, also tells two seeds
of one method apart. `Comparison.p_seeds` is over training seeds: what training again would show on these items.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from reports.frame import RowKey, Score, checked_items, scores
from reports.statistics import (
    CONFIDENCE,
    FloatArray,
    bootstrap_interval,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_t,
    seed_of,
    weighted_mean,
)

LEVEL = 0.05  # of significance, after correction
MCNEMAR, BOOTSTRAP = "McNemar", "bootstrap"
INTERVAL = f"{100 * CONFIDENCE:g} % interval"  # as headings say it

Interval = tuple[float, float]
CellKey = tuple[RowKey, str, str]  # row, task, metric


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline in one column, over the items and seeds that both have.

    Differences are the row's score minus the baseline's, in the column's unit.
    """

    difference: float
    interval: Interval | None  # of the difference, over items; None where all items differ by the same
    test: str  # MCNEMAR or BOOTSTRAP
    p: float  # two-sided, over items
    p_corrected: float  # Holm, over the rows that the column compares with the baseline
    p_seeds: float | None  # two-sided paired t-test over training seeds, Holm-corrected; None where it can't be made
    better: bool  # whether the difference points in the metric's direction
    n_items: int
    seeds: tuple[int, ...]

    @property
    def mark(self) -> str:
        """† better or ‡ worse than the baseline over items; * is added where training seeds say so too."""
        if self.p_corrected > LEVEL or self.difference == 0:
            return ""
        also = self.p_seeds is not None and self.p_seeds <= LEVEL
        return ("†" if self.better else "‡") + "*" * also


@dataclass(frozen=True)
class Analysis:
    """Intervals and comparisons by (row, task, metric); empty where no item-level scores are at hand."""

    baseline: str = ""  # the method that others are compared with; "" for none
    intervals: Mapping[CellKey, Interval] = field(default_factory=dict)
    comparisons: Mapping[CellKey, Comparison] = field(default_factory=dict)


NO_ANALYSIS = Analysis()


def analyse(results: pd.DataFrame, items: pd.DataFrame, baseline: str = "") -> Analysis:
    """Bootstrap intervals for every cell with item-level scores, and tests of all students' rows against `baseline`.

    Args:
        results: see `reports.frame.Score`, and a column `cell` that names each row's cell.
        items: see `reports.frame.ITEM_COLUMNS`.
        baseline: a method; within each student its first row is what others are compared with.

    Raises:
        ValueError: a frame is wrong, or items and results contradict each other.
    """
    columns = _columns(results, items)
    return Analysis(
        baseline,
        {(row, c.task, c.metric): interval for c in columns for row, interval in c.intervals().items()},
        {(row, c.task, c.metric): made for c in columns for row, made in c.comparisons(baseline).items()},
    )


@dataclass(frozen=True)
class _Column:
    """Item-level scores of one metric of one task: for each row a frame with items as index and seeds as columns."""

    task: str
    metric: str
    higher_is_better: bool
    rows: Mapping[RowKey, pd.DataFrame]
    weights: pd.Series  # by item

    def intervals(self) -> dict[RowKey, Interval]:
        """Of the mean over seeds, for rows whose seeds were scored on the same items."""
        whole = {row: frame.mean(axis=1) for row, frame in self.rows.items() if not frame.isna().to_numpy().any()}
        return self._intervals(whole, "interval")

    def comparisons(self, baseline: str) -> dict[RowKey, Comparison]:
        found: dict[RowKey, Comparison] = {}
        for student in dict.fromkeys(row.student for row in self.rows):
            rows = [row for row in self.rows if (row.student, row.role) == (student, "student")]
            base = next((row for row in rows if baseline and row.method == baseline), None)
            if base is not None:
                found |= self._against(base, [row for row in rows if row != base])
        return found

    def _against(self, base: RowKey, rows: Sequence[RowKey]) -> dict[RowKey, Comparison]:
        """Every row against one, with Holm's correction over the rows."""
        paired = {row: _differences(self.rows[row], self.rows[base]) for row in rows}
        paired = {row: frame for row, frame in paired.items() if len(frame) > 1 and len(frame.columns) > 0}
        means = {row: frame.mean(axis=1) for row, frame in paired.items()}
        intervals = self._intervals(means, "difference")
        test = MCNEMAR if self._right_or_wrong() else BOOTSTRAP
        p_values = self._mcnemar(paired) if test == MCNEMAR else self._bootstrap(means)
        found = {
            row: Comparison(
                difference=(difference := self._mean(means[row])),
                interval=intervals.get(row),
                test=test,
                p=p_values[row],
                p_corrected=p_values[row],
                p_seeds=paired_t([self._mean(frame[seed]) for seed in frame]),
                better=(difference > 0) == self.higher_is_better,
                n_items=len(frame),
                seeds=tuple(map(int, frame.columns)),
            )
            for row, frame in paired.items()
        }
        return _corrected(found)

    def _right_or_wrong(self) -> bool:
        return all(frame.isin([0.0, 100.0, np.nan]).to_numpy().all() for frame in self.rows.values())

    def _mcnemar(self, paired: Mapping[RowKey, pd.DataFrame]) -> dict[RowKey, float]:
        return {row: mcnemar(np.rint(frame.sum(axis=1) / 100)) for row, frame in paired.items()}

    def _bootstrap(self, means: Mapping[RowKey, pd.Series]) -> dict[RowKey, float]:
        p_values: dict[RowKey, float] = {}
        for rows, weights, columns in self._same_items(means):
            p = paired_bootstrap(columns, weights, seed=seed_of("paired test", self.task, self.metric))
            p_values |= dict(zip(rows, p.tolist(), strict=True))
        return p_values

    def _intervals(self, values: Mapping[RowKey, pd.Series], purpose: str) -> dict[RowKey, Interval]:
        """Not for rows whose items are all the same: every resample of them is, too."""
        found: dict[RowKey, Interval] = {}
        several = {row: series for row, series in values.items() if len(series) > 1 and np.ptp(series.to_numpy()) > 0}
        for rows, weights, columns in self._same_items(several):
            low, high = bootstrap_interval(columns, weights, seed=seed_of(purpose, self.task, self.metric))
            found |= dict(zip(rows, zip(low.tolist(), high.tolist(), strict=True), strict=True))
        return found

    def _same_items(self, values: Mapping[RowKey, pd.Series]) -> Iterator[tuple[list[RowKey], FloatArray, FloatArray]]:
        """Rows with the same items, nearly always all: their names, weights [n] and scores [n, rows]."""
        groups: dict[tuple[str, ...], list[RowKey]] = {}
        for row, series in values.items():
            groups.setdefault(tuple(series.index), []).append(row)
        for items, rows in groups.items():
            weights = self.weights.loc[list(items)].to_numpy()
            yield rows, weights, np.column_stack([values[row].to_numpy() for row in rows])

    def _mean(self, values: pd.Series) -> float:
        return float(weighted_mean(values.to_numpy(), self.weights.loc[values.index].to_numpy()))


def _corrected(comparisons: Mapping[RowKey, Comparison]) -> dict[RowKey, Comparison]:
    over_items = holm([c.p for c in comparisons.values()])
    seeded = {row: c.p_seeds for row, c in comparisons.items() if c.p_seeds is not None}
    over_seeds = dict(zip(seeded, holm(list(seeded.values())), strict=True))
    return {
        row: replace(c, p_corrected=p, p_seeds=over_seeds.get(row))
        for (row, c), p in zip(comparisons.items(), over_items, strict=True)
    }


def _differences(row: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Row minus baseline on the seeds that both have and the items that all of these seeds have."""
    common = [seed for seed in row if seed in base]
    return (row[common] - base[common]).dropna()


def _columns(results: pd.DataFrame, items: pd.DataFrame) -> list[_Column]:
    """The results' columns with the item-level scores of each row; a row that lacks those of a seed is left out."""
    parts = {key: part.set_index("item") for key, part in checked_items(items).groupby(["cell", "metric"], sort=False)}
    scored: dict[tuple[str, str], dict[RowKey, dict[int, pd.DataFrame | None]]] = {}
    higher: dict[tuple[str, str], bool] = {}
    for s, cell in _done(results):
        part = parts.get((cell, s.metric))
        if part is not None and not math.isclose(weighted_mean(part["value"], part["weight"]), s.value, rel_tol=1e-6):
            raise ValueError(f"{cell!r}, metric {s.metric!r}: the items do not give the score {s.value}")
        higher[s.task, s.metric] = s.higher_is_better
        scored.setdefault((s.task, s.metric), {}).setdefault(s.row, {})[s.seed] = part
    return [_column(*key, higher[key], rows) for key, rows in scored.items()]


def _done(results: pd.DataFrame) -> list[tuple[Score, str]]:
    """Scores that are there, with their cells."""
    if "cell" not in results.columns:
        raise ValueError("the results lack the column cell, which items refer to")
    records = zip(scores(results), results["cell"], strict=True)
    return [(s, cell) for s, cell in records if s.status == "done" and math.isfinite(s.value)]


def _column(
    task: str, metric: str, higher_is_better: bool, scored: Mapping[RowKey, Mapping[int, pd.DataFrame | None]]
) -> _Column:
    whole = {
        row: {seed: part for seed, part in sorted(by_seed.items()) if part is not None}
        for row, by_seed in scored.items()
        if all(part is not None for part in by_seed.values())
    }
    weights = [part["weight"] for by_seed in whole.values() for part in by_seed.values()]
    by_item = pd.concat(weights).groupby(level=0) if weights else pd.Series(dtype="float64").groupby(level=0)
    if (by_item.nunique() > 1).any():
        raise ValueError(f"task {task!r}, metric {metric!r}: an item has different weights in two cells")
    # Sorted: the resamples must not depend on the order in which items come.
    rows = {
        row: pd.DataFrame({seed: part["value"] for seed, part in by_seed.items()}).sort_index()
        for row, by_seed in whole.items()
    }
    return _Column(task, metric, higher_is_better, rows, by_item.first())
