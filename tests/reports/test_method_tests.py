"""reports.method_tests: with scipy where it has the same test, by hand where rules differ, by simulation at large."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from reports.method_tests import contrasts, item_variance, pooled_variance

NAN = np.nan


def least_squares(scores: np.ndarray) -> tuple[float, int]:
    """Residual variance and degrees of freedom of scores ~ row + seed, with a column for each, by lstsq."""
    places = list(zip(*np.nonzero(np.isfinite(scores)), strict=True))
    rows, seeds = scores.shape
    design = np.array([[float(r == k) for k in range(rows)] + [float(s == k) for k in range(seeds)] for r, s in places])
    y = np.array([scores[place] for place in places])
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    df = len(places) - int(np.linalg.matrix_rank(design))
    return float(((y - fitted) ** 2).sum() / df), df


# --- Against scipy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_two_rows_are_compared_by_the_paired_t_test(seeds: int) -> None:
    """With nothing but the pair, pooled, own and paired variance are the same."""
    y = np.random.default_rng(seeds).normal(25, 1, (2, seeds))
    made = contrasts(y, [(0, 1)])
    expected = stats.ttest_rel(y[0], y[1])
    assert made.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert made.p_pooled == pytest.approx(expected.pvalue, abs=1e-12)
    assert made.difference == pytest.approx((y[0] - y[1]).mean())
    assert made.df == pytest.approx(seeds - 1)
    half = stats.t.isf(0.025, seeds - 1) * made.error
    interval = expected.confidence_interval()
    assert (made.difference - half, made.difference + half) == pytest.approx((interval.low, interval.high))


def test_welch_is_scipys() -> None:
    y = np.full((3, 6), NAN)
    y[0] = [1.0, 2.0, 4.0, 3.0, 2.5, 8.0]
    y[1, :4] = [3.0, 7.0, 9.0, 5.0]
    y[2, :4] = [1.0, 1.5, 0.5, 2.0]
    made = contrasts(y, [(1, 0), (2, 1)])
    assert made.p_welch[0] == pytest.approx(stats.ttest_ind(y[1, :4], y[0], equal_var=False).pvalue, abs=1e-12)
    assert made.p_welch[1] == pytest.approx(stats.ttest_ind(y[2, :4], y[1, :4], equal_var=False).pvalue, abs=1e-12)


@pytest.mark.parametrize("missing", [[], [(1, 2)], [(0, 3), (2, 0)]])
def test_the_pooled_variance_is_that_of_the_two_way_fit(missing: list[tuple[int, int]]) -> None:
    y = np.random.default_rng(7).normal(0, 1, (4, 5)) + np.arange(5) * 10
    for place in missing:
        y[place] = NAN
    variance, df = pooled_variance(y)
    assert (float(variance), df) == pytest.approx(least_squares(y))
    assert df == 12 - len(missing)


# --- By hand ----------------------------------------------------------------------------------------------------------


def test_the_rule_by_hand() -> None:
    """Three rows, three seeds; the last row is noisier than what all share, and counts with its own variance."""
    y = np.array([[10.0, 20.0, 30.0], [11.0, 21.5, 31.0], [12.0, 18.0, 33.0]])
    pooled, df = least_squares(y)
    (made,) = np.atleast_1d(contrasts(y, [(2, 0)]).seed_variance)
    against = [(y[row] - y[1]).var(ddof=1) - pooled for row in (2, 0)]  # the row outside the pair has its share
    assert against[0] > pooled > against[1]
    assert made == pytest.approx((pooled + 1.25 * (against[0] - pooled) + pooled) / 3)
    result = contrasts(y, [(2, 0)])
    t = (y[2] - y[0]).mean() / np.sqrt(made)
    assert result.p[0] == pytest.approx(2 * stats.t.sf(abs(t), df))
    t_pooled = (y[2] - y[0]).mean() / np.sqrt(2 * pooled / 3)
    assert result.p_pooled[0] == pytest.approx(2 * stats.t.sf(abs(t_pooled), df))


def test_items_widen_the_error_and_count_in_its_degrees_of_freedom() -> None:
    y = np.random.default_rng(1).normal(0, 1, (5, 3))
    bare, wide = contrasts(y, [(1, 0)]), contrasts(y, [(1, 0)], [0.5], 81)
    seeds = float(bare.seed_variance[0])
    assert wide.error[0] == pytest.approx(np.sqrt(seeds + 0.5))
    assert bare.df[0] == pytest.approx(8)
    assert wide.df[0] == pytest.approx((seeds + 0.5) ** 2 / (seeds**2 / 8 + 0.25 / 81))
    assert wide.p[0] > bare.p[0]


def test_further_seeds_of_the_control_move_its_mean_as_least_squares_does() -> None:
    """The weights are those of the covariance of three means, for the variances that the rule estimates."""
    rng = np.random.default_rng(5)
    y = rng.normal(0, 1, (4, 6)) + 0.3 * rng.normal(0, 1, (1, 6))
    y[1:, 3:] = NAN
    made = contrasts(y, [(1, 0)])
    pooled, _ = least_squares(y)
    own = [(y[r, :3] - y[2:, :3].mean(0)).var(ddof=1) - pooled / 2 for r in (1, 0)]
    of_pair = [pooled + 1.25 * max(0.0, variance - pooled) for variance in own]
    block = max(0.0, y[:, :3].mean(0).var(ddof=1) - pooled / 4)
    total = max(of_pair[1] + block, y[0].var(ddof=1))
    between = total - of_pair[1]
    # x = (row over seeds 0-2, control over 0-2, control over 3-5), unknowns (row, control, common seeds' blocks)
    cov = np.diag([of_pair[0] / 3, of_pair[1] / 3, total / 3]) + np.pad(np.full((2, 2), between / 3), (0, 1))
    x = np.array([y[1, :3].mean(), y[0, :3].mean(), y[0, 3:].mean()])
    design = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    inverse = np.linalg.inv(cov)
    information = design.T @ inverse @ design
    row, control = np.linalg.solve(information, design.T @ inverse @ x)
    assert made.difference[0] == pytest.approx(row - control)
    contrast = np.array([1.0, -1.0])
    assert made.seed_variance[0] == pytest.approx(contrast @ np.linalg.solve(information, contrast))


def test_a_pair_turned_round_is_the_same_test() -> None:
    y = np.random.default_rng(2).normal(0, 1, (4, 5))
    y[2:, 3:] = NAN
    there, back = contrasts(y, [(0, 2), (1, 3)]), contrasts(y, [(2, 0), (3, 1)])
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == pytest.approx(back.p)
    assert there.p_welch == pytest.approx(back.p_welch)


def test_blocks_units_and_leading_axes_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(0, 1, (7, 5, 3))
    pairs = [(row, 0) for row in range(1, 5)]
    together = contrasts(y, pairs)
    moved = contrasts(1024 * (y + 50 * rng.normal(0, 1, (7, 1, 3))), pairs)
    assert moved.p == pytest.approx(together.p, rel=1e-6)
    for table in range(7):
        assert contrasts(y[table], pairs).p == pytest.approx(together.p[table], rel=1e-12)


def test_a_row_that_lacks_a_seed_is_compared_on_those_it_has() -> None:
    """The variance comes from all rows; a row's own is unknown with one seed, and then the pooled one counts."""
    y = np.random.default_rng(4).normal(0, 1, (4, 3))
    y[3, 1:] = NAN
    made = contrasts(y, [(3, 0)])
    pooled, df = least_squares(y)
    assert made.difference[0] != pytest.approx(y[3, 0] - y[0].mean())
    assert made.difference[0] == pytest.approx(y[3, 0] - y[0, 0])
    t = (y[3, 0] - y[0, 0]) / np.sqrt(2 * pooled)
    assert made.p[0] == pytest.approx(2 * stats.t.sf(abs(t), df))


@pytest.mark.parametrize(
    "scores",
    [
        [[1.0], [2.0], [3.0]],  # one seed
        [[1.0, NAN], [NAN, 2.0]],  # none in common
        [[6.25, 7.25], [1.0, 2.0]],  # seeds agree: coarse scores do by chance, and no spread would be infinitely sure
        [[0.1 + 0.2, 0.5], [0.3, 0.5]],  # the same but for rounding
    ],
)
def test_where_seeds_can_not_tell_there_is_no_p(scores: list[list[float]]) -> None:
    made = contrasts(scores, [(0, 1)], [0.01], 50)
    assert np.isnan(made.p).all()
    assert np.isnan(made.p_pooled).all()


def test_tables_with_different_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="the same seeds in the same rows"):
        contrasts([[[1.0, NAN], [2.0, 3.0]], [[1.0, 2.0], [2.0, 3.0]]], [(0, 1)])


# --- Items ------------------------------------------------------------------------------------------------------------


def test_the_variance_over_items_of_one_seed_is_that_of_the_weighted_mean() -> None:
    d = np.random.default_rng(6).normal(0, 1, (40, 1))
    assert item_variance(d, np.ones(40)) == pytest.approx(d.var(ddof=1) / 40)
    w = np.random.default_rng(7).uniform(1, 9, 40)
    mean = (w * d[:, 0]).sum() / w.sum()
    by_hand = ((w * (d[:, 0] - mean)) ** 2).sum() / w.sum() ** 2 * 40 / 39
    assert item_variance(d, w) == pytest.approx(by_hand)


def test_the_variance_over_items_leaves_out_what_changes_from_seed_to_seed() -> None:
    """Over many draws it is the variance that items have in all seeds alike, over their number."""
    rng = np.random.default_rng(8)
    lasting, fleeting = 0.5, 2.0
    made = [
        item_variance(
            lasting * rng.normal(0, 1, (60, 1)) + fleeting * rng.normal(0, 1, (60, 3)) + rng.normal(0, 9, (1, 3)),
            np.ones(60),
        )
        for _ in range(3000)
    ]
    # cut off at 0, the mean is a little above
    assert lasting**2 / 60 < np.mean(made) < 1.8 * lasting**2 / 60
    assert np.mean(made) < 0.4 * (lasting**2 + fleeting**2 / 3) / 60


def test_without_a_lasting_part_hardly_anything_is_left() -> None:
    d = np.random.default_rng(9).normal(0, 1, (500, 4))
    assert item_variance(d, np.ones(500)) < 0.3 * d.mean(1).var() / 500


def test_all_pairs_of_a_column_agree_with_one_at_a_time() -> None:
    y = np.random.default_rng(10).normal(0, 1, (5, 4))
    pairs = list(itertools.combinations(range(5), 2))
    together = contrasts(y, pairs, [0.1] * 10, 30)
    assert together.p == pytest.approx([float(contrasts(y, [pair], [0.1], 30).p[0]) for pair in pairs], rel=1e-9)
