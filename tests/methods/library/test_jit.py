"""methods.library.jit: Python runs the same functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from methods.library.jit import compiled, part_in_any_order


def test_a_function_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    """Numba finds no folder for what has no file, as where no folder can be written to."""
    made: dict[str, Any] = {}
    exec("def doubled(values):\n    return [2 * value for value in values]", made)
    doubled = compiled(made["doubled"])
    assert doubled.signatures == []
    assert doubled(np.arange(3.0)) == [0.0, 2.0, 4.0]
    assert len(doubled.signatures) == 1


def test_a_sum_in_any_order_is_a_sum() -> None:
    def total(values: Any) -> float:
        found = 0.0
        for value in values:
            found += value
        return found

    values = np.random.default_rng(0).normal(size=1003)
    assert np.isclose(part_in_any_order(total)(values), total(values), rtol=1e-12)
    assert np.isnan(part_in_any_order(total)(np.append(values, np.nan)))
