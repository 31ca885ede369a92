"""A fast cut of benchmarks/significance.py: marks hold their size in simulated tables, and broken rules don't pass."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
TABLES = 1500
CUT = [(2, 6, 82), (2, 12, 1319), (3, 4, 300), (3, 10, 1319), (5, 8, 82)]  # seeds, rows, items


@pytest.fixture
def significance(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("significance")


def broken(significance: Any, rule: Callable[[Any], Any]) -> list[tuple[int, int, int, str]]:
    """The settings in which a rule marks more tables without any difference than it may."""
    significance.RULES["tried"] = rule
    try:
        return [
            (seeds, rows, items, noise)
            for seeds, rows, items in CUT
            for noise in significance.NOISE
            for setting in [significance.Setting(rows, seeds, items, noise)]
            if significance.breaks(setting, significance.shares(setting, TABLES, ("tried",))["tried"][0], TABLES)
        ]
    finally:
        del significance.RULES["tried"]


def test_marks_hold_their_size(significance: Any) -> None:
    assert broken(significance, significance.RULES["marks"]) == []


@pytest.mark.parametrize("control", [1, 2])
def test_marks_hold_their_size_where_the_control_has_more_seeds(control: int, significance: Any) -> None:
    for noise in significance.NOISE:
        setting = significance.Setting(6, 3, 300, noise, control)
        size, _ = significance.shares(setting, TABLES, ("marks",))["marks"]
        assert not significance.breaks(setting, size, TABLES)


def test_rules_that_are_wrong_do_not_pass(significance: Any) -> None:
    """The marks of before, a rule that trusts all rows alike, an error that is halved, no correction, no items."""
    rules = significance.RULES
    equal = {(seeds, rows, items, "equal") for seeds, rows, items in CUT}
    assert equal <= set(broken(significance, rules["old †"]))
    assert (3, 10, 1319, "control x3") in broken(significance, rules["pooled alone"])
    assert equal & set(broken(significance, lambda tables: tables.tested.p))
    halved = lambda tables: significance.holm(  # noqa: E731
        significance.student_t_tail(2 * tables.tested.difference / tables.tested.error, tables.tested.df)
    )
    assert equal <= set(broken(significance, halved))

    def no_items(tables: Any) -> Any:
        return significance.holm(significance.contrasts(tables.scores, tables.pairs).p)

    assert (5, 8, 82, "equal") in broken(significance, no_items)


def test_marks_find_what_the_old_star_did_not(significance: Any) -> None:
    for seeds, least in ((2, 0.3), (3, 0.7)):
        found = significance.shares(significance.Setting(6, seeds, 82, effect=4.0), TABLES, ("marks", "old *"))
        assert found["marks"][1] > least
        assert found["marks"][1] > 2 * found["old *"][1]


def test_simulated_noise_is_what_it_is_said_to_be(significance: Any) -> None:
    tables = significance.simulate(significance.Setting(5, 3, 82, "row x3", 2), 4000)
    within = tables.scores[:, :, :3] - tables.scores[:, :, :3].mean(-1, keepdims=True)
    variances = (within**2).sum(-1).mean(0) / 2 - significance.BLOCK**2
    assert variances == pytest.approx([1, 9, 1, 1, 1], rel=0.1)
    assert np.isnan(tables.scores[:, 1:, 3:]).all()
    assert np.isfinite(tables.scores[:, 0]).all()
    assert tables.item_variances.mean() == pytest.approx(2 * significance.ITEM**2 / 82, rel=0.02)
    assert tables.item_variances.mean() == pytest.approx(0.55**2, rel=0.02)


def test_the_same_setting_gives_the_same_tables(significance: Any) -> None:
    setting = significance.Setting(4, 2, 82)
    assert (significance.simulate(setting, 10).scores == significance.simulate(setting, 10).scores).all()
