"""methods.library.warping_triton in Triton's interpreter: the host's paths, distances and nearest partners."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
import torch
from rapidfuzz.distance import Levenshtein

if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs Triton and TRITON_INTERPRET=1, which no other test may see", allow_module_level=True)

from methods.cdm import CDM
from methods.library import kernels, warping_triton
from methods.library.contextual import contextual
from methods.library.edit_distance import TextTable, edit_distances
from methods.library.vocabulary import TokenizerPair
from methods.library.warping import warp_all
from tests.methods.library.test_warping import by_hand


@pytest.mark.parametrize("seed", range(6))
def test_paths(seed: int) -> None:
    """Small costs, so that many cells are equal, and a response of a single cell."""
    generator = np.random.default_rng(seed)
    shapes = [(1, 1), *(tuple(generator.integers(1, 12, 2)) for _ in range(4))]
    tables = [generator.integers(0, 4, shape) for shape in shapes]
    high, wide = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    padded = generator.integers(0, 4, (len(tables), high, wide))
    for place, table in enumerate(tables):
        padded[place, : table.shape[0], : table.shape[1]] = table
    rows, columns = (torch.tensor([int(shape[axis]) for shape in shapes]) for axis in (0, 1))
    cells = warping_triton.warp_cells(torch.from_numpy(padded), rows, columns)
    for path, (teacher, student) in zip(cells.tolist(), warp_all(tables), strict=True):
        wanted = (teacher * wide + student).tolist()[::-1]
        assert path[: len(wanted)] == wanted
        assert not any(path[len(wanted) :])


def test_edit_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of up to 64 characters by the kernel, and longer ones beside it."""
    monkeypatch.setattr(kernels, "warping_for", lambda numbers: warping_triton)
    monkeypatch.setattr("methods.library.edit_distance.warping_for", lambda numbers: warping_triton)
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ab\u00e4\u4e2d"), random.integers(0, 9))) for _ in range(40)] + [
        "a" * 64,
        "ab" * 31,
    ]
    for given in (texts, [*texts, "xyz" * 30]):
        table = TextTable(given)
        ids = torch.from_numpy(random.integers(0, len(given), (2, 300)))
        found = edit_distances(table, table, ids[0], ids[1])
        assert found.tolist() == [Levenshtein.distance(given[a], given[b]) for a, b in ids.T.tolist()]


@pytest.mark.parametrize(("theta", "kind"), [(0.3, "exact"), (0.25, "nearest"), (1.01, "nearest")])
def test_nearest_partners(theta: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the host: many ties, distances of just θ, empty texts, and such as are longer than a word."""
    random = np.random.default_rng(0)
    sides = []
    for side in range(2):
        texts = {"".join(random.choice(list("aab ä"), random.integers(1, 6))): None for _ in range(16)}
        texts |= {"abcdefg" + "x" * side: None, " ": None, "  ": None}
        texts |= {"ab" * 33 + "c" * n: None for n in range(side, side + 3)}
        sides.append(by_hand([*(text.encode() for text in texts), b"</s>"], {len(texts)}, eos=len(texts)))
    method = CDM(k=30, theta=theta, static_map=kind)
    method.prepare(TokenizerPair(*sides))
    ours, theirs = (
        torch.from_numpy(np.stack([random.permutation(len(side))[:k] for _ in range(3)]))
        for side, k in zip(sides, (13, 11), strict=True)
    )
    wanted = contextual(theirs, ours, method.to_student, method.to_teacher, theta)
    static, _ = contextual(theirs, ours, method.to_student, method.to_teacher, 0.0)
    monkeypatch.setattr("methods.library.contextual.stays_on_device", lambda where: True)
    monkeypatch.setattr("methods.library.contextual.warping_for", lambda numbers: warping_triton)
    found = contextual(theirs, ours, method.to_student, method.to_teacher, theta)
    assert all(map(torch.equal, found, wanted))
    asked = torch.tensor([True, False, True])
    some = contextual(theirs, ours, method.to_student, method.to_teacher, theta, asked)
    for partners, of_all in zip(some, wanted, strict=True):
        assert partners.tolist() == of_all.masked_fill(~asked[:, None], -1).tolist()
    assert (found[0] != -1).sum() > (static != -1).sum()
