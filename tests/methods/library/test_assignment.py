"""methods.library.assignment against scipy's, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from methods.library.assignment import cheapest, greedy


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (4, 4), (7, 9), (12, 60)])
def test_the_cheapest_assignment_is_scipys(rows: int, columns: int) -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        cost = random.normal(size=(rows, columns)) if seed % 2 else random.integers(0, 4, (rows, columns)) * 1.0
        found = cheapest(cost)
        assert len(set(found.tolist())) == rows
        assert cost[np.arange(rows), found].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum(), abs=1e-12)


def test_greedy_takes_what_is_free() -> None:
    cost = np.asarray([[1.0, 2.0, 3.0], [0.0, 5.0, 9.0]])
    assert greedy(cost).tolist() == [0, 1]
    assert cheapest(cost).tolist() == [1, 0]
