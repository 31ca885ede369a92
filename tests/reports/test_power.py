"""reports.power: what it promises is what fresh simulations find."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports import power_frame, power_lines
from reports.analysis import LEVEL, Noise
from reports.method_tests import contrasts
from reports.power import MOST_SEEDS, POWER, comparisons_of, findable, seeds_for
from reports.statistics import holm
from tests.reports.test_analysis import BETTER, EASY, Frames, three_seeds


@pytest.mark.parametrize(("rows", "seeds", "items"), [(6, 3, 0.0), (6, 3, 0.5), (4, 5, 0.2), (10, 2, 0.3)])
def test_a_findable_difference_is_found_four_times_in_five(rows: int, seeds: int, items: float) -> None:
    """Other random numbers, a whole family of rows, and Holm's correction itself."""
    noise = Noise(rows, seeds, training=1.0, df=10, items=items, n_items=200)
    difference = findable(noise, seeds, rows - 1)
    rng = np.random.default_rng(99)
    trials = 4000
    scores = rng.normal(0, 1, (trials, rows, seeds)) + 3 * rng.normal(0, 1, (trials, 1, seeds))
    scores += items / math.sqrt(2) * rng.normal(0, 1, (trials, rows, 1))
    scores[:, 1] += difference
    made = contrasts(scores, [(row, 0) for row in range(1, rows)], items**2, 199)
    found = (holm(made.p)[:, 0] <= LEVEL).mean()
    # Holm finds a little more than its first step, which is what is promised
    assert POWER - 0.03 < found < POWER + 0.06


def test_two_rows_without_items_by_the_noncentral_t() -> None:
    noise = Noise(2, 4, training=1.0, df=3, items=0.0, n_items=100)
    difference = findable(noise, 4, 1)
    power = stats.nct.sf(stats.t.isf(0.025, 3), 3, difference / math.sqrt(2 / 4))
    assert power == pytest.approx(POWER, abs=0.02)


def test_more_seeds_find_less_and_scale_is_a_scale() -> None:
    noise = Noise(6, 3, training=2.0, df=10, items=0.0, n_items=82)
    found = [findable(noise, seeds, 5) for seeds in (2, 3, 5, 10)]
    assert found == sorted(found, reverse=True)
    tenth = Noise(6, 3, training=0.2, df=10, items=0.0, n_items=82)
    assert findable(tenth, 3, 5) == pytest.approx(found[1] / 10)


def test_seeds_for_a_difference_are_the_least_that_find_it() -> None:
    noise = Noise(6, 3, training=1.0, df=10, items=0.2, n_items=300)
    for difference in (2.0, 3.0, 6.0):
        seeds = seeds_for(noise, difference, 5)
        assert seeds is not None
        assert findable(noise, seeds, 5) <= difference
        assert seeds == 2 or findable(noise, seeds - 1, 5) > difference
    assert seeds_for(noise, 0.3, 5) is None
    assert findable(noise, MOST_SEEDS, 5) > 0.3


def test_the_table_says_what_seeds_find_and_what_a_difference_needs() -> None:
    table = three_seeds(up=20, same=0.1, down=-20).table()
    frame = power_frame(table, 6.0)
    assert list(frame["column"]) == ["dolly ROUGE-L", "gsm8k bits/byte"]
    noise = table.pairwise[0].noise
    assert noise is not None
    assert comparisons_of(table, table.pairwise[0]) == 6  # three rows, two columns
    assert frame.loc[0, "3 seeds find"] == f"{findable(noise, 3, 6):.2f}"
    assert str(frame.loc[0, "seeds for 6"]).startswith(str(seeds_for(noise, 6.0, 6)))
    assert all("80 %" in line or "Error over items" in line for line in power_lines())


def test_a_difference_that_items_hide_needs_more_items() -> None:
    frames, rng = Frames(), np.random.default_rng(1)
    luck = {method: rng.normal(0, 30, 60) for method in ("control", "uld", "cdm")}
    for seed in range(3):
        for method, of_items in luck.items():
            frames.add(method, EASY + of_items + rng.normal(0, 1), seed=seed)
    frame = power_frame(frames.table(), 5.0)
    assert frame.loc[0, "seeds for 5"] == "more items first"


def test_one_seed_shows_no_noise() -> None:
    assert power_frame(Frames().add("control", EASY).add("uld", BETTER).table()).equals(pd.DataFrame())
