"""What a loss promises to hold of a chunk, by which chunks are cut, and what it is counted to hold."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.base import Held, registered
from methods.library.closed_form import with_gradient

FOLDER = Path(__file__).parents[2] / "benchmarks"
SORT = {"sort": "top_k", "top_k": 30}
SMALL = {"cdm": {"k": 5}, "x_token": {"columns": 120}, "gold": SORT, "uld": SORT, "multilevelot": {"k": 5}}
"""Options whose columns are few beside vocabularies, as they are at full size."""


@pytest.fixture(scope="module")
def memory() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("memory")


@pytest.fixture(scope="module")
def inputs(memory: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One response, in chunks of 48 rows or whole."""
    texts = {"tokens": 40, "length": 40, "chunk_rows": 48, "dtype": torch.bfloat16}
    return memory.inputs_of(tmp_path_factory.mktemp("tokenizers"), 2400, 1600, **texts)


def forms() -> list[str]:
    """Whatever has a teacher's rows; benchmarks/memory.py has the same, and what else holds something of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return [*importlib.import_module("memory").forms()]


@pytest.mark.parametrize("form", forms())
def test_a_loss_holds_what_it_promises(form: str, memory: Any, inputs: Any) -> None:
    """On a GPU's way with sorts by torch, where no kernel of the method's own is."""
    name, options = memory.forms()[form]
    method = registered()[name](**SMALL.get(name, {}) | options)
    found = memory.walked(inputs, method)
    assert found.rows >= 40
    share = found.bytes / (found.rows * found.promised)
    assert 0.5 < share <= 1, share


@pytest.mark.parametrize("names", [["uld", "fkd"], ["gold", "fkd"], ["uld", "fkd", "rkd"], ["fkd", "gold", "rkd"]])
def test_losses_together_hold_what_they_promise_on_a_cpu(names: list[str], memory: Any, tmp_path: Path) -> None:
    """Where loops begin with the cross-entropy, and losses add to its gradient."""
    texts = {"tokens": 40, "length": 40, "chunk_rows": 48, "dtype": torch.float32}
    inputs = memory.inputs_of(tmp_path, 2400, 1600, **texts)
    options = SMALL | {"gold": {"unmatched": "rest"}}
    found = memory.walked(inputs, *(registered()[name](**options.get(name, {})) for name in names))
    share = found.bytes / (found.rows * found.promised)
    assert 0.5 < share <= 1, share


def test_a_loss_that_holds_more_than_it_promises_is_noticed(memory: Any, inputs: Any) -> None:
    method = registered()["fkd"]()
    kind = type("Greedy", (type(method),), {"held": Held(1, 1)})
    found = memory.walked(inputs, kind())
    assert found.bytes > 1.1 * found.rows * found.promised


def test_bytes_are_those_of_what_is_referred_to(memory: Any) -> None:
    """By hand: 4,000 bytes, of which two live at once at most, beside a view that takes none."""
    before = torch.ones(1000)
    with memory.HeldBytes() as held:
        first = before.exp()
        second = first[:10]
        assert held.now == 4000
        del first
        assert held.now == 4000  # the view
        third = torch.zeros(1000)
        del second
        third.add_(before)
        assert (held.now, held.peak) == (4000, 8000)
        del third
    assert (held.now, held.peak) == (0, 8000)


def test_bytes_of_a_way_back_count(memory: Any) -> None:
    leaf = torch.ones(1000, requires_grad=True)
    with memory.HeldBytes() as held:
        value = with_gradient(leaf, leaf.detach().sum(), torch.ones(1000))
        value.backward()
    assert leaf.grad is not None
    assert held.peak >= 8000  # the gradient that is given, and that times 1
