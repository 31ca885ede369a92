"""reports.statistics: against scipy, by hand, and by simulation: at no true difference the error rate is as claimed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.statistics import (
    FloatArray,
    bootstrap_interval,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_interval,
    seed_of,
    student_t_quantile,
    student_t_tail,
    weighted_mean,
)

LEVEL = 0.05


def skewed(rng: np.random.Generator, items: int, trials: int = 1) -> FloatArray:
    """Scores from 0 to 100 like ROUGE-L: many low ones, some of them 0."""
    return np.where(rng.random((items, trials)) < 0.1, 0.0, 100 * rng.beta(0.8, 2.5, (items, trials)))


# --- Against scipy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2, 2.5, 3, 4, 7.75, 15, 100, 1318, 1e5])
def test_students_t_is_scipys(df: float) -> None:
    t = np.array([0.0, 1e-9, 0.3, -1.7, 2.1, 8.0, 40.0])
    assert student_t_tail(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), abs=1e-12, rel=1e-9)
    for tail in (0.5, 0.05, 0.001):
        assert student_t_quantile(tail, df) == pytest.approx(stats.t.isf(tail / 2, df), rel=1e-9)


def test_students_t_is_broadcast() -> None:
    t, df = np.array([[0.5], [2.0], [9.0]]), np.array([1.5, 30.0])
    assert student_t_tail(t, df) == pytest.approx(2 * stats.t.sf(t, df), abs=1e-13)
    assert student_t_quantile(0.05, df) == pytest.approx(stats.t.isf(0.025, df))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 1), (5, 5), (10, 2), (70, 51), (700, 600), (1319, 0)])
def test_mcnemar_of_one_seed_is_scipys_binomial_test(wins: int, losses: int) -> None:
    differences = np.repeat([1, -1, 0], [wins, losses, 7])
    expected = stats.binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert mcnemar(differences) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(-differences) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", range(4))
def test_mcnemar_of_several_seeds_is_scipys_permutation_test(case: int) -> None:
    """All 2^12 ways to swap the two methods within items, seeds of an item together."""
    differences = np.random.default_rng(case).integers(-3, 4, 12)
    exact = stats.permutation_test(
        (differences, np.zeros(12)), lambda a, b: (a - b).sum(), permutation_type="samples", n_resamples=np.inf
    )
    assert mcnemar(differences) == pytest.approx(exact.pvalue, abs=1e-12)


@pytest.mark.parametrize("items", [16, 100])
def test_the_interval_is_scipys_percentile_bootstrap_at_expanded_levels(items: int) -> None:
    scores = skewed(np.random.default_rng(items), items)[:, 0]
    confidence = 1 - 2 * stats.norm.cdf(-math.sqrt(items / (items - 1)) * stats.t.isf(0.025, items - 1))
    theirs = stats.bootstrap(
        (scores,), np.mean, confidence_level=confidence, method="percentile", n_resamples=40_000, rng=3
    )
    ours = bootstrap_interval(scores, seed=4, resamples=40_000)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.1 * theirs.standard_error)


def test_the_interval_of_a_ratio_of_sums_is_scipys() -> None:
    rng = np.random.default_rng(5)
    size = np.ceil(rng.lognormal(5, 0.8, 60))
    bits = size * rng.gamma(9, 0.09, 60)
    theirs = stats.bootstrap(
        (bits, size),
        lambda b, w, axis: b.sum(axis) / w.sum(axis),
        paired=True,
        confidence_level=1 - 2 * stats.norm.cdf(-math.sqrt(60 / 59) * stats.t.isf(0.025, 59)),
        method="percentile",
        n_resamples=40_000,
        rng=6,
    )
    ours = bootstrap_interval(bits / size, size, seed=7, resamples=40_000)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.1 * theirs.standard_error)
    assert weighted_mean(bits / size, size) == pytest.approx(bits.sum() / size.sum())


def test_the_paired_bootstrap_of_many_normal_differences_is_the_t_test() -> None:
    differences = np.random.default_rng(8).normal(0.2, 1, (400, 20))
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert paired_bootstrap(differences, seed=9) == pytest.approx(expected, abs=0.02)


# --- By hand ----------------------------------------------------------------------------------------------------------


def test_the_paired_bootstrap_counts_resamples() -> None:
    """All 4^4 resamples of four items, each with its studentised statistic written out."""
    d, w = np.array([3.0, -1.0, 2.0, 0.5]), np.array([10.0, 40.0, 20.0, 30.0])

    def statistic(chosen: tuple[int, ...], centre: float) -> float:
        x, v = d[list(chosen)], w[list(chosen)]
        mean = (x * v).sum() / v.sum()
        error = math.sqrt(((v * (x - mean)) ** 2).sum()) / v.sum()
        return abs(mean - centre) / error if error > 0 else math.inf

    observed = statistic((0, 1, 2, 3), 0.0)
    centre = (d * w).sum() / w.sum()
    extreme = [statistic(chosen, centre) >= observed for chosen in itertools.product(range(4), repeat=4)]
    assert paired_bootstrap(d, w, seed=1, resamples=50_000) == pytest.approx(np.mean(extreme), abs=0.01)


@pytest.mark.parametrize("effect", [0.1, 0.2, 0.25, 0.3, 0.4])
def test_the_interval_leaves_out_zero_exactly_where_the_test_rejects(effect: float) -> None:
    """One story: the level is passed from both sides by columns that are close to it."""
    rng = np.random.default_rng(int(100 * effect))
    d = rng.normal(effect, 1, (60, 60))
    w = rng.uniform(1, 9, 60)
    p = paired_bootstrap(d, w, seed=3, resamples=1999)
    low, high = paired_interval(d, w, seed=3, resamples=1999)
    assert ((low > 0) | (high < 0)).tolist() == (p <= 0.05).tolist()
    assert 0 < (p <= 0.05).sum() < 60
    assert (low < weighted_mean(d, w)).all()
    assert (weighted_mean(d, w) < high).all()


def test_the_interval_is_the_t_interval_of_many_normal_differences() -> None:
    d = np.random.default_rng(4).normal(0.2, 1, 600)
    expected = stats.ttest_1samp(d, 0).confidence_interval()
    assert paired_interval(d, seed=5) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_where_nothing_differs_nothing_is_significant() -> None:
    assert paired_bootstrap(np.zeros((5, 2)), seed=1).tolist() == [1, 1]
    assert mcnemar(np.zeros(5)) == 1
    assert mcnemar([1, -1]) == 1


def test_holm_by_hand() -> None:
    # 4 × 0.005 = 0.02; 3 × 0.01 = 0.03; 2 × 0.03 = 0.06; 0.04, which may not be below the one before: 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]).tolist() == [1, 1]
    assert holm([0.04]).tolist() == [0.04]
    assert holm([]).tolist() == []
    assert holm([[0.02, 0.9], [0.03, 0.02]]).tolist() == [[0.04, 0.9], [0.04, 0.04]]  # each family by itself


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p_values: list[float]) -> None:
    """Step down as Holm writes it: reject while p_(i) <= α / (m - i), i from 0."""
    in_order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    steps = itertools.takewhile(
        lambda step: p_values[step[1]] * (len(p_values) - step[0]) <= LEVEL, enumerate(in_order)
    )
    assert {index for index, p in enumerate(holm(p_values)) if p <= LEVEL} == {index for _, index in steps}


def test_an_interval_of_a_constant_is_the_constant() -> None:
    low, high = bootstrap_interval([7.0, 7.0, 7.0], [1.0, 2.0, 4.0], seed=1)
    assert (low, high) == (7, 7)


@pytest.mark.parametrize("test", [bootstrap_interval, paired_bootstrap, paired_interval])
def test_what_can_not_be_resampled_is_refused(test: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        test([1.0], seed=1)
    with pytest.raises(ValueError, match="positive weight"):
        test([1.0, 2.0], [1.0, 0.0], seed=1)
    with pytest.raises(ValueError, match="whole number"):
        mcnemar([0.5])


# --- What must not matter ---------------------------------------------------------------------------------------------


def test_the_same_coordinates_give_the_same_numbers_whatever_stands_beside() -> None:
    rng = np.random.default_rng(2)
    together = rng.normal(0.1, 1, (50, 3))
    seed = seed_of("paired test", "dolly", "rouge_l")
    assert seed != seed_of("paired test", "dolly", "bits_per_byte")
    alone = [float(paired_bootstrap(together[:, index], seed=seed)) for index in range(3)]
    assert paired_bootstrap(together, seed=seed).tolist() == pytest.approx(alone, abs=2e-4)
    low, high = bootstrap_interval(together, seed=seed)
    assert (low[1], high[1]) == pytest.approx(bootstrap_interval(together[:, 1], seed=seed))


def test_units_and_sides_do_not_matter() -> None:
    d = np.random.default_rng(3).normal(0.2, 1, 40)
    w = np.random.default_rng(4).uniform(1, 5, 40)
    p = paired_bootstrap(d, w, seed=5)
    assert paired_bootstrap(-1024 * d, w / 8, seed=5) == p


# --- By simulation ----------------------------------------------------------------------------------------------------


def rejected(p_values: object) -> float:
    """Share of trials that call a difference significant at 5 %."""
    return float(np.mean(np.asarray(p_values) <= LEVEL))


def error(trials: int) -> float:
    """Three and a half standard deviations of a rate of 5 % over so many trials."""
    return 3.5 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


def rouge_differences(items: int, trials: int, seeds: int = 1, effect: float = 0.0) -> FloatArray:
    """Differences of two methods [items, trials], means over seeds.

    Items have a difficulty that both share, a method's own luck with an item that all its seeds share, and noise.
    """
    rng = np.random.default_rng([items, trials, seeds])
    difficulty = skewed(rng, items, trials)

    def method(shift: float) -> FloatArray:
        luck = difficulty + shift + rng.normal(0, 6, (items, trials))
        noisy = luck[..., None] + 8 * rng.standard_t(3, (items, trials, seeds))
        return np.asarray(np.clip(noisy, 0, 100).mean(-1))

    return method(effect) - method(0.0)


def bits_differences(items: int, trials: int, effect: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Differences in bits per byte [items, trials], skewed and noisier for short responses, and bytes [items]."""
    rng = np.random.default_rng([items, trials])
    size = np.ceil(rng.lognormal(5, 0.8, items))
    skew = rng.gamma(2, 0.02, (items, trials)) - 0.04
    return effect + skew + rng.normal(0, 0.3, (items, trials)) / np.sqrt(size[:, None]), size


def right_answers(items: int, trials: int, seeds: int, effect: float = 0.0, luck: float = 1.0) -> FloatArray:
    """Seeds in which a method is right minus those of the baseline, per answer: [trials, items, seeds].

    Answers are Bernoulli draws in logits: difficulty, a method's luck with an item that its seeds share, effect.
    """
    rng = np.random.default_rng([items, trials, seeds])
    difficulty = rng.normal(-1, 1.5, (trials, items, 1))

    def method(shift: float) -> FloatArray:
        logits = difficulty + shift + luck * rng.normal(0, 1, (trials, items, 1))
        return (rng.random((trials, items, seeds)) < 1 / (1 + np.exp(-logits))).astype(np.float64)

    return method(effect) - method(0.0)


@pytest.mark.parametrize(("items", "seeds"), [(30, 1), (100, 1), (100, 5), (300, 3)])
def test_false_positives_of_the_paired_bootstrap(items: int, seeds: int) -> None:
    trials = 1500
    p_values = paired_bootstrap(rouge_differences(items, trials, seeds), seed=1, resamples=2000)
    assert rejected(p_values) == pytest.approx(LEVEL, abs=error(trials))


@pytest.mark.parametrize("items", [30, 100, 300])
def test_false_positives_for_bits_per_byte(items: int) -> None:
    trials = 1500
    p_values = paired_bootstrap(*bits_differences(items, trials), seed=1, resamples=2000)
    assert rejected(p_values) == pytest.approx(LEVEL, abs=error(trials))


@pytest.mark.parametrize(("items", "seeds"), [(100, 1), (400, 1), (100, 3), (100, 5)])
def test_false_positives_of_mcnemar(items: int, seeds: int) -> None:
    """An exact test of counts errs on the safe side, the more so the fewer items differ."""
    trials = 1000
    rate = rejected([mcnemar(d) for d in right_answers(items, trials, seeds).sum(-1)])
    assert 0.01 < rate <= LEVEL + error(trials)


def test_pooling_the_seeds_of_an_item_would_find_what_is_not_there() -> None:
    """Why `mcnemar` gets one number per item: its seeds are no independent answers."""
    answers = right_answers(200, 400, seeds=5)
    assert rejected([mcnemar(d.ravel()) for d in answers]) > 1.5 * LEVEL
    assert rejected([mcnemar(d) for d in answers.sum(-1)]) <= LEVEL + error(400)


def test_power() -> None:
    """True differences of the size that matters are found, and more surely with more seeds."""
    assert rejected(paired_bootstrap(rouge_differences(500, 200, 1, effect=2.0), seed=1, resamples=1000)) > 0.45
    assert rejected(paired_bootstrap(rouge_differences(500, 200, 3, effect=2.0), seed=1, resamples=1000)) > 0.75
    assert rejected(paired_bootstrap(*bits_differences(200, 300, effect=0.01), seed=1, resamples=1000)) > 0.9
    one, three = ([mcnemar(d) for d in right_answers(400, 200, s, effect=0.5).sum(-1)] for s in (1, 3))
    assert rejected(one) > 0.6
    assert rejected(three) > rejected(one)


@pytest.mark.parametrize("methods", [3, 8])
def test_holm_keeps_the_rate_of_a_whole_column(methods: int) -> None:
    """At most 5 % of columns without any true difference have a mark, though all rows share one baseline."""
    trials, items = 600, 60
    rng = np.random.default_rng(methods)
    scores = skewed(rng, items, trials)[..., None] + rng.normal(0, 8, (items, trials, methods + 1))
    differences = (scores[..., 1:] - scores[..., :1]).reshape(items, -1)
    p_values = paired_bootstrap(differences, seed=1, resamples=2000).reshape(trials, methods)
    assert rejected(p_values.min(1)) > 2 * LEVEL  # without the correction
    family = rejected([min(holm(row)) for row in p_values])
    assert 0.01 < family <= LEVEL + error(trials)


@pytest.mark.parametrize("items", [16, 100])
def test_the_interval_covers_the_truth(items: int) -> None:
    trials, truth = 1500, 90 * 0.8 / 3.3
    low, high = bootstrap_interval(skewed(np.random.default_rng(items), items, trials), seed=1, resamples=2000)
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.95, abs=error(trials))


@pytest.mark.slow
@pytest.mark.parametrize("items", [16, 50, 164, 500, 1319])
def test_false_positives_at_length(items: int) -> None:
    """The same claims with more trials and at the sizes of the real test sets."""
    trials = min(10_000, 4_000_000 // items)
    # With 16 skewed differences the bootstrap is a little off on either side.
    slack = error(trials) + (0.015 if items < 30 else 0.003)
    for seeds in (1, 5):
        p_values = paired_bootstrap(rouge_differences(items, trials, seeds), seed=1, resamples=2000)
        assert rejected(p_values) == pytest.approx(LEVEL, abs=slack)
        answers = right_answers(items, min(trials, 2000), seeds).sum(-1)
        assert rejected([mcnemar(d) for d in answers]) <= LEVEL + error(len(answers))
    assert rejected(paired_bootstrap(*bits_differences(items, trials), seed=1, resamples=2000)) == pytest.approx(
        LEVEL, abs=slack
    )
