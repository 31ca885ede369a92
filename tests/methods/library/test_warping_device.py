"""methods.library.warping_device: the host's costs, weights and paths, for batches of all shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cdm import CDM
from methods.library import warping
from methods.library.alignment import AlignedResponse
from methods.library.vocabulary import Vocabulary
from methods.library.warping import EditCosts, entropy_weights, warp_all
from methods.library.warping_device import DeviceCosts, padded_weights, warp_cells
from tests import tiny
from tests.methods.library.test_warping import by_hand

STUDENT, TEACHER = (Vocabulary.of(tiny.tokenizer(f).backend_tokenizer, f, (2,)) for f in ("byte_level", "unigram"))
COSTS = EditCosts(STUDENT, TEACHER)
SEEDS = st.integers(0, 2**31)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), SEEDS)
@settings(max_examples=150, deadline=None)
def test_paths_of_any_tables(shapes: list[tuple[int, int]], seed: int) -> None:
    """Small costs, so that many cells are equal; what pads a table must not matter."""
    generator = np.random.default_rng(seed)
    tables = [generator.integers(0, 4, shape) for shape in shapes]
    high, wide = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    padded = generator.integers(0, 4, (len(tables), high, wide))
    for place, table in enumerate(tables):
        padded[place, : table.shape[0], : table.shape[1]] = table
    rows, columns = (torch.tensor([shape[axis] for shape in shapes]) for axis in (0, 1))
    cells = warp_cells(torch.from_numpy(padded), rows, columns)
    for path, (teacher, student) in zip(cells.tolist(), warp_all(tables), strict=True):
        wanted = (teacher * wide + student).tolist()[::-1]
        assert path[: len(wanted)] == wanted
        assert not any(path[len(wanted) :])


def test_weights_of_padded_entropies() -> None:
    generator = np.random.default_rng(0)
    entropies = [generator.random(n) * 5 for n in (1, 7, 300)] + [np.full(4, 2.0)]
    sizes = torch.tensor([len(each) for each in entropies])
    found = padded_weights([torch.from_numpy(each) for each in entropies], sizes)
    for row, each in zip(found, entropies, strict=True):
        assert row[: len(each)].tolist() == entropy_weights(each).tolist()


def response(generator: np.random.Generator, student: int, teacher: int) -> AlignedResponse:
    """Random tokens, special ones among them."""
    ids = [generator.integers(0, len(v), n) for v, n in ((STUDENT, student), (TEACHER, teacher))]
    ends = [np.arange(1, each.size + 1) for each in ids]
    return AlignedResponse(*ids, *ends)


@pytest.mark.parametrize("cells_at_once", [warping._CELLS_AT_ONCE, 50])
def test_paths_of_responses(monkeypatch: pytest.MonkeyPatch, cells_at_once: int) -> None:
    monkeypatch.setattr(warping, "_CELLS_AT_ONCE", cells_at_once)
    generator = np.random.default_rng(1)
    asked, tables = [], []
    for n, m in ((5, 8), (1, 1), (0, 4), (30, 25), (7, 0), (12, 30)):
        each = response(generator, n, m)
        entropy = generator.random(n) * 5, generator.random(m) * 5
        tables.append(
            COSTS.costs(each.student_ids, each.teacher_ids)
            * entropy_weights(entropy[1])[:, None]
            * entropy_weights(entropy[0])
        )
        ours, theirs = (torch.from_numpy(side) for side in entropy)
        asked.append(replace(each, student_entropy=ours, teacher_entropy=theirs))
    for found, wanted in zip(DeviceCosts(COSTS).paths(asked), warp_all(tables), strict=True):
        for side, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(side, other)


@pytest.mark.parametrize("pieces", ["one_to_one", "first"])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5),
    seed=SEEDS,
    cells_at_once=st.sampled_from([warping._CELLS_AT_ONCE, 50]),
)
@settings(max_examples=100, deadline=None)
def test_pairs_of_responses(pieces: str, sizes: list[tuple[int, int]], seed: int, cells_at_once: int) -> None:
    """Those of the groups that a host makes of the same paths, and their notes; bytes that both sides share or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warping, "_CELLS_AT_ONCE", cells_at_once)
        compare_pairs(pieces, sizes, seed)


def compare_pairs(pieces: str, sizes: list[tuple[int, int]], seed: int) -> None:
    generator = np.random.default_rng(seed)
    method = CDM(pieces=pieces)
    method.costs = COSTS
    asked, groups = [], []
    for n, m in sizes:
        entropy = generator.random(n) * 5, generator.random(m) * 5
        each = replace(
            response(generator, n, m),
            student_ends=np.sort(generator.integers(1, 12, n)),
            teacher_ends=np.sort(generator.integers(1, 12, m)),
        )
        groups.append(method.align(replace(each, student_entropy=entropy[0], teacher_entropy=entropy[1])))
        ours, theirs = (torch.from_numpy(side) for side in entropy)
        asked.append(replace(each, student_entropy=ours, teacher_entropy=theirs))
    found = DeviceCosts(COSTS).pairs(asked, firsts=pieces == "first")
    for partners, wanted, (n, _) in zip(found.partners, groups, sizes, strict=True):
        expected = np.full(n, -1)
        expected[wanted.student_index] = wanted.teacher_index
        assert partners.tolist() == expected.tolist()
    notes = {name: tuple(map(float, pair)) for name, pair in found.notes.items()}
    assert notes == {name: tuple(np.sum([each.notes[name] for each in groups], axis=0)) for name in notes}
    assert notes.keys() == groups[0].notes.keys()


def test_special_tokens_of_one_meaning_cost_nothing() -> None:
    """Ends of a response whatever their names, others by name."""
    student = by_hand([b"<|im_end|>", b"<pad>", b"a", b"<s>"], {0, 1, 3}, eos=0)
    teacher = by_hand([b"<eos>", b"<bos>", b"a", b"<pad>"], {0, 1, 3}, eos=0)
    costs, every = EditCosts(student, teacher), np.arange(4)
    (found,) = DeviceCosts(costs)._between([AlignedResponse(*[every] * 4)], torch.device("cpu"))
    assert found[0, 0] == found[3, 1] == 0
    assert found.tolist() == costs.costs(every, every).tolist()
