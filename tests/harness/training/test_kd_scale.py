"""KD terms that count like the cross-entropy: the factor of each step is what the step before showed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.training.checkpoints import latest_checkpoint
from harness.training.kd_scale import MOST, scales_after
from methods.base import KDOptions, Method
from methods.fkd import FKD
from methods.gold import GOLD
from methods.uld import ULD
from tests.harness.training.test_trainer import _losses
from tests.methods import contract

RATIOS: dict[str, Callable[[dict[str, float]], float]] = {
    "match_ce": lambda step: step["ce"] / step["kd_0"],
    "match_gradient": lambda step: 1 / step["kd_ce_ratio_0"],
}


@pytest.mark.parametrize("kd_scale", RATIOS)
@pytest.mark.parametrize("kind", [ULD, FKD], ids=lambda kind: kind.name)
def test_each_step_takes_the_ratio_of_the_step_before(
    kind: type[Method[KDOptions]], kd_scale: str, tmp_path: Path
) -> None:
    """loss = 0.3 CE + 0.7 s KD, over windows of two micro-batches; the first step has s = 1."""
    settings = {"batch_size": 4, "micro_batch_size": 2}
    steps = contract.run(kind(kd_scale=kd_scale), tmp_path, **settings)
    assert len(steps) == 4
    expected = [1.0, *map(RATIOS[kd_scale], steps[:-1])]
    assert [step["kd_scale_0"] for step in steps] == pytest.approx(expected, rel=1e-12)
    for step in steps:
        weighted = 0.3 * step["ce"] + 0.7 * step["kd_scale_0"] * step["kd_0"]
        assert step["loss"] == pytest.approx(weighted, rel=1e-6)
    fixed = contract.run(kind(), tmp_path / "fixed", **settings)
    assert "kd_scale_0" not in fixed[0]
    assert fixed[0]["loss"] == steps[0]["loss"]
    assert fixed[-1]["ce"] != steps[-1]["ce"]


@pytest.mark.parametrize("kd_scale", RATIOS)
def test_a_resumed_training_goes_on_with_the_same_factor(kd_scale: str, tmp_path: Path) -> None:
    """Broken off after each step: the losses are those of a training that was not, to the last bit."""
    straight = contract.run(GOLD(kd_scale=kd_scale), tmp_path / "straight")
    for stop in (1, 2, 3):
        work, settings = tmp_path / str(stop), {"checkpoint_every": 1}
        with pytest.raises(contract.StoppedError):
            contract.run(GOLD(kd_scale=kd_scale), work, stop_after=stop + 1, **settings)
        assert latest_checkpoint(work) == work / f"checkpoint-{stop}"
        assert _losses(contract.run(GOLD(kd_scale=kd_scale), work, **settings)) == _losses(straight)


def test_gradients_are_scaled_as_the_loss_is() -> None:
    """By hand: the gradient of 0.3 CE + 0.7 · 5 KD is that of a KD weight five times as large."""
    made = contract.bench(ULD(), dtype=torch.float64)
    batch, parameters = made.batch(), list(made.student.parameters())
    divisors = made.objective.divisors(batch.counts)
    alone = {}
    for scale in (0.0, 1.0, 5.0):
        parts = made.distiller()(batch, divisors, [scale])
        alone[scale] = torch.autograd.grad(parts.loss, parameters)
    for none, once, five in zip(*alone.values(), strict=True):
        torch.testing.assert_close(five, none + 5 * (once - none), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("ce", "kd"),
    [
        pytest.param(math.nan, 0.5, id="no cross-entropy in the window"),
        pytest.param(2.0, 0.0, id="no KD"),
        pytest.param(2.0, -0.1, id="a negative KD would be maximised"),
        pytest.param(2.0, 1e-9, id="a KD that has nearly vanished"),
        pytest.param(2.0, math.inf, id="infinite"),
    ],
)
def test_a_ratio_that_says_nothing_leaves_the_factor_as_it_was(ce: float, kd: float) -> None:
    last = {"ce": ce, "kd_0": kd, "kd_scale_0": 3.0, "kd_1": 4.0}
    assert scales_after(["match_ce", "fixed"], [last]) == [3.0, 1.0]


def test_bounds_and_beginnings() -> None:
    assert scales_after(["match_ce", "match_gradient", "fixed"], []) == [1.0, 1.0, 1.0]
    last = {"ce": MOST, "kd_0": 1.0, "kd_scale_0": 3.0, "kd_ce_ratio_1": 0.25, "kd_scale_1": 7.0}
    assert scales_after(["match_ce", "match_gradient"], [{}, last]) == [MOST, 4.0]
