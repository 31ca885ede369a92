"""From item-level scores to what the table says of its cells: intervals, and tests of methods against each other.

The tests that decide marks and bold print are of methods: what training again, and other test items, would change
(`reports.method_tests`). They need two seeds. Tests of these students over items alone stand in the appendix, under
their own name (`reports.item_tests`).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from reports.frame import RowKey, Score, checked_items, scores
from reports.gap import Certainty, Gap, gap
from reports.item_tests import Interval, ItemTest, ScoresByItem
from reports.method_tests import BoolArray, Contrasts, contrasts, item_variance, pooled_variance
from reports.statistics import CONFIDENCE, FloatArray, holm, student_t_quantile, weighted_mean

LEVEL = 0.05  # of significance, after correction
FEWEST_ITEMS = 10  # that a test is made on: the spread of fewer says little of other items, and may be 0 by chance
INTERVAL = f"{100 * CONFIDENCE:g} % interval"  # as headings say it

CellKey = tuple[RowKey, str, str]  # row, task, metric
ColumnKey = tuple[str, str, str]  # student, task, metric


@dataclass(frozen=True)
class Comparison:
    """Two rows in one column, paired by seed on the items that both have; differences are in the column's unit."""

    difference: float  # the row's score minus the other's
    error: float | None  # its standard error, over trainings and items; None, as p and interval, where nothing can tell
    training: float | None  # variance, the part of the squared error that training again would change
    df: float | None
    interval: Interval | None  # of the difference, by the same test
    p: float | None  # two-sided
    p_corrected: float | None  # Holm; None also in a column that is not among those named for the test
    p_pooled: float | None  # with the variance of all rows pooled
    p_welch: float | None  # not paired, from the variances of both rows
    better: bool  # whether the difference points in the metric's direction
    n_items: int
    seeds: tuple[int, ...]  # that both have
    items: ItemTest | None = None  # of these students; against the baseline alone

    @property
    def found(self) -> bool:
        """Whether the rows differ at `LEVEL` after correction."""
        return self.p_corrected is not None and self.p_corrected <= LEVEL and self.difference != 0

    @property
    def mark(self) -> str:
        """† better or ‡ worse than the other row."""
        return ("†" if self.better else "‡") if self.found else ""


@dataclass(frozen=True)
class Noise:
    """What a column's differences vary by, for all rows of a student alike; see `reports.power`."""

    rows: int
    seeds: int
    training: float  # standard deviation of one row's score over trainings, blocks taken out
    df: int  # degrees of freedom of that
    items: float  # standard error of a difference of two rows over test items, whatever the number of seeds
    n_items: int


@dataclass(frozen=True)
class Analysis:
    """Intervals and comparisons; empty where no item-level scores are at hand."""

    baseline: str = ""  # the method that others are compared with; "" for none
    named: tuple[str, ...] = ()  # the columns ("gsm8k.bits_per_byte") that the correction is over
    intervals: Mapping[CellKey, Interval] = field(default_factory=dict)
    comparisons: Mapping[CellKey, Comparison] = field(default_factory=dict)  # with the baseline
    pairs: Mapping[ColumnKey, Mapping[tuple[RowKey, RowKey], Comparison]] = field(default_factory=dict)  # all with all
    noise: Mapping[ColumnKey, Noise] = field(default_factory=dict)
    gaps: Mapping[CellKey, Gap] = field(default_factory=dict)  # of rows whose teacher was scored

    def like_best(self, column: ColumnKey, means: Mapping[RowKey, float], higher_is_better: bool) -> set[RowKey]:
        """The best row and those that can't be told from it; empty where that would be all, or nothing was tested."""
        pairs = self.pairs.get(column, {})
        rows = [row for row in means if any(row in pair for pair in pairs)]
        if not rows or all(made.p_corrected is None for made in pairs.values()):
            return set()
        best = (max if higher_is_better else min)(rows, key=lambda row: means[row])
        alike = {row for row in rows if row == best or not self.between(column, row, best).found}
        return set() if len(alike) == len(rows) else alike

    def between(self, column: ColumnKey, row: RowKey, other: RowKey) -> Comparison:
        """Two rows of a column, the first minus the second."""
        pairs = self.pairs[column]
        return pairs[row, other] if (row, other) in pairs else _turned(pairs[other, row])


NO_ANALYSIS = Analysis()


def analyse(results: pd.DataFrame, items: pd.DataFrame, baseline: str = "", named: Sequence[str] = ()) -> Analysis:
    """Intervals for every cell with item-level scores; tests of all students' rows against `baseline` and each other.

    Args:
        results: see `reports.frame.Score`, and a column `cell` that names each row's cell.
        items: see `reports.frame.ITEM_COLUMNS`.
        baseline: a method; within each student its first row is what others are compared with.
        named: columns that a question was asked of, such as "gsm8k.bits_per_byte": they alone carry marks, and a
            student's tests are corrected over its rows and these columns together: those with the baseline, and those
            of all other pairs. None: all columns that are printed.

    Raises:
        ValueError: a frame is wrong, items and results contradict each other, or no column has a name that is given.
    """
    columns = _columns(results, items)
    known = list(dict.fromkeys(f"{s.task}.{s.metric}" for s in scores(results)))
    if unknown := [name for name in named if name not in known]:
        raise ValueError(f"no column {', '.join(map(repr, unknown))} to test; there are {', '.join(known)}")
    chosen = tuple(named) or tuple(column.key for column in columns if column.printed)
    against: dict[CellKey, Comparison] = {}
    pairs: dict[ColumnKey, Mapping[tuple[RowKey, RowKey], Comparison]] = {}
    noise: dict[ColumnKey, Noise] = {}
    gaps: dict[CellKey, Gap] = {}
    for student in dict.fromkeys(row.student for column in columns for row in column.rows):
        tested = [one for column in columns if (one := _Tested.of(column, student, baseline)) is not None]
        # two families, so that no row is told from the baseline in one table and not in the other
        with_base = _corrected(tested, [one.with_base() for one in tested], chosen)
        others = _corrected(tested, [one.comparisons(one.other_pairs) for one in tested], chosen)
        for one, of_base, of_others in zip(tested, with_base, others, strict=True):
            where = one.column.task, one.column.metric
            pairs[student, *where] = of_base | of_others
            against |= {(row, *where): comparison for (row, _), comparison in of_base.items()}
            gaps |= {(row, *where): found for (row, _), found in one.gaps(of_base).items()}
            if (known_noise := one.noise()) is not None:
                noise[student, *where] = known_noise
    intervals = {(row, c.task, c.metric): interval for c in columns for row, interval in c.intervals().items()}
    return Analysis(baseline, chosen, intervals, against, pairs, noise, gaps)


@dataclass(frozen=True)
class _Tested:
    """The rows of one student in one column, as far as they were scored on common items."""

    column: ScoresByItem
    base: RowKey | None
    rows: tuple[RowKey, ...]
    seeds: tuple[int, ...]
    values: FloatArray  # [rows, items, seeds]; NaN where a row lacks a seed
    weights: FloatArray  # [items]

    @classmethod
    def of(cls, column: ScoresByItem, student: str, baseline: str) -> "_Tested | None":
        """None without two rows to compare."""
        rows = [row for row in column.rows if (row.student, row.role) == (student, "student")]
        base = next((row for row in rows if baseline and row.method == baseline), None)
        whole = {row: column.rows[row].dropna() for row in rows}
        if rows:  # a row without the others' items is left out, so that it does not take theirs from them
            first = whole[base or rows[0]].index
            whole = {row: frame for row, frame in whole.items() if len(first.intersection(frame.index)) > 1}
        items = sorted(set.intersection(*(set(frame.index) for frame in whole.values()))) if whole else []
        if len(whole) < 2 or len(items) < 2:
            return None
        seeds: list[Any] = sorted({seed for frame in whole.values() for seed in frame.columns})
        values = np.stack([frame.loc[items].reindex(columns=seeds).to_numpy(np.float64) for frame in whole.values()])
        weights = column.weights.loc[items].to_numpy(np.float64)
        return cls(column, base, tuple(whole), tuple(seeds), values, weights)

    @cached_property
    def scores(self) -> FloatArray:
        """[rows, seeds]; NaN where a row lacks a seed."""
        return weighted_mean(self.values.swapaxes(0, 1), self.weights)

    @property
    def other_pairs(self) -> list[tuple[RowKey, RowKey]]:
        """All pairs without the baseline."""
        return list(itertools.combinations([row for row in self.rows if row != self.base], 2))

    def with_base(self) -> dict[tuple[RowKey, RowKey], Comparison]:
        """Every row against the baseline, with the tests over items."""
        if self.base is None:
            return {}
        others = [row for row in self.rows if row != self.base]
        over_items = self.column.tests(self.base, others)
        made = self.comparisons([(row, self.base) for row in others])
        return {pair: replace(one, items=over_items.get(pair[0])) for pair, one in made.items()}

    def comparisons(self, pairs: Sequence[tuple[RowKey, RowKey]]) -> dict[tuple[RowKey, RowKey], Comparison]:
        """Tests of methods, not corrected; pairs without a common seed are left out."""
        pairs = [pair for pair in pairs if self._common(pair).any()]
        places = [(self.rows.index(row), self.rows.index(other)) for row, other in pairs]
        made = contrasts(self.scores, places, [self._item_variance(pair) for pair in pairs], len(self.weights) - 1)
        return {pair: self._comparison(made, place, pair) for place, pair in enumerate(pairs)}

    def _comparison(self, made: Contrasts, place: int, pair: tuple[RowKey, RowKey]) -> Comparison:
        enough = len(self.weights) >= FEWEST_ITEMS
        p, p_pooled, p_welch = (
            _known(values[place]) if enough else None for values in (made.p, made.p_pooled, made.p_welch)
        )
        difference, interval = float(made.difference[place]), None
        error, df, training = (
            None if p is None else float(values[place]) for values in (made.error, made.df, made.seed_variance)
        )
        if error is not None and df is not None:
            half = float(student_t_quantile(1 - CONFIDENCE, df)) * error
            interval = difference - half, difference + half
        return Comparison(
            difference=difference,
            error=error,
            training=training,
            df=df,
            interval=interval,
            p=p,
            p_corrected=p,
            p_pooled=p_pooled,
            p_welch=p_welch,
            better=(difference > 0) == self.column.higher_is_better,
            n_items=len(self.weights),
            seeds=tuple(seed for seed, common in zip(self.seeds, self._common(pair), strict=True) if common),
        )

    def gaps(self, with_base: Mapping[tuple[RowKey, RowKey], Comparison]) -> dict[tuple[RowKey, RowKey], Gap]:
        """What each row closed of the gap between the baseline and its teacher, where there is one."""
        only_items = len(self.weights) - 1.0
        found = {
            (row, base): gap(self.column, row, base, Certainty(one.training, one.df or only_items))
            for (row, base), one in with_base.items()
        }
        return {pair: one for pair, one in found.items() if one is not None}

    def noise(self) -> Noise | None:
        """None where one seed alone, or rows that all agree, show no spread; and with too few items."""
        variance, df = pooled_variance(self.scores)
        if not math.isfinite(variance) or len(self.weights) < FEWEST_ITEMS:
            return None
        pairs = itertools.combinations(self.rows, 2)
        items = [self._item_variance(pair) for pair in pairs if self._common(pair).any()]
        error = math.sqrt(float(np.mean(items)))
        return Noise(len(self.rows), len(self.seeds), math.sqrt(variance), df, error, len(self.weights))

    def _common(self, pair: tuple[RowKey, RowKey]) -> BoolArray:
        """Which seeds both rows have."""
        there = np.isfinite(self.scores[[self.rows.index(row) for row in pair]])
        return np.asarray(there.all(0))

    def _item_variance(self, pair: tuple[RowKey, RowKey]) -> float:
        row, other = (self.values[self.rows.index(row)][:, self._common(pair)] for row in pair)
        return item_variance(row - other, self.weights)


def _corrected(
    tested: Sequence[_Tested], made: Sequence[Mapping[tuple[RowKey, RowKey], Comparison]], named: Sequence[str]
) -> list[dict[tuple[RowKey, RowKey], Comparison]]:
    """Holm over all comparisons of the named columns together; the other columns' get no corrected p."""
    family = [
        (place, pair, one.p)
        for place, (column, comparisons) in enumerate(zip(tested, made, strict=True))
        for pair, one in comparisons.items()
        if column.column.key in named and one.p is not None
    ]
    corrected = holm([p for _, _, p in family]).tolist()
    by_key = {(place, pair): p for (place, pair, _), p in zip(family, corrected, strict=True)}
    return [
        {pair: replace(one, p_corrected=by_key.get((place, pair))) for pair, one in comparisons.items()}
        for place, comparisons in enumerate(made)
    ]


def _turned(made: Comparison) -> Comparison:
    """The comparison seen from the other row."""
    interval = None if made.interval is None else (-made.interval[1], -made.interval[0])
    return replace(
        made, difference=-made.difference, interval=interval, better=not made.better and made.difference != 0
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _columns(results: pd.DataFrame, items: pd.DataFrame) -> list[ScoresByItem]:
    """The results' columns with the item-level scores of each row; a row that lacks those of a seed is left out."""
    parts = {key: part.set_index("item") for key, part in checked_items(items).groupby(["cell", "metric"], sort=False)}
    scored: dict[tuple[str, str], dict[RowKey, dict[int, pd.DataFrame | None]]] = {}
    traits: dict[tuple[str, str], tuple[bool, bool]] = {}
    for s, cell in _done(results):
        part = parts.get((cell, s.metric))
        if part is not None and not math.isclose(weighted_mean(part["value"], part["weight"]), s.value, rel_tol=1e-6):
            raise ValueError(f"{cell!r}, metric {s.metric!r}: the items do not give the score {s.value}")
        traits[s.task, s.metric] = s.higher_is_better, s.printed
        scored.setdefault((s.task, s.metric), {}).setdefault(s.row, {})[s.seed] = part
    return [_column(*key, *traits[key], rows) for key, rows in scored.items()]


def _done(results: pd.DataFrame) -> list[tuple[Score, str]]:
    """Scores that are there, with their cells."""
    if "cell" not in results.columns:
        raise ValueError("the results lack the column cell, which items refer to")
    records = zip(scores(results), results["cell"], strict=True)
    return [(s, cell) for s, cell in records if s.status == "done" and math.isfinite(s.value)]


def _column(
    task: str,
    metric: str,
    higher_is_better: bool,
    printed: bool,
    scored: Mapping[RowKey, Mapping[int, pd.DataFrame | None]],
) -> ScoresByItem:
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
    return ScoresByItem(task, metric, higher_is_better, printed, rows, by_item.first())
