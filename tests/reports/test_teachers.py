"""What another training of the teacher would change: against hand computation and simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports.teachers import Spread, spread_by_teacher, teacher_lines


def test_by_hand() -> None:
    """Means 2 and 6 of two seeds each: MS between 16, MS within 2, n0 2; unevenly: n0 (5 - 13 / 5) / 1 = 2.4."""
    assert spread_by_teacher([[1, 3, 5, 7]], [0, 0, 1, 1]) == Spread(pytest.approx(2**0.5), pytest.approx(7**0.5), 1)
    # means 2 and 7, of all 4: between 2 * 3 * (2 - 4)**2 / ... by the definition
    d, groups = [1.0, 3.0, 2.0, 6.0, 8.0], [0, 0, 0, 4, 4]
    between = 3 * (2 - 4) ** 2 + 2 * (7 - 4) ** 2
    within = (1 + 1 + 0 + 1 + 1) / 3
    expected = ((between - within) / 2.4) ** 0.5
    assert spread_by_teacher([d], groups) == Spread(pytest.approx(within**0.5), pytest.approx(expected), 1)


def test_order_of_seeds_and_a_shift_of_a_row_change_nothing() -> None:
    d = [[1.0, 5.0, 3.0, 7.0], [0.5, 4.0, 0.0, 6.0]]
    first = spread_by_teacher(d, [0, 1, 0, 1])
    again = spread_by_teacher([[row[i] + 10 * k for i in (2, 1, 0, 3)] for k, row in enumerate(d)], [0, 1, 0, 1])
    assert first is not None
    assert first == pytest.approx(again)


def test_it_finds_what_was_put_in() -> None:
    random, groups = np.random.default_rng(0), [0, 1, 2] * 2
    found = []
    for _ in range(400):
        of_teachers = random.normal(0, 2, (4, 3))
        found.append(spread_by_teacher(of_teachers[:, groups] + random.normal(0, 1, (4, 6)), groups))
    assert np.mean([one.within**2 for one in found if one]) == pytest.approx(1, rel=0.1)
    assert np.mean([one.teachers**2 for one in found if one]) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("teachers", [[0, 0, 0], [0, 1, 2]], ids=["one teacher", "one seed each"])
def test_without_both_kinds_of_repetition_nothing_can_be_told(teachers: list[int]) -> None:
    assert spread_by_teacher([[1.0, 2.0, 3.0]], teachers) is None


def _results(values: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "status": "done", "role": "student", "task": "gsm8k", "metric": "bits_per_byte", "method": method,
                "fidelity": "", "teacher_kind": "none" if method == "control" else "cross-tokenizer", "seed": seed,
                "value": value, "unit": "bits/byte",
            }
            for method, each in values.items()
            for seed, value in enumerate(each)
        ]
    )  # fmt: skip


def test_a_report_says_it_for_each_column() -> None:
    results = _results({"control": [1, 1, 1, 1, 9], "uld": [2, 4, 6, 8]})  # the control has a further seed
    (line,) = teacher_lines(results, "control", {"gsm8k": {0: 0, 1: 0, 2: 1, 3: 1}})
    assert "varies by 1.41 bits/byte between students of one teacher, and by 2.65 more between teachers" in line
    assert "of 2 trainings of the teachers" in line
    (line,) = teacher_lines(results, "control", {"gsm8k": {0: 0, 1: 1, 2: 2, 3: 3}})
    assert "can't be told from the rest" in line
    assert teacher_lines(results, "control", {}) == []
    assert teacher_lines(results, "sft", {"gsm8k": {0: 0, 1: 0, 2: 1, 3: 1}}) == []
