"""methods.library.jit: what is compiled gives what Python gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.library.jit import compiled, part_in_any_order


def double(values: Any, found: Any) -> None:
    for k in range(len(values)):
        found[k] = 2 * values[k]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kept", [True, False])
def test_a_function_of_either_precision(
    dtype: type, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path) if kept else "")
    values, found = np.arange(3, dtype=dtype), np.zeros(3, dtype=dtype)
    doubled = compiled("void(T[::1], T[::1])")(double)
    doubled(values, found)
    assert found.tolist() == [0, 2, 4]
    assert any(tmp_path.iterdir()) == kept
    with pytest.raises(TypeError):  # another layout is not compiled in passing
        doubled(np.arange(6, dtype=dtype)[::2], found)


def test_a_folder_that_cannot_be_written_is_told_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    found = np.zeros(3)
    with pytest.warns(UserWarning, match="compiled without"):
        compiled("void(T[::1], T[::1])")(double)(np.arange(3.0), found)
    assert found.tolist() == [0, 2, 4]


def test_a_sum_in_any_order_is_a_sum() -> None:
    def total(values: Any) -> float:
        found = 0.0
        for value in values:
            found += value
        return found

    values = np.random.default_rng(0).normal(size=1003)
    assert np.isclose(part_in_any_order(total)(values), total(values), rtol=1e-12)
    assert np.isnan(part_in_any_order(total)(np.append(values, np.nan)))
