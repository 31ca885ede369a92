"""Tests of methods: does a row differ from another beyond what training both again would change?

A column of the table is scores[row, seed]. Rows of one seed share the teacher, the warm start and the order of the
data, so that a seed is a block, and two rows are compared seed by seed:

    score[r, s] = method r + block s + e[r, s]
    difference of i and j = mean over seeds of (score[i, s] - score[j, s])

Its standard error has three parts:

- What training again changes. There are few seeds, so the variance of e is pooled over all rows of the column
  (two-way residuals, (rows - 1)(seeds - 1) degrees of freedom). Where a row's own variance is larger, the excess is
  added, and a quarter of it: a row that is noisier than the others must not pass for as steady as they are.
- What other test items would change: the variance over items of the items' differences. Noise that is an item's in one
  seed alone is in the scores of the seeds already and is taken out of it.
- Seeds that only one of the two rows has (a control with more of them) move that row's mean towards theirs, as far as
  blocks do not vary more than trainings do.

The test is Student's t with the pooled degrees of freedom, those of the items counted in as by Satterthwaite.
`benchmarks/significance.py` shows how often it errs, and what it finds.

Sources: Student's t after a two-way analysis of variance as in Scheffé, The Analysis of Variance (1959), chapter 4;
a row's own variance in a two-way layout as in Grubbs (Journal of the American Statistical Association 43, 1948);
Satterthwaite (Biometrics Bulletin 2, 1946); Welch (Biometrika 34, 1947).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reports.statistics import FloatArray, student_t_tail

BoolArray = npt.NDArray[np.bool_]

EXCESS = 1.25
"""By how much more than it looks a row's own excess of variance counts, since few seeds show it. Chosen by simulation:
with 1, some row of 10 to 12 was marked in 9 % of tables where three seeds met a control of three times the noise."""


@dataclass(frozen=True)
class Contrasts:
    """Differences between pairs of rows, each array [..., pairs]; NaN where nothing can be said.

    Attributes:
        difference: first row of the pair minus the second, in the scores' unit.
        seed_variance: what training again would change of it.
        item_variance: what other items would change of it.
        df: degrees of freedom of the sum of both.
        p: two-sided, by the module's rule; not yet corrected for the number of pairs.
        p_pooled: the same with the pooled variance for all rows alike.
        p_welch: not paired, from the two rows' own variances over seeds.
    """

    difference: FloatArray
    seed_variance: FloatArray
    item_variance: FloatArray
    df: FloatArray
    p: FloatArray
    p_pooled: FloatArray
    p_welch: FloatArray

    @property
    def error(self) -> FloatArray:
        """Standard error of the difference."""
        return np.asarray(np.sqrt(self.seed_variance + self.item_variance))


def contrasts(
    scores: npt.ArrayLike,
    pairs: Sequence[tuple[int, int]],
    item_variances: npt.ArrayLike = 0.0,
    item_df: float = np.inf,
) -> Contrasts:
    """Compare pairs of rows.

    Args:
        scores: [..., rows, seeds]; NaN where a row lacks a seed, the same places in all of the leading axes (which are
            tables of their own, such as those of a simulation).
        pairs: of row numbers.
        item_variances: [..., pairs], of each difference, as `item_variance` gives it; 0 tests these items alone.
        item_df: degrees of freedom of those, items - 1.
    """
    y = np.asarray(scores, dtype=np.float64)
    there = np.isfinite(y).reshape(-1, *y.shape[-2:])
    if not (there == there[0]).all():
        raise ValueError("all tables need the same seeds in the same rows")
    layout = _Layout(y, there[0])
    items = np.broadcast_to(np.asarray(item_variances, dtype=np.float64), (*y.shape[:-2], len(pairs)))
    parts = [layout.compared(i, j) for i, j in pairs]
    difference, seeds, plain, mean_seeds, apart, welch, welch_df = (
        np.stack([part[place] for part in parts], -1) if parts else np.empty((*y.shape[:-2], 0)) for place in range(7)
    )
    df = _satterthwaite([(seeds, layout.df), (items, item_df)])
    return Contrasts(
        difference,
        seeds,
        items,
        df,
        _tail(difference, seeds + items, df),
        _tail(plain, mean_seeds + items, _satterthwaite([(mean_seeds, layout.df), (items, item_df)])),
        _tail(apart, welch + items, _satterthwaite([(welch, welch_df), (items, item_df)])),
    )


def pooled_variance(scores: npt.ArrayLike) -> tuple[FloatArray, int]:
    """Variance between trainings of one row, blocks taken out, pooled over all rows; and its degrees of freedom.

    Args:
        scores: [..., rows, seeds], NaN where a row lacks a seed. Without degrees of freedom the variance is NaN.
    """
    y = np.asarray(scores, dtype=np.float64)
    layout = _Layout(y, np.isfinite(y).reshape(-1, *y.shape[-2:])[0])
    return layout.pooled, layout.df


def item_variance(differences: npt.ArrayLike, weights: npt.ArrayLike) -> float:
    """Variance of the weighted mean of differences over items, without the part that seeds' scores have in them.

    Args:
        differences: [items, seeds] of two rows.
        weights: [items]; the mean is Σ w x / Σ w, and its variance over items is linearised.
    """
    x, w = np.asarray(differences, dtype=np.float64), np.asarray(weights, dtype=np.float64)[:, None]
    items, seeds = x.shape
    scale = w.sum() ** 2 * (items - 1) / items
    means = x.mean(1, keepdims=True)
    over_items = ((w * (means - np.average(means, weights=w))) ** 2).sum() / scale
    if seeds == 1:
        return float(over_items)
    own = x - means - (np.average(x, axis=0, weights=w[:, 0]) - np.average(means, weights=w))
    of_one_seed = ((w * own) ** 2).sum() / (seeds - 1) / scale
    return float(max(0.0, over_items - of_one_seed / seeds))


class _Layout:
    """Scores by row and seed with what all pairs share: the residuals' variance."""

    def __init__(self, scores: FloatArray, there: BoolArray) -> None:
        self.scores, self.there = scores, there
        rows, seeds = (part.astype(float) for part in np.nonzero(there))
        design = np.column_stack([rows[:, None] == np.unique(rows), seeds[:, None] == np.unique(seeds)]).astype(float)
        self.df = len(rows) - int(np.linalg.matrix_rank(design)) if len(rows) else 0
        values = scores[..., there]
        residuals = values - values @ (design @ np.linalg.pinv(design))
        squares = (residuals**2).sum(-1)
        # residuals of scores that agree are rounding errors, and no spread to be sure by
        tiny = (1e-12 * np.abs(values).max(-1, initial=0.0)) ** 2 * max(1, len(rows))
        self.pooled = np.where(squares > tiny, squares, np.nan) / self.df if self.df else np.full(squares.shape, np.nan)

    def compared(self, i: int, j: int) -> tuple[FloatArray, ...]:
        """Difference and variance by the rule; the same with the pooled variance; unpaired, with its df."""
        common = self.there[i] & self.there[j]
        n = max(1, int(common.sum()))
        y = self.scores[..., common]
        plain = _mean(y[..., i, :] - y[..., j, :]) if common.any() else np.full(self.pooled.shape, np.nan)
        own = [self._own(row, (i, j), common) for row in (i, j)]
        difference, variance = plain, (own[0] + own[1]) / n
        more = [int((self.there[row] & ~common).sum()) for row in (i, j)]
        if common.sum() > 1 and max(more):
            row, sign, its = ((i, 1.0, own[0]), (j, -1.0, own[1]))[more[1] >= more[0]]
            moved, saved = self._further_seeds(row, its, common)
            difference, variance = plain + sign * moved, variance - saved
        apart, welch, welch_df = self._unpaired(i, j)
        return difference, variance, plain, 2 * self.pooled / n, apart, welch, welch_df

    def _own(self, row: int, pair: tuple[int, int], common: BoolArray) -> FloatArray:
        """A row's variance between trainings: the pooled one, or more by what its own exceeds it.

        Its own is seen against the rows outside the pair, so that the noise of the other row is not taken for its.
        """
        others = [k for k in range(len(self.there)) if k not in pair and self.there[k, common].all()]
        if common.sum() < 2 or not others:
            return self.pooled
        y = self.scores[..., common]
        against = y[..., row, :] - y[..., others, :].mean(-2)
        excess = against.var(-1, ddof=1) - self.pooled / len(others) - self.pooled
        return np.asarray(self.pooled + EXCESS * np.maximum(0.0, excess))

    def _further_seeds(self, row: int, own: FloatArray, common: BoolArray) -> tuple[FloatArray, FloatArray]:
        """How seeds that the other row of a pair lacks move this row's mean, and by how much less it varies.

        The weight is that of least squares for the variances of a training (`own`) and of a block; the block's is
        never taken for less than all seeds of the row show.
        """
        n, m = int(common.sum()), int((self.there[row] & ~common).sum())
        full = [k for k in range(len(self.there)) if self.there[k, common].all()]
        blocks = self.scores[..., full, :][..., common].mean(-2).var(-1, ddof=1) - self.pooled / len(full)
        mine = self.scores[..., row, :]
        of_one = np.maximum(own + np.maximum(blocks, 0), mine[..., self.there[row]].var(-1, ddof=1))
        apart = _mean(mine[..., self.there[row] & ~common]) - _mean(mine[..., common])
        weight = own / n / (of_one * (1 / n + 1 / m))
        return weight * apart, weight * own / n

    def _unpaired(self, i: int, j: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Difference of the means over all seeds of each, Welch's variance and degrees of freedom."""
        sides = [self.scores[..., row, :][..., self.there[row]] for row in (i, j)]
        if min(side.shape[-1] for side in sides) < 2:
            nothing = np.full(self.pooled.shape, np.nan)
            return nothing, nothing, nothing
        variances = [(side.var(-1, ddof=1) / side.shape[-1], side.shape[-1] - 1.0) for side in sides]
        return _mean(sides[0]) - _mean(sides[1]), variances[0][0] + variances[1][0], _satterthwaite(variances)


def _mean(values: FloatArray) -> FloatArray:
    return np.asarray(values.mean(-1))


def _satterthwaite(parts: Sequence[tuple[FloatArray, npt.ArrayLike]]) -> FloatArray:
    """Degrees of freedom of a sum of variances, from each with its own."""
    total = sum((variance for variance, _ in parts), start=np.zeros(()))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(total**2 / sum(variance**2 / np.asarray(df, np.float64) for variance, df in parts))


def _tail(difference: FloatArray, variance: FloatArray, df: FloatArray) -> FloatArray:
    """p-values; NaN where there is no variance to judge by."""
    known = np.isfinite(variance) & (variance > 0) & np.isfinite(difference)
    p = np.full(difference.shape, np.nan)
    p[known] = student_t_tail(difference[known] / np.sqrt(variance[known]), df[known])
    return p
