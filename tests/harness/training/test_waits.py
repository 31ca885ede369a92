"""How often a step waits for its GPU, by torch's own switch; skipped where there is none."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from harness.recipe.schema import Training
from harness.training.trainer import train
from methods.base import Method
from methods.gold import GOLD
from methods.uld import ULD
from tests.methods import contract

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
