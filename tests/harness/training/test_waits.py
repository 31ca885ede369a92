"""How often a step waits for its GPU: by torch's own switch where there is one, and as tests/fake_gpu.py counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.models.heads import Head
from harness.recipe.schema import Training
from harness.training.trainer import train
from methods.base import Method
from methods.cdm import CDM
from methods.gold import GOLD
from methods.library import kernels
from methods.library.alignment import AlignedResponse
from methods.uld import ULD
from tests.fake_gpu import GPU, FakeGpu, kernels_that_do_nothing, put
from tests.harness.training.test_loss import rows_of, walk_over, walked
from tests.methods import contract
from tests.methods.test_contract import METHODS

WAITS = {
    ("bpm", "described"): (3, "what of a teacher's token is still to be said is looked up on the host"),
    ("cdm", "released"): (8, "edit distances are measured on the host, one map for a whole response, either way"),
    ("csd", "described"): (14, "last tokens that end the same text are looked up on the host"),
    ("multilevelot", "described"): (2, "columns are assigned on the host"),
}
"""The most that a chunk waits, for methods whose losses do, and why."""
WITHOUT_KERNELS = {("cdm", "described"): (9, "pairs are counted, and chosen in rounds until none is left")}
"""The same where there is no Triton, or ``kernels.enabled`` is off."""
LOG = 6
"""Numbers that a step's log reads when the step is over: all but the first are there by then."""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU waits for nothing")
@pytest.mark.parametrize("method", [ULD(), GOLD()], ids=lambda method: method.name)
def test_a_step_waits_for_its_gpu_only_to_be_logged(method: Method, tmp_path: Path) -> None:
    made = contract.bench(method, dtype=torch.float32)
    for model in (made.student, made.teacher):
        model.to("cuda")
    waits = []
    for steps in (4, 12):  # what begins and ends a training is in both
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                train(
                    made.distiller(),
                    made.examples,
                    made.collator(chunk_rows=16),
                    Training(steps=steps, learning_rate=1e-3, batch_size=2),
                    steps=steps,
                    seed=3,
                    work=tmp_path / str(steps),
                )
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing" in str(one.message) for one in heard))
    assert waits[1] - waits[0] <= 8 * LOG


@METHODS
@pytest.mark.parametrize("with_kernels", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["kernels", "plain"])
def test_a_chunk_waits_for_nothing(method: Method, with_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss and gradients; after a first walk, which may look at the vocabularies."""
    walk, rows, weights = walked(contract.bench(method, dtype=torch.float32))
    monkeypatch.setattr(kernels, "enabled", with_kernels)
    gpu = FakeGpu()
    with kernels_that_do_nothing(gpu, monkeypatch) if with_kernels else nullcontext(), gpu:
        walk.batch = walk.batch.to(GPU, non_blocking=True)
        walk.teacher_rows = {role: put(of_role) for role, of_role in walk.teacher_rows.items()}
        walk.run(put(rows), [put(weight) for weight in weights], [True, True])
        gpu.waits.clear()
        parts, _ = walk.run(put(rows), [put(weight) for weight in weights], [True, True])
    key = method.name, method.options.fidelity
    most, _ = WAITS.get(key) or (not with_kernels and WITHOUT_KERNELS.get(key)) or (0, "")
    waits = gpu.waits.total() / len(walk.batch.chunks)
    assert len(walk.batch.chunks) > 3
    assert parts.loss.device == GPU
    assert 0.5 * most <= waits <= most, gpu.waits


@pytest.mark.parametrize("pieces", ["one_to_one", "first"])
def test_a_micro_batch_that_aligns_at_the_step_waits_for_nothing(pieces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entropies, paths and pairs, the chunks that they are laid in, and the loss over these."""
    made = contract.bench(CDM(pieces=pieces), dtype=torch.float32)
    batch, gpu = made.batch(chunk_rows=20), FakeGpu()
    rows, teacher_rows = rows_of(made, batch)
    head = Head.of(made.student).weight.detach()
    with kernels_that_do_nothing(gpu, monkeypatch), gpu:
        rows, teacher_rows = put(rows), {role: put(each) for role, each in teacher_rows.items()}
        for _ in range(2):  # tables of the vocabularies are copied by the first
            moved = batch.sent(GPU)
            gpu.waits.clear()
            aligned = made.distiller()._align(moved, rows, teacher_rows)
            parts, _ = walk_over(made, aligned, teacher_rows).run(rows, [put(head)], [True, True])
    assert aligned.terms[0].paired is not None
    assert aligned.terms[0].paired.device == parts.loss.device == GPU
    assert gpu.launches["warp_kernel"] == 2
    assert not gpu.waits


def test_the_paths_of_a_batch_are_waited_for_once() -> None:
    """Where pieces of several tokens are compared: the host lays chunks closed under them. The same groups as there."""
    method = CDM(pieces="mean")
    made = contract.bench(method, dtype=torch.float32)
    random, on_host, on_gpu, gpu = np.random.default_rng(0), [], [], FakeGpu()
    for example in made.examples:
        (response,) = example.groups
        assert isinstance(response, AlignedResponse)
        entropies = [random.random(ids.size) for ids in (response.student_ids, response.teacher_ids)]
        on_host.append(replace(response, student_entropy=entropies[0], teacher_entropy=entropies[1]))
        ours, theirs = (put(torch.from_numpy(each)) for each in entropies)
        on_gpu.append(replace(response, student_entropy=ours, teacher_entropy=theirs))
    with gpu:
        method.align_all(on_gpu)  # which copies the texts
        gpu.waits.clear()
        found = method.align_all(on_gpu)
    assert gpu.waits.total() == 1, gpu.waits
    assert [each.to_lists() for each in found] == [each.to_lists() for each in method.align_all(on_host)]


@pytest.mark.parametrize(
    ("wait", "times"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu"), 1),
        (lambda x: x.to(torch.device("cpu"), non_blocking=True), 0),
        (lambda x: torch.ones(3).to(x.device), 1),
        (lambda x: torch.ones(3).to(x.device, non_blocking=True), 1),
        (lambda x: torch.ones(3).pin_memory().to(x.device), 1),
        (lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True), 0),
        (lambda x: torch.ones(3).pin_memory().add(1).to(x.device, non_blocking=True), 1),
        (lambda x: torch.ones(3, device=x.device), 0),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1),
        (lambda x: torch.tensor([1.0, 2.0]).max().item(), 0),
        (lambda x: x[x > 0], 1),
        (lambda x: x.masked_select(x > 0), 1),
        (lambda x: (x > 0).nonzero(), 1),
        (lambda x: torch.where(x > 0), 1),
        (lambda x: torch.where(x > 0, x, 0.0), 0),
        (lambda x: x.new_tensor(1.0), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: float(x.sum()) if x.sum() > 0 else 0.0, 2),
        (lambda x: x.long().abs().bincount(), 1),
        (lambda x: x.masked_fill_(x > 0, 0).index_put_((x > 0,), x.new_zeros(())), 1),
        (lambda x: x.sort().values.cumsum(0)[2:], 0),
    ],
)
def test_what_waits_is_known(wait: Callable[[Tensor], object], times: int) -> None:
    with FakeGpu() as gpu:
        wait(put(torch.tensor([0.5, 1.0, -2.0, 3.0, 4.0])))
    assert gpu.waits.total() == times


def test_launches_are_counted() -> None:
    with FakeGpu() as gpu:
        x = put(torch.ones(4, 4))
        (x.T[1:] + 1).sum().detach()
        torch.ones(3).sum()
    assert gpu.launches == {"add": 1, "sum": 1}
