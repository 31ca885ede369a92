"""What other test items would show of the students that were trained: intervals of cells, and tests of these students.

They do not make one method better than another: a score that is exact enough, such as bits per byte, also tells two
seeds of one method apart. Tests of methods are in `reports.method_tests`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from reports.frame import RowKey
from reports.statistics import (
    FloatArray,
    bootstrap_interval,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_interval,
    seed_of,
    weighted_mean,
)

MCNEMAR, BOOTSTRAP = "McNemar", "bootstrap"

Interval = tuple[float, float]


@dataclass(frozen=True)
class ItemTest:
    """A row against the baseline over test items, each item's seeds averaged."""

    test: str  # MCNEMAR or BOOTSTRAP
    difference: float  # the row's score minus the baseline's, paired by item
    p: float  # two-sided
    p_corrected: float  # Holm, over the rows that the column compares with the baseline
    interval: Interval | None  # of the difference, by the same test; None for McNemar's, which has none
    better: int  # items on which the row's score is better than the baseline's
    worse: int


@dataclass(frozen=True)
class ScoresByItem:
    """Item-level scores of one metric of one task: for each row a frame with items as index and seeds as columns."""

    task: str
    metric: str
    higher_is_better: bool
    printed: bool
    rows: Mapping[RowKey, pd.DataFrame]
    weights: pd.Series  # by item

    @property
    def key(self) -> str:
        """The column's name in files, e.g. "dolly.rouge_l"."""
        return f"{self.task}.{self.metric}"

    def intervals(self) -> dict[RowKey, Interval]:
        """Of the mean over seeds, for rows whose seeds were scored on the same items.

        Not for rows whose items are all the same: every resample of them is, too.
        """
        whole = {row: frame.mean(axis=1) for row, frame in self.rows.items() if not frame.isna().to_numpy().any()}
        several = {row: series for row, series in whole.items() if len(series) > 1 and np.ptp(series.to_numpy()) > 0}
        found: dict[RowKey, Interval] = {}
        for rows, weights, columns in self._same_items(several):
            low, high = bootstrap_interval(columns, weights, seed=seed_of("interval", self.task, self.metric))
            found |= dict(zip(rows, zip(low.tolist(), high.tolist(), strict=True), strict=True))
        return found

    def tests(self, base: RowKey, rows: list[RowKey]) -> dict[RowKey, ItemTest]:
        """Every row against one, on the seeds and items that both have, with Holm's correction over the rows."""
        paired = {row: differences(self.rows[row], self.rows[base]) for row in rows}
        paired = {row: frame for row, frame in paired.items() if len(frame) > 1 and len(frame.columns) > 0}
        found = self._mcnemar(paired) if self._right_or_wrong() else self._bootstrap(paired)
        corrected = holm([made.p for made in found.values()]).tolist()
        return {row: replace(made, p_corrected=p) for (row, made), p in zip(found.items(), corrected, strict=True)}

    def _mean(self, values: pd.Series) -> float:
        return float(weighted_mean(values.to_numpy(), self.weights.loc[values.index].to_numpy()))

    def _right_or_wrong(self) -> bool:
        return all(frame.isin([0.0, 100.0, np.nan]).to_numpy().all() for frame in self.rows.values())

    def _mcnemar(self, paired: Mapping[RowKey, pd.DataFrame]) -> dict[RowKey, ItemTest]:
        p = {row: mcnemar(np.rint(frame.sum(axis=1) / 100)) for row, frame in paired.items()}
        return {row: self._made(MCNEMAR, p[row], None, frame.mean(axis=1)) for row, frame in paired.items()}

    def _bootstrap(self, paired: Mapping[RowKey, pd.DataFrame]) -> dict[RowKey, ItemTest]:
        means = {row: frame.mean(axis=1) for row, frame in paired.items()}
        found: dict[RowKey, ItemTest] = {}
        for rows, weights, columns in self._same_items(means):
            seed = seed_of("paired test", self.task, self.metric)
            p = paired_bootstrap(columns, weights, seed=seed)
            low, high = paired_interval(columns, weights, seed=seed)
            for place, row in enumerate(rows):
                interval = float(low[place]), float(high[place])
                spread = interval[0] < interval[1] and np.isfinite(interval).all()
                found[row] = self._made(BOOTSTRAP, float(p[place]), interval if spread else None, means[row])
        return {row: found[row] for row in paired}

    def _made(self, test: str, p: float, interval: Interval | None, means: pd.Series) -> ItemTest:
        up, down = int((means > 0).sum()), int((means < 0).sum())
        better, worse = (up, down) if self.higher_is_better else (down, up)
        return ItemTest(test, self._mean(means), p, p, interval, better, worse)

    def _same_items(self, values: Mapping[RowKey, pd.Series]) -> Iterator[tuple[list[RowKey], FloatArray, FloatArray]]:
        """Rows with the same items, nearly always all: their names, weights [n] and scores [n, rows]."""
        groups: dict[tuple[str, ...], list[RowKey]] = {}
        for row, series in values.items():
            groups.setdefault(tuple(series.index), []).append(row)
        for items, rows in groups.items():
            weights = self.weights.loc[list(items)].to_numpy()
            yield rows, weights, np.column_stack([values[row].to_numpy() for row in rows])


def differences(row: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Row minus baseline on the seeds that both have and the items that all of these seeds have."""
    common = [seed for seed in row if seed in base]
    return (row[common] - base[common]).dropna()
