"""methods.library.columns: torch's own indexing is the truth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.library import cpu_loops
from methods.library.columns import add, take


def some_of(size: int, share: float, generator: torch.Generator) -> Tensor | None:
    """Numbers below a size in any order, none twice; None for all where all are wanted."""
    return None if share == 1 else torch.randperm(size, generator=generator)[: int(share * size)]


@given(
    st.integers(0, 9),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_any_rows_and_columns(
    rows: int, columns: int, of_rows: float, of_columns: float, dtype: torch.dtype, seed: int
) -> None:
    """bfloat16 has no loop."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator).to(dtype)
    row, column = some_of(rows, of_rows, generator), some_of(columns, of_columns, generator)
    every = torch.arange(rows), torch.arange(columns)
    at = (every[0] if row is None else row)[:, None], every[1] if column is None else column
    assert torch.equal(take(matrix, row, column), matrix[at])
    values = torch.randn(matrix[at].shape, generator=generator).to(dtype)
    expected = matrix.index_put(at, matrix[at] + values)
    add(matrix, row, column, values)
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_loops_and_torch_agree_on_a_matrix_that_threads_share(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, row, column = torch.randn(40, 20_000), torch.randperm(40)[:33], torch.randperm(20_000)[:15_000]
    assert cpu_loops.run_on(matrix)
    assert 3 * cpu_loops._ENTRIES < 33 * 15_000
    before, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads)
        for enabled in (True, False):
            monkeypatch.setattr(cpu_loops, "enabled", enabled)
            taken, to = take(matrix, row, column), matrix.clone()
            add(to, row, column, taken)
            found.append((taken, to))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_other_layouts_are_taken_as_they_are() -> None:
    matrix, column = torch.randn(20, 30).t(), torch.tensor([7, 2, 11])
    assert torch.equal(take(matrix, None, column), matrix[:, column])
    expected = matrix.clone()
    expected[:, column] += 1
    add(matrix, None, column, torch.ones(30, 3))
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize("wrong", [-1, 6])
def test_what_is_not_there_is_an_error(wrong: int) -> None:
    matrix, known, unknown = torch.zeros(6, 6), torch.tensor([0, 1]), torch.tensor([0, wrong])
    for row, column in ((known, unknown), (unknown, known)):
        with pytest.raises(IndexError, match="of which there are 6"):
            take(matrix, row, column)
        with pytest.raises(IndexError, match="of which there are 6"):
            add(matrix, row, column, torch.ones(2, 2))
    assert not matrix.any()
